/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* account: the counters of both sides, one table that the kernel programs and the workers write and anyone may read. */
#pragma once

#include <linux/types.h>

/* The map "accounts" is memory-mapped rows, each as many `struct account` as there are blocks. A row has one writer: the first rows belong to
 * the possible CPUs (XDP runs with soft interrupts off, so a CPU's programs never interrupt each other), the rows behind them to the threads
 * of user space that run stages, one each, and the last one to the control thread. A block belongs to one port (by slot, these come first),
 * one stage, or one place in an egress chain; its counter is the sum over all rows. There are WEIR_MAX_PORTS blocks at least, so that a slot
 * is always within a row. */

enum weir_verdict {
	WEIR_NEXT,	/* on to the next stage; behind the last one: to the host stack */
	WEIR_REDIRECT,	/* out of a port */
	WEIR_FLOOD,	/* out of all ports of a group but the one it came in by */
	WEIR_PUNT,	/* kernel half only: to the user half of this stage */
	WEIR_TO_STACK,
	WEIR_DROP,
	WEIR_VERDICTS
};

/* Reasons of drops that the runtime itself makes; a plugin's own reasons start at WEIR_DROP_OWN. */
enum weir_drop {
	WEIR_DROP_RUNT,		   /* shorter than an Ethernet header */
	WEIR_DROP_NO_ENTRY,	   /* redirect to a port that is not there; flood to a group without another member */
	WEIR_DROP_NO_GROUP,	   /* flood to a group that does not exist */
	WEIR_DROP_NO_SOCKET,	   /* punt on a queue that has no AF_XDP socket */
	WEIR_DROP_NO_STAGE,	   /* the program array lacks the next stage */
	WEIR_DROP_REDIRECT_FAILED, /* of the target; tracepoint xdp_redirect_err on a devmap: MTU, device down, no ndo_xdp_xmit */
	WEIR_DROP_FLOOD_FAILED,	   /* the same of a group, at the port that the frame came in by: the kernel had no memory for a copy */
	WEIR_DROP_PUNT_FAILED,	   /* tracepoint xdp_redirect_err on an xskmap: receive ring full, no frame in the fill ring, frame too long */
	WEIR_DROP_DEVICE_REFUSED,  /* tracepoint xdp_devmap_xmit, and of a socket in copy mode EBUSY: the device's ring is full, or no carrier */
	WEIR_DROP_PEER_NO_NAPI,	   /* the same with ENXIO: a veth whose peer has neither XDP nor GRO */
	WEIR_DROP_EXCEPTION,	   /* tracepoint xdp_exception */
	WEIR_DROP_RING_FULL,	   /* user side: the transmit ring stayed full */
	WEIR_DROP_NO_FRAME,	   /* user side: no free frame for a flooded copy */
	WEIR_DROP_STACK_FULL,	   /* user side: the way to the host stack was full */
	WEIR_DROP_STACK_FAILED,	   /* user side: the kernel did not take a frame for the host stack, or it is longer than that way allows */
	WEIR_DROP_TOO_LONG,	   /* user side: longer than the port's MTU allows */
	WEIR_DROP_DEVICE_DOWN,	   /* user side: the port's device is down */
	WEIR_DROP_PROCESS_DIED,	   /* user side: in the rings and bursts of a process that was killed */
	WEIR_DROP_DEVICE_GONE,	   /* user side: unread in the ring of a device that went */
	WEIR_DROP_LANE_FULL,	   /* user side: the lanes of a parallel stage had no room */
	WEIR_DROP_OWN,
	WEIR_DROP_UNNAMED = 37,	   /* a stage or an egress program gave a reason that is none of its names */
	WEIR_DROPS
};

#define WEIR_COUNTERS 16
#define WEIR_CACHE_LINE 64

/* Drivers and the kernel keep what they note of a frame, and its first bytes, at the start of the frame's page. With a burst of frames on
 * their way these lines of a page push one another out of the CPU's nearest cache, whosever page it is. So what is read or counted with
 * each frame lies behind them in its own page. */
#define WEIR_FRAME_NOTES 512

/* Raised when a counter changes its place or its meaning: a run adopts only counters that it understands. */
#define WEIR_ACCOUNT_VERSION 9

enum weir_port_counter {
	WEIR_PORT_COPIES,	/* frames that floods made beyond the one that came in */
	WEIR_PORT_DIED_UNSENT,	/* of the drops "process_died": frames that had their verdict, and no ring yet */
	/* Kernel rows: frames that were redirected or flooded to this port. The tracepoint of what was sent cannot count it: Linux 6.18 leaves its
	 * program out for some events while another program is attached to it or detached [ran]. */
	WEIR_PORT_QUEUED,
	WEIR_PORT_ENTRY_DROPS,	/* of them, by the egress programs on the port's device entry */
	WEIR_PORT_MISS_STACK,	/* frames of this port for a port without an entry that went to the host stack, */
	WEIR_PORT_MISS_DROP,	/* were dropped, */
	WEIR_PORT_MISS_ABORTED,	/* or, in kernel rows, dropped by XDP_ABORTED, which shows as an exception too */
	/* Kernel rows: frames that user space sent by a pump and that were not sent after all, as the drops "device_refused", */
	WEIR_PORT_PUMP_REFUSED,
	WEIR_PORT_PUMP_NO_NAPI,	/* "peer_no_napi" */
	WEIR_PORT_PUMP_FAILED,	/* and "redirect_failed" */
};

/* What every frame counts is one cache line, the last of the block: see WEIR_FRAME_NOTES. */
struct account {
	__u64 drop[WEIR_DROPS];
	__u64 counter[WEIR_COUNTERS];	/* stage: the plugin's own, named by it; port: enum weir_port_counter */
	__u64 tx;			/* port, user rows: handed to the device; of the kernel's, core/control/report.cc tells the number */
	__u64 tx_bytes;			/* the same frames */
	__u64 frames;			/* port: received */
	__u64 bytes;			/* the same frames */
	__u64 verdict[WEIR_VERDICTS];	/* port: what became of its frames; stage: what it decided; egress: next and drop */
} __attribute__((aligned(WEIR_CACHE_LINE)));
