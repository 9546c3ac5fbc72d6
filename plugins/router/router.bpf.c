/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* router, kernel half: forward what its tables know the way of, and punt what is to be answered, looked for or noted. */
#include "bpf/lib/stage.bpf.h"

#include <linux/if_ether.h>

#include "plugins/router/router.h"

struct router_config router_config SEC(".data.config");

/* Sizes are the user half's to choose. */
#define ROUTER_TABLE(name, type_of_value)                  \
	struct {                                           \
		__uint(type, BPF_MAP_TYPE_ARRAY);          \
		__uint(map_flags, BPF_F_MMAPABLE);         \
		__uint(max_entries, 1);                    \
		__type(key, __u32);                        \
		__type(value, type_of_value);              \
	} name SEC(".maps")
ROUTER_TABLE(nodes, struct router_node);
ROUTER_TABLE(route_groups, __u64);
ROUTER_TABLE(members, struct router_members);
ROUTER_TABLE(hops, struct router_hop);
ROUTER_TABLE(neighbours, struct router_bucket);
ROUTER_TABLE(counts, struct router_count);

#define READ(word) (*(volatile typeof(word) *)&(word))

/* The word of a node, opaque to the compiler so that what the verifier has seen masked is what it sees added. */
static __always_inline __u32 node_word(__u32 node, __u64 at)
{
	struct router_node *found = bpf_map_lookup_elem(&nodes, &node);

	at &= 255;
	asm volatile("" : "+r"(at));
	return found ? READ(found->word[at & 255]) : 0;
}

static __always_inline __u32 find4(__u32 root, __u32 address)
{
	__u32 word = node_word(root + (address >> 24), address >> 16);

	if (word & ROUTER_CHILD)
		word = node_word(word & ROUTER_INDEX, address >> 8);
	if (word & ROUTER_CHILD)
		word = node_word(word & ROUTER_INDEX, address);
	return word & ROUTER_CHILD ? 0 : word & ROUTER_INDEX;
}

/* 16 bits, then up to 14 bytes. */
static __always_inline __u32 find6(__u32 root, struct router_address address)
{
	__u64 part = address.high >> 16;
	__u32 word = node_word(root + (address.high & 255), address.high >> 8), i;

	for (i = 2; i < 16; i++) {
		if (!(word & ROUTER_CHILD))
			return word & ROUTER_INDEX;
		if (i == 8)
			part = address.low;
		word = node_word(word & ROUTER_INDEX, part);
		part >>= 8;
	}
	return word & ROUTER_CHILD ? 0 : word & ROUTER_INDEX;
}

struct packet {
	struct stage_frame *frame;
	void *ip;
	__u32 version;	/* a constant to the compiler */
	__u32 length;
	struct router_address source, destination;
	__u64 roots;
};

static __always_inline __u32 find(const struct packet *packet, struct router_address address)
{
	if (packet->version == 4)
		return find4(ROUTER_ROOT4(packet->roots), __builtin_bswap32(address.low));
	return find6(ROUTER_ROOT6(packet->roots), address);
}

static __always_inline __u64 group_of(__u32 number)
{
	__u64 *word = bpf_map_lookup_elem(&route_groups, &number);

	return word ? READ(*word) : 0;
}

static __always_inline int is_own_source(const struct packet *packet)
{
	__u32 bit = router_own_bit(packet->source);
	__u64 at = bit >> 6 & 7;

	asm volatile("" : "+r"(at));
	if (!(router_config.own[at & 7] >> (bit & 63) & 1))
		return 0;
	return router_group_kind(group_of(find(packet, packet->source))) == ROUTER_KIND_OWN;
}

static __always_inline __u64 hop_word(__u32 number)
{
	struct router_hop *hop = bpf_map_lookup_elem(&hops, &number);

	return hop ? READ(hop->word) : 0;
}

/* In a bucket there is nearly always one word with the tag at most; with two, the first decides and the other is the user half's to find. */
static __always_inline __u32 in_bucket(__u32 number, __u32 tag, struct router_address address, __u32 port, __u64 *word)
{
	struct router_bucket *bucket = bpf_map_lookup_elem(&neighbours, &number);
	struct router_hop *hop;
	__u32 found = 0, i;

	if (!bucket)
		return 0;
#pragma unroll
	for (i = 0; i < ROUTER_SLOTS; i++) {
		__u32 slot = READ(bucket->slot[i]);

		if (!found && slot & ROUTER_INDEX && (slot & ~ROUTER_INDEX) == tag)
			found = slot & ROUTER_INDEX;
	}
	hop = found ? bpf_map_lookup_elem(&hops, &found) : 0;
	if (!hop || hop->address.high != address.high || hop->address.low != address.low)
		return 0;
	*word = READ(hop->word);
	return router_hop_port(*word) == port ? found : 0;
}

static __always_inline __u32 find_neighbour(struct router_address address, __u32 port, __u64 *word)
{
	__u64 hash = router_hash_neighbour(address, port, router_config.seed);
	__u32 number = in_bucket(router_first(hash, router_config.mask), router_tag(hash), address, port, word);

	return number ? number : in_bucket(router_second(hash, router_config.mask), router_tag(hash), address, port, word);
}

static __always_inline __u32 member_of(const struct packet *packet, __u32 row)
{
	const void *ports = stage_header(packet->frame, ETH_HLEN + (packet->version == 4 ? 20 : 40), 4);
	struct router_members *members_of_row = bpf_map_lookup_elem(&members, &row);
	__u32 flow = packet->version == 4 ? router_flow4(packet->ip, ports, &router_config) : router_flow6(packet->ip, ports, &router_config);
	__u64 at = router_place(flow);

	asm volatile("" : "+r"(at));
	return members_of_row ? READ(members_of_row->hop[at & (ROUTER_PATHS - 1)]) : 0;
}

static __always_inline void count(__u32 hop, __u32 bytes)
{
	__u32 row = bpf_get_smp_processor_id() * router_config.hops + hop;
	struct router_count *counted = bpf_map_lookup_elem(&counts, &row);

	if (counted) {
		counted->frames++;
		counted->bytes += bytes;
	}
}

static __always_inline __u64 port_word(__u64 port)
{
	asm volatile("" : "+r"(port));
	return READ(router_config.port[port & (WEIR_MAX_PORTS - 1)]);
}

/* As Router::way_by_hop() in the user half. */
static __always_inline stage_verdict by_hop(const struct packet *packet, __u64 group, __u32 number)
{
	__u64 hop = hop_word(number), out;
	__u32 port = router_hop_port(hop), ttl = router_get8(packet->ip, packet->version == 4 ? 8 : 7);
	__u8 *eth;

	if (router_hop_state(hop) == ROUTER_STATE_HOST) {
		stage_count(packet->frame, ROUTER_BY_HOST);
		return to_stack();
	}
	if (ttl <= 1)
		return punt(ROUTER_PUNT_EXPIRED);
	out = port_word(port);
	if (packet->length > router_mtu(group, out))
		return punt(ROUTER_PUNT_TOO_BIG);
	if (router_hop_state(hop) == ROUTER_STATE_LINK) {
		hop = 0;
		number = find_neighbour(packet->destination, port, &hop);
	}
	if (!number || router_hop_state(hop) != ROUTER_STATE_READY)
		return punt(ROUTER_PUNT_NEIGHBOUR);
	/* A redirect that becomes a punt must find the frame as it came. */
	if (!stage_has_entry(port))
		return punt(ROUTER_PUNT_PORT);
	if (router_config.offload && stage_wants_flow(packet->frame))
		return punt(ROUTER_PUNT_FLOW);
	eth = stage_header(packet->frame, 0, ETH_HLEN + (packet->version == 4 ? 20 : 40));
	if (!eth)
		return drop(ROUTER_TRUNCATED);
	count(number, frame_length(packet->frame->ctx));
	router_put_mac(eth, hop & ROUTER_MAC);
	router_put_mac(eth + ETH_ALEN, out & ROUTER_MAC);
	if (packet->version == 4)
		router_decrement4(eth + ETH_HLEN);
	else
		router_decrement6(eth + ETH_HLEN);
	stage_count(packet->frame, packet->version == 4 ? ROUTER_FORWARDED4 : ROUTER_FORWARDED6);
	return redirect(port);
}

/* As Router::way(). */
static __always_inline stage_verdict route(struct packet *packet)
{
	__u32 number, kind;
	__u64 group;

	packet->roots = READ(router_config.roots);
	if (!(packet->roots & ROUTER_WHOLE))
		return punt(ROUTER_PUNT_TABLES);
	number = find(packet, packet->destination);
	if (!number)
		number = READ(router_config.fallback[packet->version == 4 ? 0 : 1]);
	group = number ? group_of(number) : 0;
	kind = router_group_kind(group);
	if (kind == ROUTER_KIND_OWN || kind == ROUTER_KIND_HOST) {
		stage_count(packet->frame, kind == ROUTER_KIND_OWN ? ROUTER_OWN : ROUTER_BY_HOST);
		return to_stack();
	}
	if (is_own_source(packet))
		return drop(ROUTER_MARTIAN_SOURCE);
	switch (kind) {
	case ROUTER_KIND_BLACKHOLE:
		return drop(ROUTER_BLACKHOLE);
	case ROUTER_KIND_UNREACHABLE:
	case ROUTER_KIND_PROHIBIT:
		return punt(ROUTER_PUNT_REFUSED);
	case ROUTER_KIND_NONE:
		return punt(ROUTER_PUNT_NO_ROUTE);
	default:
		number = router_group_index(group);
		return by_hop(packet, group, kind == ROUTER_KIND_MANY ? member_of(packet, number) : number);
	}
}

static __always_inline stage_verdict not_routed(struct stage_frame *frame)
{
	stage_count(frame, ROUTER_NOT_ROUTED);
	return to_stack();
}

static __always_inline stage_verdict route4(struct stage_frame *frame, __u32 room)
{
	struct packet packet = { .frame = frame, .version = 4, .ip = stage_header(frame, ETH_HLEN, 20) };
	__u32 reason;
	enum router_fate fate;

	if (!packet.ip)
		return drop(ROUTER_TRUNCATED);
	fate = router_check4(packet.ip, room, &reason);
	if (fate != ROUTER_LOOK_UP)
		return fate == ROUTER_REFUSE ? drop(reason) : not_routed(frame);
	packet.length = router_host16(packet.ip + 2);
	packet.source = router_address4(packet.ip + 12);
	packet.destination = router_address4(packet.ip + 16);
	return route(&packet);
}

static __always_inline stage_verdict route6(struct stage_frame *frame, __u32 room)
{
	struct packet packet = { .frame = frame, .version = 6, .ip = stage_header(frame, ETH_HLEN, 40) };
	__u32 reason;
	enum router_fate fate;

	if (!packet.ip)
		return drop(ROUTER_TRUNCATED);
	fate = router_check6(packet.ip, room, &reason);
	if (fate != ROUTER_LOOK_UP)
		return fate == ROUTER_REFUSE ? drop(reason) : not_routed(frame);
	packet.length = 40 + router_host16(packet.ip + 4);
	packet.source = router_address6(packet.ip + 8);
	packet.destination = router_address6(packet.ip + 24);
	return route(&packet);
}

STAGE(router)
{
	void *eth = stage_header(frame, 0, ETH_HLEN);
	__u32 room;

	if (!eth)
		return drop(ROUTER_TRUNCATED);
	room = frame_length(frame->ctx) - ETH_HLEN;
	if (!router_is_for(eth, port_word(stage_port(frame))))
		return not_routed(frame);
	switch (router_host16(eth + 2 * ETH_ALEN)) {
	case ETH_P_IP:
		return route4(frame, room);
	case ETH_P_IPV6:
		return route6(frame, room);
	default:
		return not_routed(frame);
	}
}
