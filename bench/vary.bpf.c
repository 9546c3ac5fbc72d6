/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* vary: make a test run's frame the next one of a ring and go on to the program in slot 0; and programs for there that do next to nothing. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define FRAME_WORDS 8

struct ring_frame {
	__u64 word[FRAME_WORDS];
};

const volatile __u64 ring_mask SEC(".rodata.vary");

/* Sizes of arrays are the loader's to choose. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ring_frame);
} ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} chain SEC(".maps");

struct line {
	__u64 frames;
	__u64 unused[7];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct line);
} lines SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} counted SEC(".maps");

__u64 next, barrier;

SEC("xdp") int vary(struct xdp_md *ctx)
{
	__u64 *data = (void *)(long)ctx->data;
	__u32 number = next++ & ring_mask;
	struct ring_frame *frame = bpf_map_lookup_elem(&ring, &number);

	if (!frame || (void *)(data + FRAME_WORDS) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	for (int i = 0; i < FRAME_WORDS; i++)
		data[i] = frame->word[i];
	/* As in fresh.bpf.c: what comes starts when this has ended, and finds the frame in the cache. */
	__sync_fetch_and_add(&barrier, 1);
	bpf_tail_call(ctx, &chain, 0);
	return XDP_ABORTED;
}

SEC("xdp") int none(struct xdp_md *ctx)
{
	return XDP_PASS;
}

/* Count the frame in the line that its last four bytes name: what every table costs that has an entry for each of so many. */
SEC("xdp") int touch(struct xdp_md *ctx)
{
	__u64 *data = (void *)(long)ctx->data, *all;
	__u32 number, zero = 0;
	struct line *line;

	if ((void *)(data + FRAME_WORDS) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	number = data[FRAME_WORDS - 1] >> 32;
	line = bpf_map_lookup_elem(&lines, &number);
	all = bpf_map_lookup_elem(&counted, &zero);
	if (!line || !all)
		return XDP_ABORTED;
	line->frames++;
	(*all)++;
	return XDP_DROP;
}

char licence[] SEC("license") = "Dual BSD/GPL";
