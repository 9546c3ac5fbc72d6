/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* dscp: the configuration of the egress program of this name. */
#pragma once

#include <linux/types.h>

#define DSCP_VALUES 64

struct dscp_pair {
	__u32 from;
	__u32 to;
};

struct dscp_config {
	__u8 to[DSCP_VALUES];	/* by the value that a frame has; made of the others */
	__u32 set;
	__u32 pairs;
	struct dscp_pair map[DSCP_VALUES];
	__u8 has_set;
	__u8 unused[7];
};

enum dscp_drop { DSCP_TRUNCATED };
enum dscp_counter { DSCP_CHANGED, DSCP_UNCHANGED, DSCP_OTHER };
