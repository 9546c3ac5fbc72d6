/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* vlan_rewrite: change the VLAN tag in front of a frame. A frame without one stays as it is; what is left out is kept.
 *   egress = [{ program = "vlan_rewrite", vid = 100 }]
 *   vid = 100         # 0 to 4094
 *   pcp = 5           # priority
 *   tpid = "802.1ad"  # or "802.1Q"
 */
#include "bpf/lib/headers.bpf.h"

#include "bpf/abi/vlan_rewrite.h"

EGRESS_DROPS(vlan_rewrite, "truncated")
EGRESS_COUNTERS(vlan_rewrite, "rewritten", "untagged")
EGRESS_KEYS(vlan_rewrite,
	{ .name = "vid", .type = EGRESS_KEY_U32, .says = "the VLAN; left out, it is kept", .max = 4094,
	  .offset = offsetof(struct vlan_rewrite_config, vid), .present = offsetof(struct vlan_rewrite_config, has_vid) },
	{ .name = "pcp", .type = EGRESS_KEY_U32, .says = "priority; left out, it is kept", .max = 7,
	  .offset = offsetof(struct vlan_rewrite_config, pcp), .present = offsetof(struct vlan_rewrite_config, has_pcp) },
	{ .name = "tpid", .type = EGRESS_KEY_CHOICE, .says = "kind of tag; left out, it is kept",
	  .choices = (const char *const[]){ "802.1Q", "802.1ad", NULL },
	  .offset = offsetof(struct vlan_rewrite_config, tpid), .present = offsetof(struct vlan_rewrite_config, has_tpid) })

EGRESS_PREPARE(vlan_rewrite, struct vlan_rewrite_config)
{
	return config->has_vid || config->has_pcp || config->has_tpid ? NULL : "none of vid, pcp and tpid is given";
}

struct vlan_rewrite_state {
	__u64 count[VLAN_REWRITE_UNTAGGED + 1];
};

EGRESS(vlan_rewrite, "change the VLAN tag in front", struct vlan_rewrite_config, struct vlan_rewrite_state)
{
	struct headers_ethernet *eth = egress_header(frame, 0, sizeof(*eth));
	struct headers_tag *tag;
	__u16 tci;

	if (!eth)
		return egress_drop(VLAN_REWRITE_TRUNCATED);
	if (!headers_is_tag(eth->type)) {
		st->count[VLAN_REWRITE_UNTAGGED]++;
		return EGRESS_TRANSMIT;
	}
	tag = egress_header(frame, ETH_HLEN, sizeof(*tag));
	if (!tag)
		return egress_drop(VLAN_REWRITE_TRUNCATED);
	tci = NET16(tag->tci);
	if (config->has_vid)
		tci = (tci & 0xf000) | (config->vid & 0xfff);
	if (config->has_pcp)
		tci = (tci & 0x1fff) | (__u16)(config->pcp << 13);
	tag->tci = NET16(tci);
	if (config->has_tpid)
		eth->type = config->tpid == VLAN_8021AD ? NET16(ETH_P_8021AD) : NET16(ETH_P_8021Q);
	st->count[VLAN_REWRITE_REWRITTEN]++;
	return EGRESS_TRANSMIT;
}
