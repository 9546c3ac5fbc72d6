/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* foreign: egress programs as a user writes them who knows nothing of weir: plain clang, the kernel's and libbpf's headers. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");

static __always_inline int sign(struct xdp_md *ctx)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	__u32 zero = 0;
	__u64 *count = bpf_map_lookup_elem(&seen, &zero);

	if (!count || (void *)(eth + 1) > (void *)(long)ctx->data_end)
		return XDP_DROP;
	__sync_fetch_and_add(count, 1);
	if (eth->h_proto == __builtin_bswap16(0x1234))
		return XDP_DROP;
	if (eth->h_proto == __builtin_bswap16(0x4321))
		return XDP_ABORTED;
	eth->h_source[5] = 0xfe;
	return XDP_PASS;
}

SEC("xdp/devmap") int signs(struct xdp_md *ctx) { return sign(ctx); }
SEC("xdp.frags/devmap") int signs_frags(struct xdp_md *ctx) { return sign(ctx); }
/* The verifier refuses it: it does not look where the frame ends. */
SEC("xdp/devmap") int past_the_end(struct xdp_md *ctx) { return *(__u8 *)(long)ctx->data ? XDP_PASS : XDP_DROP; }
SEC("xdp") int attached(struct xdp_md *ctx) { return sign(ctx); }
SEC("xdp/cpumap") int on_a_cpu(struct xdp_md *ctx) { return sign(ctx); }
SEC("tc") int of_skbs(struct __sk_buff *skb) { return 0; }

static long turn(__u32 index, void *nothing) { return index > 1; }
/* In a function that the kernel calls back, which it allows a program with debug information of the whole. */
SEC("xdp/devmap") int calls_back(struct xdp_md *ctx) { return bpf_loop(3, turn, 0, 0) > 0 ? XDP_PASS : XDP_DROP; }

char licence[] SEC("license") = "Dual BSD/GPL";
