/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* vlan_rewrite: the configuration of the egress program of this name. */
#pragma once

#include <linux/types.h>

#include "bpf/abi/vlan_push.h"

struct vlan_rewrite_config {
	__u32 vid;
	__u32 pcp;
	__u32 tpid;	/* enum vlan_tpid */
	__u8 has_vid;
	__u8 has_pcp;
	__u8 has_tpid;
	__u8 unused;
};

enum vlan_rewrite_drop { VLAN_REWRITE_TRUNCATED };
enum vlan_rewrite_counter { VLAN_REWRITE_REWRITTEN, VLAN_REWRITE_UNTAGGED };
