/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* vlan_push: put a VLAN tag in front of what a frame has.
 *   egress = [{ program = "vlan_push", vid = 100 }]
 *   vid = 100         # 0 to 4094; 0 is a tag of priority alone
 *   pcp = 5           # priority; left out: that of the tag in front, 0 where there is none
 *   tpid = "802.1ad"  # left out: "802.1Q"
 *   mtu = 1500        # left out: the MTU of the port's own device. A frame may be 18 bytes longer, Ethernet header and one tag included
 */
#include "bpf/lib/headers.bpf.h"

#include "bpf/abi/vlan_push.h"

EGRESS_DROPS(vlan_push, "truncated", "too_long", "no_headroom")
EGRESS_COUNTERS(vlan_push)
EGRESS_NOT_BEHIND(vlan_push, { .program = "mtu_guard", .why = "it makes frames longer than those were judged; put mtu_guard behind it" })
EGRESS_KEYS(vlan_push,
	{ .name = "vid", .type = EGRESS_KEY_U32, .says = "the VLAN", .required = 1, .max = 4094, .offset = offsetof(struct vlan_push_config, vid) },
	{ .name = "pcp", .type = EGRESS_KEY_U32, .says = "priority; left out, that of the tag in front, 0 where there is none", .max = 7,
	  .offset = offsetof(struct vlan_push_config, pcp), .present = offsetof(struct vlan_push_config, has_pcp) },
	{ .name = "tpid", .type = EGRESS_KEY_CHOICE, .says = "kind of tag", .choices = (const char *const[]){ "802.1Q", "802.1ad", NULL },
	  .fallback = "802.1Q", .offset = offsetof(struct vlan_push_config, tpid) },
	{ .name = "mtu", .type = EGRESS_KEY_MTU, .says = "a frame that is longer with its tag is dropped",
	  .offset = offsetof(struct vlan_push_config, mtu) })

EGRESS(vlan_push, "put a VLAN tag in front", struct vlan_push_config, struct egress_none)
{
	struct headers_ethernet *eth = egress_header(frame, 0, sizeof(*eth));
	struct headers_addresses addresses;
	struct {
		struct headers_ethernet eth;
		struct headers_tag tag;
	} *front;
	__u32 pcp = config->has_pcp ? config->pcp : 0;

	if (!eth)
		return egress_drop(VLAN_PUSH_TRUNCATED);
	if (!config->has_pcp && headers_is_tag(eth->type)) {
		front = egress_header(frame, 0, sizeof(*front));
		if (front)
			pcp = NET16(front->tag.tci) >> 13;
	}
	if (egress_length(frame) + HEADERS_VLAN_HLEN > config->mtu + ETH_HLEN + HEADERS_VLAN_HLEN)
		return egress_drop(VLAN_PUSH_TOO_LONG);
	addresses = headers_get_addresses(eth);
	if (!egress_grow(frame, HEADERS_VLAN_HLEN))
		return egress_drop(VLAN_PUSH_NO_HEADROOM);
	front = egress_header(frame, 0, sizeof(*front));
	if (!front)
		return egress_drop(VLAN_PUSH_TRUNCATED);
	headers_put_addresses(front, addresses);
	front->eth.type = config->tpid == VLAN_8021AD ? NET16(ETH_P_8021AD) : NET16(ETH_P_8021Q);
	front->tag.tci = NET16(pcp << 13 | (config->vid & 0xfff));
	return EGRESS_TRANSMIT;
}
