/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* flow: the first thing in the kernel: a frame of a flow that user space has decided gets its changes and goes, or goes on. */
#pragma once

#include "bpf/abi/flow.h"
#include "bpf/lib/runtime.bpf.h"

/* Sizes here are placeholders: the loader gives every program the instance's own maps of these names. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct flow4);
} flows4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct flow6);
} flows6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow_rewrite);
} rewrites SEC(".maps");

#define INGRESS_GO_ON (-1)

static __always_inline struct flow_tail *flow4_at(const struct flow_key *key, __u64 word, __u32 place)
{
	struct flow4 *flow = bpf_map_lookup_elem(&flows4, &place);

	return flow && *(volatile __u64 *)&flow->word == word && flow->addresses == key->addresses[0] ? &flow->tail : 0;
}

static __always_inline struct flow_tail *flow6_at(const struct flow_key *key, __u64 word, __u32 place)
{
	struct flow6 *flow = bpf_map_lookup_elem(&flows6, &place);

	return flow && *(volatile __u64 *)&flow->word == word && flow->addresses[0] == key->addresses[0] &&
		flow->addresses[1] == key->addresses[1] && flow->addresses[2] == key->addresses[2] && flow->addresses[3] == key->addresses[3]
		? &flow->tail : 0;
}

static __always_inline struct flow_tail *flow_find(const struct flow_key *key, __u64 word)
{
	__u64 hash = flow_hash(key, word, LINKED(program_link, port.flow_seed));
	struct flow_tail *tail = 0;
	__u32 i;

	if (key->version == 4) {
#pragma clang loop unroll(full)
		for (i = 0; i < FLOW_PLACES; i++) {
			tail = flow4_at(key, word, flow_place(hash, i, LINKED(program_link, port.flow_mask)));
			if (tail)
				break;
		}
	} else {
#pragma clang loop unroll(full)
		for (i = 0; i < FLOW_PLACES; i++) {
			tail = flow6_at(key, word, flow_place(hash, i, LINKED(program_link, port.flow_mask)));
			if (tail)
				break;
		}
	}
	/* What was written before the word is to be read behind it. BPF has no load that acquires; this one is also a fence. */
	if (tail && LINKED(program_link, port.weak_order)) {
		__u64 fence = __sync_fetch_and_add(&tail->other_frames, 0);

		asm volatile("" : : "r"(fence)); /* its value is wanted: else it is made one that does not order */
	}
	return tail;
}

static __always_inline void flow_count(struct flow_tail *tail, __u32 length)
{
	const struct port_entries *entries = LINKED_MEMORY(LINK_ENTRIES);
	__u32 cpu = bpf_get_smp_processor_id() + 1, owner = tail->owner & ~FLOW_ENDED;

	if (!owner) {
		owner = __sync_val_compare_and_swap(&tail->owner, 0, cpu);
		if (!owner)
			owner = cpu;
	}
	if (owner == cpu) {
		tail->frames++;
		tail->bytes += length;
	} else {
		__sync_fetch_and_add(&tail->other_frames, 1);
		__sync_fetch_and_add(&tail->other_bytes, length);
	}
	if (tail->seen_s != entries->now_s)
		tail->seen_s = entries->now_s;
}

/* Whether what the flow does can be done here and now, so that nothing is changed in a frame that goes the long way after all. */
static __always_inline int flow_may(struct flow_act act, const struct flow_rewrite *rewrite, const struct flow_key *key, __u64 length)
{
	const struct port_entries *entries = LINKED_MEMORY(LINK_ENTRIES);
	__u32 group = act.argument, *version;
	struct group_targets *to;

	if (rewrite->changes & FLOW_TTL && key->ttl < 2)
		return 0;
	if (length - key->l3 + ETH_HLEN > rewrite->longest)
		return 0;
	if (act.fate == FLOW_REDIRECT)
		return entries->present >> (act.argument & (WEIR_MAX_PORTS - 1)) & 1;
	if (act.fate != FLOW_FLOOD)
		return 1;
	version = bpf_map_lookup_elem(&versions, &group);
	if (!version)
		return 0;
	group += (*version & 1) * WEIR_MAX_GROUPS;
	to = bpf_map_lookup_elem(&targets, &group);
	return to && to->longest >= length + (rewrite->changes & FLOW_VLAN_PUSH ? 4 : 0);
}

/* Changes of the Ethernet header and the tag; behind those of IP, since the frame may begin elsewhere after it. 0: no room in front. */
static __always_inline int flow_rewrite_ethernet(struct xdp_md *ctx, const struct flow_rewrite *rewrite)
{
	__u8 *data = frame_address(ctx->data, 0);
	const __u8 *addresses = rewrite->to;
	__u64 first;
	__u32 last;

	if (data + ETH_HLEN + 4 > (__u8 *)(long)ctx->data_end)
		return 0;
	if (rewrite->changes & FLOW_VLAN_SET)
		FLOW_PUT16(data + 14, (FLOW_GET16(data + 14) & ~FLOW_NET16(0xfff)) | rewrite->tci);
	if (!(rewrite->changes & FLOW_ADDRESSES))
		addresses = 0;
	if (addresses) {
		first = FLOW_GET16(rewrite->to) | (__u64)FLOW_GET32(rewrite->to + 2) << 16 | (__u64)FLOW_GET16(rewrite->to + 6) << 48;
		last = FLOW_GET32(rewrite->to + 8);
	} else {
		first = FLOW_GET64(data);
		last = FLOW_GET32(data + 8);
	}
	if (rewrite->changes & (FLOW_VLAN_PUSH | FLOW_VLAN_POP)) {
		if (bpf_xdp_adjust_head(ctx, rewrite->changes & FLOW_VLAN_POP ? 4 : -4))
			return 0;
		data = frame_address(ctx->data, 0);
		if (data + ETH_HLEN + 4 > (__u8 *)(long)ctx->data_end)
			return 0;
		if (rewrite->changes & FLOW_VLAN_PUSH)
			FLOW_PUT32(data + 12, FLOW_NET16(ETH_P_8021Q) | (__u32)rewrite->tci << 16);
	}
	FLOW_PUT64(data, first);
	FLOW_PUT32(data + 8, last);
	return 1;
}

/* INGRESS_GO_ON, and whether the frame may begin a flow, or the action that ends it here. `length`: its bytes. */
static __always_inline int flow_try(struct stage_frame *frame, __u64 length)
{
	__u8 *data = frame_address(frame->ctx->data, 0), *end = (__u8 *)(long)frame->ctx->data_end;
	const struct flow_rewrite *rewrite;
	struct flow_tail *tail;
	struct flow_key key;
	struct flow_act act;
	__u64 block, word;
	__u32 number;

	flow_parse(data, end, length, &key);
	if (!key.version)
		return INGRESS_GO_ON;
	if ((key.tcp_flags & (FLOW_TCP_SYN | FLOW_TCP_ACK)) == FLOW_TCP_SYN)
		goto none; /* a new connection, whatever there was */
	tail = flow_find(&key, key.word | LINKED(program_link, port.port) << FLOW_PORT);
	if (!tail)
		goto none;
	if (tail->owner & FLOW_ENDED)
		return INGRESS_GO_ON;
	word = *(volatile __u64 *)&tail->act; /* at once: it may be replaced */
	act = *(struct flow_act *)&word;
	number = act.rewrite;
	rewrite = bpf_map_lookup_elem(&rewrites, &number);
	if (!rewrite || FLOW_GET32(rewrite->was_to) != FLOW_GET32(data) || FLOW_GET16(rewrite->was_to + 4) != FLOW_GET16(data + 4))
		return INGRESS_GO_ON;
	if (key.tcp_flags & (FLOW_TCP_FIN | FLOW_TCP_RST)) {
		__sync_fetch_and_or(&tail->owner, FLOW_ENDED);
		return INGRESS_GO_ON; /* the stages see the end of a connection */
	}
	if (!flow_may(act, rewrite, &key, length))
		return INGRESS_GO_ON;
	if (rewrite->changes & (FLOW_TTL | FLOW_DSCP | FLOW_NAT) && !flow_rewrite_ip(data + key.l3, end, &key, rewrite))
		return INGRESS_GO_ON;
	flow_count(tail, length);
	block = act.block;
	asm volatile("" : "+r"(block)); /* see end_with_drop() */
	if (block < LINKED(program_link, port.blocks)) {
		asm volatile("" : "+r"(block)); /* and multiplied behind the comparison */
		frame->stage = frame->row + block;
	}
	if (rewrite->changes & (FLOW_ADDRESSES | FLOW_VLAN_SET | FLOW_VLAN_PUSH | FLOW_VLAN_POP) &&
	    !flow_rewrite_ethernet(frame->ctx, rewrite))
		return end_with(frame, WEIR_DROP, XDP_ABORTED); /* of room there are XDP_PACKET_HEADROOM bytes; shows as an exception */
	switch (act.fate) {
	case FLOW_REDIRECT:
		return end_with_redirect(frame, WEIR_NO_STAGE, act.argument);
	case FLOW_FLOOD:
		return end_with_flood(frame, WEIR_NO_STAGE, act.argument);
	case FLOW_TO_STACK:
		return end_with(frame, WEIR_TO_STACK, XDP_PASS);
	default:
		return end_with_drop(frame, WEIR_DROP_OWN + act.argument);
	}
none:
	frame->flow = !(key.tcp_flags & (FLOW_TCP_FIN | FLOW_TCP_RST));
	return INGRESS_GO_ON;
}
