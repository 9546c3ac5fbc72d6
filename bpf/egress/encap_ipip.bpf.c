/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* encap_ipip: put an outer IPv4 or IPv6 header in front of an IPv4 or IPv6 packet (RFC 2003, RFC 2473, RFC 4213). DSCP and ECN are those of
 * the packet (RFC 6040, normal mode). Ethernet addresses and up to two VLAN tags stay in front, the packet's own TTL stays as it is: mac_rewrite
 * and ttl are for these.
 *   egress = ["ttl", { program = "encap_ipip", local = "192.0.2.1", remote = "198.51.100.1" }, "mac_rewrite"]
 *   local = "192.0.2.1"      # outer source address
 *   remote = "198.51.100.1"  # outer destination address; both of one family
 *   ttl = 64                 # outer TTL or hop limit; left out: 64
 *   mtu = 1500               # left out: the MTU of the port's own device. Outer and inner packet together may be so long
 */
#include "bpf/lib/encap.bpf.h"

#include "bpf/abi/encap_ipip.h"

EGRESS_DROPS(encap_ipip, "truncated", "not_ip", "too_long", "no_headroom")
EGRESS_COUNTERS(encap_ipip)
EGRESS_NOT_BEHIND(encap_ipip, { .program = "mtu_guard", .why = "it makes frames longer than those were judged; put mtu_guard behind it" })
EGRESS_KEYS(encap_ipip, ENCAP_KEYS(struct encap_ipip_config))

EGRESS_PREPARE(encap_ipip, struct encap_ipip_config) { return encap_refuse(&config->ends); }

EGRESS(encap_ipip, "put an outer IP header in front of IP packets", struct encap_ipip_config, struct egress_none)
{
	struct headers_l3 l3 = headers_l3(frame);
	struct encap_inner inner = encap_inner(frame, l3);
	__u64 first, second;
	__u32 third;
	__u16 last;
	__u8 *at;

	if (l3.at && l3.type != NET16(ETH_P_IP) && l3.type != NET16(ETH_P_IPV6))
		return egress_drop(ENCAP_IPIP_NOT_IP);
	if (!inner.length)
		return egress_drop(ENCAP_IPIP_TRUNCATED);
	if (egress_length(frame) + encap_size(&config->ends) > config->ends.mtu + l3.at)
		return egress_drop(ENCAP_IPIP_TOO_LONG);
	/* All that may be in front of the packet. The bytes are there, and where they are the packet's, its outer header comes over them. */
	at = egress_header(frame, 0, ETH_HLEN + HEADERS_MAX_TAGS * HEADERS_VLAN_HLEN);
	if (!at)
		return egress_drop(ENCAP_IPIP_TRUNCATED);
	first = egress_get64(at);
	second = egress_get64(at + 8);
	third = egress_get32(at + 16);
	last = egress_get16(at + 20);
	if (!encap_grow(frame, &config->ends, 0))
		return egress_drop(ENCAP_IPIP_NO_HEADROOM);
	at = egress_header(frame, 0, ETH_HLEN + HEADERS_MAX_TAGS * HEADERS_VLAN_HLEN);
	if (!at)
		return egress_drop(ENCAP_IPIP_TRUNCATED);
	egress_put64(at, first);
	egress_put64(at + 8, second);
	egress_put32(at + 16, third);
	egress_put16(at + 20, last);
	if (!encap_write(frame, &config->ends, l3.at, inner.traffic_class, inner.protocol, inner.length))
		return egress_drop(ENCAP_IPIP_TRUNCATED);
	return EGRESS_TRANSMIT;
}
