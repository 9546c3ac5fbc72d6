/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* mac_rewrite: give a frame that leaves by a port other link-layer addresses.
 *   egress = [{ program = "mac_rewrite", dst = "02:00:00:00:00:01" }]
 *   src = "02:00:00:00:00:02"   # left out: the address of the port's own device
 *   dst = "02:00:00:00:00:01"   # left out: stays as it is
 */
#include "bpf/lib/headers.bpf.h"

#include "bpf/abi/mac_rewrite.h"

EGRESS_DROPS(mac_rewrite, "truncated")
EGRESS_COUNTERS(mac_rewrite)
EGRESS_KEYS(mac_rewrite,
	{ .name = "src", .type = EGRESS_KEY_STATION, .says = "source address; left out, the address of the port's own device",
	  .fallback = "port", .offset = offsetof(struct mac_rewrite_config, src), .present = offsetof(struct mac_rewrite_config, set_src) },
	{ .name = "dst", .type = EGRESS_KEY_MAC, .says = "destination address; left out, it stays as it is",
	  .offset = offsetof(struct mac_rewrite_config, dst), .present = offsetof(struct mac_rewrite_config, set_dst) })

EGRESS(mac_rewrite, "set the source and the destination address", struct mac_rewrite_config, struct egress_none)
{
	struct headers_ethernet *eth = egress_header(frame, 0, sizeof(*eth));

	if (!eth)
		return egress_drop(MAC_REWRITE_TRUNCATED);
	if (config->set_src)
		headers_put_address(eth->from, config->src);
	if (config->set_dst)
		headers_put_address(eth->to, config->dst);
	return EGRESS_TRANSMIT;
}
