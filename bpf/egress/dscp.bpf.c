/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* dscp: change the DSCP of IPv4 and IPv6 frames (RFC 2474) and mend the checksum; ECN is kept. Other frames stay as they are. Headers are
 * looked for behind up to two VLAN tags.
 *   egress = [{ program = "dscp", set = 46 }]
 *   set = 46                         # for every frame
 *   map = [{ from = 10, to = 0 }]    # for frames that have `from`; goes before `set`
 */
#include "bpf/lib/headers.bpf.h"

#include "bpf/abi/dscp.h"

EGRESS_DROPS(dscp, "truncated")
EGRESS_COUNTERS(dscp, "changed", "unchanged", "other")
EGRESS_KEYS(dscp,
	{ .name = "set", .type = EGRESS_KEY_U32, .says = "DSCP of every frame; left out, it is kept", .max = DSCP_VALUES - 1,
	  .offset = offsetof(struct dscp_config, set), .present = offsetof(struct dscp_config, has_set) },
	{ .name = "map", .type = EGRESS_KEY_LIST, .says = "what becomes of single values; goes before set", .max = DSCP_VALUES,
	  .offset = offsetof(struct dscp_config, map), .stride = sizeof(struct dscp_pair), .number = offsetof(struct dscp_config, pairs),
	  .inner = (const struct egress_key[]){
		{ .name = "from", .type = EGRESS_KEY_U32, .says = "DSCP that a frame has", .required = 1, .max = DSCP_VALUES - 1,
		  .offset = offsetof(struct dscp_pair, from) },
		{ .name = "to", .type = EGRESS_KEY_U32, .says = "DSCP that it gets", .required = 1, .max = DSCP_VALUES - 1,
		  .offset = offsetof(struct dscp_pair, to) },
		{ .type = EGRESS_KEY_END } } })

EGRESS_PREPARE(dscp, struct dscp_config)
{
	__u64 mapped = 0;

	if (!config->has_set && !config->pairs)
		return "neither set nor map is given";
	for (__u32 value = 0; value < DSCP_VALUES; value++)
		config->to[value] = config->has_set ? config->set : value;
	for (__u32 i = 0; i < config->pairs; i++) {
		if (mapped >> config->map[i].from & 1)
			return "map has two entries of one from";
		mapped |= 1ull << config->map[i].from;
		config->to[config->map[i].from] = config->map[i].to;
	}
	return NULL;
}

struct dscp_state {
	__u64 count[DSCP_OTHER + 1];
};

EGRESS(dscp, "set or map DSCP", struct dscp_config, struct dscp_state)
{
	struct headers_l3 l3 = headers_l3(frame);
	struct headers_dscp at = headers_dscp(frame, l3);
	__u32 before, after;

	if (!l3.at || (!at.word && headers_is_ip(l3)))
		return egress_drop(DSCP_TRUNCATED);
	if (!at.word) {
		st->count[DSCP_OTHER]++;
		return EGRESS_TRANSMIT;
	}
	before = headers_get_dscp(at);
	after = config->to[before] & (DSCP_VALUES - 1);
	headers_set_dscp(at, after);
	st->count[after == before ? DSCP_UNCHANGED : DSCP_CHANGED]++;
	return EGRESS_TRANSMIT;
}
