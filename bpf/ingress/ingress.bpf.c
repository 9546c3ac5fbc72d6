/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* ingress: the XDP program of a port: count the frame, note where it came in, and send it into the port's pipeline. */
#include "bpf/lib/runtime.bpf.h"

#include <linux/if_ether.h>

const volatile struct ingress_link ingress_link SEC(".rodata.weir");

SEC("xdp") int ingress(struct xdp_md *ctx)
{
	struct stage_frame frame = { .ctx = ctx };
	__u64 length = frame_length(ctx);
	__u32 zero = 0;

	frame.scratch = bpf_map_lookup_elem(&scratch, &zero);
	frame.port = account_of(ingress_link.block, ingress_link.blocks);
	if (!frame.scratch || !frame.port)
		return XDP_ABORTED;
	if (frame.scratch->injected) {
		frame.scratch->injected--;
		return XDP_PASS;
	}
	frame.port->frames++;
	frame.port->bytes += length;
	if (length < ETH_HLEN)
		return end_with_drop(&frame, WEIR_DROP_RUNT);

	frame.scratch->port = ingress_link.port;
	frame.scratch->block = ingress_link.block;
	frame.scratch->sockets = ingress_link.sockets;
	frame.scratch->queues = ingress_link.queues;
	return go_on(&frame, ingress_link.go, ingress_link.next);
}

char licence[] SEC("license") = "Dual BSD/GPL";
