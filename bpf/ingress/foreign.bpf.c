/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* foreign: what stands around an egress program that is not ours: it calls the program, and counts what became of the frame. */
#include "bpf/lib/egress.bpf.h"

/* The loader puts the program in its place: struct JoinPart in core/kernel/join.hh. */
static __attribute__((noinline)) int stranger(struct xdp_md *ctx) { return ctx->data < ctx->data_end ? XDP_PASS : XDP_ABORTED; }

SEC("xdp/devmap") int foreign(struct xdp_md *ctx)
{
	int action = stranger(ctx);
	struct account *row = accounts_row();

	if (!row)
		return XDP_ABORTED;
	if (action == XDP_PASS)
		return egress_close(ctx, row, EGRESS_TRANSMIT, EGRESS_ON_ENTRY);
	return egress_close(ctx, row, egress_drop(action == XDP_DROP ? FOREIGN_DROPPED : FOREIGN_ABORTED), EGRESS_ON_ENTRY);
}

char licence[] SEC("license") = "Dual BSD/GPL";
