/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* egress: all that an egress program includes. One body; its shells for the device entry, for the place before the redirect and for test
 * runs, and the host build come with it. Write, in this order:
 *   EGRESS_DROPS(name, "reason", …)      EGRESS_COUNTERS(name, "counter", …)      EGRESS_KEYS(name, { … }, …)
 *     all three, as EGRESS_DROPS(name) where there is none
 *   EGRESS_PREPARE(name, struct config) { … return NULL; }, where the keys are not yet what the body reads
 *   EGRESS_SHARED(name, struct), what all CPUs and workers write together, by atomic builtins on __u64; name_shared(frame) points to it
 *   EGRESS_NOT_BEHIND(name, { .program = "other", .why = "…" }, …), where there is an order that makes no sense
 *   EGRESS(name, "sentence", struct config, struct state) { … return EGRESS_TRANSMIT; }, where struct egress_none has no keys or no state */
#pragma once

#include <linux/types.h>

#include "bpf/abi/egress.h"

static inline __attribute__((always_inline)) __u32 egress_drop(__u32 reason) { return EGRESS_DROP(reason); }

/* Of a body, which need not use them. */
#define EGRESS_PARAMETERS(config_type, state_type)                                                                 \
	struct egress_frame *frame __attribute__((unused)), const config_type *config __attribute__((unused)),     \
		state_type *st __attribute__((unused))

#ifdef __bpf__

#include "bpf/lib/accounts.bpf.h"

/* The loader gives a program its own chain's. Devmap programs may tail call only each other. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} chain SEC(".maps");

struct egress_frame {
	struct xdp_md *ctx;
};

/* `size` bytes at `offset` of the frame, or null when the frame is shorter. */
static __always_inline void *egress_header(struct egress_frame *frame, __u32 offset, __u32 size)
{
	void *at = frame_address(frame->ctx->data, offset);

	return at + size > (void *)(long)frame->ctx->data_end ? 0 : at;
}

static __always_inline __u32 egress_length(struct egress_frame *frame)
{
	return LINKED(egress_link, frags) ? bpf_xdp_get_buff_len(frame->ctx) : frame->ctx->data_end - frame->ctx->data;
}

/* Nanoseconds of CLOCK_MONOTONIC. Some 40 of them go by meanwhile: for programs that cannot do without. */
static __always_inline __u64 egress_now(struct egress_frame *frame)
{
	(void)frame;
	return bpf_ktime_get_ns();
}

/* A word of EGRESS_SHARED as it is at this moment. */
static __always_inline __u64 egress_load(const __u64 *word) { return *(const volatile __u64 *)word; }

/* Words at any address, in one piece. Left to itself the compiler moves what it does not know to be aligned byte by byte; and bytes that were
 * stored singly the CPU does not hand on to who reads them in one piece, but has that wait until they are in the cache. A kernel for a CPU that
 * must have them aligned refuses the program. */
typedef __u64 __attribute__((may_alias)) egress_word64;
typedef __u32 __attribute__((may_alias)) egress_word32;
typedef __u16 __attribute__((may_alias)) egress_word16;
static __always_inline __u64 egress_get64(const void *at) { return *(const egress_word64 *)at; }
static __always_inline __u32 egress_get32(const void *at) { return *(const egress_word32 *)at; }
static __always_inline __u16 egress_get16(const void *at) { return *(const egress_word16 *)at; }
static __always_inline void egress_put64(void *at, __u64 word) { *(egress_word64 *)at = word; }
static __always_inline void egress_put32(void *at, __u32 word) { *(egress_word32 *)at = word; }
static __always_inline void egress_put16(void *at, __u16 word) { *(egress_word16 *)at = word; }

/* Move the frame's start, by a constant: `bytes` more in front, of any content, or so many fewer. Whether that could be done; pointers into
 * the frame are void behind it. */
static __always_inline int egress_grow(struct egress_frame *frame, __u32 bytes) { return bpf_xdp_adjust_head(frame->ctx, -(int)bytes) == 0; }
static __always_inline int egress_shrink(struct egress_frame *frame, __u32 bytes) { return bpf_xdp_adjust_head(frame->ctx, (int)bytes) == 0; }

/* Entries without a program, of the ports whose chain runs before the redirect. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, WEIR_MAX_PORTS);
	__type(key, __u32);
	__type(value, struct bpf_devmap_val);
} bare_ports SEC(".maps");

enum egress_place { EGRESS_ON_ENTRY, EGRESS_FUSED, EGRESS_TEST };

/* The chain's end. On a device entry XDP_PASS transmits, and in a test run nobody does. */
static __always_inline int egress_leave(struct account *port, enum egress_place place)
{
	if (place != EGRESS_FUSED)
		return XDP_PASS;
	if (bpf_redirect_map(&bare_ports, LINKED(egress_link, key), XDP_DROP) != XDP_REDIRECT) {
		port->drop[WEIR_DROP_NO_ENTRY]++;
		return XDP_DROP;
	}
	port->counter[WEIR_PORT_QUEUED]++;
	return XDP_REDIRECT;
}

/* Count the verdict; the action for it. `place` is a constant to the compiler, and the tail call's slot is one at load. */
static __always_inline int egress_close(struct xdp_md *ctx, struct account *row, __u32 verdict, enum egress_place place)
{
	struct account *account = row + LINKED(egress_link, block), *port = row + LINKED(egress_link, port);
	__u64 next = LINKED(egress_link, next);

	if (verdict != EGRESS_TRANSMIT) {
		account->verdict[WEIR_DROP]++;
		account->drop[verdict < WEIR_DROPS - WEIR_DROP_OWN ? WEIR_DROP_OWN + verdict - 1 : WEIR_DROP_UNNAMED]++;
		if (place == EGRESS_ON_ENTRY)
			port->counter[WEIR_PORT_ENTRY_DROPS]++;
		return XDP_DROP;
	}
	account->verdict[WEIR_NEXT]++;
	if (next == WEIR_NO_NEXT)
		return egress_leave(port, place);
	bpf_tail_call(ctx, &chain, next);
	return XDP_ABORTED; /* half a chain is never transmitted; shows as xdp_exception */
}

#define EGRESS_DROPS(name, ...)
#define EGRESS_COUNTERS(name, ...)
#define EGRESS_KEYS(name, ...)
#define EGRESS_NOT_BEHIND(name, ...)
#define EGRESS_SHARED(name, type)                                                                                  \
	struct {                                                                                                   \
		__u8 unused[WEIR_FRAME_NOTES];                                                                     \
		type own;                                                                                          \
	} egress_shared SEC(".data.shared");                                                                       \
	static __always_inline type *name##_shared(struct egress_frame *frame)                                     \
	{                                                                                                          \
		(void)frame;                                                                                       \
		return &egress_shared.own;                                                                         \
	}
#define EGRESS_PREPARE(name, config_type) static inline __attribute__((unused)) const char *name##_prepare(config_type *config)

/* `config` lies in a section of its own and `state` in an array: both memory-mapped, so that the host build uses the same ones.
 * State has, behind EGRESS_FIRST_ROW, a row for each CPU and, behind these, for each worker: a row has one writer, and cache lines of its own. */
#define EGRESS(name, sentence, config_type, state_type)                                                            \
	config_type egress_config SEC(".data.config");                                                             \
	struct name##_row {                                                                                        \
		state_type own;                                                                                    \
	} __attribute__((aligned(WEIR_CACHE_LINE)));                                                               \
	static __always_inline __u32 name##_body(struct egress_frame *frame, const config_type *config, state_type *st); \
	static __always_inline int name##_run(struct xdp_md *ctx, enum egress_place place)                         \
	{                                                                                                          \
		struct egress_frame frame = { .ctx = ctx };                                                        \
		__u64 cpu = accounts_cpu();                                                                        \
		struct name##_row *st = LINKED_MEMORY(LINK_STATE);                                                 \
		struct account *row;                                                                               \
                                                                                                                   \
		if (cpu >= LINKED(egress_link, accounts.cpus))                                                     \
			return XDP_ABORTED; /* cannot be */                                                        \
		row = accounts_row_of(cpu);                                                                        \
		st += EGRESS_FIRST_ROW + cpu;                                                                      \
		if (!row)                                                                                          \
			return XDP_ABORTED;                                                                        \
		return egress_close(ctx, row, name##_body(&frame, (const config_type *)&egress_config, &st->own), place); \
	}                                                                                                          \
	SEC("xdp/devmap") int name(struct xdp_md *ctx) { return name##_run(ctx, EGRESS_ON_ENTRY); }                  \
	SEC("xdp") int name##_fused(struct xdp_md *ctx) { return name##_run(ctx, EGRESS_FUSED); }                    \
	SEC("xdp") int name##_test(struct xdp_md *ctx) { return name##_run(ctx, EGRESS_TEST); }                      \
	char licence[] SEC("license") = "Dual BSD/GPL";                                                            \
	static __always_inline __u32 name##_body(EGRESS_PARAMETERS(config_type, state_type))

#else /* host */

#include <stddef.h>
#include <time.h>

struct egress_notes;

struct egress_frame {
	__u8 *data;
	__u32 length;
	__u32 headroom;	/* bytes in front of data that are the frame's */
	void *shared;	/* see EGRESS_SHARED */
	__u64 now;	/* for tests: what egress_now() says; 0: the clock's time */
	__u16 in;	/* slot of the port that it came in by */
	const struct egress_notes *notes;	/* see bpf/lib/notes.bpf.h; may be null */
};

static inline void *egress_header(struct egress_frame *frame, __u32 offset, __u32 size)
{
	return offset + size > frame->length ? NULL : frame->data + offset;
}

static inline __u32 egress_length(struct egress_frame *frame) { return frame->length; }

#define EGRESS_WORD(bits)                                                                                          \
	static inline __u##bits egress_get##bits(const void *at)                                                   \
	{                                                                                                          \
		__u##bits word;                                                                                    \
		__builtin_memcpy(&word, at, sizeof(word));                                                         \
		return word;                                                                                       \
	}                                                                                                          \
	static inline void egress_put##bits(void *at, __u##bits word) { __builtin_memcpy(at, &word, sizeof(word)); }
EGRESS_WORD(64)
EGRESS_WORD(32)
EGRESS_WORD(16)

static inline __u64 egress_load(const __u64 *word) { return __atomic_load_n(word, __ATOMIC_RELAXED); }

static inline __u64 egress_now(struct egress_frame *frame)
{
	struct timespec now;

	if (frame->now)
		return frame->now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static inline int egress_grow(struct egress_frame *frame, __u32 bytes)
{
	if (frame->headroom < bytes)
		return 0;
	frame->data -= bytes;
	frame->length += bytes;
	frame->headroom -= bytes;
	return 1;
}

/* The kernel leaves an Ethernet header at least (net/core/filter.c, bpf_xdp_adjust_head). */
static inline int egress_shrink(struct egress_frame *frame, __u32 bytes)
{
	if (frame->length < bytes + 14)
		return 0;
	frame->data += bytes;
	frame->length -= bytes;
	frame->headroom += bytes;
	return 1;
}

#define EGRESS_DROPS(name, ...) static const char *const name##_drops[] = { __VA_ARGS__ __VA_OPT__(,) NULL };
#define EGRESS_COUNTERS(name, ...) static const char *const name##_counters[] = { __VA_ARGS__ __VA_OPT__(,) NULL };
#define EGRESS_KEYS(name, ...) static const struct egress_key name##_keys[] = { __VA_ARGS__ __VA_OPT__(,) { .type = EGRESS_KEY_END } };

#define EGRESS_SHARED(name, type)                                                                                  \
	extern const __u32 weir_shared_##name;                                                                     \
	__attribute__((weak)) const __u32 weir_shared_##name = sizeof(type);                                       \
	static inline type *name##_shared(struct egress_frame *frame)                                              \
	{                                                                                                          \
		return (type *)frame->shared;                                                                      \
	}

#define EGRESS_NOT_BEHIND(name, ...)                                                                               \
	extern const struct egress_order weir_order_##name[];                                                      \
	__attribute__((weak)) const struct egress_order weir_order_##name[] = { __VA_ARGS__, { .program = NULL } };

#define EGRESS_PREPARE(name, config_type)                                                                          \
	static const char *name##_prepare(config_type *config);                                                    \
	__attribute__((weak)) const char *weir_prepare_##name(void *config)                                        \
	{                                                                                                          \
		return name##_prepare((config_type *)config);                                                      \
	}                                                                                                          \
	static const char *name##_prepare(config_type *config)

#define EGRESS(program, sentence, config_type, state_type)                                                         \
	static inline __u32 program##_body(struct egress_frame *frame, const config_type *config, state_type *st); \
	static __u32 program##_run(struct egress_frame *frame, const void *config, void *st)                       \
	{                                                                                                          \
		return program##_body(frame, (const config_type *)config, (state_type *)st);                       \
	}                                                                                                          \
	__attribute__((weak)) const char *weir_prepare_##program(void *config); /* null without EGRESS_PREPARE */  \
	extern __attribute__((weak)) const struct egress_order weir_order_##program[]; /* likewise */              \
	extern __attribute__((weak)) const __u32 weir_shared_##program; /* likewise */                             \
	extern __attribute__((weak)) const __u32 weir_notes_##program; /* of EGRESS_NOTES */                       \
	extern const struct egress_program weir_egress_##program;                                                  \
	const struct egress_program weir_egress_##program = {                                                      \
		.name = #program,                                                                                  \
		.says = sentence,                                                                                  \
		.run = program##_run,                                                                              \
		.prepare = weir_prepare_##program,                                                                 \
		.not_behind = weir_order_##program,                                                                \
		.shared_size = &weir_shared_##program,                                                             \
		.notes = &weir_notes_##program,                                                                    \
		.keys = program##_keys,                                                                            \
		.drops = program##_drops,                                                                          \
		.counters = program##_counters,                                                                    \
		.config_size = sizeof(config_type),                                                                \
		.state_size = sizeof(state_type),                                                                  \
	};                                                                                                         \
	static inline __u32 program##_body(EGRESS_PARAMETERS(config_type, state_type))

#endif
