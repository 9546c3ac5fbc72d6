/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* vlan_pop: take the VLAN tag in front off a frame. A frame without one stays as it is.
 *   egress = ["vlan_pop"]
 */
#include "bpf/lib/headers.bpf.h"

#include "bpf/abi/vlan_pop.h"

EGRESS_DROPS(vlan_pop, "truncated")
EGRESS_COUNTERS(vlan_pop, "popped", "untagged")
EGRESS_KEYS(vlan_pop)
EGRESS_NOT_BEHIND(vlan_pop, { .program = "vlan_push", .why = "it takes off the tag that was just put on; leave both out", .next_to = 1 },
	{ .program = "vlan_rewrite", .why = "it takes off the tag that was just changed; leave the change out", .next_to = 1 })

struct vlan_pop_state {
	__u64 count[VLAN_POP_UNTAGGED + 1];
};

EGRESS(vlan_pop, "take the VLAN tag in front off", struct egress_none, struct vlan_pop_state)
{
	struct headers_ethernet *eth = egress_header(frame, 0, sizeof(*eth));
	__u8 *front;

	if (!eth)
		return egress_drop(VLAN_POP_TRUNCATED);
	if (!headers_is_tag(eth->type)) {
		st->count[VLAN_POP_UNTAGGED]++;
		return EGRESS_TRANSMIT;
	}
	front = egress_header(frame, 0, ETH_HLEN + HEADERS_VLAN_HLEN);
	if (!front)
		return egress_drop(VLAN_POP_TRUNCATED);
	headers_put_addresses(front + HEADERS_VLAN_HLEN, headers_get_addresses(front));
	if (!egress_shrink(frame, HEADERS_VLAN_HLEN))
		return egress_drop(VLAN_POP_TRUNCATED);
	st->count[VLAN_POP_POPPED]++;
	return EGRESS_TRANSMIT;
}
