/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* filter: permit or drop a frame by addresses, protocol and ports: the last line of defence on a port. The first rule that matches decides, and
 * where none does, `otherwise`. It keeps no connections: answers need rules of their own.
 *   egress = [{ program = "filter", otherwise = "drop", rules = [{ action = "permit", dst = "192.0.2.0/24", protocol = "tcp", dport = 443 }] }]
 *   otherwise = "permit"     # or "drop"; left out: permit
 *   [[port.egress.rules]]    # up to 64; what a rule leaves out, it does not ask for
 *   action = "drop"          # or "permit"
 *   src = "10.0.0.0/8"       # prefix or address of IPv4 or IPv6; src and dst of one rule are of one family
 *   dst = "2001:db8::1"
 *   protocol = "tcp"         # tcp, udp, icmp, icmpv6, or a number
 *   sport = 53               # ports of TCP, UDP, UDP-Lite, DCCP and SCTP; of any of these where the rule has no protocol
 *   dport = "6000-6063"
 * What a frame has:
 *   - Headers are looked for behind up to two VLAN tags. A frame that is not IPv4 or IPv6, ARP too, matches only a rule without any of src, dst,
 *     protocol and ports. One whose IP header is cut, or gives itself less than 20 bytes, is dropped as "truncated", whatever the rules.
 *   - The protocol of IPv6 (RFC 8200) is the first header behind up to four of: hop-by-hop options, routing, destination options, fragment.
 *     Authentication and ESP headers are protocols, and not looked behind.
 *   - A later fragment has no ports, so that no rule with ports matches it, as in iptables; rules without ports do. For a rule that drops that is
 *     enough: it takes the first fragment, and without that the rest is never put together (RFC 1858, 2.1; IPv6 refuses overlaps, RFC 5722).
 *     Where `otherwise` is "drop", later fragments want a rule that permits them, one without ports.
 *   - When the rules come to one that asks for what the frame should have and does not show, it is dropped as "unreadable" rather than judged:
 *     where it is no later fragment and ends before its ports, or before the end of its extension headers, or has more than four of these.
 */
#include <linux/in.h>
#include <linux/in6.h>

#include "bpf/lib/headers.bpf.h"

#include "bpf/abi/filter.h"

EGRESS_DROPS(filter, "denied", "truncated", "unreadable")
EGRESS_COUNTERS(filter, "permitted", "denied", "otherwise")

#define FILTER_ACTIONS (const char *const[]){ "permit", "drop", NULL }

EGRESS_KEYS(filter,
	{ .name = "rules", .type = EGRESS_KEY_LIST, .says = "the first that matches decides", .max = FILTER_MAX_RULES,
	  .offset = offsetof(struct filter_config, rule), .stride = sizeof(struct filter_rule), .number = offsetof(struct filter_config, number),
	  .inner = (const struct egress_key[]){
		{ .name = "action", .type = EGRESS_KEY_CHOICE, .says = "what becomes of a frame that matches", .required = 1,
		  .choices = FILTER_ACTIONS, .offset = offsetof(struct filter_rule, action) },
		{ .name = "src", .type = EGRESS_KEY_PREFIX, .says = "source addresses",
		  .offset = offsetof(struct filter_rule, src), .present = offsetof(struct filter_rule, has_src) },
		{ .name = "dst", .type = EGRESS_KEY_PREFIX, .says = "destination addresses",
		  .offset = offsetof(struct filter_rule, dst), .present = offsetof(struct filter_rule, has_dst) },
		{ .name = "protocol", .type = EGRESS_KEY_PROTOCOL, .says = "protocol over IPv4 or IPv6",
		  .offset = offsetof(struct filter_rule, protocol), .present = offsetof(struct filter_rule, has_protocol) },
		{ .name = "sport", .type = EGRESS_KEY_RANGE, .says = "source ports", .max = 0xffff,
		  .offset = offsetof(struct filter_rule, sport), .present = offsetof(struct filter_rule, has_sport) },
		{ .name = "dport", .type = EGRESS_KEY_RANGE, .says = "destination ports", .max = 0xffff,
		  .offset = offsetof(struct filter_rule, dport), .present = offsetof(struct filter_rule, has_dport) },
		{ .type = EGRESS_KEY_END } } },
	{ .name = "otherwise", .type = EGRESS_KEY_CHOICE, .says = "what becomes of a frame that no rule matches", .fallback = "permit",
	  .choices = FILTER_ACTIONS, .offset = offsetof(struct filter_config, otherwise) })

static inline __attribute__((always_inline)) int filter_has_ports(__u32 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE || protocol == IPPROTO_DCCP ||
	       protocol == IPPROTO_SCTP;
}

/* The two words of `match` that a prefix speaks of. */
static inline void filter_prepare_prefix(const struct egress_prefix *prefix, __u64 *mask, __u64 *address)
{
	__u8 bits[sizeof(prefix->address)];

	for (__u32 i = 0; i < sizeof(bits); i++)
		bits[i] = i * 8 >= prefix->length ? 0 : prefix->length - i * 8 >= 8 ? 0xff : 0xff00 >> (prefix->length - i * 8) & 0xff;
	__builtin_memcpy(mask, bits, sizeof(bits));
	__builtin_memcpy(address, prefix->address, sizeof(bits));
}

static inline struct filter_ports filter_prepare_ports(int given, const struct egress_range *range)
{
	return given ? (struct filter_ports){ range->first, range->last - range->first } : (struct filter_ports){ 0, 0xffff };
}

EGRESS_PREPARE(filter, struct filter_config)
{
	for (__u32 i = 0; i < config->number; i++) {
		const struct filter_rule *rule = &config->rule[i];
		struct filter_match *match = &config->match[i];
		int has_address = rule->has_src || rule->has_dst, has_ports = rule->has_sport || rule->has_dport;

		if (rule->has_src && rule->has_dst && rule->src.version != rule->dst.version)
			return "a rule has src and dst that are not both IPv4 or both IPv6; make two rules of it";
		if (has_ports && rule->has_protocol && !filter_has_ports(rule->protocol))
			return "a rule asks for ports of a protocol that has none; leave out the ports, or the protocol";
		if (rule->has_src)
			filter_prepare_prefix(&rule->src, &match->mask[0], &match->address[0]);
		if (rule->has_dst)
			filter_prepare_prefix(&rule->dst, &match->mask[2], &match->address[2]);
		if (has_address || rule->has_protocol || has_ports)
			match->kind = match->kind_mask = FILTER_IS_IP;
		if (has_address)
			match->kind_mask |= FILTER_IS_IPV4;
		if (has_address && (rule->has_src ? rule->src.version : rule->dst.version) == 4)
			match->kind |= FILTER_IS_IPV4;
		if (rule->has_protocol) {
			match->kind_mask |= FILTER_PROTOCOL_BITS;
			match->kind |= rule->protocol;
			match->asks |= FILTER_PROTOCOL;
		}
		if (has_ports) {
			match->kind_mask |= FILTER_HAS_PORTS;
			match->kind |= FILTER_HAS_PORTS;
			match->asks |= FILTER_PORTS;
		}
		match->sport = filter_prepare_ports(rule->has_sport, &rule->sport);
		match->dport = filter_prepare_ports(rule->has_dport, &rule->dport);
		match->action = rule->action;
	}
	return NULL;
}

struct filter_state {
	__u64 count[FILTER_COUNT_OTHERWISE + 1];
};

/* What the rules ask about. */
struct filter_flow {
	__u64 address[4];	/* two words of source, two of destination; of IPv4 the first halves */
	__u32 kind;		/* FILTER_IS_IP and others, and the protocol */
	__u32 hidden;		/* FILTER_PROTOCOL, FILTER_PORTS: what the frame should have and does not show */
	__u32 sport;
	__u32 dport;
};

/* Places in IP headers, which lie two bytes aligned. */
enum { FILTER_IPV4_FRAGMENT = 6, FILTER_IPV4_PROTOCOL = 9, FILTER_IPV4_SRC = 12, FILTER_IPV4_DST = 16, FILTER_IPV4_SIZE = 20 };
enum { FILTER_IPV6_NEXT = 6, FILTER_IPV6_SRC = 8, FILTER_IPV6_DST = 24, FILTER_IPV6_SIZE = 40 };

#define FILTER_IPV4_OFFSET 0x1fff
#define FILTER_IPV6_OFFSET 0xfff8
#define FILTER_MAX_EXTENSIONS 4

/* Of all that are walked, fragment headers too. */
struct filter_extension {
	__u8 next;
	__u8 length;	/* in 8 bytes, the first 8 not counted; 0 in a fragment header */
	__be16 offset;	/* of a fragment header */
	__be16 unused[2];
};

static inline __attribute__((always_inline)) int filter_is_extension(__u32 protocol)
{
	return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING || protocol == IPPROTO_DSTOPTS || protocol == IPPROTO_FRAGMENT;
}

/* A protocol, and where its header is; 0: a later fragment has none. */
struct filter_upper {
	__u32 protocol;
	__u32 at;
};

/* From the first header behind that of IPv6 to the upper protocol, or to an extension header that ends the walk. */
static inline __attribute__((always_inline)) struct filter_upper filter_walk(struct egress_frame *frame, struct filter_upper upper)
{
	struct filter_extension *extension;
	__u32 protocol;

	for (int i = 0; i < FILTER_MAX_EXTENSIONS && filter_is_extension(upper.protocol); i++) {
		extension = egress_header(frame, upper.at, sizeof(*extension));
		if (!extension)
			return upper;
		protocol = upper.protocol;
		upper.protocol = extension->next;
		if (protocol != IPPROTO_FRAGMENT) {
			upper.at += (extension->length + 1u) * 8;
		} else if (NET16(extension->offset) & FILTER_IPV6_OFFSET) {
			upper.at = 0;	/* what is behind may look like anything */
			return upper;
		} else {
			upper.at += sizeof(*extension);
		}
	}
	return upper;
}

static inline __attribute__((always_inline)) void filter_read_upper(struct egress_frame *frame, struct filter_upper upper,
								    struct filter_flow *flow)
{
	__be16 *ports;

	flow->kind |= upper.protocol & FILTER_PROTOCOL_BITS;
	if (!upper.at || !filter_has_ports(upper.protocol))
		return;
	flow->kind |= FILTER_HAS_PORTS;
	ports = egress_header(frame, upper.at, 2 * sizeof(*ports));
	if (!ports) {
		flow->hidden = FILTER_PORTS;
		return;
	}
	flow->sport = NET16(ports[0]);
	flow->dport = NET16(ports[1]);
}

/* A word of which these are the first four bytes in memory, and zeroes the others. */
static inline __attribute__((always_inline)) __u64 filter_first_half(__u32 bytes)
{
#ifdef __BIG_ENDIAN__
	return (__u64)bytes << 32;
#else
	return bytes;
#endif
}

/* 0: the IP header is cut. */
static inline __attribute__((always_inline)) int filter_read(struct egress_frame *frame, struct filter_flow *flow)
{
	struct headers_l3 l3 = headers_l3(frame);
	struct filter_upper upper = { 0 };
	__u32 size;
	__u8 *ip;

	if (!l3.at)
		return 0;
	if (l3.type == NET16(ETH_P_IP)) {
		ip = egress_header(frame, l3.at, FILTER_IPV4_SIZE);
		if (!ip)
			return 0;
		size = (ip[0] & 0xf) * 4;
		if (size < FILTER_IPV4_SIZE)
			return 0;
		flow->kind = FILTER_IS_IP | FILTER_IS_IPV4;
		flow->address[0] = filter_first_half(egress_get32(ip + FILTER_IPV4_SRC));
		flow->address[2] = filter_first_half(egress_get32(ip + FILTER_IPV4_DST));
		upper.protocol = ip[FILTER_IPV4_PROTOCOL];
		if (!(NET16(*(__be16 *)(ip + FILTER_IPV4_FRAGMENT)) & FILTER_IPV4_OFFSET))
			upper.at = l3.at + size;
	} else if (l3.type == NET16(ETH_P_IPV6)) {
		ip = egress_header(frame, l3.at, FILTER_IPV6_SIZE);
		if (!ip)
			return 0;
		flow->kind = FILTER_IS_IP;
		flow->address[0] = egress_get64(ip + FILTER_IPV6_SRC);
		flow->address[1] = egress_get64(ip + FILTER_IPV6_SRC + 8);
		flow->address[2] = egress_get64(ip + FILTER_IPV6_DST);
		flow->address[3] = egress_get64(ip + FILTER_IPV6_DST + 8);
		upper.protocol = ip[FILTER_IPV6_NEXT];
		upper.at = l3.at + FILTER_IPV6_SIZE;
		upper = filter_walk(frame, upper);
		if (upper.at && filter_is_extension(upper.protocol)) {
			flow->hidden = FILTER_PROTOCOL | FILTER_PORTS;
			return 1;
		}
	} else {
		return 1;
	}
	filter_read_upper(frame, upper, flow);
	return 1;
}

/* 1 or more: the port is not in it. Without a jump, see filter_differs(). */
static inline __attribute__((always_inline)) __u64 filter_is_not_in(const struct filter_ports *ports, __u32 port)
{
	return ((__u64)ports->more - ((port - ports->first) & 0xffff)) >> 63;
}

/* 0: the rule matches, as far as the frame shows what it asks for. One sum and no jumps, which the verifier would follow both ways, for each
 * rule and each kind of frame: with them, it gave up. */
static inline __attribute__((always_inline)) __u64 filter_differs(const struct filter_match *rule, const struct filter_flow *flow,
								  __u32 kind_shown, __u64 ports_shown)
{
	__u64 differs = (flow->kind ^ rule->kind) & rule->kind_mask & kind_shown;

	for (int i = 0; i < 4; i++)
		differs |= (flow->address[i] ^ rule->address[i]) & rule->mask[i];
	return differs | ((filter_is_not_in(&rule->sport, flow->sport) | filter_is_not_in(&rule->dport, flow->dport)) & ports_shown);
}

EGRESS(filter, "permit or drop by addresses, protocol and ports", struct filter_config, struct filter_state)
{
	struct filter_flow flow = { 0 };
	__u32 action = config->otherwise, number = config->number, kind_shown = ~0u;
	__u64 ports_shown = 1;

	if (!filter_read(frame, &flow))
		return egress_drop(FILTER_TRUNCATED);
	if (flow.hidden & FILTER_PROTOCOL)
		kind_shown = ~(FILTER_PROTOCOL_BITS | FILTER_HAS_PORTS);
	if (flow.hidden)
		ports_shown = 0;
	for (__u32 i = 0; i < FILTER_MAX_RULES && i < number; i++) {
		if (filter_differs(&config->match[i], &flow, kind_shown, ports_shown))
			continue;
		if (config->match[i].asks & flow.hidden)
			return egress_drop(FILTER_UNREADABLE);
		action = config->match[i].action;
		st->count[action == FILTER_PERMIT ? FILTER_COUNT_PERMITTED : FILTER_COUNT_DENIED]++;
		return action == FILTER_PERMIT ? EGRESS_TRANSMIT : egress_drop(FILTER_DENIED);
	}
	st->count[FILTER_COUNT_OTHERWISE]++;
	return action == FILTER_PERMIT ? EGRESS_TRANSMIT : egress_drop(FILTER_DENIED);
}
