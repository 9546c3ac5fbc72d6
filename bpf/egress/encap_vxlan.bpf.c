/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* encap_vxlan: carry the whole frame, its VLAN tags included, in UDP behind outer Ethernet and IP headers (RFC 7348). DSCP and ECN are those of
 * an IP packet in the frame (RFC 6040, normal mode), else 0. The UDP source port is the same for all frames of a flow. The UDP checksum
 * is 0: so RFC 7348 wants it over IPv4, and RFC 6935 permits it to tunnels over IPv6. Frames grow by 50 bytes over IPv4, by 70 over IPv6.
 *   egress = [{ program = "encap_vxlan", vni = 5, local = "192.0.2.1", remote = "198.51.100.1", dst = "02:00:00:00:00:01" }]
 *   vni = 5                    # network, 0 to 16777215
 *   local = "192.0.2.1"        # outer source address
 *   remote = "198.51.100.1"    # outer destination address; both of one family
 *   dst = "02:00:00:00:00:01"  # outer Ethernet destination
 *   src = "02:00:00:00:00:02"  # outer Ethernet source; left out: the address of the port's device
 *   port = 4789                # UDP destination port; left out: 4789
 *   ttl = 64                   # outer TTL or hop limit; left out: 64
 *   mtu = 1500                 # left out: the MTU of the port's own device. The outer packet may be so long, a frame in it 36 bytes less over
 *                              # IPv4, 56 less over IPv6
 */
#include "bpf/lib/encap.bpf.h"

#include "bpf/abi/encap_vxlan.h"

EGRESS_DROPS(encap_vxlan, "truncated", "too_long", "no_headroom")
EGRESS_COUNTERS(encap_vxlan)
EGRESS_NOT_BEHIND(encap_vxlan, { .program = "mtu_guard", .why = "it makes frames longer than those were judged; put mtu_guard behind it" })
EGRESS_KEYS(encap_vxlan,
	{ .name = "vni", .type = EGRESS_KEY_U32, .says = "the network", .required = 1, .max = 0xffffff,
	  .offset = offsetof(struct encap_vxlan_config, vni) },
	{ .name = "dst", .type = EGRESS_KEY_MAC, .says = "outer Ethernet destination", .required = 1,
	  .offset = offsetof(struct encap_vxlan_config, dst) },
	{ .name = "src", .type = EGRESS_KEY_STATION, .says = "outer Ethernet source; left out, that of the port's device", .fallback = "port",
	  .offset = offsetof(struct encap_vxlan_config, src) },
	{ .name = "port", .type = EGRESS_KEY_U32, .says = "UDP destination port", .fallback = "4789", .min = 1, .max = 0xffff,
	  .offset = offsetof(struct encap_vxlan_config, port) },
	ENCAP_KEYS(struct encap_vxlan_config))

EGRESS_PREPARE(encap_vxlan, struct encap_vxlan_config) { return encap_refuse(&config->ends); }

struct vxlan_headers {
	__be16 source;
	__be16 destination;
	__be16 length;
	__be16 check;
	__be16 flags;
	__be16 reserved;
	__be16 vni[2];	/* 24 bits, and 8 reserved ones */
};

#define VXLAN_HAS_VNI 0x0800
#define VXLAN_FIRST_PORT 0xc000	/* to 0xffff: the dynamic ports, RFC 7348, 5 */
#define VXLAN_IPV4_FRAGMENT 0x3fff	/* offset, or more to come */

static inline __attribute__((always_inline)) __u32 vxlan_mix(__u32 hash, __u16 word)
{
	hash = (hash ^ word) * 0x9e3779b1u;
	return hash ^ hash >> 15;
}

static inline __attribute__((always_inline)) __u32 vxlan_mix_all(__u32 hash, const __be16 *words, int number)
{
	for (int i = 0; i < number; i++)
		hash = vxlan_mix(hash, words[i]);
	return hash;
}

/* A hash of the frame's flow: addresses and types of each layer, ports of TCP and UDP. The fragments of a packet are of one flow, so that
 * the ports count in none of them. */
static inline __attribute__((always_inline)) __u32 vxlan_flow(struct egress_frame *frame, struct headers_l3 l3)
{
	__be16 *eth = egress_header(frame, 0, ETH_HLEN), *ports;
	struct encap_ipv6 *ip6;
	struct encap_ipv4 *ip;
	__u32 hash, l4;
	__u8 protocol;

	if (!eth)
		return 0;
	hash = vxlan_mix_all(0, eth, ETH_HLEN / 2);
	if (l3.at && l3.type == NET16(ETH_P_IP)) {
		ip = egress_header(frame, l3.at, sizeof(*ip));
		if (!ip)
			return hash;
		protocol = NET16(ip->ttl_protocol) & 0xff;
		hash = vxlan_mix_all(vxlan_mix_all(vxlan_mix(hash, protocol), ip->local, 2), ip->remote, 2);
		if (NET16(ip->version_tos) >> 8 != 0x45 || NET16(ip->fragment) & VXLAN_IPV4_FRAGMENT)
			return hash;
		l4 = l3.at + sizeof(*ip);
	} else if (l3.at && l3.type == NET16(ETH_P_IPV6)) {
		ip6 = egress_header(frame, l3.at, sizeof(*ip6));
		if (!ip6)
			return hash;
		protocol = NET16(ip6->protocol_ttl) >> 8;
		hash = vxlan_mix_all(vxlan_mix_all(vxlan_mix(hash, protocol), ip6->local, 8), ip6->remote, 8);
		l4 = l3.at + sizeof(*ip6);
	} else {
		return hash;
	}
	ports = egress_header(frame, l4, 2 * sizeof(*ports));
	return ports && (protocol == IPPROTO_TCP || protocol == IPPROTO_UDP) ? vxlan_mix_all(hash, ports, 2) : hash;
}

EGRESS(encap_vxlan, "carry frames in VXLAN", struct encap_vxlan_config, struct egress_none)
{
	struct headers_l3 l3 = headers_l3(frame);
	struct encap_inner inner = encap_inner(frame, l3);
	__u32 length = egress_length(frame) + sizeof(struct vxlan_headers);
	__u32 flow = vxlan_flow(frame, l3);
	struct vxlan_headers *vxlan;
	struct headers_ethernet *eth;

	if (!egress_header(frame, 0, sizeof(*eth)))
		return egress_drop(ENCAP_VXLAN_TRUNCATED);
	if (length + encap_size(&config->ends) > config->ends.mtu)
		return egress_drop(ENCAP_VXLAN_TOO_LONG);
	if (!encap_grow(frame, &config->ends, sizeof(*eth) + sizeof(*vxlan)))
		return egress_drop(ENCAP_VXLAN_NO_HEADROOM);
	eth = egress_header(frame, 0, sizeof(*eth));
	if (!eth)
		return egress_drop(ENCAP_VXLAN_TRUNCATED);
	headers_put_address(eth->to, config->dst);
	headers_put_address(eth->from, config->src);
	if (!encap_write(frame, &config->ends, sizeof(*eth), inner.traffic_class, IPPROTO_UDP, length))
		return egress_drop(ENCAP_VXLAN_TRUNCATED);
	vxlan = egress_header(frame, sizeof(*eth) + encap_size(&config->ends), sizeof(*vxlan));
	if (!vxlan)
		return egress_drop(ENCAP_VXLAN_TRUNCATED);
	vxlan->source = NET16(VXLAN_FIRST_PORT | (flow & 0x3fff));
	vxlan->destination = NET16(config->port);
	vxlan->length = NET16(length);
	vxlan->check = 0;
	vxlan->flags = NET16(VXLAN_HAS_VNI);
	vxlan->reserved = 0;
	vxlan->vni[0] = NET16(config->vni >> 8);
	vxlan->vni[1] = NET16(config->vni << 8);
	return EGRESS_TRANSMIT;
}
