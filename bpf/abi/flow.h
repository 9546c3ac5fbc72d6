/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* flow: the flow cache: frames of flows whose fate user space has decided. User space writes flows, the kernel looks them up and counts. */
#pragma once

#include <linux/if_ether.h>
#include <linux/types.h>

/* One code finds the flow of a frame in both halves. What it does not find goes the long way, so everything that needs a second look is left
 * out: IPv4 options, fragments, IPv6 extension headers, ICMP but echo, two VLAN tags, lengths that do not fit, and wrong IPv4 checksums. */

#define FLOW_INLINE static inline __attribute__((always_inline))

/* The epoch of the cache in a byte, as a punted frame carries it; 0 and 1 mean something else there: see struct punt_meta. */
#define FLOW_EPOCH(epoch) (2 + (epoch) % 254)

/* What of a flow's key is neither address: source port, destination port, protocol, port of the instance, VLAN. Of ICMP echo the ports are
 * the identifier and the type. Numbers of the wire are as they are there. */
#define FLOW_PROTOCOL 32
#define FLOW_PORT 40		/* 6 bits: the port's slot */
#define FLOW_VLAN 46		/* 12 bits, and one that says that there is a tag */
#define FLOW_TAGGED (1ull << (FLOW_VLAN + 12))
#define FLOW_USED (1ull << 59)	/* so that the word of a flow is never 0 */

/* A flow is in one of two buckets that its hash names: four places next to each other. */
#define FLOW_BUCKET 4
#define FLOW_PLACES (2 * FLOW_BUCKET)

/* Written before the key's word, read behind it: see flow_find(). A flow that is taken out keeps its place until no program can still be
 * working with it. */
struct flow_act {
	__u32 rewrite;	/* number of its struct flow_rewrite */
	__u8 fate;	/* enum flow_fate */
	__u8 argument;	/* port, group or the stage's reason */
	__u16 block;	/* in the accounts, of the stage that the flow is of */
};

enum flow_fate { FLOW_REDIRECT, FLOW_FLOOD, FLOW_TO_STACK, FLOW_DROP };

/* The first CPU that sees a frame counts without locking the bus, others do so beside it. */
struct flow_tail {
	struct flow_act act;
	__u64 frames;
	__u64 bytes;
	__u64 other_frames;
	__u64 other_bytes;
	__u32 owner;	/* 1 + that CPU, 0: none yet; and FLOW_ENDED */
	__u32 seen_s;	/* struct port_entries.now_s at the last frame */
};

#define FLOW_ENDED 0x80000000u	/* TCP has ended it: what comes now is not of it */

struct flow4 {			/* a cache line */
	__u64 word;
	__u64 addresses;	/* source, destination */
	struct flow_tail tail;
};

struct flow6 {			/* two */
	__u64 word;
	__u64 addresses[4];
	struct flow_tail tail;
	__u64 unused[5];
};

enum flow_change {
	FLOW_ADDRESSES = 1,	/* the Ethernet header's */
	FLOW_TTL = 2,		/* TTL or hop limit one less; the last one is not for the kernel */
	FLOW_DSCP = 4,
	FLOW_VLAN_SET = 8,	/* another VLAN in the tag that is there */
	FLOW_VLAN_PUSH = 16,
	FLOW_VLAN_POP = 32,
	FLOW_NAT = 64,		/* IP addresses and ports */
};

/* What is changed in frames of a flow; flows that change the same share one. A cache line. */
struct flow_rewrite {
	__u8 was_to[ETH_ALEN];	/* destination that its frames come with: those with another are not of it */
	__u8 to[ETH_ALEN];
	__u8 from[ETH_ALEN];
	__u16 changes;		/* enum flow_change */
	__u16 longest;		/* bytes of a frame without tags; one that is longer is not for the kernel */
	__be16 tci;		/* of FLOW_VLAN_PUSH; of FLOW_VLAN_SET its VLAN */
	__u8 dscp;
	__u8 unused;
	__u16 source_port;	/* of FLOW_NAT, all that follows */
	__u16 destination_port;
	__u16 l4_delta;		/* what is to be added, in ones' complement, to the checksum behind the IP header */
	union {
		struct {
			__u32 source;
			__u32 destination;
			__u16 l3_delta;	/* and to that in it */
		} ipv4;
		__u64 ipv6[4];
	} __attribute__((packed, aligned(4)));
} __attribute__((aligned(64)));

#ifdef __cplusplus
static_assert(sizeof(flow4) == 64 && sizeof(flow6) == 128 && sizeof(flow_rewrite) == 64);
#else
_Static_assert(sizeof(struct flow4) == 64 && sizeof(struct flow6) == 128 && sizeof(struct flow_rewrite) == 64, "cache lines");
#endif

/* Of a frame that may be of a flow. */
struct flow_key {
	__u64 word;		/* without the port's slot; FLOW_USED is set */
	__u64 addresses[4];	/* IPv4: the first */
	__u32 l3;		/* offset of the IP header: 14 or 18 */
	__u8 version;		/* 4 or 6; 0: it is of none */
	__u8 protocol;
	__u8 tcp_flags;
	__u8 ttl;
};

#ifdef __BIG_ENDIAN__
#define FLOW_NET16(value) ((__u16)(value))
#else
#define FLOW_NET16(value) ((__u16)__builtin_bswap16(value))
#endif

enum {
	FLOW_TCP_FIN = 1, FLOW_TCP_SYN = 2, FLOW_TCP_RST = 4, FLOW_TCP_ACK = 16,
	FLOW_ICMP = 1, FLOW_TCP = 6, FLOW_UDP = 17, FLOW_DCCP = 33, FLOW_ICMP6 = 58, FLOW_SCTP = 132, FLOW_UDPLITE = 136,
};

/* Words of a frame, wherever they lie. For BPF each is one access, which the verifier allows where the CPU does; and it takes what is packed
 * byte by byte. */
#ifdef __bpf__
#define FLOW_UNALIGNED __attribute__((may_alias))
#else
#define FLOW_UNALIGNED __attribute__((may_alias, packed))
#endif
struct flow_u16 { __u16 value; } FLOW_UNALIGNED;
struct flow_u32 { __u32 value; } FLOW_UNALIGNED;
struct flow_u64 { __u64 value; } FLOW_UNALIGNED;
#define FLOW_GET16(at) (((const struct flow_u16 *)(const void *)(at))->value)
#define FLOW_GET32(at) (((const struct flow_u32 *)(const void *)(at))->value)
#define FLOW_GET64(at) (((const struct flow_u64 *)(const void *)(at))->value)
#define FLOW_PUT16(at, to) (((struct flow_u16 *)(void *)(at))->value = (to))
#define FLOW_PUT32(at, to) (((struct flow_u32 *)(void *)(at))->value = (to))
#define FLOW_PUT64(at, to) (((struct flow_u64 *)(void *)(at))->value = (to))

/* The ports, or what stands for them: the first four bytes behind the IP header. 0: the frame is of no flow. */
FLOW_INLINE int flow_ports(const __u8 *l4, const __u8 *end, __u8 protocol, __u32 length, struct flow_key *key)
{
	key->word |= (__u64)protocol << FLOW_PROTOCOL;
	key->protocol = protocol;
	switch (protocol) {
	case FLOW_TCP:
		if (l4 + 20 > end || length < 20)
			return 0;
		if (l4[12] < 0x50) /* a header shorter than one */
			return 0;
		key->tcp_flags = l4[13];
		key->word |= FLOW_GET32(l4);
		return 1;
	case FLOW_UDP:
	case FLOW_UDPLITE:
	case FLOW_SCTP:
	case FLOW_DCCP:
		if (l4 + 8 > end || length < 8)
			return 0;
		key->word |= FLOW_GET32(l4);
		return 1;
	case FLOW_ICMP:
	case FLOW_ICMP6:
		if (l4 + 8 > end || length < 8)
			return 0;
		if (protocol == FLOW_ICMP ? (l4[0] != 0 && l4[0] != 8) : (l4[0] != 128 && l4[0] != 129))
			return 0;
		key->word |= FLOW_GET16(l4 + 4) | (__u32)l4[0] << 16;
		return l4[1] == 0;
	/* IPv6 has headers of these numbers between its own and the next one; in IPv4 they are rare. */
	case 0: case 43: case 44: case 51: case 59: case 60: case 135: case 139: case 140:
		return 0;
	default:
		return 1;
	}
}

FLOW_INLINE __u32 flow_fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* `data` to `end`: the frame, or its first buffer; `length`: bytes of all of it. key->version is 0 when it is of no flow. */
FLOW_INLINE void flow_parse(const __u8 *data, const __u8 *end, __u32 length, struct flow_key *key)
{
	const __u8 *ip = data + ETH_HLEN;
	__u32 inside;
	__u16 type;

	key->version = 0;
	key->tcp_flags = 0;
	key->l3 = ETH_HLEN;
	key->word = FLOW_USED;
	if (data + ETH_HLEN + 20 > end)
		return;
	type = FLOW_GET16(data + 12);
	if (type == FLOW_NET16(ETH_P_8021Q)) {
		if (data + ETH_HLEN + 4 + 20 > end)
			return;
		key->word |= FLOW_TAGGED | (__u64)(FLOW_NET16(FLOW_GET16(data + 14)) & 0xfff) << FLOW_VLAN;
		type = FLOW_GET16(data + 16);
		ip += 4;
		key->l3 += 4;
	}
	inside = length - key->l3;
	if (type == FLOW_NET16(ETH_P_IP)) {
		__u32 total = FLOW_NET16(FLOW_GET16(ip + 2));

		if (ip[0] != 0x45 || FLOW_GET16(ip + 6) & FLOW_NET16(0x3fff) || total > inside || total < 20)
			return;
		key->addresses[0] = FLOW_GET64(ip + 12);
		/* RFC 1812, 5.2.2: a forwarder verifies the checksum. */
		if (flow_fold((key->addresses[0] & 0xffffffff) + (key->addresses[0] >> 32) + FLOW_GET32(ip) + FLOW_GET32(ip + 4) +
			      FLOW_GET32(ip + 8)) != 0xffff)
			return;
		key->ttl = ip[8];
		if (flow_ports(ip + 20, end, ip[9], total - 20, key) && ip[9] != FLOW_ICMP6)
			key->version = 4;
	} else if (type == FLOW_NET16(ETH_P_IPV6)) {
		__u32 payload;

		if (ip + 40 > end || ip[0] >> 4 != 6)
			return;
		payload = FLOW_NET16(FLOW_GET16(ip + 4));
		if (payload + 40 > inside)
			return;
		key->addresses[0] = FLOW_GET64(ip + 8);
		key->addresses[1] = FLOW_GET64(ip + 16);
		key->addresses[2] = FLOW_GET64(ip + 24);
		key->addresses[3] = FLOW_GET64(ip + 32);
		key->ttl = ip[7];
		if (flow_ports(ip + 40, end, ip[6], payload, key) && ip[6] != FLOW_ICMP)
			key->version = 6;
	}
}

/* Multiply and fold, a round for each word; each half of it names a bucket. `seed`: so that nobody outside can fill one. */
FLOW_INLINE __u64 flow_round(__u64 hash, __u64 word)
{
	hash = (hash ^ word) * 0x9e3779b97f4a7c15ull;
	return hash ^ hash >> 32;
}

FLOW_INLINE __u64 flow_hash(const struct flow_key *key, __u64 word, __u64 seed)
{
	__u64 hash = flow_round(seed, key->addresses[0]);

	if (key->version == 6) {
		hash = flow_round(hash, key->addresses[1]);
		hash = flow_round(hash, key->addresses[2]);
		hash = flow_round(hash, key->addresses[3]);
	}
	hash = flow_round(hash, word);
	return flow_round(hash, seed);
}

/* `number`: below FLOW_PLACES. */
FLOW_INLINE __u32 flow_place(__u64 hash, __u32 number, __u32 mask)
{
	return ((number & FLOW_BUCKET ? (__u32)(hash >> 32) : (__u32)hash) & mask) ^ (number & (FLOW_BUCKET - 1));
}

/* A checksum to which a difference in ones' complement is added. */
FLOW_INLINE __u16 flow_checksum(__u16 checksum, __u32 delta)
{
	__u32 sum = (__u16)~checksum + delta;

	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16)~sum;
}

/* The difference of one word of 16 bits. */
FLOW_INLINE __u32 flow_delta(__u16 from, __u16 to) { return (__u32)(__u16)~from + to; }

/* Where the checksum of a protocol is, that a change of addresses and ports concerns. */
FLOW_INLINE __u32 flow_checksum_at(__u8 protocol) { return protocol == FLOW_TCP ? 16 : protocol == FLOW_UDP || protocol == FLOW_UDPLITE ? 6 : 2; }

FLOW_INLINE int flow_has_ports(__u8 protocol) { return protocol == FLOW_TCP || protocol == FLOW_UDP || protocol == FLOW_UDPLITE; }

/* Changes behind the Ethernet header. `ip`: the IP header, `end`: of the frame, or of its first buffer. 0: it ends too early, and nothing is
 * changed. */
FLOW_INLINE int flow_rewrite_ip(__u8 *ip, const __u8 *end, const struct flow_key *key, const struct flow_rewrite *rewrite)
{
	__u32 changes = rewrite->changes, l3_delta = 0;
	__u8 *l4 = ip + (key->version == 4 ? 20 : 40);
	__u16 before;

	if (l4 > end)
		return 0;
	if (changes & FLOW_NAT) {
		__u8 *check = l4 + flow_checksum_at(key->protocol);

		if (l4 + 6 > end || check + 2 > end)
			return 0;
		if (flow_has_ports(key->protocol))
			FLOW_PUT32(l4, rewrite->source_port | (__u32)rewrite->destination_port << 16);
		else
			FLOW_PUT16(l4 + 4, rewrite->source_port); /* ICMP echo: the identifier */
		/* RFC 768: a UDP checksum of 0 is none, and one that comes to 0 is written as 0xffff. */
		before = FLOW_GET16(check);
		if (key->protocol != FLOW_UDP || before) {
			before = flow_checksum(before, rewrite->l4_delta);
			FLOW_PUT16(check, key->protocol == FLOW_UDP && !before ? 0xffff : before);
		}
		if (key->version == 4) {
			FLOW_PUT32(ip + 12, rewrite->ipv4.source);
			FLOW_PUT32(ip + 16, rewrite->ipv4.destination);
			l3_delta += rewrite->ipv4.l3_delta;
		} else {
			FLOW_PUT64(ip + 8, rewrite->ipv6[0]);
			FLOW_PUT64(ip + 16, rewrite->ipv6[1]);
			FLOW_PUT64(ip + 24, rewrite->ipv6[2]);
			FLOW_PUT64(ip + 32, rewrite->ipv6[3]);
		}
	}
	if (changes & FLOW_TTL) {
		if (key->version == 4) {
			before = FLOW_GET16(ip + 8);
			FLOW_PUT16(ip + 8, before - FLOW_NET16(0x100));
			l3_delta += flow_delta(before, before - FLOW_NET16(0x100));
		} else {
			ip[7]--;
		}
	}
	if (changes & FLOW_DSCP) {
		before = FLOW_GET16(ip);
		if (key->version == 4) {
			__u16 after = FLOW_NET16((FLOW_NET16(before) & ~0xfc) | rewrite->dscp << 2);

			FLOW_PUT16(ip, after);
			l3_delta += flow_delta(before, after);
		} else {
			FLOW_PUT16(ip, FLOW_NET16((FLOW_NET16(before) & ~0xfc0) | rewrite->dscp << 6));
		}
	}
	if (key->version == 4 && l3_delta)
		FLOW_PUT16(ip + 10, flow_checksum(FLOW_GET16(ip + 10), (l3_delta & 0xffff) + (l3_delta >> 16)));
	return 1;
}
