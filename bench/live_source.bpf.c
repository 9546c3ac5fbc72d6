/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* live_source: write a live frame's first 64 bytes anew and send it out of the device of entry 0. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* Live frames come back as the last receiver left them: without this, a forwarder that changes them is measured on its own output. */
__u64 frame[8];

/* Of the four bytes at this offset, which are the ports of UDP: so many different frames in turn. 0: all are one. */
const volatile __u32 flows_at;
const volatile __u32 flows;
__u32 number;
__u32 frame_ports;

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} out SEC(".maps");

SEC("xdp") int live_source(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	__u64 *data = (void *)(long)ctx->data;

	if ((void *)data + 60 > end)
		return XDP_DROP;
	for (int i = 0; i < 7; i++)
		data[i] = frame[i];
	*(__u32 *)&data[7] = (__u32)frame[7];
	if ((void *)data + 64 <= end)
		data[7] = frame[7];
	if (flows && (void *)data + flows_at + 4 <= end) {
		*(__u32 *)((void *)data + flows_at) = frame_ports + number;
		number = number + 1 < flows ? number + 1 : 0;
	}
	return bpf_redirect_map(&out, 0, XDP_DROP);
}

char licence[] SEC("license") = "Dual BSD/GPL";
