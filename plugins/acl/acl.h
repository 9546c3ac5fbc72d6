/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* acl: the tables in which the kernel half looks rules up, and the numbers that both halves share.
 *
 * The user half fills them, the kernel half reads them, and neither waits: that of an earlier run may be at work when a new one begins. There are
 * two of each; `generation`, whose lowest bit says which of the two counts, is written last. A reader that finds it the same behind its look-up
 * has seen one whole set, since the writer only ever writes the other one; else it punts.
 *
 * A set is a list of hash tables, in the order of the first rule that each holds. A table is of one mask: what of a frame is hashed. Its slot
 * names the entries to compare, in the order of their rules; an entry's own mask asks for at least what the table's does (TupleMerge, Daly
 * et al., 2019). A look-up ends where the next table's first rule is behind the one that was found. */
#pragma once

#include <linux/types.h>

#include "bpf/abi/link.h"

#define ACL_MAX_RULES 100000
#define ACL_UNIT 1024		/* room for rules comes in these */
#define ACL_MAX_TABLES 64
#define ACL_MAX_CHAIN 16	/* entries of a slot */
#define ACL_KERNEL_EXTENSIONS 4
#define ACL_USER_EXTENSIONS 16
#define ACL_ENTRIES(room) (2 * (room))	/* a rule that is not of one IP version has one for each */
#define ACL_SLOTS(room) (8 * (room))
#define ACL_RULES(room) ((room) + 1)	/* hits of `otherwise` are behind those of the rules */

/* A rule by its number, and what it says. */
#define ACL_DROPS 0x80000000u
#define ACL_LOGS 0x40000000u
#define ACL_KEEPS 0x20000000u	/* the flow: see acl_states.h */
#define ACL_NUMBER 0x1fffffffu
#define ACL_NO_RULE 0x1fffffffu

struct acl_entry {
	__u64 mask[5];		/* addresses and kind, as in struct acl_key */
	__u64 value[5];
	__u16 sport, sport_more;	/* this one, and so many behind it */
	__u16 dport, dport_more;
	__u32 rule;
	__u32 unused;
};

struct acl_table {
	__u64 mask[6];
	__u32 first;		/* slot */
	__u32 slot_mask;	/* number of slots - 1 */
	__u32 seed;
	__u32 rule;		/* number of the first that it holds */
};

/* A slot: the first entry from this bit on, and their number below. */
#define ACL_SLOT_ENTRY 8

struct acl_set {
	__u32 tables;
	__u32 rules;
	__u32 decided;		/* rules from the first on that are in the tables; the others are the user half's */
	__u32 otherwise;	/* ACL_DROPS or 0 */
};

/* The first of as many as there are units of room: so a run that has another room finds no map of this shape, nor of the others. */
struct acl_control {
	__u64 generation;	/* 0: there is no set yet */
	__u64 second;		/* a coarse clock, for the samples of `log` */
	struct acl_set set[2];
	__u32 room;		/* of rules */
	__u32 rows;		/* of hits; a CPU's is its number modulo these */
	__u32 shared;		/* CPUs share rows */
	__u32 log_rate;		/* samples that a CPU punts in a second */
	__u32 offload;		/* later stages may offload flows */
	__u32 flags;		/* a rule asks for flags of TCP */
	__u64 seed;		/* of the table of flows, and the number of its buckets less one */
	__u32 mask;
	__u32 keeps;		/* there is one */
	__u32 keeper;		/* who the stage is to those that share it */
	__u32 unused[5];
};

/* How many frames were punted in which second. */
struct acl_punted {
	__u64 second;
	__u64 frames;
};

/* Of a CPU: samples for `log`, and ICMP errors. */
struct acl_samples {
	struct acl_punted logged, errors;
	__u64 unused[4];
};

#define ACL_ERROR_RATE 1000	/* ICMP errors that a CPU punts in a second; rules judge those beyond */

enum acl_drop { ACL_DENIED, ACL_TRUNCATED, ACL_BAD_HEADER, ACL_STATES_FULL };
enum acl_punt {
	ACL_PUNT_RULES, ACL_PUNT_LOG, ACL_PUNT_EXTENSIONS, ACL_PUNT_HIDDEN, ACL_PUNT_SWAPPED,
	ACL_PUNT_OPENS, ACL_PUNT_CHANGES, ACL_PUNT_ERROR,
};
enum acl_counter {
	ACL_COUNT_PERMITTED, ACL_COUNT_DENIED, ACL_COUNT_OTHERWISE, ACL_COUNT_LOGGED, ACL_COUNT_UNLOGGED,
	ACL_COUNT_ESTABLISHED, ACL_COUNT_RELATED,
};

/* Where a masked key goes. Products of independent words, so that the CPU has them all on their way at once. */
static inline __attribute__((always_inline)) __u32 acl_hash(const __u64 *word, const __u64 *mask, __u32 seed)
{
	__u64 hash = seed;

	hash += (word[0] & mask[0]) * 0x9e3779b97f4a7c15ull;
	hash += (word[1] & mask[1]) * 0xbf58476d1ce4e5b9ull;
	hash += (word[2] & mask[2]) * 0x94d049bb133111ebull;
	hash += (word[3] & mask[3]) * 0xd6e8feb86659fd93ull;
	hash += (word[4] & mask[4]) * 0xa0761d6478bd642full;
	hash += (word[5] & mask[5]) * 0xe7037ed1a0b428dbull;
	hash ^= hash >> 32;
	hash *= 0x8ebc6af09c88c6e3ull;
	return hash >> 32;
}

/* 0: the entry matches. One sum and no jumps, which the verifier would follow both ways. */
static inline __attribute__((always_inline)) __u64 acl_differs(const struct acl_entry *entry, const __u64 *word)
{
	__u64 differs = (word[0] ^ entry->value[0]) & entry->mask[0];
	__u32 sport = (__u32)word[5] >> 16, dport = (__u32)word[5] & 0xffff;

	differs |= (word[1] ^ entry->value[1]) & entry->mask[1];
	differs |= (word[2] ^ entry->value[2]) & entry->mask[2];
	differs |= (word[3] ^ entry->value[3]) & entry->mask[3];
	differs |= (word[4] ^ entry->value[4]) & entry->mask[4];
	differs |= ((__u64)entry->sport_more - ((sport - entry->sport) & 0xffff)) >> 63;
	differs |= ((__u64)entry->dport_more - ((dport - entry->dport) & 0xffff)) >> 63;
	return differs;
}
