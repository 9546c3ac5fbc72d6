/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* ingress: the XDP program of a port whose first stage is not in the kernel: to the host stack, or to user space with every frame. Where it
 * is, that stage's own NAME_entry is the port's program (bpf/lib/stage.bpf.h). */
#include "bpf/lib/ingress.bpf.h"

SEC("xdp") int ingress(struct xdp_md *ctx)
{
	struct stage_frame frame = { .ctx = ctx };
	int action = ingress_enter(&frame);

	return action == INGRESS_GO_ON ? go_on(&frame, LINKED(program_link, port.go), LINKED(program_link, port.next)) : action;
}

char licence[] SEC("license") = "Dual BSD/GPL";
