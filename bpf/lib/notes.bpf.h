/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* notes: how an egress program tells user space of a frame. EGRESS_NOTES(name) stands in front of EGRESS(name, …). */
#pragma once

#include "bpf/lib/egress.bpf.h"

#include "bpf/abi/note.h"

#ifdef __bpf__

#define EGRESS_NOTES(name)

/* Its size is a placeholder, as those of "accounts" and "chain" are. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} notes SEC(".maps");

/* The verifier wants to know at load how much is taken of the ring: `room`, a power of two, of which `note->captured` bytes are filled. Nobody
 * is woken: that would cost each note an interrupt (kernel/bpf/ringbuf.c, bpf_ringbuf_commit), and the reader comes by itself. */
static __always_inline int notes_put(struct egress_frame *frame, const struct note *note, const __u32 room)
{
	struct note *into = bpf_ringbuf_reserve(&notes, sizeof(*into) + room, 0);
	__u32 size = note->captured;

	if (!into)
		return 0;
	*into = *note;
	/* The verifier must see the bounds, and the compiler must not know that they hold already. */
	asm volatile("" : "+r"(size));
	size = ((size - 1) & (room - 1)) + 1;
	if (bpf_xdp_load_bytes(frame->ctx, 0, into + 1, size) != 0) {
		bpf_ringbuf_discard(into, BPF_RB_NO_WAKEUP);
		return 0;
	}
	bpf_ringbuf_submit(into, BPF_RB_NO_WAKEUP);
	return 1;
}

#else /* host */

#define EGRESS_NOTES(name)                                                                                         \
	extern const __u32 weir_notes_##name;                                                                      \
	__attribute__((weak)) const __u32 weir_notes_##name = 1;

#endif

/* The first `bytes` of the frame, at most NOTE_LONGEST and not 0. Whether the ring had room for them: 0 is to be counted. */
static inline __attribute__((always_inline)) int egress_note(struct egress_frame *frame, enum note_kind kind, __u32 bytes, __u32 mtu)
{
	__u32 length = egress_length(frame);
	struct note note = {
		.time = egress_now(frame),
		.kind = kind,
		.length = length,
		.captured = length < bytes ? length : bytes,
		.mtu = mtu,
	};

#ifdef __bpf__
	note.device = frame->ctx->ingress_ifindex;
	note.in = NOTE_NO_PORT;
	note.out = LINKED(egress_link, port);
	note.place = LINKED(egress_link, place);
	if (note.captured <= 128)
		return notes_put(frame, &note, 128);
	if (note.captured <= 512)
		return notes_put(frame, &note, 512);
	return notes_put(frame, &note, NOTE_LONGEST);
#else
	if (!frame->notes || !frame->notes->take)
		return 0;
	note.in = frame->in;
	note.out = frame->notes->port;
	note.place = frame->notes->place;
	return frame->notes->take(frame->notes->ring, &note, frame->data);
#endif
}
