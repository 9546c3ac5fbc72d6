/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* sample: show user space one frame in so many, cut to a length; `weir egress samples` has the last 256. Every frame goes on.
 *   egress = [{ program = "sample", n = 1000 }]
 *   n = 1000            # each CPU of the kernel and each worker counts for itself, and its n-th frame is a sample, its 2n-th, and so on
 *   snap_bytes = 128    # left out: 128; at most 2048
 * Not by chance, as sFlow has it: traffic whose own period is a multiple of n is seen always or never. Take an n that is prime then.
 * A sample is the frame as it is at this place of the chain, with the time (CLOCK_MONOTONIC when it was taken, shown as the time of day), the
 * port and device that it came in by and those that it leaves by, and its whole length. Samples go through a ring of 1 MiB, in user space one of
 * 512 samples, which is read every 20 ms: one that finds it full counts as "lost", any other as "sampled". While no process runs (--keep), all
 * that the ring does not hold are lost.
 */
#include "bpf/lib/notes.bpf.h"

#include "bpf/abi/sample.h"

EGRESS_DROPS(sample)
EGRESS_COUNTERS(sample, "sampled", "lost")
EGRESS_KEYS(sample,
	{ .name = "n", .type = EGRESS_KEY_U32, .says = "one frame in so many is a sample", .required = 1, .min = 1, .max = 0xffffffff,
	  .offset = offsetof(struct sample_config, n) },
	{ .name = "snap_bytes", .type = EGRESS_KEY_U32, .says = "of a frame, from its Ethernet header on", .fallback = "128", .min = 14,
	  .max = NOTE_LONGEST, .offset = offsetof(struct sample_config, snap_bytes) })
EGRESS_NOTES(sample)

struct sample_state {
	__u64 count[SAMPLE_COUNTERS];
	__u64 since;	/* frames since the last sample */
};

EGRESS(sample, "show user space one frame in so many", struct sample_config, struct sample_state)
{
	if (++st->since < config->n)
		return EGRESS_TRANSMIT;
	st->since = 0;
	st->count[egress_note(frame, NOTE_SAMPLE, config->snap_bytes, 0) ? SAMPLE_SAMPLED : SAMPLE_LOST]++;
	return EGRESS_TRANSMIT;
}
