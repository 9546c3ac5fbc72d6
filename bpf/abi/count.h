/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* count: the counters of the egress program of this name. */
#pragma once

#include <linux/types.h>

enum count_class { COUNT_ARP, COUNT_IPV4, COUNT_IPV6, COUNT_VLAN, COUNT_OTHER, COUNT_TCP, COUNT_UDP, COUNT_ICMP, COUNT_CLASSES };

struct count_state {
	__u64 bytes;
	__u64 frames[COUNT_CLASSES];	/* by L3 protocol; and of the untagged IPv4 and IPv6 ones by L4 protocol too */
};
