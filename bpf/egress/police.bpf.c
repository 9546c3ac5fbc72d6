/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* police: meter frames with token buckets, colour-blind, and drop or mark what is too much. One meter for all that leaves by the port, by
 * whichever CPU and path.
 *   egress = [{ program = "police", cir_bps = 1_000_000_000, burst_bytes = 125_000 }]
 *   cir_bps = 1_000_000_000      # committed rate in bits per second, up to 800 Gbit/s
 *   burst_bytes = 125_000        # committed burst. A longer frame is never green
 *   excess_bytes = 250_000       # with it: one rate, three colours (RFC 2697)
 *   pir_bps = 2_000_000_000      # with both of these: two rates, three colours (RFC 2698). Neither: green and red alone
 *   peak_burst_bytes = 250_000
 *   yellow = "remark"            # transmit, remark or drop; left out: transmit
 *   yellow_dscp = 12             # that remark gives, 0 to 63
 *   red = "drop"                 # likewise; left out: drop
 *   red_dscp = 14
 * By frames per second: cir_fps, burst_frames, excess_frames, pir_fps, peak_burst_frames. Not both by bits and by frames.
 * A frame counts with all its bytes from the Ethernet header on, as it is at its place in the chain: preamble, frame check sequence and the gap
 * behind it, 24 bytes, are no part of it. Marks go into IPv4 and IPv6 behind up to two VLAN tags; ECN is kept. A frame to be marked that is
 * neither goes as it is, and counts as "unmarked"; one whose IP header is cut is dropped as "truncated". Colours count even so.
 * Dropped as "exceeded": yellow frames, as "violated": red ones.
 */
#include "bpf/lib/headers.bpf.h"

#include "bpf/abi/police.h"

EGRESS_DROPS(police, "exceeded", "violated", "truncated")
EGRESS_COUNTERS(police, "green", "yellow", "red", "green_bytes", "yellow_bytes", "red_bytes", "unmarked")

#define POLICE_ACTIONS (const char *const[]){ "transmit", "remark", "drop", NULL }
#define POLICE_RATE(key, limit, sentence)                                                                          \
	{ .name = #key, .type = EGRESS_KEY_U64, .says = sentence, .min = 1, .max = limit, .offset = offsetof(struct police_config, key) }
#define POLICE_SIZE(key, sentence)                                                                                 \
	{ .name = #key, .type = EGRESS_KEY_U32, .says = sentence, .min = 1, .max = 0xffffffff, .offset = offsetof(struct police_config, key) }

EGRESS_KEYS(police,
	POLICE_RATE(cir_bps, POLICE_MAX_BPS, "committed rate, bits per second; this or cir_fps"),
	POLICE_SIZE(burst_bytes, "committed burst; wants cir_bps"),
	POLICE_SIZE(excess_bytes, "excess burst: yellow is what takes of it"),
	POLICE_RATE(pir_bps, POLICE_MAX_BPS, "peak rate: red is what is above; wants peak_burst_bytes"),
	POLICE_SIZE(peak_burst_bytes, "peak burst"),
	POLICE_RATE(cir_fps, POLICE_MAX_FPS, "committed rate, frames per second"),
	POLICE_SIZE(burst_frames, "committed burst; wants cir_fps"),
	POLICE_SIZE(excess_frames, "excess burst: yellow is what takes of it"),
	POLICE_RATE(pir_fps, POLICE_MAX_FPS, "peak rate: red is what is above; wants peak_burst_frames"),
	POLICE_SIZE(peak_burst_frames, "peak burst"),
	{ .name = "yellow", .type = EGRESS_KEY_CHOICE, .says = "what becomes of yellow frames; left out, transmit", .choices = POLICE_ACTIONS,
	  .offset = offsetof(struct police_config, yellow), .present = offsetof(struct police_config, has_yellow) },
	{ .name = "yellow_dscp", .type = EGRESS_KEY_U32, .says = "for yellow = \"remark\"", .max = HEADERS_DSCP_VALUES - 1,
	  .offset = offsetof(struct police_config, yellow_dscp), .present = offsetof(struct police_config, has_yellow_dscp) },
	{ .name = "red", .type = EGRESS_KEY_CHOICE, .says = "what becomes of red frames", .fallback = "drop", .choices = POLICE_ACTIONS,
	  .offset = offsetof(struct police_config, red) },
	{ .name = "red_dscp", .type = EGRESS_KEY_U32, .says = "for red = \"remark\"", .max = HEADERS_DSCP_VALUES - 1,
	  .offset = offsetof(struct police_config, red_dscp), .present = offsetof(struct police_config, has_red_dscp) })

/* `rate` tokens in `per` nanoseconds. Rounded up, and by so little that years of uptime make no token of it. */
static inline struct police_bucket police_bucket_of(__u64 rate, __u64 per, __u64 size)
{
	struct police_bucket bucket = { .whole = rate / per, .second = rate / (per / 1000000000), .size = size };
	__u64 rest = rate % per;

	for (int i = 0; i < 64; i++) {
		rest *= 2;
		bucket.part = bucket.part * 2 + (rest >= per);
		rest -= rest >= per ? per : 0;
	}
	bucket.part += rest != 0;
	return bucket;
}

EGRESS_PREPARE(police, struct police_config)
{
	int by_bits = config->cir_bps || config->burst_bytes || config->excess_bytes || config->pir_bps || config->peak_burst_bytes;
	int by_frames = config->cir_fps || config->burst_frames || config->excess_frames || config->pir_fps || config->peak_burst_frames;
	__u64 rate = by_frames ? config->cir_fps : config->cir_bps, peak = by_frames ? config->pir_fps : config->pir_bps;
	__u64 per = by_frames ? 1000000000ull : 8000000000ull;
	__u32 burst = by_frames ? config->burst_frames : config->burst_bytes;
	__u32 excess = by_frames ? config->excess_frames : config->excess_bytes;
	__u32 peak_burst = by_frames ? config->peak_burst_frames : config->peak_burst_bytes;

	if (by_bits && by_frames)
		return "keys in bits and bytes stand beside keys in frames; take those of one kind";
	if (!rate)
		return "neither cir_bps nor cir_fps is given";
	if (!burst)
		return by_frames ? "cir_fps is given without burst_frames" : "cir_bps is given without burst_bytes";
	if (!peak != !peak_burst)
		return "of the peak rate and the peak burst only one is given";
	if (peak && excess)
		return "an excess burst and a peak rate are given; the one is of one rate with three colours, the other of two rates";
	if (peak && peak < rate)
		return "the peak rate is below the committed rate";
	config->mode = peak ? POLICE_TWO_RATES : excess ? POLICE_ONE_RATE : POLICE_TWO_COLOURS;
	if (config->mode == POLICE_TWO_COLOURS && (config->has_yellow || config->has_yellow_dscp))
		return "yellow has no frames: neither an excess burst nor a peak rate is given";
	if ((config->yellow == POLICE_REMARK) != config->has_yellow_dscp)
		return "yellow = \"remark\" and yellow_dscp go together";
	if ((config->red == POLICE_REMARK) != config->has_red_dscp)
		return "red = \"remark\" and red_dscp go together";
	config->frames = by_frames;
	config->committed = police_bucket_of(rate, per, burst);
	config->peak = police_bucket_of(peak, per, peak_burst);
	config->excess = excess;
	return NULL;
}

EGRESS_SHARED(police, struct police_buckets)

struct police_state {
	__u64 count[POLICE_COUNTERS];
};

/* The upper 64 bits of a product. BPF has no more than the lower ones. */
static inline __attribute__((always_inline)) __u64 police_high(__u64 a, __u64 b)
{
	__u64 low = (a & 0xffffffff) * (b & 0xffffffff);
	__u64 middle = (a >> 32) * (b & 0xffffffff) + (low >> 32);
	__u64 other = (a & 0xffffffff) * (b >> 32) + (middle & 0xffffffff);

	return (a >> 32) * (b >> 32) + (middle >> 32) + (other >> 32);
}

/* Whole tokens, as RFC 2697 and 2698 add them one by one. That the clock counts tokens and not time leaves nothing to round when a frame takes
 * some, however high the rate. */
static inline __attribute__((always_inline)) __u64 police_clock(const struct police_bucket *bucket, __u64 now)
{
	return now * bucket->whole + police_high(now, bucket->part);
}

/* How often a word is tried to be changed while others change it. */
#define POLICE_TRIES 16

struct police_taken {
	__u64 overflow;	/* tokens that came while the bucket was full; they are the caller's alone */
	int taken;
};

/* Tokens that are missing. Others may be ahead of this frame's `clock` by what they do between asking for the time and coming here: then more
 * is missing, never less. More than a second ahead is what a configuration with another rate has left behind: the bucket is empty then. */
static inline __attribute__((always_inline)) __u64 police_missing(const struct police_bucket *bucket, __u64 clock, __u64 word)
{
	__u64 missing = word > clock ? word - clock : 0;

	return missing > bucket->size + bucket->second ? bucket->size : missing;
}

/* Take `tokens`, all or none. */
static inline __attribute__((always_inline)) struct police_taken police_take(const struct police_bucket *bucket, __u64 *word, __u64 clock,
									     __u64 tokens)
{
	struct police_taken result = { 0 };
	__u64 seen = egress_load(word), missing, wanted, found;

	for (int i = 0; i < POLICE_TRIES; i++) {
		missing = police_missing(bucket, clock, seen);
		result.taken = missing + tokens <= bucket->size;
		result.overflow = seen < clock ? clock - seen : 0;
		wanted = clock + missing + (result.taken ? tokens : 0);
		if (wanted == seen)
			return result;
		found = __sync_val_compare_and_swap(word, seen, wanted);
		if (found == seen)
			return result;
		seen = found;
	}
	/* Each time somebody else was faster, so that the word is not older than this frame: what is missing may just be added to. To drop the frame
	 * would punish it for its company, to let it go untold would give away the rate just where most is sent. */
	result.overflow = 0;
	seen = __sync_fetch_and_add(word, tokens);
	result.taken = police_missing(bucket, clock, seen) + tokens <= bucket->size;
	if (!result.taken)
		__sync_fetch_and_add(word, -tokens);
	return result;
}

/* Put `overflow` into the excess bucket, which has no clock of its own, then take `tokens`, all or none. Whether that could be done. */
static inline __attribute__((always_inline)) int police_take_excess(__u64 *word, __u64 size, __u64 overflow, __u64 tokens)
{
	__u64 seen = egress_load(word), missing, found;
	int taken = 0;

	for (int i = 0; i < POLICE_TRIES; i++) {
		missing = seen < size ? seen : size;
		missing -= overflow < missing ? overflow : missing;
		taken = missing + tokens <= size;
		missing += taken ? tokens : 0;
		if (missing == seen)
			return taken;
		found = __sync_val_compare_and_swap(word, seen, missing);
		if (found == seen)
			return taken;
		seen = found;
	}
	/* As in police_take(). An overflow is forgone: the bucket gives less than it might, never more. */
	taken = __sync_fetch_and_add(word, tokens) + tokens <= size;
	if (!taken)
		__sync_fetch_and_add(word, -tokens);
	return taken;
}

static inline __attribute__((always_inline)) enum police_colour police_meter(const struct police_config *config, struct police_buckets *shared,
									     __u64 now, __u64 tokens)
{
	struct police_taken committed;

	if (config->mode == POLICE_TWO_RATES &&
	    !police_take(&config->peak, &shared->peak, police_clock(&config->peak, now), tokens).taken)
		return POLICE_RED;
	committed = police_take(&config->committed, &shared->committed, police_clock(&config->committed, now), tokens);
	if (config->mode == POLICE_ONE_RATE && (committed.overflow || !committed.taken) &&
	    police_take_excess(&shared->excess, config->excess, committed.overflow, committed.taken ? 0 : tokens) && !committed.taken)
		return POLICE_YELLOW;
	if (committed.taken)
		return POLICE_GREEN;
	return config->mode == POLICE_TWO_RATES ? POLICE_YELLOW : POLICE_RED;
}

EGRESS(police, "meter frames, drop or mark what is too much", struct police_config, struct police_state)
{
	__u32 length = egress_length(frame), dscp;
	struct headers_dscp at;
	struct headers_l3 l3;
	enum police_colour colour = police_meter(config, police_shared(frame), egress_now(frame), config->frames ? 1 : length);
	__u32 action = colour == POLICE_GREEN ? POLICE_TRANSMIT : colour == POLICE_YELLOW ? config->yellow : config->red;

	st->count[colour]++;
	st->count[POLICE_BYTES + colour] += length;
	if (action == POLICE_TRANSMIT)
		return EGRESS_TRANSMIT;
	if (action == POLICE_DROP)
		return egress_drop(colour == POLICE_YELLOW ? POLICE_EXCEEDED : POLICE_VIOLATED);
	dscp = colour == POLICE_YELLOW ? config->yellow_dscp : config->red_dscp;
	l3 = headers_l3(frame);
	at = headers_dscp(frame, l3);
	if (!l3.at || (!at.word && headers_is_ip(l3)))
		return egress_drop(POLICE_TRUNCATED);
	if (!at.word) {
		st->count[POLICE_UNMARKED]++;
		return EGRESS_TRANSMIT;
	}
	headers_set_dscp(at, dscp);
	return EGRESS_TRANSMIT;
}
