/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* sample: the configuration and the counters of the egress program of this name. */
#pragma once

#include <linux/types.h>

struct sample_config {
	__u32 n;
	__u32 snap_bytes;
};

enum sample_counter { SAMPLE_SAMPLED, SAMPLE_LOST, SAMPLE_COUNTERS };
