/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* devmap_wire: redirect to one entry or broadcast to all; the program of the entry notes what it sees, and answers what it is told. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct wire {
	__u32 flags;	/* of the redirect */
	__u32 answer;	/* of the entry's program */
	__u32 ingress;	/* what that saw last */
	__u32 egress;
	__u32 queue;
	__u32 runs;	/* and how often it ran */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct wire);
} wire SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bpf_devmap_val);
} entries SEC(".maps");

SEC("xdp") int to_entries(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct wire *told = bpf_map_lookup_elem(&wire, &zero);
	__u8 *frame = (void *)(long)ctx->data;

	/* Of the test alone: its EtherType is 0x88b5. */
	if (frame + 14 > (__u8 *)(long)ctx->data_end || frame[12] != 0x88 || frame[13] != 0xb5)
		return XDP_DROP;
	return told ? bpf_redirect_map(&entries, 1, told->flags) : XDP_ABORTED;
}

SEC("xdp/devmap") int of_entry(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct wire *told = bpf_map_lookup_elem(&wire, &zero);

	if (!told)
		return XDP_ABORTED;
	told->ingress = ctx->ingress_ifindex;
	told->egress = ctx->egress_ifindex;
	told->queue = ctx->rx_queue_index;
	__sync_fetch_and_add(&told->runs, 1);
	return told->answer;
}

/* Behind a veth's peer, so that it takes what is redirected. */
SEC("xdp") int receiver(struct xdp_md *ctx) { return XDP_PASS; }

char licence[] SEC("license") = "Dual BSD/GPL";
