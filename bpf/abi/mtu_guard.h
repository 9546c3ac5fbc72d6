/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* mtu_guard: the configuration and the counters of the egress program of this name. */
#pragma once

#include <linux/types.h>

struct mtu_guard_config {
	__u32 mtu;
	__u32 answer;
};

enum mtu_guard_drop { MTU_GUARD_TOO_LONG };

/* The program counts the first two, core/control/listen.cc what became of those that were told: their sum is that of the others. */
enum mtu_guard_counter {
	MTU_GUARD_TOLD,
	MTU_GUARD_LOST,
	MTU_GUARD_ANSWERED,
	MTU_GUARD_UNFIT,
	MTU_GUARD_LIMITED,
	MTU_GUARD_UNSENT,
	MTU_GUARD_COUNTERS
};

struct mtu_guard_state {
	__u64 count[MTU_GUARD_COUNTERS];
};

/* Of a frame, for the quotation in the answer: Ethernet and two tags in front of what is left of the least MTU of IPv6 behind its own and the
 * ICMP header (RFC 4443, 3.2). IPv4 takes less: RFC 1812, 4.3.2.3. */
#define MTU_GUARD_QUOTE (22 + 1280 - 40 - 8)
