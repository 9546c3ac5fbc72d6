/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* acl_states: the table of established flows, which stages of several pipelines share, and which flow a frame is of: one code for both halves.
 *
 * Only the user half writes what a place holds, under a lock of its bucket; the kernel half looks it up without waiting, and refreshes `seen_s`.
 * A place that is given to another flow gets another count in its word: a reader that finds the word the same behind the addresses has
 * read those of one flow. */
#pragma once

#include "bpf/abi/flow.h"
#include "plugins/acl/acl.h"
#include "plugins/acl/acl_frame.h"

#define ACL_BUCKET 4		/* places of a bucket; a flow is in one of two */
#define ACL_PLACES (2 * ACL_BUCKET)

/* Of a place's word: ports of the lower end and of the higher one, 16 bits each, protocol, then these, and a count above. */
#define ACL_WORD_PROTOCOL 32
#define ACL_WORD_IPV6 (1ull << 40)
#define ACL_WORD_USED (1ull << 41)
#define ACL_WORD_FLOW ((1ull << 42) - 1)
#define ACL_WORD_COUNT (1ull << 42)

/* How far a flow has come. */
enum acl_phase {
	ACL_FROM_HIGH = 1,	/* the higher end has opened it */
	ACL_ANSWERED = 2,
	ACL_FIN_LOW = 4,	/* TCP: from the lower end, */
	ACL_FIN_HIGH = 8,	/* from the higher one, */
	ACL_RESET = 16,		/* from either */
	ACL_CACHED = 32,	/* not answered, and the flow cache had it when that was last asked */
};

/* Of a direction: the tag that its last frame had, as the flow cache sees it. */
#define ACL_TAG_SEEN 0x8000
#define ACL_TAG_THERE 0x4000

struct acl_state {		/* a cache line */
	__u64 word;		/* without ACL_WORD_USED: free */
	__u64 address[4];	/* of the lower end, of the higher one */
	__u32 seen_s;		/* clock of the last frame that came here */
	__u32 phase;
	__u32 since_s;
	__u16 tag[2];		/* from the lower end, from the higher one */
	__u16 vlan;		/* of the frame that has opened it, as rules see it, */
	__u8 flags;		/* and its flags of TCP */
	__u8 keeper;		/* stage that has opened it: acl_control.keeper */
	__u32 rule;		/* of that stage, by which it stands */
};

/* A flow, whichever end a frame is from. */
struct acl_flow {
	__u64 word;
	__u64 address[4];
	__u32 from_high;
	__u32 unused;
};

ACL_INLINE __u32 acl_opens(const struct acl_key *key)
{
	/* A new connection, whatever there was. */
	return acl_is_tcp(key) && (key->word[ACL_KIND_WORD] >> ACL_FLAGS & (ACL_SYN | ACL_ACK)) == ACL_SYN;
}

ACL_INLINE int acl_has_flow(const struct acl_key *key)
{
	__u64 kind = key->word[ACL_KIND_WORD];
	__u64 type = kind >> ACL_TYPE, protocol = kind >> ACL_PROTOCOL & 0xff;

	if ((type != ETH_P_IP && type != ETH_P_IPV6) || kind & ACL_LATER)
		return 0;
	return kind & (ACL_REQUEST | ACL_REPLY) || protocol != acl_icmp_of(type == ETH_P_IPV6);
}

/* 0: it is of none. ICMP echo has its lower end where the request comes from. */
ACL_INLINE int acl_flow_of(const struct acl_key *key, struct acl_flow *flow)
{
	__u64 kind = key->word[ACL_KIND_WORD], ports = key->word[ACL_PORTS_WORD];
	__u64 type = kind >> ACL_TYPE, protocol = kind >> ACL_PROTOCOL & 0xff;
	__u32 source = ports >> 16 & 0xffff, destination = ports & 0xffff, echo = kind & (ACL_REQUEST | ACL_REPLY), high;

	if (!acl_has_flow(key))
		return 0;
	if (!echo && !(kind & ACL_HAS_PORTS))
		source = destination = 0;
	high = key->word[0] > key->word[2];
	if (key->word[0] == key->word[2]) {
		high = key->word[1] > key->word[3];
		if (key->word[1] == key->word[3])
			high = source > destination;
	}
	if (echo)
		high = !!(kind & ACL_REPLY);
	flow->address[0] = high ? key->word[2] : key->word[0];
	flow->address[1] = high ? key->word[3] : key->word[1];
	flow->address[2] = high ? key->word[0] : key->word[2];
	flow->address[3] = high ? key->word[1] : key->word[3];
	flow->word = ACL_WORD_USED | protocol << ACL_WORD_PROTOCOL | (type == ETH_P_IPV6 ? ACL_WORD_IPV6 : 0) |
		     (high ? destination : source) | (__u64)(high ? source : destination) << 16;
	flow->from_high = high;
	return 1;
}

/* Each half of it names a bucket. `seed`: so that nobody outside can fill one. */
ACL_INLINE __u64 acl_flow_hash(const struct acl_flow *flow, __u64 seed)
{
	__u64 hash = flow_round(seed, flow->address[0]);

	hash = flow_round(hash, flow->address[1]);
	hash = flow_round(hash, flow->address[2]);
	hash = flow_round(hash, flow->address[3]);
	hash = flow_round(hash, flow->word);
	return flow_round(hash, seed);
}

/* `number`: below ACL_PLACES. */
ACL_INLINE __u32 acl_place(__u64 hash, __u32 number, __u32 mask)
{
	return (number & ACL_BUCKET ? (__u32)(hash >> 32) & mask : (__u32)hash & mask) * ACL_BUCKET + (number & (ACL_BUCKET - 1));
}

ACL_INLINE int acl_is_of(const struct acl_state *state, __u64 word, const struct acl_flow *flow)
{
	return (word & ACL_WORD_FLOW) == flow->word && state->address[0] == flow->address[0] && state->address[1] == flow->address[1] &&
	       state->address[2] == flow->address[2] && state->address[3] == flow->address[3];
}

/* Behind a frame that is not the first. */
ACL_INLINE __u32 acl_phase_behind(__u32 phase, const struct acl_flow *flow, const struct acl_key *key)
{
	__u32 flags = key->word[ACL_KIND_WORD] >> ACL_FLAGS & 0xff;

	if (!(phase & ACL_FROM_HIGH) != !flow->from_high)
		phase |= ACL_ANSWERED;
	if (!acl_is_tcp(key))
		return phase;
	if (flags & ACL_FIN)
		phase |= flow->from_high ? ACL_FIN_HIGH : ACL_FIN_LOW;
	if (flags & ACL_RST)
		phase |= ACL_RESET;
	return phase;
}

ACL_INLINE int acl_is_over(__u32 phase)
{
	return phase & ACL_RESET || (phase & (ACL_FIN_LOW | ACL_FIN_HIGH)) == (ACL_FIN_LOW | ACL_FIN_HIGH);
}
