/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* police: the configuration of the egress program of this name, and the buckets that all who run it share. */
#pragma once

#include <linux/types.h>

/* 5.8 years of uptime at 800 Gbit/s are 2^64 bytes: see struct police_bucket. */
#define POLICE_MAX_BPS 800000000000ll
#define POLICE_MAX_FPS 1000000000ll

/* A bucket's clock counts the tokens, bytes or frames, that have come since the machine's start: so many for each nanosecond. */
struct police_bucket {
	__u64 whole;
	__u64 part;	/* in 2^-64 */
	__u64 second;	/* tokens that come in a second */
	__u64 size;
};

enum police_mode { POLICE_TWO_COLOURS, POLICE_ONE_RATE, POLICE_TWO_RATES };
enum police_action { POLICE_TRANSMIT, POLICE_REMARK, POLICE_DROP };

struct police_config {
	__u64 cir_bps;
	__u64 cir_fps;
	__u64 pir_bps;
	__u64 pir_fps;
	struct police_bucket committed;	/* made of the keys, as are the others and `mode`, `frames` */
	struct police_bucket peak;
	__u64 excess;
	__u32 mode;
	__u32 frames;	/* a token is a frame, not a byte */
	__u32 burst_bytes;
	__u32 burst_frames;
	__u32 excess_bytes;
	__u32 excess_frames;
	__u32 peak_burst_bytes;
	__u32 peak_burst_frames;
	__u32 yellow;
	__u32 red;
	__u32 yellow_dscp;
	__u32 red_dscp;
	__u8 has_yellow;
	__u8 has_yellow_dscp;
	__u8 has_red_dscp;
	__u8 unused[5];
};

/* All zero: all full. */
struct police_buckets {
	__u64 committed;	/* what the bucket's clock says when it will be full again; since when it is full, if that is past */
	__u64 peak;		/* likewise */
	__u64 excess;		/* tokens that are missing */
};

enum police_drop { POLICE_EXCEEDED, POLICE_VIOLATED, POLICE_TRUNCATED };
enum police_colour { POLICE_GREEN, POLICE_YELLOW, POLICE_RED, POLICE_COLOURS };
enum police_counter { POLICE_BYTES = POLICE_COLOURS, POLICE_UNMARKED = 2 * POLICE_COLOURS, POLICE_COUNTERS };
