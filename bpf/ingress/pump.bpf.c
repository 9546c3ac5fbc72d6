/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* pump: turn live frames of a test run into the frames of user space that a ring names, and redirect them out of one device. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "bpf/abi/pump.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct pump_ring);
} ring SEC(".maps");

/* The loader gives it the instance's own: a value for each frame, of the size that frames have. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, 2048);
} frames SEC(".maps");

/* A map of its own, since the device's entry in the map "ports" may have a program: what comes from user space has been through it. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} out SEC(".maps");

/* The verifier adds up the most that each of two numbers may be. So what is copied starts at the usual place at the latest, and what stands
 * there in front of the frame's bytes is cut off behind. */
static __always_inline int fill(struct xdp_md *ctx, const struct pump_slot *slot, const __u32 size)
{
	__u64 length = slot->length, at = slot->at, front = 0;
	long now = (long)ctx->data_end - (long)ctx->data;
	__u32 key = slot->frame;
	__u8 *frame = bpf_map_lookup_elem(&frames, &key);

	/* Else the compiler compares and copies in 32 bits, and the verifier knows no bounds behind that. */
	asm volatile("" : "+r"(length), "+r"(at), "+r"(now));
	if (!frame || length < PUMP_SHORTEST)
		return -1;
	if (at > PUMP_HEADROOM) {
		front = at - PUMP_HEADROOM;
		length += front;
		at = PUMP_HEADROOM;
	}
	asm volatile("" : "+r"(length), "+r"(at));
	if (length < PUMP_SHORTEST || length > size - PUMP_HEADROOM || at > PUMP_HEADROOM)
		return -1;
	if (bpf_xdp_adjust_tail(ctx, (int)(length - now)))
		return -1;
	asm volatile("" : "+r"(length), "+r"(at));
	if (length < PUMP_SHORTEST || length > size - PUMP_HEADROOM || at > PUMP_HEADROOM)
		return -1;
	if (bpf_xdp_store_bytes(ctx, 0, frame + at, length))
		return -1;
	return front ? bpf_xdp_adjust_head(ctx, (int)front) : 0;
}

static __always_inline int take_one(struct xdp_md *ctx, const __u32 size)
{
	__u32 zero = 0;
	struct pump_ring *state = bpf_map_lookup_elem(&ring, &zero);
	struct pump_slot *slot;
	int action = XDP_DROP;

	if (!state || state->tail == state->head)
		return XDP_DROP; /* no frame of anyone */
	slot = &state->slots[state->tail & (PUMP_SLOTS - 1)];
	state->tail++;
	if (!fill(ctx, slot, size))
		action = bpf_redirect_map(&out, state->key, XDP_DROP);
	if (action != XDP_REDIRECT)
		state->lost++;
	return action;
}

SEC("xdp") int pump_2048(struct xdp_md *ctx) { return take_one(ctx, 2048); }
SEC("xdp") int pump_4096(struct xdp_md *ctx) { return take_one(ctx, 4096); }

char licence[] SEC("license") = "Dual BSD/GPL";
