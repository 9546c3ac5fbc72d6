/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* to_stack: the ring by which user space hands frames of one port to the host's own network stack. */
#pragma once

#include <linux/types.h>

/* Most that a frame of the kernel's test runs holds: a page of 4096 less headroom and skb_shared_info (net/bpf/test_run.c). */
#define TO_STACK_LONGEST 3520
#define TO_STACK_SLOTS 256	/* a power of two */

struct to_stack_slot {
	__u32 length;
	__u32 unused;
	__u8 bytes[TO_STACK_LONGEST];
};

struct to_stack_ring {
	__u64 head;	/* slots ever filled; user space writes */
	__u64 tail;	/* slots ever emptied; the program writes */
	__u64 lost;	/* of them, without reaching the stack */
};

struct to_stack_link {
	__u32 generic;	/* the port's ingress program runs in generic mode, and will see each frame again */
};
