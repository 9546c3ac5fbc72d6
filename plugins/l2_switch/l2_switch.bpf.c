/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* l2_switch, kernel half: forward what is known, flood what is not, punt only what must be learned. */
#include "bpf/lib/stage.bpf.h"

#include <linux/if_ether.h>

#include "plugins/l2_switch/l2_switch.h"

struct l2_config l2_config SEC(".data.config");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct l2_bucket);
} table SEC(".maps");

static __always_inline struct l2_entry *find(__u64 address, __u64 *word)
{
	__u64 hash = l2_hash(address, l2_config.seed);
	__u32 first = l2_first(hash, l2_config.mask), second = l2_second(hash, l2_config.mask);
	struct l2_bucket *bucket = bpf_map_lookup_elem(&table, &first);
	struct l2_entry *entry = bucket ? l2_in(bucket, address, word) : 0;

	if (entry)
		return entry;
	bucket = bpf_map_lookup_elem(&table, &second);
	return bucket ? l2_in(bucket, address, word) : 0;
}

/* Whether the user half could learn from a frame whose address is new at its port; if not, why is counted here, as it would be there. */
static __always_inline int may_learn(struct stage_frame *frame, __u32 port)
{
	if (l2_config.closed >> (port & 63) & 1) {
		stage_count(frame, L2_PORT_FULL);
		return 0;
	}
	return 1;
}

STAGE(l2_switch)
{
	struct ethhdr *eth = stage_header(frame, 0, sizeof(*eth));
	struct l2_decision decision;
	struct l2_entry *from;
	__u64 source, destination, word = 0, to = 0;
	__u32 port = stage_port(frame);

	if (!eth)
		return drop(L2_TRUNCATED);
	source = l2_address(eth->h_source);
	destination = l2_address(eth->h_dest);
	if (l2_refuse(&l2_config, port, source, destination, &decision))
		return decision.fate == L2_TO_STACK ? to_stack() : drop(decision.argument);

	from = find(source, &word);
	if (!from) {
		if (may_learn(frame, port)) {
			if (!l2_config.full)
				return punt(L2_NEW_ADDRESS);
			stage_count(frame, L2_TABLE_FULL);
		}
	} else if (l2_port_of(word) != port) {
		if (word & L2_STATIC)
			stage_count(frame, L2_STATIC_MOVED);
		else if (may_learn(frame, port))
			return punt(L2_MOVED);
	} else if (from->seen_s != l2_config.now_s) {
		from->seen_s = l2_config.now_s; /* once a second, so that the line stays shared between the CPUs */
	}

	if (!l2_multicast(destination) && !find(destination, &to))
		to = 0;
	decision = l2_forward(port, to);
	if (decision.fate == L2_TRANSMIT)
		return redirect(decision.argument);
	return decision.fate == L2_FLOOD ? flood(l2_config.group) : drop(decision.argument);
}
