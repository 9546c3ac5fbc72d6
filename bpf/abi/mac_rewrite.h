/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* mac_rewrite: the configuration of the egress program of this name. */
#pragma once

#include <linux/types.h>

struct mac_rewrite_config {
	__u8 src[6];
	__u8 set_src;
	__u8 set_dst;
	__u8 dst[6];
};

enum mac_rewrite_drop { MAC_REWRITE_TRUNCATED };
