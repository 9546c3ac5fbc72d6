/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* sink: count the frames that come whole and drop them; and the yardsticks: a bare redirect, an egress program for its entry, a redirect
 * through many entries, and a broadcast. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "bpf/abi/count.h"

struct arrivals {
	__u64 whole;
	__u64 other;
	__u64 second;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct arrivals);
} arrivals SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bpf_devmap_val);
} out SEC(".maps");

/* Of the form and the size that the loader gives it. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bpf_devmap_val);
} entries SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct count_state);
} counts SEC(".maps");

/* What is to arrive: the length, and the first 60 bytes; and what may arrive beside it, or nothing. */
const volatile __u64 frame[8];
const volatile __u32 frame_length;
const volatile __u32 any_at; /* four bytes from here on may be anything; 0: none */
const volatile __u64 second_frame[8];
const volatile __u32 second_length;

static __always_inline int is_whole(struct xdp_md *ctx, const volatile __u64 *expected, __u32 length)
{
	__u64 *data = (void *)(long)ctx->data;
	__u64 differs = 0;

	if ((void *)data + 60 > (void *)(long)ctx->data_end || ctx->data_end - ctx->data != length)
		return 0;
	for (int i = 0; i < 7; i++)
		differs |= data[i] ^ expected[i];
	return !(differs | (*(__u32 *)&data[7] ^ (__u32)expected[7]));
}

SEC("xdp") int sink(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct arrivals *seen = bpf_map_lookup_elem(&arrivals, &zero);

	if (!seen)
		return XDP_ABORTED;
	if (any_at && (void *)(long)ctx->data + any_at + 4 <= (void *)(long)ctx->data_end)
		*(__u32 *)((void *)(long)ctx->data + any_at) = 0;
	if (is_whole(ctx, frame, frame_length))
		seen->whole++;
	else if (second_length && is_whole(ctx, second_frame, second_length))
		seen->second++;
	else
		seen->other++;
	return XDP_DROP;
}

SEC("xdp") int bare(struct xdp_md *ctx)
{
	return bpf_redirect_map(&out, 0, XDP_DROP);
}

/* As `xdp-forward` does it: the kernel's own routes and neighbours, asked for each frame. */
SEC("xdp") int fib(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct bpf_fib_lookup way = { .ifindex = ctx->ingress_ifindex };
	struct ipv6hdr *ip6 = (void *)(eth + 1);
	struct iphdr *ip = (void *)(eth + 1);
	__u32 sum;

	if ((void *)(ip + 1) > end)
		return XDP_PASS;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		if (ip->ttl <= 1)
			return XDP_PASS;
		way.family = 2; /* AF_INET */
		way.tos = ip->tos;
		way.l4_protocol = ip->protocol;
		way.tot_len = bpf_ntohs(ip->tot_len);
		way.ipv4_src = ip->saddr;
		way.ipv4_dst = ip->daddr;
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		if ((void *)(ip6 + 1) > end || ip6->hop_limit <= 1)
			return XDP_PASS;
		way.family = 10; /* AF_INET6 */
		way.l4_protocol = ip6->nexthdr;
		way.tot_len = bpf_ntohs(ip6->payload_len);
		__builtin_memcpy(way.ipv6_src, &ip6->saddr, 16);
		__builtin_memcpy(way.ipv6_dst, &ip6->daddr, 16);
	} else {
		return XDP_PASS;
	}
	if (bpf_fib_lookup(ctx, &way, sizeof(way), 0) != BPF_FIB_LKUP_RET_SUCCESS)
		return XDP_PASS;
	if (way.family == 2) {
		sum = ip->check + bpf_htons(0x100);
		ip->check = sum + (sum >= 0xffff);
		ip->ttl--;
	} else {
		ip6->hop_limit--;
	}
	__builtin_memcpy(eth->h_dest, way.dmac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, way.smac, ETH_ALEN);
	return bpf_redirect_map(&out, 0, XDP_DROP);
}

/* How many entries there are, a power of two, less one; and from key to key, an odd number. */
const volatile __u32 last_entry;
const volatile __u32 spacing;

/* Plain counters: one CPU redirects. */
__u64 redirected;
__u64 missed;

static __always_inline int count_redirect(long action)
{
	if (action == XDP_REDIRECT)
		redirected++;
	else
		missed++;
	return action;
}

/* All entries equally often, and not in the order in which they lie in memory, which the CPU would foresee. */
SEC("xdp") int in_turn(struct xdp_md *ctx)
{
	__u32 entry = (__u32)(redirected + missed) * 0x9e3779b1u & last_entry;

	return count_redirect(bpf_redirect_map(&entries, entry * spacing, XDP_DROP));
}

SEC("xdp") int broadcast(struct xdp_md *ctx)
{
	return count_redirect(bpf_redirect_map(&entries, 0, BPF_F_BROADCAST | BPF_F_EXCLUDE_INGRESS));
}

static __always_inline void count_l4(struct count_state *st, __u8 *proto, void *end)
{
	if ((void *)(proto + 1) > end)
		return;
	if (*proto == IPPROTO_TCP)
		st->frames[COUNT_TCP]++;
	else if (*proto == IPPROTO_UDP)
		st->frames[COUNT_UDP]++;
	else if (*proto == IPPROTO_ICMP || *proto == IPPROTO_ICMPV6)
		st->frames[COUNT_ICMP]++;
}

/* The work of bpf/egress/count.bpf.c, written by hand for this one place. */
SEC("xdp/devmap") int egress(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = (void *)(long)ctx->data;
	__u32 zero = 0;
	struct count_state *st = bpf_map_lookup_elem(&counts, &zero);

	if (!st)
		return XDP_ABORTED;
	st->bytes += ctx->data_end - ctx->data;
	if ((void *)(eth + 1) > end) {
		st->frames[COUNT_OTHER]++;
		return XDP_PASS;
	}
	switch (eth->h_proto) {
	case bpf_htons(ETH_P_IP):
		st->frames[COUNT_IPV4]++;
		count_l4(st, (__u8 *)(eth + 1) + 9, end);
		break;
	case bpf_htons(ETH_P_IPV6):
		st->frames[COUNT_IPV6]++;
		count_l4(st, (__u8 *)(eth + 1) + 6, end);
		break;
	case bpf_htons(ETH_P_ARP):
		st->frames[COUNT_ARP]++;
		break;
	case bpf_htons(ETH_P_8021Q):
	case bpf_htons(ETH_P_8021AD):
		st->frames[COUNT_VLAN]++;
		break;
	default:
		st->frames[COUNT_OTHER]++;
	}
	return XDP_PASS; /* on a device entry: transmit */
}

char licence[] SEC("license") = "Dual BSD/GPL";
