/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* any_verdict: a kernel half that answers what the first 12 bytes of a frame say: verdict, argument, and what to count. Beyond the
 * verdicts: drops under its reason 0 where the port of the argument has a device entry, or where it would have the frame's flow offloaded, else
 * under 1. */
#include "bpf/lib/stage.bpf.h"

STAGE(any_verdict)
{
	__u32 *order = stage_header(frame, 0, 3 * sizeof(*order));

	if (!order)
		return to_stack();
	stage_count(frame, order[2]);
	if (order[0] == WEIR_VERDICTS)
		return drop(stage_has_entry(order[1]) ? 0 : 1);
	if (order[0] == WEIR_VERDICTS + 1)
		return drop(stage_wants_flow(frame) ? 0 : 1);
	return STAGE_VERDICT(order[0], order[1]);
}
