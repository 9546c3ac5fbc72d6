/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* devmap_writer: a kernel half that sets a device entry, which only user space may. */
#include "bpf/lib/stage.bpf.h"

STAGE(devmap_writer)
{
	struct bpf_devmap_val entry = { .ifindex = 1 };
	__u32 key = 0;

	return bpf_map_update_elem(&ports, &key, &entry, BPF_ANY) ? next() : redirect(0);
}
