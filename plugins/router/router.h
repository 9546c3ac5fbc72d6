/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* router: what both halves share: the tables, and every question that both ask of a packet, asked by the same code.
 *
 * The user half alone writes. What a reader follows is made before it is linked, and a number that was unlinked is given out again only when no
 * frame can be under way with it: see router_tables.hh. Every entry that changes in place is a single word:
 *   config.roots      both tries, and whether they hold all routes
 *   nodes             256 words each: a group, or the node of the next 8 bits
 *   route_groups      a word each: what a route does with a packet, and its path
 *   members           the paths of a group that has several, one drawn by the flow's hash
 *   hops              a next hop: the word has its state, port and MAC address
 *   neighbours        hops by their address, for routes to a link */
#pragma once

#include "bpf/abi/link.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "a MAC address is the low 48 bits of a word, in the order of the wire"
#endif

enum router_drop {
	ROUTER_TRUNCATED,
	ROUTER_BAD_VERSION,
	ROUTER_BAD_LENGTH,
	ROUTER_BAD_CHECKSUM,
	ROUTER_MARTIAN_SOURCE,
	ROUTER_MARTIAN_DESTINATION,
	ROUTER_EXPIRED,
	ROUTER_TOO_BIG,
	ROUTER_NO_ROUTE,
	ROUTER_BLACKHOLE,
	ROUTER_UNREACHABLE,
	ROUTER_PROHIBITED,
	ROUTER_NO_NEIGHBOUR,
	ROUTER_HOST_UNREACHABLE,
	ROUTER_CANNOT_FRAGMENT,
};

enum router_counter {
	ROUTER_FORWARDED4,
	ROUTER_FORWARDED6,
	ROUTER_OWN,		/* to the host: its own addresses */
	ROUTER_NOT_ROUTED,	/* to the host: no IP, another MAC address, groups, link-local addresses, options */
	ROUTER_BY_HOST,		/* to the host, which routes it: no port leads there, no neighbour yet, to be fragmented */
};

enum router_punt {
	ROUTER_PUNT_EXPIRED,
	ROUTER_PUNT_TOO_BIG,
	ROUTER_PUNT_NO_ROUTE,
	ROUTER_PUNT_REFUSED,	/* by an unreachable or prohibited route */
	ROUTER_PUNT_NEIGHBOUR,	/* not resolved, or failed */
	ROUTER_PUNT_TABLES,	/* the kernel half's do not hold all routes */
	ROUTER_PUNT_PORT,	/* only user space sends there */
	ROUTER_PUNT_FLOW,	/* it would be forwarded: the first frame of a flow, which the user half offloads */
};

enum router_kind {
	ROUTER_KIND_NONE,
	ROUTER_KIND_OWN,
	ROUTER_KIND_HOST,	/* broadcast, or what only the host can do */
	ROUTER_KIND_BLACKHOLE,
	ROUTER_KIND_UNREACHABLE,
	ROUTER_KIND_PROHIBIT,
	ROUTER_KIND_ONE,	/* next hop */
	ROUTER_KIND_MANY,
};

/* Kind 8 bits, MTU of the route 16 (0: that of the port), hop or row of members 24. */
#define ROUTER_GROUP(kind, mtu, index) ((__u64)(kind) | (__u64)(mtu) << 8 | (__u64)(index) << 24)

enum router_state {
	ROUTER_STATE_UNRESOLVED,
	ROUTER_STATE_READY,
	ROUTER_STATE_FAILED,
	ROUTER_STATE_LINK,	/* the destination itself is the neighbour */
	ROUTER_STATE_HOST,	/* the host sends it */
};

/* MAC address 48 bits, port 8, state 8. */
#define ROUTER_HOP(state, port, mac) ((__u64)(mac) | (__u64)(port) << 48 | (__u64)(state) << 56)

struct router_address {
	__u64 high, low;	/* as on the wire; of IPv4: 0, and the address in the low half */
};

struct router_hop {
	struct router_address address;
	__u64 word;
	__u64 pad;
};

#define ROUTER_PATHS 64	/* places in a group, which its paths share by their weights */
struct router_members {
	__u32 hop[ROUTER_PATHS];
};

#define ROUTER_SLOTS 8
struct router_bucket {
	__u32 slot[ROUTER_SLOTS];	/* tag 8 bits, hop 24; hop 0: none */
};

/* Of a trie. Child: the node of the next 8 bits. Else the group, and its route's length, less 1, in the 7 bits above; group 0: none. */
#define ROUTER_CHILD 0x80000000u
#define ROUTER_INDEX 0x00ffffffu
#define ROUTER_LENGTH 24
#define ROUTER_ROOT 256	/* nodes of a root, which has the first 16 bits */
struct router_node {
	__u32 word[256];
};

struct router_count {
	__u64 frames, bytes;
};

/* Bits of config.roots: the first node of each root, and that a trie holds all routes. */
#define ROUTER_ROOT4(roots) ((__u32)(roots) & ROUTER_INDEX)
#define ROUTER_ROOT6(roots) ((__u32)((roots) >> 24) & ROUTER_INDEX)
#define ROUTER_WHOLE (1ull << 63)

struct router_config {
	__u64 magic;			/* tells that an earlier run's tables mean the same */
	__u64 roots;
	__u64 port[WEIR_MAX_PORTS];	/* MAC address 48 bits, MTU 16; 0: it is none of the router's */
	__u64 own[8];			/* a bit for each hash of an address of the host: what has none here is not the host's */
	__u64 seed;
	__u32 fallback[2];		/* groups of the routes of length 0: of IPv4 and IPv6 */
	__u32 mask;			/* buckets of neighbours, less 1 */
	__u32 hops;
	__u32 by_ports;			/* the flow's hash takes TCP's and UDP's ports in */
	__u32 offload;			/* the first frame of a flow goes to the user half */
};

/* Compilers of BPF move what they do not know to be aligned byte by byte, and the host's must not be told that it is. */
#ifdef __bpf__
#define ROUTER_INLINE static __attribute__((always_inline)) inline
typedef __u64 __attribute__((may_alias)) router_word64;
typedef __u32 __attribute__((may_alias)) router_word32;
typedef __u16 __attribute__((may_alias)) router_word16;
#else
#define ROUTER_INLINE static inline
typedef __u64 __attribute__((may_alias, aligned(1))) router_word64;
typedef __u32 __attribute__((may_alias, aligned(1))) router_word32;
typedef __u16 __attribute__((may_alias, aligned(1))) router_word16;
#endif
ROUTER_INLINE __u64 router_get64(const void *at) { return *(const router_word64 *)at; }
ROUTER_INLINE __u32 router_get32(const void *at) { return *(const router_word32 *)at; }
ROUTER_INLINE __u16 router_get16(const void *at) { return *(const router_word16 *)at; }
ROUTER_INLINE __u8 router_get8(const void *at, __u32 offset) { return ((const __u8 *)at)[offset]; }
ROUTER_INLINE __u32 router_host32(const void *at) { return __builtin_bswap32(router_get32(at)); }
ROUTER_INLINE __u16 router_host16(const void *at) { return __builtin_bswap16(router_get16(at)); }

ROUTER_INLINE __u64 router_get_mac(const void *at) { return router_get32(at) | (__u64)router_get16((const char *)at + 4) << 32; }
ROUTER_INLINE void router_put_mac(void *at, __u64 mac)
{
	*(router_word32 *)at = mac;
	*(router_word16 *)((char *)at + 4) = mac >> 32;
}

#define ROUTER_MAC 0xffffffffffffull
ROUTER_INLINE __u32 router_hop_state(__u64 word) { return word >> 56; }
ROUTER_INLINE __u32 router_hop_port(__u64 word) { return word >> 48 & (WEIR_MAX_PORTS - 1); }
ROUTER_INLINE __u32 router_group_kind(__u64 word) { return word & 7; }
ROUTER_INLINE __u32 router_group_index(__u64 word) { return word >> 24 & ROUTER_INDEX; }
/* The shorter of the route's and the port's. */
ROUTER_INLINE __u32 router_mtu(__u64 group, __u64 port)
{
	__u32 of_route = group >> 8 & 0xffff, of_port = port >> 48;

	return of_route && of_route < of_port ? of_route : of_port;
}

ROUTER_INLINE __u64 router_mix(__u64 hash, __u64 word)
{
	hash = (hash ^ word) * 0x9e3779b97f4a7c15ull;
	return hash ^ hash >> 32;
}

ROUTER_INLINE __u64 router_hash_address(struct router_address address, __u64 seed) { return router_mix(router_mix(seed, address.high), address.low); }
/* Where in config.own an address has its bit. */
ROUTER_INLINE __u32 router_own_bit(struct router_address address) { return router_hash_address(address, 0) >> 23 & 511; }

/* What the hash of address and port says of a neighbour. */
ROUTER_INLINE __u64 router_hash_neighbour(struct router_address address, __u32 port, __u64 seed)
{
	return router_mix(router_hash_address(address, seed), port);
}
ROUTER_INLINE __u32 router_first(__u64 hash, __u32 mask) { return (__u32)hash & mask; }
ROUTER_INLINE __u32 router_second(__u64 hash, __u32 mask) { return (__u32)(hash >> 24) & mask; }
ROUTER_INLINE __u32 router_tag(__u64 hash) { return (__u32)(hash >> 56) << 24; }

/* Whether the frame was sent to the port's own address, so that it may be routed. A group's never is (RFC 1812, 5.3.4). */
ROUTER_INLINE int router_is_for(const void *ethernet, __u64 port) { return port && router_get_mac(ethernet) == (port & ROUTER_MAC); }

enum router_fate { ROUTER_LOOK_UP, ROUTER_TO_HOST, ROUTER_REFUSE };

/* What the header alone says, to which a `reason` belongs when it is refused. `ip`: at least 20 bytes, `room`: bytes from there to the end of
 * the frame. RFC 1812, 5.2.2 and 5.3.7. */
ROUTER_INLINE enum router_fate router_check4(const void *ip, __u32 room, __u32 *reason)
{
	__u32 first = router_get8(ip, 0), total = router_host16((const char *)ip + 2), sum = 0, i;
	__u32 source = router_host32((const char *)ip + 12), destination = router_host32((const char *)ip + 16);

	*reason = ROUTER_BAD_VERSION;
	if (first >> 4 != 4 || (first & 15) < 5)
		return ROUTER_REFUSE;
	*reason = ROUTER_BAD_LENGTH;
	if (total < (first & 15) * 4 || total > room)
		return ROUTER_REFUSE;
	if (destination >> 28 == 0xe || destination == 0xffffffff || destination >> 16 == 0xa9fe || first != 0x45)
		return ROUTER_TO_HOST;
	for (i = 0; i < 20; i += 4)
		sum += router_get16((const char *)ip + i) + router_get16((const char *)ip + i + 2);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	*reason = ROUTER_BAD_CHECKSUM;
	if (sum != 0xffff)
		return ROUTER_REFUSE;
	*reason = ROUTER_MARTIAN_DESTINATION;
	if (destination >> 24 == 0 || destination >> 24 == 127 || destination >> 28 == 0xf)
		return ROUTER_REFUSE;
	*reason = ROUTER_MARTIAN_SOURCE;
	if (source >> 24 == 0 || source >> 24 == 127 || source >> 29 == 7)
		return ROUTER_REFUSE;
	return source >> 16 == 0xa9fe ? ROUTER_TO_HOST : ROUTER_LOOK_UP; /* RFC 3927, 2.7 */
}

ROUTER_INLINE int router_is_nobody6(__u64 high, __u64 low) { return high == 0 && (low & ~(1ull << 56)) == 0; } /* :: and ::1 */
ROUTER_INLINE int router_is_link_local6(const void *at) { return (router_host16(at) & 0xffc0) == 0xfe80; }

/* The same of IPv6; `ip`: at least 40 bytes. */
ROUTER_INLINE enum router_fate router_check6(const void *ip, __u32 room, __u32 *reason)
{
	const char *source = (const char *)ip + 8, *destination = (const char *)ip + 24;

	*reason = ROUTER_BAD_VERSION;
	if (router_get8(ip, 0) >> 4 != 6)
		return ROUTER_REFUSE;
	*reason = ROUTER_BAD_LENGTH;
	if (40u + router_host16((const char *)ip + 4) > room)
		return ROUTER_REFUSE;
	/* Hop-by-hop options are the host's to read, among them those of jumbograms, whose length is elsewhere. */
	if (router_get8(destination, 0) == 0xff || router_is_link_local6(destination) || router_get8(ip, 6) == 0)
		return ROUTER_TO_HOST;
	*reason = ROUTER_MARTIAN_DESTINATION;
	if (router_is_nobody6(router_get64(destination), router_get64(destination + 8)))
		return ROUTER_REFUSE;
	*reason = ROUTER_MARTIAN_SOURCE;
	if (router_get8(source, 0) == 0xff || router_is_nobody6(router_get64(source), router_get64(source + 8)))
		return ROUTER_REFUSE;
	return router_is_link_local6(source) ? ROUTER_TO_HOST : ROUTER_LOOK_UP; /* RFC 4291, 2.5.6 */
}

ROUTER_INLINE struct router_address router_address4(const void *at)
{
	struct router_address address = { 0, router_get32(at) };

	return address;
}
ROUTER_INLINE struct router_address router_address6(const void *at)
{
	struct router_address address = { router_get64(at), router_get64((const char *)at + 8) };

	return address;
}

/* TCP, UDP, SCTP, UDP-Lite: the ports are the first four bytes. */
ROUTER_INLINE int router_has_ports(__u32 protocol) { return protocol == 6 || protocol == 17 || protocol == 132 || protocol == 136; }

/* Of a flow: all its packets have it. A fragment has no ports but the first, and takes the way of the others. `ports`: null when they are not
 * within the frame. */
ROUTER_INLINE __u32 router_flow4(const void *ip, const void *ports, const struct router_config *config)
{
	__u32 protocol = router_get8(ip, 9), fragment = router_host16((const char *)ip + 6) & 0x3fff;
	__u64 hash = router_mix(config->seed, router_get32((const char *)ip + 12) | (__u64)router_get32((const char *)ip + 16) << 32);

	if (config->by_ports && !fragment && ports && router_has_ports(protocol))
		hash = router_mix(hash, router_get32(ports) ^ (__u64)protocol << 32);
	return hash >> 16;
}
ROUTER_INLINE __u32 router_flow6(const void *ip, const void *ports, const struct router_config *config)
{
	__u32 protocol = router_get8(ip, 6);
	__u64 hash = router_hash_address(router_address6((const char *)ip + 8), config->seed);

	hash = router_hash_address(router_address6((const char *)ip + 24), hash);
	if (config->by_ports && ports && router_has_ports(protocol))
		hash = router_mix(hash, router_get32(ports) ^ (__u64)protocol << 32);
	return hash >> 16;
}
ROUTER_INLINE __u32 router_place(__u32 flow) { return flow & (ROUTER_PATHS - 1); }

/* RFC 1624: one less, in the high byte of its word. */
ROUTER_INLINE void router_decrement4(void *ip)
{
	router_word16 *sum_at = (router_word16 *)((char *)ip + 10);
	__u32 sum = *sum_at + 1u;

	((__u8 *)ip)[8]--;
	*sum_at = sum + (sum >= 0xffff);
}
ROUTER_INLINE void router_decrement6(void *ip) { ((__u8 *)ip)[7]--; }
