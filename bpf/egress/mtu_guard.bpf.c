/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* mtu_guard: drop a frame that is longer than the MTU allows. The MTU speaks of what is behind the Ethernet header and up to two VLAN tags.
 *   egress = [{ program = "mtu_guard", mtu = 1400, answer = true }]
 *   mtu = 1400     # left out: the MTU of the port's own device
 *   answer = true  # left out: false. Tells the sender, so that it finds the MTU of the path (RFC 1191, RFC 8201)
 * The answer is ICMP "fragmentation needed and DF set" for IPv4 with DF, and ICMPv6 "packet too big" for IPv6, with the guard's MTU. It leaves by
 * a raw socket of the process, so that the host's stack routes it and chooses its source: the stack must have a route to the sender and an
 * address, and find the neighbour; on a port whose frames are all forwarded it hears no ARP, and needs the neighbour set by hand.
 * Of frames that are too long, all dropped: "told" are those that the process was told of, "lost" those for which its ring was full. Of those
 * told: "answered"; "limited", beyond 1000 answers a second and 50 at once, over all guards; "unsent", which the host's stack did not take;
 * "unfit", to which there is no answer: IPv4 without DF; what is not the first fragment; ICMP errors; broadcast and multicast, also of a MAC
 * address, and senders that are not one host (RFC 1122, 3.2.2; RFC 4443, 2.4); headers that are wrong or not within the first 1254 bytes; a packet
 * that fits without the bytes behind its end; an MTU below 1280 in IPv6, which RFC 8201 has ignored; and any frame behind a program whose name
 * begins with "encap", since the sender of the tunnel is this host: place the guard in front of it, with what the tunnel takes off mtu. In front
 * of mac_rewrite too, which hides that a frame came as a broadcast.
 * Nobody is told by a guard that never sees the frame: on a device entry the kernel has dropped what is longer than the device's own MTU
 * already (redirect_failed); in front of the redirect it has not.
 */
#include "bpf/lib/headers.bpf.h"
#include "bpf/lib/notes.bpf.h"

#include "bpf/abi/mtu_guard.h"

EGRESS_DROPS(mtu_guard, "too_long")
EGRESS_COUNTERS(mtu_guard, "told", "lost", "answered", "unfit", "limited", "unsent")
EGRESS_KEYS(mtu_guard,
	{ .name = "mtu", .type = EGRESS_KEY_MTU, .says = "a frame that is longer is dropped", .offset = offsetof(struct mtu_guard_config, mtu) },
	{ .name = "answer", .type = EGRESS_KEY_FLAG, .says = "tell its sender by ICMP", .fallback = "false",
	  .offset = offsetof(struct mtu_guard_config, answer) })
EGRESS_NOTES(mtu_guard)

EGRESS(mtu_guard, "drop frames that are longer than the MTU allows", struct mtu_guard_config, struct mtu_guard_state)
{
	struct headers_l3 l3 = headers_l3(frame);

	/* A frame that ends before its third layer, l3.at 0, is shorter than any MTU. */
	if (egress_length(frame) <= config->mtu + l3.at)
		return EGRESS_TRANSMIT;
	if (config->answer && headers_is_ip(l3))
		st->count[egress_note(frame, NOTE_TOO_BIG, MTU_GUARD_QUOTE, config->mtu) ? MTU_GUARD_TOLD : MTU_GUARD_LOST]++;
	return egress_drop(MTU_GUARD_TOO_LONG);
}
