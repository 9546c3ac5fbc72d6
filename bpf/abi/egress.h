/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* egress: what the host build of an egress program hands to the runtime: its body, its keys and its names. */
#pragma once

#include <linux/types.h>

#include "bpf/abi/account.h"

/* The configuration or the state of a program that has none. */
struct egress_none {
	__u64 unused;
};

enum egress_key_type {
	EGRESS_KEY_END,
	EGRESS_KEY_U32,
	EGRESS_KEY_MAC,
	EGRESS_KEY_STATION,	/* a MAC address that is neither a group's nor zero */
	EGRESS_KEY_MTU,		/* __u32, bytes behind the Ethernet header; left out, what the port's device has, also when that changes */
	EGRESS_KEY_CHOICE,	/* one of `choices`; the value is its place among them, a __u32 */
	EGRESS_KEY_LIST,	/* tables of the keys `inner`, `stride` bytes apart from `offset` on; `number` is where their number goes, a __u32 */
	EGRESS_KEY_ADDRESS,	/* of IPv4, in the first four of 16 bytes, or of IPv6; in network order. `number` is where 4 or 6 goes, a __u32 */
	EGRESS_KEY_U64,		/* up to what an integer of TOML holds, 2^63 - 1 */
	EGRESS_KEY_PREFIX,	/* struct egress_prefix; an address alone is one of a single host */
	EGRESS_KEY_RANGE,	/* struct egress_range, from min to max: "1024-65535", or one integer */
	EGRESS_KEY_PROTOCOL,	/* of IP, by name or number, a __u32 */
	EGRESS_KEY_FLAG,	/* true or false; a __u32, 1 or 0 */
};

struct egress_prefix {
	__u8 address[16];	/* of IPv4, in the first four, or of IPv6; in network order. Behind `length` bits there are zeroes */
	__u32 version;		/* 4 or 6 */
	__u32 length;
};

struct egress_range {
	__u32 first;
	__u32 last;
};

/* One configuration key, and where its value goes in the program's configuration struct. */
struct egress_key {
	const char *name;
	enum egress_key_type type;
	const char *says;	/* one sentence for people */
	int required;
	const char *fallback;	/* as it would stand in the file; "port": the address of the port's device; null: none */
	__u32 offset;		/* of the value: its type says what is there */
	__u32 present;		/* offset of a __u8 that is set to 1 when there is a value; 0: there is none, so that it cannot stand first */
	long long min, max;	/* EGRESS_KEY_U32, EGRESS_KEY_U64, EGRESS_KEY_RANGE: the value; EGRESS_KEY_LIST: the number of tables */
	const char *const *choices;	/* ends with null */
	const struct egress_key *inner;	/* ends with EGRESS_KEY_END; offsets count from the start of a table's struct */
	__u32 stride, number;
};

/* A program that this one makes no sense behind. */
struct egress_order {
	const char *program;
	const char *why;	/* and what to do */
	int next_to;		/* only right behind it */
};

struct egress_frame;

struct egress_program {
	const char *name;
	const char *says;
	__u32 (*run)(struct egress_frame *frame, const void *config, void *state);
	/* May be null. Makes of the configuration what the body reads, once its keys are in it. Null, or what is wrong with them. */
	const char *(*prepare)(void *config);
	const struct egress_key *keys;	/* ends with EGRESS_KEY_END */
	const struct egress_order *not_behind;	/* ends with a null program; may be null */
	const char *const *drops;	/* reasons, ends with null */
	const char *const *counters;	/* names of the __u64 that the state consists of, ends with null; none: the state is its own affair */
	__u32 config_size;
	__u32 state_size;
	const __u32 *shared_size;	/* may be null: nothing is shared */
	const __u32 *notes;	/* null: it gives none, see bpf/lib/notes.bpf.h */
};

/* The first rows of a state have no writer: see WEIR_FRAME_NOTES. */
#define EGRESS_FIRST_ROW (WEIR_FRAME_NOTES / WEIR_CACHE_LINE)

/* Why a program that is not ours ended a frame: XDP_DROP, and any other action than XDP_PASS. */
enum foreign_drop { FOREIGN_DROPPED, FOREIGN_ABORTED };

/* The verdict of a body: transmit, or drop under one of the program's own reasons. */
#define EGRESS_TRANSMIT 0u
#define EGRESS_DROP(reason) (1u + (reason))
