/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* ingress: what happens to every frame of a port first: count it and note where it came in. Included by programs that are attached. */
#pragma once

#include <linux/if_ether.h>

#include "bpf/lib/flow.bpf.h"

/* A frame that user space has given to the host stack, and that generic XDP shows again; see struct to_stack_ring. */
static __always_inline int ingress_seen(struct xdp_md *ctx)
{
	__u64 *at;
	int seen;

	if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(*at)))
		return 0;
	at = (void *)(long)ctx->data_meta;
	if ((void *)(at + 1) > (void *)(long)ctx->data)
		return 0;
	seen = *at == LINKED(program_link, port.mark);
	if (seen)
		*at = 0;
	bpf_xdp_adjust_meta(ctx, sizeof(*at));
	return seen;
}

/* INGRESS_GO_ON, or the action that ends the frame here. */
static __always_inline int ingress_enter(struct stage_frame *frame)
{
	__u64 length = frame_length(frame->ctx);

	if (LINKED(program_link, port.mark) && ingress_seen(frame->ctx))
		return XDP_PASS;
	frame->attached = 1;
	frame->row = accounts_row();
	if (!frame->row)
		return XDP_ABORTED; /* cannot be: the loader sizes the map. Shows as xdp_exception */
	frame->port = frame->row + LINKED(program_link, port.port);
	frame->port->frames++;
	frame->port->bytes += length;
	if (length < ETH_HLEN)
		return end_with_drop(frame, WEIR_DROP_RUNT);
	return LINKED(program_link, port.flow_mask) ? flow_try(frame, length) : INGRESS_GO_ON;
}
