/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* vlan_push: the configuration of the egress program of this name. */
#pragma once

#include <linux/types.h>

enum vlan_tpid { VLAN_8021Q, VLAN_8021AD };	/* in the order of the choices of "tpid" */

struct vlan_push_config {
	__u32 vid;
	__u32 pcp;
	__u32 tpid;	/* enum vlan_tpid */
	__u32 mtu;
	__u8 has_pcp;
	__u8 unused[7];
};

enum vlan_push_drop { VLAN_PUSH_TRUNCATED, VLAN_PUSH_TOO_LONG, VLAN_PUSH_NO_HEADROOM };
