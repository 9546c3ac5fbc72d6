/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* accounts: what every program is told when it is loaded, and the counters of the CPU that it runs on. */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "bpf/abi/account.h"
#include "bpf/abi/link.h"

/* Its size is a placeholder: the loader gives every program the instance's own map of this name. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct account);
} accounts SEC(".maps");

/* A member of one of the structs of link.h, and memory of enum link_memory. In code that is not inlined into the program the loader does not
 * find them, and refuses the object. */
#define LINKED_WORD(word)                                                                          \
	({                                                                                         \
		__u64 linked_;                                                                     \
		asm("%0 = %1 ll" : "=r"(linked_) : "i"(word));                                     \
		linked_;                                                                           \
	})
#define LINKED(type, member) LINKED_WORD(LINK_PLACEHOLDER | LINK_##type << LINK_STRUCT | __builtin_offsetof(struct type, member))
#define LINKED_MEMORY(number) ((void *)LINKED_WORD(LINK_MEMORY | (number)))

/* An address in a frame. It is never 0, and that said the compiler does not ask. */
static __always_inline void *frame_address(__u32 data, __u32 offset)
{
	void *at = (void *)(long)data + offset;

	if (!at)
		__builtin_unreachable();
	return at;
}

/* The number of this CPU, in 64 bits and opaque, so that what the verifier has seen compared is what it sees multiplied. */
static __always_inline __u64 accounts_cpu(void)
{
	__u64 cpu = bpf_get_smp_processor_id();

	asm volatile("" : "+r"(cpu));
	return cpu;
}

/* Its row; `cpu` has been compared with the number of them. */
static __always_inline struct account *accounts_row_of(__u64 cpu)
{
	if (!LINKED(accounts_link, whole)) {
		__u32 key = cpu;

		return bpf_map_lookup_elem(&accounts, &key);
	}
	/* In this order: the verifier of 6.1 knows no bounds of a product whose second factor is not a constant. */
	asm("%0 *= %1" : "+r"(cpu) : "r"(LINKED(accounts_link, row_bytes)));
	return LINKED_MEMORY(LINK_ACCOUNTS) + cpu;
}

/* Null cannot be: there is a row for every number that a CPU may have. The verifier must see it asked. */
static __always_inline struct account *accounts_row(void)
{
	__u64 cpu = accounts_cpu();

	return cpu < LINKED(accounts_link, cpus) ? accounts_row_of(cpu) : 0;
}
