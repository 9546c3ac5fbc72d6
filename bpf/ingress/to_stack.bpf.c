/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* to_stack: turn live frames of a test run into the frames of a ring, and let them go up the host's own network stack. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "bpf/abi/link.h"
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

/* The instance's: see struct scratch. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratch SEC(".maps");

const volatile struct to_stack_link to_stack_link SEC(".rodata.weir");

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

SEC("xdp") int to_stack(struct xdp_md *ctx)
{
	__u32 zero = 0, key;
	struct to_stack_ring *state = bpf_map_lookup_elem(&ring, &zero);
	struct scratch *cpu = bpf_map_lookup_elem(&scratch, &zero);
	struct to_stack_slot *slot;
	int failed;

	if (!state || !cpu || state->tail == state->head)
		return XDP_DROP; /* no frame of anyone */
	key = state->tail & (TO_STACK_SLOTS - 1);
	slot = bpf_map_lookup_elem(&slots, &key);
	failed = !slot || fill(ctx, slot);
	if (failed)
		state->lost++;
	release(state);
	if (failed)
		return XDP_DROP;
	/* Of one batch the frames go up one after the other on this CPU, before anything else comes in on it. */
	if (to_stack_link.generic)
		cpu->injected++;
	return XDP_PASS;
}

char licence[] SEC("license") = "Dual BSD/GPL";
