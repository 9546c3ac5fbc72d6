/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* encap_vxlan: the configuration of the egress program of this name. */
#pragma once

#include "bpf/abi/encap.h"

struct encap_vxlan_config {
	struct encap_ends ends;
	__u32 vni;
	__u32 port;
	__u8 src[6];
	__u8 dst[6];
	__u8 unused[4];
};

enum encap_vxlan_drop { ENCAP_VXLAN_TRUNCATED, ENCAP_VXLAN_TOO_LONG, ENCAP_VXLAN_NO_HEADROOM };
