/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* empty: let every frame go as it is; what an egress program costs that does nothing. */
#include "bpf/lib/egress.bpf.h"

EGRESS_DROPS(empty)
EGRESS_COUNTERS(empty)
EGRESS_KEYS(empty)

EGRESS(empty, "let every frame go", struct egress_none, struct egress_none)
{
	return EGRESS_TRANSMIT;
}
