/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* acl, kernel half: frames of an established flow go on, else the first rule that matches decides; punt what begins a flow or takes it further,
 * what is to be logged, and what only the rules that are not here could decide. */
#include "bpf/lib/stage.bpf.h"

#include "plugins/acl/acl.h"
#include "plugins/acl/acl_frame.h"
#include "plugins/acl/acl_states.h"

#define ACL_ARRAY(name, type_)                          \
	struct {                                        \
		__uint(type, BPF_MAP_TYPE_ARRAY);       \
		__uint(map_flags, BPF_F_MMAPABLE);      \
		__uint(max_entries, 1);                 \
		__type(key, __u32);                     \
		__type(value, type_);                   \
	} name SEC(".maps")

/* Named so that none is one of the instance's, which the loader puts in the place of those of the same name. */
ACL_ARRAY(rule_control, struct acl_control);
ACL_ARRAY(rule_tables, struct acl_table);
ACL_ARRAY(rule_slots, __u64);
ACL_ARRAY(rule_entries, struct acl_entry);
ACL_ARRAY(rule_hits, __u64);	/* written here alone, */
ACL_ARRAY(user_hits, __u64);	/* and these by the user half alone, */
ACL_ARRAY(rule_ids, __u64);	/* as what each rule is: the next run, or the stage after a reload, finds by it whose hits these are */
ACL_ARRAY(rule_samples, struct acl_samples);
ACL_ARRAY(states, struct acl_state);	/* those of the stages that share them */

struct acl_search {
	struct acl_key key;
	__u32 table;	/* index of the set's first */
	__u32 rule;	/* the first that has matched so far, with what it says */
};

/* In one table. 1: no table behind it can have an earlier rule. */
static long acl_look_up(__u32 number, struct acl_search *search)
{
	__u32 index = search->table + number, found = search->rule, i;
	struct acl_table *table = bpf_map_lookup_elem(&rule_tables, &index);
	struct acl_entry *entry;
	__u64 *slot, at;

	if (!table || table->rule > (found & ACL_NUMBER))
		return 1;
	index = table->first + (acl_hash(search->key.word, table->mask, table->seed) & table->slot_mask);
	slot = bpf_map_lookup_elem(&rule_slots, &index);
	if (!slot)
		return 1;
	at = *slot;
	index = at >> ACL_SLOT_ENTRY;
	for (i = 0; i < ACL_MAX_CHAIN && i < (at & ((1 << ACL_SLOT_ENTRY) - 1)); i++, index++) {
		entry = bpf_map_lookup_elem(&rule_entries, &index);
		if (!entry || (entry->rule & ACL_NUMBER) > (found & ACL_NUMBER))
			break;
		if (!acl_differs(entry, search->key.word)) {
			search->rule = entry->rule;
			break;
		}
	}
	return 0;
}

struct acl_find {
	struct acl_flow flow;
	__u64 hash;
	__u32 mask;
	__u32 phase;
	__u32 place;	/* and one; 0: not found */
	__u32 unused;
};

static long acl_find_in(__u32 number, struct acl_find *find)
{
	__u32 index = acl_place(find->hash, number & (ACL_PLACES - 1), find->mask);
	struct acl_state *state = bpf_map_lookup_elem(&states, &index);
	__u64 word;

	if (!state)
		return 1;
	word = *(volatile __u64 *)&state->word;
	if (!acl_is_of(state, word, &find->flow))
		return 0;
	find->phase = *(volatile __u32 *)&state->phase;
	if (*(volatile __u64 *)&state->word != word)
		return 1; /* it ends just now */
	find->place = index + 1;
	return 1;
}

/* What the table of established flows says of a frame. Not static: the verifier looks at such a function once, and not once for each way that
 * leads to it. */
enum acl_known { ACL_UNKNOWN, ACL_ESTABLISHED, ACL_IS_FURTHER };

__noinline int acl_known(const struct acl_key *key, __u64 seed, __u32 mask, __u32 second)
{
	struct acl_find find = {};
	struct acl_state *state;
	__u32 place;

	if (!key || acl_opens(key) || !acl_flow_of(key, &find.flow))
		return ACL_UNKNOWN;
	find.hash = acl_flow_hash(&find.flow, seed);
	find.mask = mask;
	bpf_loop(ACL_PLACES, acl_find_in, &find, 0);
	place = find.place - 1;
	state = find.place ? bpf_map_lookup_elem(&states, &place) : 0;
	if (!state)
		return ACL_UNKNOWN;
	if (acl_phase_behind(find.phase, &find.flow, key) != find.phase)
		return ACL_IS_FURTHER;
	if (!acl_is_over(find.phase) && state->seen_s != second)
		state->seen_s = second;
	return ACL_ESTABLISHED;
}

static __always_inline int may_punt(struct acl_punted *punted, __u64 second, __u32 most)
{
	if (punted->second != second) {
		punted->second = second;
		punted->frames = 0;
	}
	if (punted->frames >= most)
		return 0;
	punted->frames++;
	return 1;
}

/* Whether this CPU may punt one more in this second. A flood of frames that are to be logged, or that say they are errors, must not become a flood
 * of punts. */
static __always_inline int may_sample(const struct acl_control *all)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct acl_samples *mine = bpf_map_lookup_elem(&rule_samples, &cpu);

	return mine && may_punt(&mine->logged, all->second, all->log_rate);
}

static __always_inline int may_ask_about_error(const struct acl_control *all)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct acl_samples *mine = bpf_map_lookup_elem(&rule_samples, &cpu);

	return mine && may_punt(&mine->errors, all->second, ACL_ERROR_RATE);
}

static __always_inline void hit(const struct acl_control *all, __u32 half, __u32 number)
{
	__u32 row = bpf_get_smp_processor_id(), index;
	__u64 *count;

	if (row >= all->rows)
		row = all->rows ? row % all->rows : 0;
	index = (row * 2 + half) * ACL_RULES(all->room) + number;
	count = bpf_map_lookup_elem(&rule_hits, &index);
	if (!count)
		return;
	if (all->shared)
		__sync_fetch_and_add(count, 1);
	else
		(*count)++;
}

STAGE(acl)
{
	__u32 zero = 0, half, number, says, decided, rules;
	struct acl_control *all = bpf_map_lookup_elem(&rule_control, &zero);
	struct acl_search search = {};
	const struct acl_set *set;
	__u64 generation;

	switch (acl_read(frame, ACL_KERNEL_EXTENSIONS, &search.key)) {
	case ACL_READ:
		break;
	case ACL_IS_TRUNCATED:
		return drop(ACL_TRUNCATED);
	case ACL_IS_BAD:
		return drop(ACL_BAD_HEADER);
	case ACL_IS_DEEP:
		return punt(ACL_PUNT_EXTENSIONS);
	default:
		return punt(ACL_PUNT_HIDDEN);
	}
	if (!all)
		return punt(ACL_PUNT_SWAPPED);
	if (all->keeps) {
		if (search.key.word[ACL_KIND_WORD] & ACL_ERROR && may_ask_about_error(all))
			return punt(ACL_PUNT_ERROR);
		switch (acl_known(&search.key, all->seed, all->mask, all->second)) {
		case ACL_IS_FURTHER:
			return punt(ACL_PUNT_CHANGES);
		case ACL_ESTABLISHED:
			if (!all->offload)
				stage_keep(frame);
			stage_count(frame, ACL_COUNT_ESTABLISHED);
			return next();
		default:
			break;
		}
	}
	generation = *(volatile __u64 *)&all->generation;
	half = generation & 1;
	set = half ? &all->set[1] : &all->set[0];
	decided = set->decided;
	rules = set->rules;
	search.rule = ACL_NO_RULE;
	search.table = half * ACL_MAX_TABLES;
	says = set->otherwise;
	number = set->tables;
	bpf_loop(number < ACL_MAX_TABLES ? number : ACL_MAX_TABLES, acl_look_up, &search, 0);
	if (!generation || *(volatile __u64 *)&all->generation != generation)
		return punt(ACL_PUNT_SWAPPED);

	number = search.rule & ACL_NUMBER;
	/* The flow cache looks at no TCP flags, and a rule that logs is to see every frame. */
	if (!all->offload || (all->flags && acl_is_tcp(&search.key)) || (number != ACL_NO_RULE && search.rule & ACL_LOGS))
		stage_keep(frame);
	if (number != ACL_NO_RULE) {
		says = search.rule;
		if (says & ACL_KEEPS && acl_has_flow(&search.key))
			return punt(ACL_PUNT_OPENS);
		if (says & ACL_LOGS) {
			if (may_sample(all))
				return punt(ACL_PUNT_LOG);
			stage_count(frame, ACL_COUNT_UNLOGGED);
		}
		stage_count(frame, says & ACL_DROPS ? ACL_COUNT_DENIED : ACL_COUNT_PERMITTED);
	} else if (decided < rules) {
		return punt(ACL_PUNT_RULES);
	} else {
		number = rules;
		stage_count(frame, ACL_COUNT_OTHERWISE);
	}
	hit(all, half, number);
	return says & ACL_DROPS ? drop(ACL_DENIED) : next();
}
