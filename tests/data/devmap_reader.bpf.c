/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* devmap_reader: what a program may do with a devmap, to be run over both forms: redirect, with each verdict for a miss, and look entries up. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* In front of the frame's bytes: what is asked for. */
struct question {
	__u32 key;
	__u32 flags;
	__u32 look;
	__u32 ifindex;	/* the answer */
};

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bpf_devmap_val);
} entries SEC(".maps");

SEC("xdp") int reader(struct xdp_md *ctx)
{
	struct question *asked = (void *)(long)ctx->data;
	struct bpf_devmap_val *entry;
	__u32 key;

	if ((void *)(asked + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	key = asked->key;
	if (!asked->look)
		return bpf_redirect_map(&entries, key, asked->flags);
	entry = bpf_map_lookup_elem(&entries, &key);
	asked->ifindex = entry ? entry->ifindex : 0;
	return entry ? XDP_PASS : XDP_DROP;
}

/* An ordinary program that may be put on a device, and on no entry. */
SEC("xdp") int ordinary(struct xdp_md *ctx) { return XDP_PASS; }

/* A program of an entry, for frames of several buffers. */
SEC("xdp.frags/devmap") int with_frags(struct xdp_md *ctx) { return XDP_PASS; }

SEC("xdp/devmap") int on_entry(struct xdp_md *ctx) { return XDP_PASS; }

char licence[] SEC("license") = "Dual BSD/GPL";
