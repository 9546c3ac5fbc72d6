/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* ttl: decrement the TTL of IPv4 and the hop limit of IPv6, as a router does (RFC 1812, 5.3.1; RFC 8200, 3), and mend the checksum. A frame
 * that has none left to lose is dropped. Other frames stay as they are. Headers are looked for behind up to two VLAN tags.
 *   egress = ["ttl"]
 */
#include "bpf/lib/headers.bpf.h"

#include "bpf/abi/ttl.h"

EGRESS_DROPS(ttl, "expired", "truncated")
EGRESS_COUNTERS(ttl, "ipv4", "ipv6", "other")
EGRESS_KEYS(ttl)
EGRESS_NOT_BEHIND(ttl, { .program = "ttl", .why = "a router decrements once; leave one out" },
	{ .program = "encap_ipip", .why = "it would age the tunnel's own header; put it in front" },
	{ .program = "encap_vxlan", .why = "it would age the tunnel's own header; put it in front" })

struct ttl_state {
	__u64 count[TTL_OTHER + 1];
};

EGRESS(ttl, "decrement TTL or hop limit", struct egress_none, struct ttl_state)
{
	struct headers_l3 l3 = headers_l3(frame);
	headers_ipv6 *ip6;
	headers_ipv4 *ip;

	if (!l3.at)
		return egress_drop(TTL_TRUNCATED);
	if (l3.type == NET16(ETH_P_IP)) {
		ip = egress_header(frame, l3.at, sizeof(*ip));
		if (!ip)
			return egress_drop(TTL_TRUNCATED);
		if (ip->ttl <= 1)
			return egress_drop(TTL_EXPIRED);
		/* The word of TTL and protocol, of which the TTL is the upper byte. */
		ip->check = headers_checksum(ip->check, NET16(ip->ttl << 8), NET16((ip->ttl - 1) << 8));
		ip->ttl--;
		st->count[TTL_IPV4]++;
	} else if (l3.type == NET16(ETH_P_IPV6)) {
		ip6 = egress_header(frame, l3.at, sizeof(*ip6));
		if (!ip6)
			return egress_drop(TTL_TRUNCATED);
		if (ip6->hop_limit <= 1)
			return egress_drop(TTL_EXPIRED);
		ip6->hop_limit--;
		st->count[TTL_IPV6]++;
	} else {
		st->count[TTL_OTHER]++;
	}
	return EGRESS_TRANSMIT;
}
