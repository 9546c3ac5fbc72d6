/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* stage: all that a kernel half includes. Write one STAGE(name) { ... } that returns one of the verdicts below. */
#pragma once

#include "bpf/lib/ingress.bpf.h"

/* A verdict: what (enum weir_verdict) in the low half, its argument in the high half. */
typedef __u64 stage_verdict;

#define STAGE_VERDICT(what, argument) ((__u64)(what) | (__u64)(argument) << 32)

static __always_inline stage_verdict next(void) { return STAGE_VERDICT(WEIR_NEXT, 0); }
static __always_inline stage_verdict redirect(__u32 port) { return STAGE_VERDICT(WEIR_REDIRECT, port); }
static __always_inline stage_verdict flood(__u32 group) { return STAGE_VERDICT(WEIR_FLOOD, group); }
static __always_inline stage_verdict to_stack(void) { return STAGE_VERDICT(WEIR_TO_STACK, 0); }
/* redirect() and flood() become a punt where only user space can send the frame: a half that has changed the frame must be one whose user
 * half finds nothing left to change in it. Reasons count from 0, in the order in which the plugin declares them. */
static __always_inline stage_verdict punt(__u32 reason) { return STAGE_VERDICT(WEIR_PUNT, reason); }
static __always_inline stage_verdict drop(__u32 reason) { return STAGE_VERDICT(WEIR_DROP, reason); }

/* The slot of the port that the frame came in by. */
static __always_inline __u32 stage_port(const struct stage_frame *frame) { return frame_port(frame); }

/* `size` bytes at `offset` of the frame, or null when the frame is shorter. Offsets must be small constants or be masked. */
static __always_inline void *stage_header(const struct stage_frame *frame, __u32 offset, __u32 size)
{
	void *at = frame_address(frame->ctx->data, offset);

	return at + size > (void *)(long)frame->ctx->data_end ? 0 : at;
}

/* Whether the port has a device entry, so that a redirect to it does not leave the kernel. */
static __always_inline int stage_has_entry(__u32 port)
{
	__u32 *own = LINKED(program_link, stage.keyed) ? bpf_map_lookup_elem(&keys, &port) : 0;

	if (port >= LINKED(program_link, stage.ports))
		return 0;
	return bpf_map_lookup_elem(&ports, own ? own : &port) || bpf_map_lookup_elem(&bare_ports, own ? own : &port);
}

/* Whether the frame is the first of a flow that the user half could offload, there is room, and user space keeps up. A half that asks punts the
 * frame then, so that the next ones need no stage. What it forwards by itself is never offloaded. */
static __always_inline int stage_wants_flow(const struct stage_frame *frame)
{
	struct port_entries *entries = LINKED_MEMORY(LINK_ENTRIES);

	if (!LINKED(program_link, stage.offloads) || !frame->flow || !entries->open)
		return 0;
	if ((__s64)(*(volatile __u64 *)&entries->wanted - *(volatile __u64 *)&entries->handled) >= WEIR_MOST_WANTED)
		return 0;
	/* Not when the process has died or stands still: what a kernel half can do goes on. */
	if (!frame_has_socket(frame) || bpf_ktime_get_coarse_ns() / 1000000000 - entries->now_s > WEIR_LONGEST_SILENCE_S)
		return 0;
	__sync_fetch_and_add(&entries->wanted, 1);
	return 1;
}

/* No later stage is to offload the frame's flow: this one is to see every frame of it. As Burst::keep() of the user half. */
static __always_inline void stage_keep(struct stage_frame *frame)
{
	frame->flow = 0;
	if (!frame->attached)
		frame->scratch->flow = 0;
}

/* One of the plugin's own counters, in the order in which it declares them. */
static __always_inline void stage_count(struct stage_frame *frame, __u64 counter)
{
	asm volatile("" : "+r"(counter)); /* see end_with_drop() */
	if (counter < WEIR_COUNTERS)
		frame->stage->counter[counter]++;
}

static __always_inline struct stage_frame stage_frame_of(struct xdp_md *ctx)
{
	struct stage_frame frame = { .ctx = ctx };

	return frame;
}

/* What the program before has noted of the frame. */
static __always_inline int stage_open(struct stage_frame *frame)
{
	__u32 zero = 0;
	__u64 port;

	frame->scratch = bpf_map_lookup_elem(&scratch, &zero);
	if (!frame->scratch)
		return 0;
	frame->row = accounts_row();
	port = frame->scratch->port;
	asm volatile("" : "+r"(port)); /* read once: the verifier trusts what it has seen compared */
	if (!frame->row || port >= WEIR_MAX_PORTS)
		return 0;
	frame->port = frame->row + port;
	frame->flow = frame->scratch->flow;
	frame->stage = frame->row + LINKED(program_link, stage.block);
	return 1;
}

static __always_inline int stage_close(struct stage_frame *frame, stage_verdict verdict)
{
	__u32 what = (__u32)verdict, argument = verdict >> 32;

	switch (what) {
	case WEIR_NEXT:
		frame->stage->verdict[WEIR_NEXT]++;
		frame->stage = 0;
		return go_on(frame, LINKED(program_link, stage.go), LINKED(program_link, stage.next));
	case WEIR_REDIRECT:
		return end_with_redirect(frame, LINKED(program_link, stage.stage), argument);
	case WEIR_FLOOD:
		return end_with_flood(frame, LINKED(program_link, stage.stage), argument);
	case WEIR_PUNT:
		return end_with_punt(frame, LINKED(program_link, stage.stage), argument);
	case WEIR_TO_STACK:
		return end_with(frame, WEIR_TO_STACK, XDP_PASS);
	default:
		return end_with_drop(frame, argument < WEIR_DROPS ? WEIR_DROP_OWN + argument : WEIR_DROP_UNNAMED);
	}
}

/* Two programs of one body. NAME is called by the stage before. NAME_entry is attached to a port whose pipeline begins here: it saves the
 * tail call and what would have to be carried over it, some 10 ns a frame. XDP_ABORTED cannot be, since the loader sizes the maps. */
#define STAGE(name)                                                                     \
	static __always_inline stage_verdict name##_body(struct stage_frame *frame);    \
	SEC("xdp") int name(struct xdp_md *ctx)                                         \
	{                                                                               \
		struct stage_frame frame = stage_frame_of(ctx);                         \
                                                                                        \
		if (!stage_open(&frame))                                                \
			return XDP_ABORTED;                                             \
		return stage_close(&frame, name##_body(&frame));                        \
	}                                                                               \
	SEC("xdp") int name##_entry(struct xdp_md *ctx)                                 \
	{                                                                               \
		struct stage_frame frame = stage_frame_of(ctx);                         \
		int action = ingress_enter(&frame);                                     \
                                                                                        \
		if (action != INGRESS_GO_ON)                                            \
			return action;                                                  \
		frame.stage = frame.row + LINKED(program_link, stage.block);                             \
		return stage_close(&frame, name##_body(&frame));                        \
	}                                                                               \
	char weir_licence[] SEC("license") = "Dual BSD/GPL";                            \
	static __always_inline stage_verdict name##_body(struct stage_frame *frame)
