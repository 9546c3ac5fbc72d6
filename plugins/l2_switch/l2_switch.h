/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* l2_switch: the table of addresses and the decision about a frame, one code for both halves. */
#pragma once

#include <linux/types.h>

#include "bpf/abi/link.h"

/* A bucket is one cache line of four entries; an address may be in either of two buckets. A reader never waits: an entry's address, port
 * and flags are one word, written at once. Only the user half writes words, under a lock; the kernel half refreshes `seen`. */
#define L2_SLOTS 4

enum l2_flags {
	L2_USED = 1,
	L2_STATIC = 2,	/* never ages, never moves */
};

struct l2_entry {
	__u64 word;	/* 0: free; else address (48 bits, first byte highest), port (8), flags (8) */
	__u32 seen_s;	/* coarse clock of the last frame from it */
	__u32 unused;
};

struct l2_bucket {
	struct l2_entry entry[L2_SLOTS];
};

struct l2_config {
	__u64 seed;		/* of the hash, so that nobody outside can fill one bucket */
	__u64 members;		/* bit by port slot */
	__u64 closed;		/* ports that may learn no more addresses for now */
	__u32 mask;		/* number of buckets - 1 */
	__u32 group;		/* of the members, for floods */
	__u32 now_s;		/* coarse clock, written once a second */
	__u32 full;		/* nothing can be learned for now: do not punt for it */
};

enum l2_drop { L2_TRUNCATED, L2_BAD_SOURCE, L2_NOT_A_MEMBER, L2_SAME_PORT };
enum l2_punt { L2_NEW_ADDRESS, L2_MOVED };
enum l2_counter { L2_LEARNED, L2_ADDRESS_MOVED, L2_TABLE_FULL, L2_PORT_FULL, L2_STATIC_MOVED };

/* What is to become of a frame. */
enum l2_fate { L2_TRANSMIT, L2_FLOOD, L2_TO_STACK, L2_DROP };
struct l2_decision {
	enum l2_fate fate;
	__u32 argument;	/* port, or reason */
};

static inline __attribute__((always_inline)) __u64 l2_address(const __u8 *mac)
{
	return (__u64)mac[0] << 40 | (__u64)mac[1] << 32 | (__u64)mac[2] << 24 | (__u64)mac[3] << 16 | (__u64)mac[4] << 8 | mac[5];
}

static inline __attribute__((always_inline)) __u64 l2_word(__u64 address, __u32 port, __u32 flags)
{
	return address << 16 | (__u64)(port & 0xff) << 8 | flags;
}

static inline __attribute__((always_inline)) __u64 l2_address_of(__u64 word) { return word >> 16; }
static inline __attribute__((always_inline)) __u32 l2_port_of(__u64 word) { return word >> 8 & 0xff; }

/* Two bucket numbers from one multiply-xorshift (the finaliser of splitmix64). */
static inline __attribute__((always_inline)) __u64 l2_hash(__u64 address, __u64 seed)
{
	__u64 hash = address ^ seed;

	hash = (hash ^ hash >> 30) * 0xbf58476d1ce4e5b9ull;
	hash = (hash ^ hash >> 27) * 0x94d049bb133111ebull;
	return hash ^ hash >> 31;
}

static inline __attribute__((always_inline)) __u32 l2_first(__u64 hash, __u32 mask) { return (__u32)hash & mask; }
static inline __attribute__((always_inline)) __u32 l2_second(__u64 hash, __u32 mask) { return (__u32)(hash >> 32) & mask; }

/* A word is read at once: a reader on another CPU sees the one before a change or the one behind it. */
static inline __attribute__((always_inline)) __u64 l2_read(const __u64 *word)
{
#ifdef __bpf__
	return *(const volatile __u64 *)word;	/* clang has no atomic load for BPF */
#else
	return __atomic_load_n(word, __ATOMIC_ACQUIRE);
#endif
}

/* The entry of an address in a bucket, or null. `word` gets what it was at that moment: a writer may give the entry to another address. */
static inline __attribute__((always_inline)) struct l2_entry *l2_in(struct l2_bucket *bucket, __u64 address, __u64 *word)
{
	int i;

#ifdef __clang__
#pragma clang loop unroll(full)
#endif
	for (i = 0; i < L2_SLOTS; i++) {
		*word = l2_read(&bucket->entry[i].word);
		if (*word != 0 && l2_address_of(*word) == address)
			return &bucket->entry[i];
	}
	*word = 0;
	return 0;
}

/* 01:80:c2:00:00:00 to 0f: never forwarded by a bridge (IEEE 802.1Q, 8.6.3); the host speaks LLDP, LACP and the like. */
static inline __attribute__((always_inline)) int l2_link_local(__u64 address) { return address >> 4 == 0x0180c200000ull; }
static inline __attribute__((always_inline)) int l2_multicast(__u64 address) { return address >> 40 & 1; }

/* Before any lookup: whether a frame may be switched at all. 1: not, and `decision` says why. */
static inline __attribute__((always_inline)) int l2_refuse(const struct l2_config *config, __u32 port, __u64 source, __u64 destination,
							   struct l2_decision *decision)
{
	if (l2_link_local(destination)) {
		decision->fate = L2_TO_STACK;
		return 1;
	}
	decision->fate = L2_DROP;
	decision->argument = L2_BAD_SOURCE;
	if (source == 0 || l2_multicast(source))
		return 1;
	decision->argument = L2_NOT_A_MEMBER;
	return port >= WEIR_MAX_PORTS || !(config->members >> port & 1);
}

/* `to`: the destination's word, 0 when it is not known. */
static inline __attribute__((always_inline)) struct l2_decision l2_forward(__u32 port, __u64 to)
{
	struct l2_decision decision = { L2_FLOOD, 0 };

	if (to == 0)
		return decision;
	decision.argument = l2_port_of(to);
	decision.fate = L2_TRANSMIT;
	if (decision.argument == port) {
		decision.fate = L2_DROP;
		decision.argument = L2_SAME_PORT;
	}
	return decision;
}
