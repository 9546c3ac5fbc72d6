/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* patch, kernel half: redirect what comes in on one port out of its partner. */
#include "bpf/lib/stage.bpf.h"
#include "plugins/patch/patch.h"

struct patch_config patch_config SEC(".data.config");

STAGE(patch)
{
	__u32 port = stage_port(frame);

	if (port >= WEIR_MAX_PORTS || patch_config.partner[port] == PATCH_NO_PARTNER)
		return drop(PATCH_UNPAIRED);
	return redirect(patch_config.partner[port]);
}
