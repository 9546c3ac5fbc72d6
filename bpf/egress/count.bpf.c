/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* count: count the frames and bytes that leave by a port, by L3 and L4 protocol. Frames are not changed.
 *   egress = ["count"]
 */
#include "bpf/lib/headers.bpf.h"

#include <linux/in.h>
#include <linux/in6.h>

#include "bpf/abi/count.h"

EGRESS_DROPS(count)
EGRESS_COUNTERS(count, "bytes", "arp", "ipv4", "ipv6", "vlan", "other", "tcp", "udp", "icmp")
EGRESS_KEYS(count)

static inline __attribute__((always_inline)) void count_l4(struct egress_frame *frame, __u32 at, struct count_state *st)
{
	__u8 *proto = egress_header(frame, at, 1);

	if (!proto)
		return;
	if (*proto == IPPROTO_TCP)
		st->frames[COUNT_TCP]++;
	else if (*proto == IPPROTO_UDP)
		st->frames[COUNT_UDP]++;
	else if (*proto == IPPROTO_ICMP || *proto == IPPROTO_ICMPV6)
		st->frames[COUNT_ICMP]++;
}

EGRESS(count, "count frames and bytes by L3 and L4 protocol", struct egress_none, struct count_state)
{
	struct headers_ethernet *eth = egress_header(frame, 0, sizeof(*eth));

	st->bytes += egress_length(frame);
	if (!eth) {
		st->frames[COUNT_OTHER]++;
		return EGRESS_TRANSMIT;
	}
	switch (eth->type) {
	case NET16(ETH_P_IP):
		st->frames[COUNT_IPV4]++;
		count_l4(frame, sizeof(*eth) + 9, st);
		break;
	case NET16(ETH_P_IPV6):
		st->frames[COUNT_IPV6]++;
		count_l4(frame, sizeof(*eth) + 6, st);
		break;
	case NET16(ETH_P_ARP):
		st->frames[COUNT_ARP]++;
		break;
	case NET16(ETH_P_8021Q):
	case NET16(ETH_P_8021AD):
		st->frames[COUNT_VLAN]++;
		break;
	default:
		st->frames[COUNT_OTHER]++;
	}
	return EGRESS_TRANSMIT;
}
