/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* mtu_guard: the configuration of the egress program of this name. */
#pragma once

#include <linux/types.h>

struct mtu_guard_config {
	__u32 mtu;
	__u32 unused;
};

enum mtu_guard_drop { MTU_GUARD_TOO_LONG };
