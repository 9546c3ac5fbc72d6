/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* note: what an egress program tells user space of a frame: by the map "notes" in the kernel, by a ring of the process in its host build. */
#pragma once

#include <linux/types.h>

enum note_kind {
	NOTE_SAMPLE,
	NOTE_TOO_BIG,	/* for the sender of the frame, by ICMP */
};

/* The bytes follow. */
struct note {
	__u64 time;	/* nanoseconds of CLOCK_MONOTONIC */
	__u32 kind;
	__u32 device;	/* ifindex of the one that the frame came in by; 0 from the host build, which knows the port instead */
	__u16 in;	/* slot of that port; NOTE_NO_PORT from the BPF build */
	__u16 out;	/* slot of the port whose chain it is: its device may come back under another ifindex */
	__u32 place;	/* of the program in the chain */
	__u32 length;	/* of the frame, as it is at this place */
	__u32 captured;	/* bytes of it that follow */
	__u32 mtu;	/* too big: what the packet may be at most */
	__u32 unused;
};

#define NOTE_NO_PORT 0xffff
#define NOTE_LONGEST 2048	/* bytes of a frame. A power of two: see notes_put() in bpf/lib/notes.bpf.h */

/* Either ring is read every NOTE_INTERVAL_MS at least, by nobody's wake-up: in this time the kernel's takes 6000 samples of 128 bytes. */
#define NOTE_RING_BYTES (1u << 20)
#define NOTE_SLOTS 512		/* of the process's */
#define NOTE_INTERVAL_MS 20

/* Where the host build's notes go. */
struct egress_notes {
	int (*take)(void *ring, const struct note *note, const __u8 *bytes);	/* 0: it is full */
	void *ring;
	__u16 port;	/* that the chain belongs to */
	__u16 place;
};
