/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* trace: count what goes wrong with a frame after a program's verdict: refused by the device, or lost with an error. */
#include <linux/bpf.h>
#include <linux/errno.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#include "bpf/lib/accounts.bpf.h"

/* The few fields that are read, found by CO-RE wherever the running kernel has them. */
struct ns_common {
	unsigned int inum;
} __attribute__((preserve_access_index));
struct net {
	struct ns_common ns;
} __attribute__((preserve_access_index));
typedef struct {
	struct net *net;
} __attribute__((preserve_access_index)) possible_net_t;
struct net_device {
	int ifindex;
	possible_net_t nd_net;
} __attribute__((preserve_access_index));
struct bpf_prog;

#define LOOPBACK 1 /* ifindex, LOOPBACK_IFINDEX of the kernel, in every network namespace */

/* ifindex of each port's device to its block in the accounts, plus one. An array, since a hash lookup costs 40 ns; the few machines that have
 * counted past its end have the hash. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, WEIR_NEAR_DEVICES);
	__type(key, __u32);
	__type(value, __u32);
} devices SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, WEIR_MAX_PORTS);
	__type(key, __u32);
	__type(value, __u32);
} far_devices SEC(".maps");

/* By key of the map "ports": the port's slot. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, WEIR_MAX_PORTS);
	__type(key, __u32);
	__type(value, __u32);
} slots SEC(".maps");

static __always_inline struct account *account_of(__u64 block)
{
	struct account *row = accounts_row();

	asm volatile("" : "+r"(block)); /* see end_with_drop() in bpf/lib/runtime.bpf.h */
	return row && block < WEIR_MAX_PORTS ? row + block : 0;
}

static __always_inline struct account *account_of_device(const struct net_device *dev)
{
	__u32 ifindex, *block;

	/* A redirect without a target device has none to name. */
	if (!dev || dev->nd_net.net->ns.inum != LINKED(trace_link, netns))
		return 0;
	ifindex = dev->ifindex;
	block = ifindex < WEIR_NEAR_DEVICES ? bpf_map_lookup_elem(&devices, &ifindex) : bpf_map_lookup_elem(&far_devices, &ifindex);
	if (!block || !*block)
		return 0;
	return account_of(*block - 1);
}

/* Whether frames come from a pump (core/port/pump.hh): its runs are over frames of the loopback, which no other redirect comes from. */
static __always_inline int is_pumped(const struct net_device *from)
{
	return from && from->ifindex == LOOPBACK && from->nd_net.net->ns.inum == LINKED(trace_link, netns);
}

static __always_inline struct account *account_of_key(__u32 key)
{
	__u32 *slot = LINKED(trace_link, keyed) ? bpf_map_lookup_elem(&slots, &key) : 0;

	return account_of(slot ? *slot : key);
}

SEC("tp_btf/xdp_devmap_xmit")
int BPF_PROG(devmap_xmit, const struct net_device *from, const struct net_device *to, int sent, int drops, int err)
{
	struct account *account = drops > 0 ? account_of_device(to) : 0;

	if (!account)
		return 0;
	if (is_pumped(from))
		account->counter[err == -ENXIO ? WEIR_PORT_PUMP_NO_NAPI : WEIR_PORT_PUMP_REFUSED] += drops;
	else
		account->drop[err == -ENXIO ? WEIR_DROP_PEER_NO_NAPI : WEIR_DROP_DEVICE_REFUSED] += drops;
	return 0;
}

SEC("tp_btf/xdp_redirect_err")
int BPF_PROG(redirect_err, const struct net_device *dev, const struct bpf_prog *prog, const void *target, int err, int map_type, __u32 map_id,
	     __u32 key)
{
	struct account *account;

	if (is_pumped(dev)) {
		account = account_of_key(key);
		if (account)
			account->counter[WEIR_PORT_PUMP_FAILED]++;
		return 0;
	}
	account = account_of_device(dev);
	if (!account)
		return 0;
	if (map_type == BPF_MAP_TYPE_XSKMAP) {
		account->drop[WEIR_DROP_PUNT_FAILED]++;
		return 0;
	}
	/* The key of the map "ports" is the target's slot. A flood names none by its key, and ends at the port that it came in by. `target` would
	 * tell it too, but the verifiers of 6.1 and 6.12 let nobody read a pointer to const void [ran]. */
	if (key == WEIR_FLOOD_KEY) {
		account->drop[WEIR_DROP_FLOOD_FAILED]++;
		return 0;
	}
	account = account_of_key(key);
	if (account)
		account->drop[WEIR_DROP_REDIRECT_FAILED]++;
	return 0;
}

SEC("tp_btf/xdp_exception")
int BPF_PROG(exception, const struct net_device *dev, const struct bpf_prog *prog, __u32 action)
{
	struct account *account = account_of_device(dev);

	if (account)
		account->drop[WEIR_DROP_EXCEPTION]++;
	return 0;
}

char licence[] SEC("license") = "Dual BSD/GPL";
