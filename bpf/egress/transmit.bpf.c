/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* transmit: let every frame go, and count it: for device entries without a chain where the kernel itself does not tell what it sent. */
#include "bpf/lib/egress.bpf.h"

EGRESS(transmit, "transmit", struct egress_none, struct egress_none)
{
	(void)frame, (void)config, (void)st;
	return EGRESS_TRANSMIT;
}
