/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* pump: frames of user space that a live-frame run copies from the frames' own memory and redirects. */
#pragma once

#include <linux/types.h>

/* Least and most that a frame of the kernel's test runs holds; see bpf/abi/to_stack.h. */
#define PUMP_SHORTEST 14
#define PUMP_LONGEST 3408
#define PUMP_HEADROOM 256	/* XDP_PACKET_HEADROOM: where the bytes of a frame begin that nobody has made longer or shorter */
#define PUMP_SLOTS 512		/* a power of two */

struct pump_slot {
	__u32 frame;	/* its number in the memory of all frames */
	__u16 at;	/* of its bytes, in the frame */
	__u16 length;
};

/* Whoever fills the slots starts the run and waits for its end, so that one side at a time works with them. */
struct pump_ring {
	__u64 head;	/* slots ever filled; user space writes */
	__u64 tail;	/* slots ever emptied; the program writes */
	__u64 lost;	/* of them: the device has no entry any more, or the kernel had no room for the bytes */
	__u64 key;	/* of the device entry */
	struct pump_slot slots[PUMP_SLOTS];
};
