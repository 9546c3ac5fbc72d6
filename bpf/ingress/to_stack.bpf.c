/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* to_stack: turn live frames of a test run into the frames of a ring, and let them go up the host's own network stack. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "bpf/abi/to_stack.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, TO_STACK_SLOTS);
	__type(key, __u32);
	__type(value, struct to_stack_slot);
} slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct to_stack_ring);
} ring SEC(".maps");

static __always_inline int fill(struct xdp_md *ctx, const struct to_stack_slot *slot)
{
	long now = (long)ctx->data_end - (long)ctx->data;
	__u32 length = slot->length;

	/* Else the compiler subtracts the pointers in 32 bits, which the verifier refuses. */
	asm volatile("" : "+r"(now));
	if (length < TO_STACK_SHORTEST || length > TO_STACK_LONGEST)
		return -1;
	if (bpf_xdp_adjust_tail(ctx, (int)(length - now)))
		return -1;
	return bpf_xdp_store_bytes(ctx, 0, (void *)slot->bytes, length);
}

/* Workers write the slot anew as soon as they see the tail move, so it moves behind the copy. An atomic that fetches is a full barrier; one
 * that does not is none, and the compiler makes it such when nobody looks at the value. */
static __always_inline void release(struct to_stack_ring *state)
{
	__u64 before = __sync_fetch_and_add(&state->tail, 1);

	asm volatile("" : : "r"(before));
}

/* In the headroom, and not as metadata: that would be the business of whoever comes next. */
static __always_inline int mark(struct xdp_md *ctx, __u64 number)
{
	__u64 *at;

	if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(*at)))
		return -1;
	at = (void *)(long)ctx->data_meta;
	if ((void *)(at + 1) > (void *)(long)ctx->data)
		return -1;
	*at = number;
	return bpf_xdp_adjust_meta(ctx, sizeof(*at));
}

SEC("xdp") int to_stack(struct xdp_md *ctx)
{
	__u32 zero = 0, key;
	struct to_stack_ring *state = bpf_map_lookup_elem(&ring, &zero);
	struct to_stack_slot *slot;
	int failed;

	if (!state || state->tail == state->head)
		return XDP_DROP; /* no frame of anyone */
	key = state->tail & (TO_STACK_SLOTS - 1);
	slot = bpf_map_lookup_elem(&slots, &key);
	failed = !slot || fill(ctx, slot);
	if (failed)
		state->lost++;
	release(state);
	if (failed)
		return XDP_DROP;
	if (state->mark && mark(ctx, state->mark))
		return XDP_ABORTED; /* cannot be: there is headroom. Shows as xdp_exception */
	return XDP_PASS;
}

char licence[] SEC("license") = "Dual BSD/GPL";
