/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* encap: the two ends of a tunnel, in the configuration of the egress programs that put an outer IP header in front. */
#pragma once

#include <linux/types.h>

struct encap_ends {
	__be16 local[8];	/* an IPv4 address is the first two */
	__be16 remote[8];
	__u32 local_version;	/* 4 or 6 */
	__u32 remote_version;	/* the same */
	__u32 ttl;
	__u32 mtu;
};
