/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* mtu_guard: drop a frame that is longer than the MTU allows. The MTU speaks of what is behind the Ethernet header and up to two VLAN tags.
 *   egress = [{ program = "mtu_guard", mtu = 1400 }]
 *   mtu = 1400  # left out: the MTU of the port's own device
 */
#include "bpf/lib/headers.bpf.h"

#include "bpf/abi/mtu_guard.h"

EGRESS_DROPS(mtu_guard, "too_long")
EGRESS_COUNTERS(mtu_guard)
EGRESS_KEYS(mtu_guard,
	{ .name = "mtu", .type = EGRESS_KEY_MTU, .says = "a frame that is longer is dropped", .offset = offsetof(struct mtu_guard_config, mtu) })

EGRESS(mtu_guard, "drop frames that are longer than the MTU allows", struct mtu_guard_config, struct egress_none)
{
	struct headers_l3 l3 = headers_l3(frame);

	(void)st;
	/* A frame that ends before its third layer, l3.at 0, is shorter than any MTU. */
	return egress_length(frame) > config->mtu + l3.at ? egress_drop(MTU_GUARD_TOO_LONG) : EGRESS_TRANSMIT;
}
