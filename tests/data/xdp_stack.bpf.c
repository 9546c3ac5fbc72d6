/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* xdp_stack: somebody else's program: lets every frame go to the host stack. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp") int xdp_stack(struct xdp_md *ctx)
{
	(void)ctx;
	return XDP_PASS;
}

char licence[] SEC("license") = "Dual BSD/GPL";
