/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* fresh: put a test run's frame back to what it was and go on to the chain in slot 0; and the program there when the chain is none. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define FRAME_WORDS 8

const volatile __u64 frame[FRAME_WORDS] SEC(".rodata.fresh");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} chain SEC(".maps");

__u64 barrier;

SEC("xdp") int fresh(struct xdp_md *ctx)
{
	__u64 *data;

	/* Also where there is nothing to move, so that it costs every chain the same. */
	bpf_xdp_adjust_head(ctx, (int)(ctx->data_end - ctx->data) - (int)sizeof(frame));
	data = (void *)(long)ctx->data;
	if ((void *)(data + FRAME_WORDS) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	for (int i = 0; i < FRAME_WORDS; i++)
		data[i] = frame[i];
	/* A locked instruction empties the CPU's store buffer: a load that overlaps two stores in there waits for both, some 5 ns, which no frame
	 * that a device has written makes it do. And the chain starts when all that is in front of it has ended. */
	__sync_fetch_and_add(&barrier, 1);
	bpf_tail_call(ctx, &chain, 0);
	return XDP_ABORTED;
}

SEC("xdp") int none(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char licence[] SEC("license") = "Dual BSD/GPL";
