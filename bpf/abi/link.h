/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* link: what a program is told before it is loaded: where it stands and what comes next. The values stand in its code, as 64-bit constants, so
 * that the verifier knows them and the CPU reads nothing. The source has a placeholder for each: LINK_PLACEHOLDER, which struct below, and the
 * offset of a member, of which all are __u64 therefore. See LINKED() in bpf/lib/accounts.bpf.h, and BpfObject::link(). */
#pragma once

#include <linux/types.h>

#include "bpf/abi/account.h"

enum weir_go {
	WEIR_GO_STAGE,	/* tail call slot `next` of the program array */
	WEIR_GO_PUNT,	/* stage `next` has no kernel half: to its user half */
	WEIR_GO_STACK,	/* there is no next stage */
};

#define LINK_PLACEHOLDER 0x7765697200000000ull
#define LINK_MEMORY 0x7765697300000000ull

/* Which struct, from this bit on. A placeholder of the first is one of every struct, whose first member it is. */
#define LINK_STRUCT 16
enum link_struct { LINK_accounts_link, LINK_program_link, LINK_egress_link, LINK_trace_link };

/* Placeholders of this kind, LINK_MEMORY and one of these, become the address of a map's only value. */
enum link_memory {
	LINK_ACCOUNTS,	/* the map "accounts", where it is whole */
	LINK_STATE,	/* rows of an egress program's state */
	LINK_ENTRIES,	/* struct port_entries */
	LINK_MEMORIES
};

/* What the kernel must know of ports before it looks for their device entries: a bit for each slot. */
struct port_entries {
	__u8 unused[WEIR_FRAME_NOTES];
	__u64 fused;	/* the port's egress chain runs before the redirect */
	__u64 deleted;	/* by command: a redirect to it is a miss. Others without an entry are those that only user space sends to */
	__u64 present;	/* a redirect to it finds an entry, or a fused chain and its bare entry */
	__u64 now_s;	/* coarse clock, written once a second */
	__u64 open;	/* the flow cache has room: a kernel half may have its user half offload a flow */
	__u64 epoch;	/* of the flow cache, as FLOW_EPOCH(): what was decided before flows were taken back is not offloaded behind it */
	__u64 wanted;	/* how often one has done so, */
	__u64 handled;	/* and how often a user half has come to it; those that a second brought none of are given up */
};

/* The first member of every link. */
struct accounts_link {
	__u64 cpus;		/* rows of the kernel */
	__u64 row_bytes;
	__u64 whole;		/* the map has one value, all rows; else a value for each: a kernel has its limit */
};

struct ingress_link {
	__u64 mark;	/* generic mode: see struct to_stack_ring; 0: native */
	__u64 port;	/* slot: key of the map "ports", and the port's block in the accounts */
	__u64 sockets;	/* first key of the port in the map "sockets" */
	__u64 queues;	/* how many keys it has there */
	__u64 go;	/* enum weir_go; unused where the first stage is part of the ingress program */
	__u64 next;
	__u64 flow_mask;	/* places of the flow cache less one, a power of two; 0: frames of this port have none */
	__u64 flow_seed;
	__u64 blocks;	/* of a row of the accounts */
	__u64 weak_order;	/* this CPU may read what was written first behind what was written later */
};

struct stage_link {
	__u64 stage;	/* its number in the instance: slot of the program array, and what a punted frame's metadata says */
	__u64 block;
	__u64 go;
	__u64 next;
	__u64 ports;	/* of the instance: their slots are below */
	__u64 miss;	/* XDP action of a redirect to a port that has no entry; see end_with_miss() in bpf/lib/runtime.bpf.h */
	__u64 keyed;	/* the map "ports" has keys that are not the ports' slots: "keys" tells them */
	__u64 frags;	/* frames may lie in several buffers; also in a program without a stage */
	__u64 offloads;	/* its user half may offload flows */
};

/* Of a program that frames are shown to on their way in. */
struct program_link {
	struct accounts_link accounts;
	struct stage_link stage;	/* of no meaning in the program of a port whose first stage is not in the kernel, */
	struct ingress_link port;	/* and this in a program that no port is attached to */
};

struct egress_link {
	struct accounts_link accounts;
	__u64 block;
	__u64 next;	/* slot of the program array "chain"; WEIR_NO_NEXT: transmit */
	__u64 port;	/* slot */
	__u64 key;	/* in the map "bare_ports" */
	__u64 frags;	/* frames may lie in several buffers */
	__u64 place;	/* in the chain */
};

/* Tracepoints see the devices of every network namespace, and ifindexes repeat. */
struct trace_link {
	struct accounts_link accounts;
	__u64 netns;	/* inode of the instance's own */
	__u64 keyed;	/* see struct stage_link; "slots" tells the ports' slots */
};

#define WEIR_NEAR_DEVICES 4096	/* ifindexes that are looked up in an array */

/* Flows that are on their way to the user half. Above that a kernel half works by itself, so that none is lost in a full ring. */
#define WEIR_MOST_WANTED 1024
#define WEIR_LONGEST_SILENCE_S 2	/* the clock of struct port_entries stands so long at most while the process works */

#define WEIR_NO_NEXT 0xffffffffu
#define WEIR_NO_STAGE 0xffffffffu	/* who redirects is no stage: user space could not do it in its place */

/* Per CPU, written before the first tail call, read by the stages behind it. */
struct scratch {
	__u32 port;
	__u32 sockets;
	__u32 queues;
	__u32 flow;	/* the frame may be of a flow, and is of none of the cache */
};

/* In front of the bytes of a punted frame. */
struct punt_meta {
	__u32 magic;	/* WEIR_PUNT_MAGIC; cleared by the reader, since a frame's headroom keeps what an earlier frame left there */
	__u8 port;
	__u8 kept;	/* 1: its flow is not to be offloaded; else struct port_entries.epoch when it was decided so far */
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
