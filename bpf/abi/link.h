/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* link: what a program is told before it is loaded, so that the verifier sees constants: where it stands and what comes next. */
#pragma once

#include <linux/types.h>

#include "bpf/abi/account.h"

enum weir_go {
	WEIR_GO_STAGE,	/* tail call slot `next` of the program array */
	WEIR_GO_PUNT,	/* stage `next` has no kernel half: to its user half */
	WEIR_GO_STACK,	/* there is no next stage */
};

/* What the kernel must know of a port before it looks for its device entry, in the map "entries". */
enum weir_entry {
	WEIR_ENTRY_DELETED = 1,	/* by command: a redirect to it is a miss. Others without an entry are those that only user space sends to */
	WEIR_ENTRY_FUSED = 2,	/* its egress chain runs before the redirect */
};

struct ingress_link {
	__u64 mark;	/* generic mode: see struct to_stack_ring; 0: native */
	__u32 port;	/* slot: key of the map "ports", and the port's block in the accounts */
	__u32 sockets;	/* first key of the port in the map "sockets" */
	__u32 queues;	/* how many keys it has there */
	__u32 go;	/* enum weir_go; unused where the first stage is part of the ingress program */
	__u32 next;
	__u32 unused;
};

struct stage_link {
	__u32 stage;	/* its number in the instance: slot of the program array, and what a punted frame's metadata says */
	__u32 block;
	__u32 go;
	__u32 next;
	__u32 ports;	/* of the instance: their slots are below */
	__u32 miss;	/* XDP action of a redirect to a port that has no entry; see end_with_miss() in bpf/lib/runtime.bpf.h */
	__u32 keyed;	/* the map "ports" has keys that are not the ports' slots: "keys" tells them */
	__u32 frags;	/* frames may lie in several buffers; also in a program without a stage */
};

/* Of a program that frames are shown to on their way in. */
struct program_link {
	__u8 unused[WEIR_FRAME_NOTES];
	struct stage_link stage;	/* of no meaning in the program of a port whose first stage is not in the kernel, */
	struct ingress_link port;	/* and this in a program that no port is attached to */
};

struct egress_link {
	__u8 unused[WEIR_FRAME_NOTES];
	__u32 block;
	__u32 next;	/* slot of the program array "chain"; WEIR_NO_NEXT: transmit */
	__u32 port;	/* slot */
	__u32 key;	/* in the map "bare_ports" */
	__u32 frags;	/* frames may lie in several buffers */
	__u32 place;	/* in the chain */
};

/* Tracepoints see the devices of every network namespace, and ifindexes repeat. */
struct trace_link {
	__u32 netns;	/* inode of the instance's own */
	__u32 keyed;	/* see struct stage_link; "slots" tells the ports' slots */
};

#define WEIR_NEAR_DEVICES 4096	/* ifindexes that are looked up in an array */

#define WEIR_NO_NEXT 0xffffffffu

/* Per CPU, written before the first tail call, read by the stages behind it. */
struct scratch {
	__u32 port;
	__u32 sockets;
	__u32 queues;
};

/* In front of the bytes of a punted frame. */
struct punt_meta {
	__u32 magic;	/* WEIR_PUNT_MAGIC; cleared by the reader, since a frame's headroom keeps what an earlier frame left there */
	__u16 port;
	__u8 stage;
	__u8 reason;	/* the stage's own, from 0 */
};

#define WEIR_PUNT_MAGIC 0x72696577u

#define WEIR_MAX_PORTS 64
#define WEIR_MAX_STAGES 64
#define WEIR_MAX_GROUPS 64

/* A broadcast takes any key, and the kernel hands it on to the tracepoints. */
#define WEIR_FLOOD_KEY 0xffffffffu

/* What the kernel must know of a group beside its devmap: a flood that has a single target is a plain redirect, which costs no clone, and
 * a member that cannot take a frame of that length would be skipped without a word (kernel/bpf/devmap.c, is_valid_dst), so that such a
 * frame goes to the user half, which sends it member by member and counts. A member that is down is none, in both halves. */
struct group_targets {
	__u32 longest;			/* bytes of a frame that every member takes: MTU, Ethernet header and one VLAN tag; 0: not all by redirect */
	__u8 only[WEIR_MAX_PORTS];	/* by the port that the frame came in by: the one target, or WEIR_MANY, or WEIR_NONE */
	__u8 fan_out[WEIR_MAX_PORTS];	/* by the same: the number of targets */
	__u8 members[WEIR_MAX_PORTS];	/* those that have an entry */
	__u32 count;			/* of them */
};

#define WEIR_MANY 0xff
#define WEIR_NONE 0xfe
