/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* runtime: the maps of an instance, and what every verdict does in the kernel. Included by the ingress program and by stage.bpf.h. */
#pragma once

#include "bpf/lib/accounts.bpf.h"

/* Sizes here are placeholders: the loader gives every program the instance's own maps of these names. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratch SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, WEIR_MAX_STAGES);
	__type(key, __u32);
	__type(value, __u32);
} stages SEC(".maps");

/* Or a devmap_hash: the loader's to choose. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, WEIR_MAX_PORTS);
	__type(key, __u32);
	__type(value, struct bpf_devmap_val);
} ports SEC(".maps");

/* Heads of the egress chains that run before the redirect, by slot of the target; they end in a redirect of their own. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, WEIR_MAX_PORTS);
	__type(key, __u32);
	__type(value, __u32);
} fused SEC(".maps");

/* Of the ports whose egress chain is fused: entries without a program. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, WEIR_MAX_PORTS);
	__type(key, __u32);
	__type(value, struct bpf_devmap_val);
} bare_ports SEC(".maps");

/* By slot: the port's key in "ports". */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, WEIR_MAX_PORTS);
	__type(key, __u32);
	__type(value, __u32);
} keys SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

struct group_devmap {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, WEIR_MAX_PORTS);
	__type(key, __u32);
	__type(value, struct bpf_devmap_val);
};

/* What there is of a group is there twice, at its slot and WEIR_MAX_GROUPS behind it: a change is made where no flood looks, and this number, 0
 * or 1, says which one counts. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, WEIR_MAX_GROUPS);
	__type(key, __u32);
	__type(value, __u32);
} versions SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 2 * WEIR_MAX_GROUPS);
	__type(key, __u32);
	__array(values, struct group_devmap);
} groups SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * WEIR_MAX_GROUPS);
	__type(key, __u32);
	__type(value, struct group_targets);
} targets SEC(".maps");

struct stage_frame {
	struct xdp_md *ctx;
	int attached;		/* the program is the port's own: what it is to know of the port is in its link, */
	struct scratch *scratch;	/* and in the programs behind it here */
	struct account *row;	/* of this CPU */
	struct account *port;	/* of the port that the frame came in by */
	struct account *stage;	/* that decides; null in the ingress program, and once a stage has let the frame go on */
	__u32 flow;		/* see struct scratch */
};

/* Done on the spot, in 64 bits: a compiler that keeps one of the two pointers for later keeps 32 bits of it, which the verifier refuses. */
static __always_inline __u64 frame_length(struct xdp_md *ctx)
{
	__u64 length = (long)ctx->data_end - (long)ctx->data;

	if (LINKED(program_link, stage.frags))
		return bpf_xdp_get_buff_len(ctx);
	asm volatile("" : "+r"(length));
	return length;
}

/* `attached` is a constant to the compiler, so each program has one of the two. */
static __always_inline __u32 frame_port(const struct stage_frame *frame)
{
	return frame->attached ? LINKED(program_link, port.port) : frame->scratch->port;
}

static __always_inline int end_with(struct stage_frame *frame, enum weir_verdict verdict, int action)
{
	frame->port->verdict[verdict]++;
	if (frame->stage)
		frame->stage->verdict[verdict]++;
	return action;
}

static __always_inline int end_with_drop(struct stage_frame *frame, __u64 reason)
{
	/* Else the compiler compares one copy of a computed index, in 32 bits, and computes with the other, which the verifier of 6.1 refuses. */
	asm volatile("" : "+r"(reason));
	if (reason >= WEIR_DROPS)
		reason = WEIR_DROP_UNNAMED;
	/* The stage's reasons are its own: counted in its block. What the runtime drops is counted at the port. */
	if (reason >= WEIR_DROP_OWN && frame->stage)
		frame->stage->drop[reason]++;
	else
		frame->port->drop[reason]++;
	return end_with(frame, WEIR_DROP, XDP_DROP);
}

/* Whether a punt would find the socket of a process. */
static __always_inline int frame_has_socket(const struct stage_frame *frame)
{
	__u32 queue = frame->ctx->rx_queue_index;
	__u32 queues = frame->attached ? LINKED(program_link, port.queues) : frame->scratch->queues;
	__u32 key = (frame->attached ? LINKED(program_link, port.sockets) : frame->scratch->sockets) + queue;

	return queue < queues && bpf_map_lookup_elem(&sockets, &key);
}

static __always_inline int end_with_punt(struct stage_frame *frame, __u32 stage, __u32 reason)
{
	struct xdp_md *ctx = frame->ctx;
	__u32 queue = ctx->rx_queue_index;
	__u32 queues = frame->attached ? LINKED(program_link, port.queues) : frame->scratch->queues;
	__u32 sockets_at = frame->attached ? LINKED(program_link, port.sockets) : frame->scratch->sockets;

	if (stage == WEIR_NO_STAGE)
		return end_with_drop(frame, WEIR_DROP_NO_ENTRY);
	if (queue >= queues)
		return end_with_drop(frame, WEIR_DROP_NO_SOCKET);
	/* A driver without metadata leaves the frame as it is; the user side then starts at the first stage, which may always be done
	 * since a user half is complete. */
	if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(struct punt_meta)) == 0) {
		struct punt_meta *meta = (void *)(long)ctx->data_meta;

		if ((void *)(meta + 1) > (void *)(long)ctx->data)
			return end_with_drop(frame, WEIR_DROP_NO_SOCKET);
		meta->magic = WEIR_PUNT_MAGIC;
		meta->kept = frame->flow ? ((const struct port_entries *)LINKED_MEMORY(LINK_ENTRIES))->epoch : 1;
		meta->port = frame_port(frame);
		meta->stage = stage;
		meta->reason = reason;
	}
	if (bpf_redirect_map(&sockets, sockets_at + queue, XDP_DROP) != XDP_REDIRECT)
		return end_with_drop(frame, WEIR_DROP_NO_SOCKET);
	return end_with(frame, WEIR_PUNT, XDP_REDIRECT);
}

/* The block of a port in the accounts is its slot, and a row has a block for every slot. */
static __always_inline void count_queued(const struct stage_frame *frame, __u64 port)
{
	asm volatile("" : "+r"(port)); /* see end_with_drop() */
	if (port < WEIR_MAX_PORTS)
		frame->row[port].counter[WEIR_PORT_QUEUED]++;
}

static __always_inline void count_flooded(const struct stage_frame *frame, const struct group_targets *to)
{
	__u32 i;

	for (i = 0; i < WEIR_MAX_PORTS && i < to->count; i++)
		if (to->members[i] != frame_port(frame))
			count_queued(frame, to->members[i]);
}

/* A port without a device entry is one that only user space sends to: the user half of the stage decides the same and sends it. Unless its
 * entry was deleted, or it is no port at all. */
static __always_inline int end_with_miss(struct stage_frame *frame, __u32 stage, __u32 port, int action)
{
	const struct port_entries *entries = LINKED_MEMORY(LINK_ENTRIES);

	if (port < LINKED(program_link, stage.ports) && !(entries->deleted >> port & 1))
		return end_with_punt(frame, stage, 0);
	if (action == XDP_PASS) {
		frame->port->counter[WEIR_PORT_MISS_STACK]++;
		return end_with(frame, WEIR_TO_STACK, XDP_PASS);
	}
	frame->port->counter[action == XDP_ABORTED ? WEIR_PORT_MISS_ABORTED : WEIR_PORT_MISS_DROP]++;
	frame->port->drop[WEIR_DROP_NO_ENTRY]++;
	return end_with(frame, WEIR_DROP, action);
}

static __always_inline int end_at_entry(struct stage_frame *frame, __u32 stage, __u32 port)
{
	__u32 key = port, *own = LINKED(program_link, stage.keyed) ? bpf_map_lookup_elem(&keys, &port) : 0;
	int action;

	if (port >= LINKED(program_link, stage.ports)) /* it has no key of its own, and must not go by another port's */
		return end_with_miss(frame, stage, port, LINKED(program_link, stage.miss));
	if (own)
		key = *own;
	action = bpf_redirect_map(&ports, key, LINKED(program_link, stage.miss));
	if (action != XDP_REDIRECT)
		return end_with_miss(frame, stage, port, action);
	count_queued(frame, port);
	return end_with(frame, WEIR_REDIRECT, XDP_REDIRECT);
}

/* A tail call whose index the verifier knows is a direct jump, and one that it does not know costs more than all else here. Hence a tree of
 * comparisons with a call at each leaf; what lies beyond the instance's ports is cut off by the verifier. */
static __always_inline void fused_1(struct xdp_md *ctx, __u32 port, const __u32 at) { bpf_tail_call_static(ctx, &fused, at); }
#define FUSED_TREE(name, half, below)                                                                  \
	static __always_inline void name(struct xdp_md *ctx, __u32 port, const __u32 at)               \
	{                                                                                              \
		if (LINKED(program_link, stage.ports) > at + (half) && port >= at + (half))                     \
			below(ctx, port, at + (half));                                                 \
		else                                                                                   \
			below(ctx, port, at);                                                          \
	}
FUSED_TREE(fused_2, 1, fused_1)
FUSED_TREE(fused_4, 2, fused_2)
FUSED_TREE(fused_8, 4, fused_4)
FUSED_TREE(fused_16, 8, fused_8)
FUSED_TREE(fused_32, 16, fused_16)
FUSED_TREE(fused_64, 32, fused_32)

/* Through the target's egress chain here, if it is fused; else through its device entry. A tail call does not come back, so the verdict is
 * counted before it; in the moment in which the chain goes, the call finds nothing, and the verdict is what comes of it. */
static __always_inline int end_with_redirect(struct stage_frame *frame, __u32 stage, __u32 port)
{
	const struct port_entries *entries = LINKED_MEMORY(LINK_ENTRIES);

	if (port < LINKED(program_link, stage.ports) && entries->fused >> port & 1) {
		end_with(frame, WEIR_REDIRECT, XDP_REDIRECT);
		fused_64(frame->ctx, port, 0);
		frame->port->verdict[WEIR_REDIRECT]--;
		if (frame->stage)
			frame->stage->verdict[WEIR_REDIRECT]--;
	}
	return end_at_entry(frame, stage, port);
}

static __always_inline int end_with_flood(struct stage_frame *frame, __u32 stage, __u32 group)
{
	__u32 *version = bpf_map_lookup_elem(&versions, &group);
	__u32 port = frame_port(frame), at = group;
	struct group_targets *to;
	__u32 only, copies;
	void *members;

	if (!version)
		return end_with_drop(frame, WEIR_DROP_NO_GROUP);
	at += (*version & 1) * WEIR_MAX_GROUPS;
	to = bpf_map_lookup_elem(&targets, &at);
	members = bpf_map_lookup_elem(&groups, &at);
	if (!to || !members || port >= WEIR_MAX_PORTS)
		return end_with_drop(frame, WEIR_DROP_NO_GROUP);
	/* While the port's register is the one that was compared: the verifier of 6.1 forgets that over a spill. */
	only = to->only[port];
	copies = to->fan_out[port] - 1;
	if (to->longest < frame_length(frame->ctx))
		return end_with_punt(frame, stage, 0);
	if (only == WEIR_NONE)
		return end_with_drop(frame, WEIR_DROP_NO_ENTRY);
	if (only != WEIR_MANY)
		return end_at_entry(frame, stage, only); /* no member of a group is fused while "longest" says otherwise */
	if (bpf_redirect_map(members, WEIR_FLOOD_KEY, BPF_F_BROADCAST | BPF_F_EXCLUDE_INGRESS) != XDP_REDIRECT)
		return end_with_drop(frame, WEIR_DROP_NO_ENTRY);
	frame->port->counter[WEIR_PORT_COPIES] += copies;
	count_flooded(frame, to);
	return end_with(frame, WEIR_FLOOD, XDP_REDIRECT);
}

/* `go` and `next` are constants at load: the branch is decided by the verifier, and the tail call becomes a direct jump. */
static __always_inline int go_on(struct stage_frame *frame, __u32 go, __u32 next)
{
	if (go == WEIR_GO_PUNT)
		return end_with_punt(frame, next, 0);
	if (go == WEIR_GO_STACK)
		return end_with(frame, WEIR_TO_STACK, XDP_PASS);
	if (frame->attached) {
		__u32 zero = 0;
		struct scratch *cpu = bpf_map_lookup_elem(&scratch, &zero);

		if (cpu) {
			cpu->port = LINKED(program_link, port.port);
			cpu->sockets = LINKED(program_link, port.sockets);
			cpu->queues = LINKED(program_link, port.queues);
			cpu->flow = frame->flow;
		}
	}
	bpf_tail_call(frame->ctx, &stages, next);
	return end_with_drop(frame, WEIR_DROP_NO_STAGE);
}
