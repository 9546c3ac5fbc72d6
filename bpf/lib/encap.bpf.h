/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* encap: the outer IP header of a tunnel, and what it takes over from the inner one. For both builds of an egress program. */
#pragma once

#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include "bpf/abi/encap.h"
#include "bpf/lib/headers.bpf.h"

/* The keys of struct encap_ends, which is the member `ends` of the configuration. */
#define ENCAP_KEYS(config_type)                                                                                    \
	{ .name = "local", .type = EGRESS_KEY_ADDRESS, .says = "outer source address", .required = 1,              \
	  .offset = offsetof(config_type, ends.local), .number = offsetof(config_type, ends.local_version) },      \
	{ .name = "remote", .type = EGRESS_KEY_ADDRESS, .says = "outer destination address", .required = 1,        \
	  .offset = offsetof(config_type, ends.remote), .number = offsetof(config_type, ends.remote_version) },    \
	{ .name = "ttl", .type = EGRESS_KEY_U32, .says = "outer TTL or hop limit", .fallback = "64", .min = 1, .max = 255, \
	  .offset = offsetof(config_type, ends.ttl) },                                                             \
	{ .name = "mtu", .type = EGRESS_KEY_MTU, .says = "a frame that is longer with its outer headers is dropped", \
	  .offset = offsetof(config_type, ends.mtu) }

/* What is wrong with the keys together. For EGRESS_PREPARE. */
static inline __attribute__((always_inline)) const char *encap_refuse(const struct encap_ends *ends)
{
	return ends->local_version == ends->remote_version ? 0 : "local and remote are not both IPv4 or both IPv6";
}

/* Of 16-bit words alone: behind Ethernet and tags no more than that is aligned. */
struct encap_ipv4 {
	__be16 version_tos;
	__be16 length;
	__be16 id;
	__be16 fragment;
	__be16 ttl_protocol;
	__be16 check;
	__be16 local[2];
	__be16 remote[2];
};

struct encap_ipv6 {
	__be16 version_class;	/* and four bits of the flow label */
	__be16 flow;
	__be16 length;
	__be16 protocol_ttl;
	__be16 local[8];
	__be16 remote[8];
};

#define ENCAP_DF 0x4000

static inline __attribute__((always_inline)) int encap_is_ipv6(const struct encap_ends *ends) { return ends->local_version == 6; }

/* What a tunnel asks of the inner packet. */
struct encap_inner {
	__u32 length;		/* by its own header, so without what pads a short frame; 0: not IP, or cut */
	__u8 traffic_class;	/* DSCP and ECN */
	__u8 protocol;		/* of an IP header in front of it */
};

static inline __attribute__((always_inline)) struct encap_inner encap_inner(struct egress_frame *frame, struct headers_l3 l3)
{
	struct encap_inner inner = { 0 };
	struct encap_ipv6 *ip6;
	struct encap_ipv4 *ip;

	if (!l3.at)
		return inner;
	if (l3.type == NET16(ETH_P_IP)) {
		ip = egress_header(frame, l3.at, sizeof(*ip));
		if (!ip || NET16(ip->length) < sizeof(*ip))
			return inner;
		inner.length = NET16(ip->length);
		inner.traffic_class = NET16(ip->version_tos) & 0xff;
		inner.protocol = IPPROTO_IPIP;
	} else if (l3.type == NET16(ETH_P_IPV6)) {
		ip6 = egress_header(frame, l3.at, sizeof(*ip6));
		if (!ip6)
			return inner;
		inner.length = sizeof(*ip6) + NET16(ip6->length);
		inner.traffic_class = NET16(ip6->version_class) >> 4 & 0xff;
		inner.protocol = IPPROTO_IPV6;
	}
	if (l3.at + inner.length > egress_length(frame))
		inner.length = 0;
	return inner;
}

/* Make room for an outer IP header and `more`, a constant. */
static inline __attribute__((always_inline)) int encap_grow(struct egress_frame *frame, const struct encap_ends *ends, __u32 more)
{
	if (encap_is_ipv6(ends))
		return egress_grow(frame, sizeof(struct encap_ipv6) + more);
	return egress_grow(frame, sizeof(struct encap_ipv4) + more);
}

static inline __attribute__((always_inline)) __u32 encap_size(const struct encap_ends *ends)
{
	return encap_is_ipv6(ends) ? sizeof(struct encap_ipv6) : sizeof(struct encap_ipv4);
}

/* Write the outer header at `at`, in front of `length` bytes, and its type into the two bytes before. 0: the frame ends before it. */
static inline __attribute__((always_inline)) int encap_write(struct egress_frame *frame, const struct encap_ends *ends, __u32 at,
							     __u8 traffic_class, __u8 protocol, __u32 length)
{
	struct {
		__be16 type;
		struct encap_ipv6 ip;
	} *six;
	struct {
		__be16 type;
		struct encap_ipv4 ip;
	} *four;
	__u32 sum;

	if (encap_is_ipv6(ends)) {
		six = egress_header(frame, at - sizeof(six->type), sizeof(*six));
		if (!six)
			return 0;
		six->type = NET16(ETH_P_IPV6);
		six->ip.version_class = NET16(6 << 12 | traffic_class << 4);
		six->ip.flow = 0;
		six->ip.length = NET16(length);
		six->ip.protocol_ttl = NET16(protocol << 8 | (ends->ttl & 0xff));
		egress_put64(&six->ip.local[0], egress_get64(&ends->local[0]));
		egress_put64(&six->ip.local[4], egress_get64(&ends->local[4]));
		egress_put64(&six->ip.remote[0], egress_get64(&ends->remote[0]));
		egress_put64(&six->ip.remote[4], egress_get64(&ends->remote[4]));
		return 1;
	}
	four = egress_header(frame, at - sizeof(four->type), sizeof(*four));
	if (!four)
		return 0;
	four->type = NET16(ETH_P_IP);
	four->ip.version_tos = NET16(4 << 12 | 5 << 8 | traffic_class);
	four->ip.length = NET16(sizeof(four->ip) + length);
	/* DF: the far end would have to put fragments together again, and only a datagram that is never cut may do without an id (RFC 6864, 4.1). */
	four->ip.id = 0;
	four->ip.fragment = NET16(ENCAP_DF);
	four->ip.ttl_protocol = NET16((ends->ttl & 0xff) << 8 | protocol);
	egress_put32(four->ip.local, egress_get32(ends->local));
	egress_put32(four->ip.remote, egress_get32(ends->remote));
	sum = (__u32)four->ip.version_tos + four->ip.length + four->ip.fragment + four->ip.ttl_protocol;
	sum += (__u32)ends->local[0] + ends->local[1] + ends->remote[0] + ends->remote[1];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	four->ip.check = (__u16)~sum;
	return 1;
}
