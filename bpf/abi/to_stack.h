/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* to_stack: the ring by which user space hands frames of one port to the host's own network stack. */
#pragma once

#include <linux/types.h>

/* Least and most that a frame of the kernel's test runs holds: an Ethernet header; a page of 4096 less struct xdp_page_head, headroom and
 * skb_shared_info (TEST_MAX_PKT_SIZE in net/bpf/test_run.c; before 6.3 the page holds 40 bytes less). */
#define TO_STACK_SHORTEST 14
#define TO_STACK_LONGEST 3408
#define TO_STACK_SLOTS 1024	/* a power of two; 3.5 MB for each port. With 256, TCP at full speed overran it four times as often */

struct to_stack_slot {
	__u32 length;
	__u32 unused;
	__u8 bytes[TO_STACK_LONGEST];
};

struct to_stack_ring {
	__u64 head;	/* slots ever filled; user space writes */
	__u64 tail;	/* slots ever emptied; the program writes, once it has copied the bytes */
	__u64 lost;	/* of them, without reaching the stack */
	/* Where the port's ingress program runs in generic mode, it will see each frame again on the way up, perhaps on another CPU. It knows
	 * such a frame by this number in front of its bytes: random, so that what an earlier frame left there is not taken for it. 0: native. */
	__u64 mark;
};
