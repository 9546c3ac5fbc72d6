/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* headers: where a frame's headers are, and checksums that follow a change. For both builds of an egress program. */
#pragma once

#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/types.h>

#include "bpf/lib/egress.bpf.h"

#ifdef __BIG_ENDIAN__
#define NET16(value) ((__u16)(value))
#else
#define NET16(value) ((__u16)__builtin_bswap16(value))
#endif

/* Behind Ethernet and tags nothing is aligned to more than two bytes: of these, members of at most 16 bits are to be used. */
typedef struct iphdr headers_ipv4 __attribute__((aligned(2)));
typedef struct ipv6hdr headers_ipv6 __attribute__((aligned(2)));

#define HEADERS_VLAN_HLEN 4
#define HEADERS_MAX_TAGS 2	/* customer and service tag; what is behind a third one is not looked for */

struct headers_tag {
	__be16 tci;	/* priority 3 bits, drop eligible 1, VLAN 12 */
	__be16 type;	/* of what follows */
};

static inline __attribute__((always_inline)) int headers_is_tag(__be16 type) { return type == NET16(ETH_P_8021Q) || type == NET16(ETH_P_8021AD); }

/* The first header behind Ethernet and up to two VLAN tags. */
struct headers_l3 {
	__u32 at;	/* offset: 14, 18 or 22; 0: the frame ends before it */
	__be16 type;	/* its ethertype */
};

static inline __attribute__((always_inline)) struct headers_l3 headers_l3(struct egress_frame *frame)
{
	struct headers_l3 l3 = { 0 };
	struct ethhdr *eth = egress_header(frame, 0, sizeof(*eth));
	struct headers_tag *tag;

	if (!eth)
		return l3;
	l3.type = eth->h_proto;
	l3.at = ETH_HLEN;
	for (int i = 0; i < HEADERS_MAX_TAGS && headers_is_tag(l3.type); i++) {
		tag = egress_header(frame, ETH_HLEN + i * HEADERS_VLAN_HLEN, sizeof(*tag));
		if (!tag)
			return (struct headers_l3){ 0 };
		l3.type = tag->type;
		l3.at = ETH_HLEN + (i + 1) * HEADERS_VLAN_HLEN;
	}
	return l3;
}

/* A ones' complement checksum over data of which a 16-bit word has changed: RFC 1624, equation 3. All in network byte order. */
static inline __attribute__((always_inline)) __u16 headers_checksum(__u16 checksum, __u16 from, __u16 to)
{
	__u32 sum = (__u16)~checksum + (__u32)(__u16)~from + to;

	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16)~sum;
}
