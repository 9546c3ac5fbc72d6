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

/* Unlike struct ethhdr not packed, which has a compiler read the type byte by byte. */
struct headers_ethernet {
	__u8 to[ETH_ALEN];
	__u8 from[ETH_ALEN];
	__be16 type;
};

/* An address, or both of them, in as few pieces as may be. */
static inline __attribute__((always_inline)) void headers_put_address(void *at, const __u8 *address)
{
	egress_put32(at, egress_get32(address));
	egress_put16((__u8 *)at + 4, egress_get16(address + 4));
}

struct headers_addresses {
	__u64 first;
	__u32 last;
};

static inline __attribute__((always_inline)) struct headers_addresses headers_get_addresses(const void *at)
{
	return (struct headers_addresses){ egress_get64(at), egress_get32((const __u8 *)at + 8) };
}

static inline __attribute__((always_inline)) void headers_put_addresses(void *at, struct headers_addresses addresses)
{
	egress_put64(at, addresses.first);
	egress_put32((__u8 *)at + 8, addresses.last);
}

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
	struct headers_ethernet *eth = egress_header(frame, 0, sizeof(*eth));
	struct headers_tag *tag;

	if (!eth)
		return l3;
	l3.type = eth->type;
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

static inline __attribute__((always_inline)) int headers_is_ip(struct headers_l3 l3)
{
	return l3.type == NET16(ETH_P_IP) || l3.type == NET16(ETH_P_IPV6);
}

#define HEADERS_DSCP_VALUES 64

/* Where an IP header has its DSCP (RFC 2474). */
struct headers_dscp {
	__be16 *word;	/* version 4 bits, then in IPv4 header length 4, DSCP 6, ECN 2; in IPv6 DSCP 6, ECN 2, flow label 4. Null: not IP, or cut */
	__be16 *check;	/* null: IPv6 has none */
	__u32 shift;
};

static inline __attribute__((always_inline)) struct headers_dscp headers_dscp(struct egress_frame *frame, struct headers_l3 l3)
{
	struct headers_dscp at = { 0 };
	headers_ipv4 *ip;

	if (l3.at && l3.type == NET16(ETH_P_IP)) {
		ip = egress_header(frame, l3.at, sizeof(*ip));
		if (!ip)
			return at;
		at.word = (__be16 *)ip;
		at.check = &ip->check;
		at.shift = 2;
	} else if (l3.at && l3.type == NET16(ETH_P_IPV6)) {
		at.word = egress_header(frame, l3.at, sizeof(headers_ipv6));
		at.shift = 6;
	}
	return at;
}

static inline __attribute__((always_inline)) __u32 headers_get_dscp(struct headers_dscp at)
{
	return NET16(*at.word) >> at.shift & (HEADERS_DSCP_VALUES - 1);
}

/* Keeps ECN, and mends the checksum. */
static inline __attribute__((always_inline)) void headers_set_dscp(struct headers_dscp at, __u32 value)
{
	__be16 before = *at.word;

	*at.word = NET16((NET16(before) & ~((HEADERS_DSCP_VALUES - 1) << at.shift)) | (value & (HEADERS_DSCP_VALUES - 1)) << at.shift);
	if (at.check)
		*at.check = headers_checksum(*at.check, before, *at.word);
}
