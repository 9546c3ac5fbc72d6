/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* patch: what both halves of the plugin of this name share. */
#pragma once

#include <linux/types.h>

#include "bpf/abi/link.h"

#define PATCH_NO_PARTNER 0xff

struct patch_config {
	__u8 partner[WEIR_MAX_PORTS];	/* by port slot */
};

enum patch_drop { PATCH_UNPAIRED };
