// SPDX-License-Identifier: BSD-3-Clause
// acl_states: find, open and end established flows, and keep those alive that only the kernel's flow cache sees.
#include "plugins/acl/acl_states.hh"

#include <sys/random.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <mutex>
#include <new>

namespace weir::acl {
namespace {

constexpr u64 layout = 2;                // of what stages of one table share
constexpr u32 longest_sweep = 1u << 18;  // places in one tick: a larger table is gone through in several
constexpr u32 least_idle_s = 2;          // of a flow without an answer that is evicted for another one; more where a sweep is longer
constexpr u32 longest_absence_s = 10;    // of all stages, behind which none has the table any more; a control thread may be kept that long

template <typename T>
T load(const T& from) noexcept {
  return std::atomic_ref(const_cast<T&>(from)).load(std::memory_order_relaxed);
}
template <typename T>
void store(T& to, std::type_identity_t<T> value) noexcept {
  std::atomic_ref(to).store(value, std::memory_order_relaxed);
}
template <typename T>
void add(T& to, std::type_identity_t<T> value) noexcept {
  std::atomic_ref(to).fetch_add(value, std::memory_order_relaxed);
}

u32 monotonic_s() noexcept {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<u32>(now.tv_sec);
}

u32 since(u32 then, u32 now) noexcept { return now - std::min(now, then); }

u8 protocol_of(u64 word) noexcept { return static_cast<u8>(word >> ACL_WORD_PROTOCOL); }
bool is_answered(u32 phase) noexcept { return (phase & ACL_ANSWERED) != 0; }
bool is_echo(u64 word) noexcept { return protocol_of(word) == acl_icmp_of((word & ACL_WORD_IPV6) != 0); }

// Of the frame, as the flow cache sees it.
u16 tag_of(const Frame& frame) noexcept {
  const auto* type = frame.header<std::array<u8, 4>>(12);
  if (type == nullptr || (*type)[0] != 0x81 || (*type)[1] != 0) return ACL_TAG_SEEN;
  return static_cast<u16>(ACL_TAG_SEEN | ACL_TAG_THERE | ((*type)[2] << 8 | (*type)[3]) % 4096);
}

}  // namespace

// Both buckets of a flow, in an order that all keep.
class States::Held {
 public:
  Held(SpinLock& one, SpinLock& other) noexcept
      : first_(std::min(&one, &other)), second_(&one == &other ? nullptr : std::max(&one, &other)) {
    first_->lock();
    if (second_ != nullptr) second_->lock();
  }
  Held(const Held&) = delete;
  ~Held() {
    if (second_ != nullptr) second_->unlock();
    first_->unlock();
  }

 private:
  SpinLock *first_, *second_;
};

States::States() noexcept : made_s_(monotonic_s()) {}

Result<> States::bind(StageMemory& memory, const std::string& name, u32 most, const StateTimes& times, std::span<const PortSlot> ports,
                      FlowCache* cache, u32& keeper) {
  static_assert(sizeof(SpinLock) == 1);
  const u32 places = std::bit_ceil(2 * most);  // half full at most: so a flow that finds its eight places taken is rare before that
  // The head last: whoever gets it for the first time is not to fail behind that.
  const auto states = TRY(memory.common<acl_state>("states", name, places));
  const auto head = TRY(memory.common<Head>("state_head", name, 1));
  head_ = &head.entries.front();
  states_ = states.entries;
  times_ = times;
  cache_ = cache;
  const u32 now = monotonic_s(), mask = places / ACL_BUCKET - 1;
  if (head.first || head_->version == 0) {
    if (head_->version != layout || head_->mask != mask || head_->most != most) {
      std::memset(static_cast<void*>(head_), 0, sizeof *head_);
      std::ranges::fill(states_, acl_state{});
      if (::getrandom(&head_->seed, sizeof head_->seed, 0) != sizeof head_->seed)
        return fail_errno(errno, "draw a seed for established flows");
    }
    // Whoever held a lock is gone, and perhaps in the middle of a write. Time that nobody was there to see a frame is not idle.
    for (SpinLock& lock : head_->lock) new (&lock) SpinLock();
    new (&head_->ended_lock) SpinLock();
    head_->version = layout, head_->mask = mask, head_->most = most;
    head_->count = 0;
    for (acl_state& state : states_) {
      if ((state.word & ACL_WORD_USED) == 0) continue;
      ++head_->count;
      state.seen_s = now;
    }
    for (u32& alive : head_->alive_s) alive = alive == 0 ? 0 : now;
    head_->ports = 0;
    head_->now_s = head_->swept_s = now;
  }
  const auto is_here = [this](u32 alive) { return alive != 0 && since(alive, made_s_) <= longest_absence_s; };
  if (head_->version == layout && std::ranges::none_of(head_->alive_s, is_here) && !head.first) {
    // All stages had dropped the name in between, and nobody has seen what became of the flows.
    std::ranges::fill(states_, acl_state{});
    std::ranges::fill(head_->alive_s, 0);
    head_->count = 0, head_->ports = 0, head_->swept = 0, head_->again = 1;
    head_->now_s = head_->swept_s = now;
  }
  if (head_->version != layout) return fail("established flows {}: are those of another build; it takes a new start", name);
  if (head_->most != most)
    return fail("established flows {}: max_states is {}, and {} are asked for; another number takes a new start", name, head_->most, most);
  for (const PortSlot port : ports) head_->ports |= u64{1} << port.value;
  if (keeper > 0 && keeper <= keepers && head_->alive_s[keeper - 1] != 0) return {};
  const auto at = std::ranges::find_if(head_->alive_s, [&](u32 alive) { return alive == 0; });
  if (at == std::end(head_->alive_s)) return fail("established flows {}: {} stages share them, and no more can", name, keepers);
  *at = now;
  keeper = static_cast<u32>(at - head_->alive_s) + 1;
  return {};
}

void States::succeed(u32 before, u32& keeper) noexcept {
  if (before == 0 || before > keepers || before == keeper) return;
  head_->alive_s[keeper - 1] = 0;
  head_->alive_s[before - 1] = std::max(head_->alive_s[before - 1], head_->now_s);
  keeper = before;
}

// Visits the flow's place, with its bucket held.
template <typename Visit>
bool States::find(const acl_flow& flow, Visit visit) const noexcept {
  const u64 hash = acl_flow_hash(&flow, head_->seed);
  for (const u32 bucket : {0, ACL_BUCKET}) {
    const u32 first = acl_place(hash, bucket, head_->mask);
    const std::scoped_lock hold(lock_of(first));
    for (acl_state& state : states_.subspan(first, ACL_BUCKET)) {
      if (acl_is_of(&state, state.word, &flow) == 0) continue;
      visit(state);
      return true;
    }
  }
  return false;
}

bool States::knows(const acl_flow& flow) const noexcept {
  return find(flow, [](acl_state&) {});
}

bool States::passes(const acl_key& key, const Frame& frame) noexcept {
  acl_flow flow{};
  if (acl_opens(&key) != 0 || acl_flow_of(&key, &flow) == 0) return false;
  return find(flow, [&](acl_state& state) {
    if (acl_is_over(state.phase) == 0) store(state.seen_s, load(head_->now_s));
    store(state.phase, acl_phase_behind(state.phase, &flow, &key));
    state.tag[flow.from_high] = tag_of(frame);
  });
}

bool States::concerns(const acl_key& key, const Frame& frame) const noexcept {
  if ((key.word[ACL_KIND_WORD] & ACL_ERROR) == 0) return false;
  const std::optional<acl_flow> flow = quoted_flow(frame, static_cast<u32>(key.word[ACL_PORTS_WORD]));
  if (!flow || ((flow->word & ACL_WORD_IPV6) != 0) != (key.word[ACL_KIND_WORD] >> ACL_TYPE == ETH_P_IPV6)) return false;
  const u64* sender = &flow->address[2 * flow->from_high];
  return sender[0] == key.word[2] && sender[1] == key.word[3] && knows(*flow);
}

bool States::open(const acl_key& key, const Frame& frame, u32 keeper, u32 rule) noexcept {
  const u64 kind = key.word[ACL_KIND_WORD];
  acl_flow flow{};
  if (acl_flow_of(&key, &flow) == 0 || (kind & ACL_REPLY) != 0) return true;
  if (acl_is_tcp(&key) != 0 && (kind >> ACL_FLAGS & (ACL_FIN | ACL_RST)) != 0) return true;  // picked up at its end
  const u64 hash = acl_flow_hash(&flow, head_->seed);
  const Held hold(lock_of(acl_place(hash, 0, head_->mask)), lock_of(acl_place(hash, ACL_BUCKET, head_->mask)));
  const u32 now = load(head_->now_s), silent_s = least_idle_s - 1 + sweep_s();
  acl_state *free = nullptr, *victim = nullptr;
  u32 most_room = 0, room = 0;  // of the bucket that has more; of this one
  for (u32 number = 0; number < ACL_PLACES; ++number) {
    acl_state& state = states_[acl_place(hash, number, head_->mask)];
    if (number == ACL_BUCKET) room = 0;
    if (acl_is_of(&state, state.word, &flow) != 0) {
      if (acl_is_over(state.phase) != 0) write(state, flow, key, now, keeper, rule);
      store(state.seen_s, now);
      state.tag[flow.from_high] = tag_of(frame);
      return true;
    }
    if ((state.word & ACL_WORD_USED) == 0) {
      if (++room > most_room) free = &state, most_room = room;
      continue;
    }
    const bool unanswered = !is_answered(state.phase) && since(load(state.seen_s), now) >= silent_s;
    if ((acl_is_over(state.phase) != 0 || unanswered) && (victim == nullptr || load(state.seen_s) < load(victim->seen_s))) victim = &state;
  }
  if (free != nullptr && std::atomic_ref(head_->count).fetch_add(1, std::memory_order_relaxed) < head_->most) {
    victim = free;
  } else {
    if (free != nullptr) add(head_->count, ~u32{0});
    if (victim == nullptr) {
      add(head_->refused, 1);
      return false;
    }
    add(head_->evicted, 1);
    if (acl_is_over(victim->phase) != 0 || (victim->phase & ACL_CACHED) != 0) note_ended(*victim);
  }
  write(*victim, flow, key, now, keeper, rule);
  victim->tag[flow.from_high] = tag_of(frame);
  add(head_->opened, 1);
  return true;
}

// The kernel half reads beside this: it finds the flow of before, this one, or none.
void States::write(acl_state& state, const acl_flow& flow, const acl_key& key, u32 now, u32 keeper, u32 rule) noexcept {
  const std::atomic_ref word(state.word);
  const u64 count = (state.word & ~ACL_WORD_FLOW) + ACL_WORD_COUNT;
  word.store(count, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_release);
  std::ranges::copy(flow.address, state.address);
  state.phase = flow.from_high != 0 ? ACL_FROM_HIGH : 0;
  state.seen_s = state.since_s = now;
  state.tag[0] = state.tag[1] = 0;
  state.vlan = static_cast<u16>(key.word[ACL_KIND_WORD] >> ACL_VLAN);
  state.flags = static_cast<u8>(key.word[ACL_KIND_WORD] >> ACL_FLAGS);
  state.keeper = static_cast<u8>(keeper), state.rule = rule;
  word.store(flow.word | count, std::memory_order_release);
}

// Unless the place is another flow's by now.
bool States::end(u32 place, u64 word, u64 Head::*why) noexcept {
  const std::scoped_lock hold(lock_of(place));
  acl_state& state = states_[place];
  if (state.word != word) return false;
  std::atomic_ref(state.word).store(word & ~ACL_WORD_FLOW, std::memory_order_release);
  add(head_->count, ~u32{0});
  add(head_->*why, 1);
  return true;
}

u32 States::longest_idle(const acl_state& state) const noexcept {
  switch (protocol_of(state.word)) {
    case IPPROTO_TCP:
      return !is_answered(state.phase) || (state.phase & (ACL_FIN_LOW | ACL_FIN_HIGH | ACL_RESET)) != 0 ? times_.tcp_transitory
                                                                                                        : times_.tcp;
    case IPPROTO_UDP:
    case IPPROTO_UDPLITE:
      return times_.udp;
    default:
      return is_echo(state.word) ? times_.icmp : times_.other;
  }
}

acl_state States::copy(u32 place) const noexcept {
  const std::scoped_lock hold(lock_of(place));
  return states_[place];
}

void States::tick(u32 now_s, u32 keeper) noexcept {
  if (head_->swept_s == now_s) {
    head_->alive_s[keeper - 1] = now_s;
    return;
  }
  // All have been here since the last sweep but those that are no more.
  const u32 before = std::exchange(head_->swept_s, now_s);
  std::array<bool, keepers> gone{};
  for (u32 i = 0; i < keepers; ++i) {
    gone[i] = head_->alive_s[i] < before && i != keeper - 1;
    if (gone[i]) head_->alive_s[i] = 0;
  }
  head_->alive_s[keeper - 1] = now_s;
  const u32 places = static_cast<u32>(states_.size()), from = head_->swept, to = std::min(places, from + longest_sweep);
  bool orphans = false;
  for (u32 place = from; place < to; ++place) {
    if ((load(states_[place].word) & ACL_WORD_USED) == 0) continue;
    const acl_state state = copy(place);
    if ((state.word & ACL_WORD_USED) == 0) continue;
    if (state.keeper == 0 || state.keeper > keepers || gone[state.keeper - 1]) orphans |= end(place, state.word, &Head::judged);
    else look_after(place, state, now_s);
  }
  head_->swept = to == places ? 0 : to;
  // Behind the sweep: whoever looks for one that is silent sees none that it has just found in the flow cache.
  store(head_->now_s, now_s);
  // Once more a second later: a kernel half may have been about to let a frame go on by a state that had just ended.
  const bool again = std::exchange(head_->again, orphans) != 0;
  take_ended_back(orphans || again);
}

// Seconds from one sweep of a place to the next.
u32 States::sweep_s() const noexcept { return std::max(1u, static_cast<u32>(states_.size()) / longest_sweep); }

// Frames that the flow cache alone sees keep a flow too, but one that is over. About those that nobody answers it is asked before they are
// idle, since they may have to give their place: when a frame has come here lately, which may be offloaded now, and as long as it has them.
void States::look_after(u32 place, const acl_state& state, u32 now) noexcept {
  const u32 age = since(state.seen_s, now), longest = longest_idle(state);
  const bool over = acl_is_over(state.phase) != 0, lately = age > 0 && age <= 2 * sweep_s();
  if (age < longest && (over || is_answered(state.phase) || (!lately && (state.phase & ACL_CACHED) == 0))) return;
  const std::optional<u32> cached = idle_in_cache(state);
  const u32 idle = over ? age : std::min(age, cached.value_or(age));
  if (idle >= longest) {
    if (end(place, state.word, &Head::idle) && cached) note_ended(state);
    return;
  }
  const std::scoped_lock hold(lock_of(place));
  acl_state& now_there = states_[place];
  if (now_there.word != state.word) return;
  store(now_there.seen_s, std::max(load(now_there.seen_s), now - idle));
  store(now_there.phase, cached ? now_there.phase | ACL_CACHED : now_there.phase & ~u32{ACL_CACHED});
}

void States::note_ended(const acl_state& state) noexcept {
  if (cache_ == nullptr || !cache_->any()) return;
  const std::scoped_lock hold(head_->ended_lock);
  Ended& ended = head_->ended[head_->ended_now];
  if (ended.count < most_ended) {
    acl_flow& flow = ended.flows[ended.count];
    flow = {};
    flow.word = state.word & ACL_WORD_FLOW;
    std::ranges::copy(state.address, flow.address);
  }
  ended.count = std::min(ended.count + 1, most_ended + 1);
}

u32 States::idle_s(const acl_state& state) const noexcept {
  const u32 age = since(state.seen_s, load(head_->now_s));
  return acl_is_over(state.phase) != 0 ? age : std::min(age, idle_in_cache(state).value_or(age));
}

// In either direction; none: it has it in neither.
std::optional<u32> States::idle_in_cache(const acl_state& state) const noexcept {
  if (cache_ == nullptr || !cache_->any()) return {};
  std::optional<u32> least;
  for (const u32 direction : {0, 1})
    if (const std::optional<u32> seen = idle_in_cache(state, direction)) least = std::min(least.value_or(*seen), *seen);
  return least;
}

// Over all ports: where there are several ways, frames may have come to take another one.
std::optional<u32> States::idle_in_cache(const acl_state& state, u32 direction) const noexcept {
  if ((state.tag[direction] & ACL_TAG_SEEN) == 0) return {};
  const bool ipv6 = (state.word & ACL_WORD_IPV6) != 0, high = direction != 0;
  FlowKey key;
  key.of.version = ipv6 ? 6 : 4;
  key.of.protocol = protocol_of(state.word);
  const u16 low_port = static_cast<u16>(state.word), high_port = static_cast<u16>(state.word >> 16);
  u32 ports = FLOW_NET16(high ? high_port : low_port) | u32{FLOW_NET16(high ? low_port : high_port)} << 16;
  if (is_echo(state.word)) ports = FLOW_NET16(low_port) | (ipv6 ? (high ? 129u : 128u) : (high ? 0u : 8u)) << 16;
  u64 word = FLOW_USED | u64{key.of.protocol} << FLOW_PROTOCOL | ports;
  if ((state.tag[direction] & ACL_TAG_THERE) != 0) word |= FLOW_TAGGED | u64{state.tag[direction] % 4096u} << FLOW_VLAN;
  const u64 *source = &state.address[high ? 2 : 0], *destination = &state.address[high ? 0 : 2];
  if (ipv6) {
    std::copy_n(source, 2, key.of.addresses);
    std::copy_n(destination, 2, key.of.addresses + 2);
  } else {
    std::memcpy(&key.of.addresses[0], source, 4);
    std::memcpy(reinterpret_cast<u8*>(&key.of.addresses[0]) + 4, destination, 4);
  }
  std::optional<u32> least;
  for (u64 left = head_->ports; left != 0; left &= left - 1) {
    key.of.word = word | u64{static_cast<u32>(std::countr_zero(left))} << FLOW_PORT;
    if (const std::optional<u32> idle = cache_->idle_s(key)) least = std::min(least.value_or(*idle), *idle);
  }
  return least;
}

// Of flows that come in here, and have no state: rules are to judge their next frames.
void States::take_flows_back() noexcept {
  if (cache_ == nullptr || !cache_->any()) return;
  cache_->take_back([this](const FlowKey& key) {
    if ((head_->ports >> key.port().value & 1) == 0) return false;
    const std::optional<acl_flow> flow = flow_of(key);
    return !flow || !knows(*flow);
  });
}

// Of flows whose states have ended since the sweep before the last one; those of rules without `state` stay, unless there were too many.
void States::take_ended_back(bool all) noexcept {
  std::array<acl_flow, std::size_t{2} * most_ended> copies;
  u32 count = 0;
  {
    const std::scoped_lock hold(head_->ended_lock);
    for (const Ended& ended : head_->ended) {
      all |= ended.count > most_ended;
      const u32 known = std::min(ended.count, most_ended);
      std::copy_n(ended.flows, known, copies.begin() + count);
      count += known;
    }
    head_->ended_now ^= 1;
    head_->ended[head_->ended_now].count = 0;
  }
  if (all) return take_flows_back();
  if (count == 0 || cache_ == nullptr || !cache_->any()) return;
  const auto less = [](const acl_flow& one, const acl_flow& other) { return std::memcmp(&one, &other, offsetof(acl_flow, from_high)) < 0; };
  const std::span<acl_flow> ended = std::span(copies).first(count);
  std::ranges::sort(ended, less);
  cache_->take_back([&](const FlowKey& key) {
    if ((head_->ports >> key.port().value & 1) == 0) return false;
    const std::optional<acl_flow> flow = flow_of(key);
    return flow && std::ranges::binary_search(ended, *flow, less) && !knows(*flow);
  });
}

void States::judge(u32 keeper, const Stands& stands) noexcept {
  std::array<acl_key, Burst::capacity> keys;
  std::array<u32, Burst::capacity> rules, places;
  std::array<u64, Burst::capacity> words;
  u32 count = 0;
  bool ended = false;
  const auto judge_these = [&] {
    stands(std::span(keys).first(count), std::span(rules).first(count));
    for (u32 i = 0; i < count; ++i) {
      if (rules[i] == ACL_NO_RULE) {
        ended |= end(places[i], words[i], &Head::judged);
        continue;
      }
      const std::scoped_lock hold(lock_of(places[i]));
      if (states_[places[i]].word == words[i]) states_[places[i]].rule = rules[i];
    }
    count = 0;
  };
  for (u32 place = 0; place < states_.size(); ++place) {
    if ((load(states_[place].word) & ACL_WORD_USED) == 0) continue;
    const acl_state state = copy(place);
    if ((state.word & ACL_WORD_USED) == 0 || state.keeper != keeper) continue;
    keys[count] = first_frame(state), words[count] = state.word, places[count] = place;
    if (++count == keys.size()) judge_these();
  }
  if (count > 0) judge_these();
  if (!ended) return;
  take_flows_back();
  head_->again = 1;
}

u64 States::flush() noexcept {
  u64 number = 0;
  for (u32 place = 0; place < states_.size(); ++place)
    if (const u64 word = load(states_[place].word); (word & ACL_WORD_USED) != 0) number += end(place, word, &Head::flushed);
  take_flows_back();
  head_->again = 1;
  return number;
}

void States::visit(const std::function<void(const acl_state&)>& visitor) const {
  for (u32 place = 0; place < states_.size(); ++place) {
    if ((load(states_[place].word) & ACL_WORD_USED) == 0) continue;
    const acl_state state = copy(place);
    if ((state.word & ACL_WORD_USED) != 0) visitor(state);
  }
}

StateCounts States::counts() const noexcept {
  return {load(head_->count), head_->most,          load(head_->opened), load(head_->refused),
          load(head_->idle),  load(head_->evicted), load(head_->judged), load(head_->flushed)};
}

std::optional<acl_flow> flow_of(const FlowKey& key) noexcept {
  const bool ipv6 = key.of.version == 6;
  const std::array<u8, 16> source = key.source(), destination = key.destination();
  const u8 protocol = key.protocol();
  acl_key of{};
  std::memcpy(&of.word[0], source.data(), source.size());
  std::memcpy(&of.word[2], destination.data(), destination.size());
  of.word[ACL_KIND_WORD] = u64{ipv6 ? u16{ETH_P_IPV6} : u16{ETH_P_IP}} << ACL_TYPE | u64{protocol} << ACL_PROTOCOL;
  if (acl_has_ports(protocol) != 0) {
    of.word[ACL_KIND_WORD] |= ACL_HAS_PORTS;
    of.word[ACL_PORTS_WORD] = u64{key.source_port()} << 16 | key.destination_port();
  } else if (protocol == acl_icmp_of(ipv6)) {
    of.word[ACL_KIND_WORD] |= acl_icmp_kind(static_cast<u32>(key.of.word >> 16 & 0xff), ipv6);
    of.word[ACL_PORTS_WORD] = u64{key.source_port()} << 16 | key.source_port();
  }
  acl_flow flow{};
  return acl_flow_of(&of, &flow) != 0 ? std::optional(flow) : std::nullopt;
}

std::optional<acl_flow> quoted_flow(const Frame& frame, u32 offset) noexcept {
  const acl_bytes bytes{frame.data, frame.length};
  const __u8* ip = acl_at(&bytes, offset, ACL_IPV4_SIZE);
  if (ip == nullptr) return {};
  const bool ipv6 = ip[0] >> 4 == 6;
  acl_key key{};
  u32 at = offset + ACL_IPV6_SIZE;
  u8 protocol = 0;
  if (ipv6) {
    ip = acl_at(&bytes, offset, ACL_IPV6_SIZE);
    if (ip == nullptr) return {};
    protocol = ip[6];
    std::memcpy(key.word, ip + 8, 32);
  } else {
    at = offset + (ip[0] & 0xf) * 4u;
    if (ip[0] >> 4 != 4 || at < offset + ACL_IPV4_SIZE || (acl_host16(acl_get16(ip + 6)) & 0x1fff) != 0) return {};
    protocol = ip[9];
    std::memcpy(&key.word[0], ip + 12, 4);
    std::memcpy(&key.word[2], ip + 16, 4);
  }
  u64& kind = key.word[ACL_KIND_WORD] = u64{ipv6 ? u16{ETH_P_IPV6} : u16{ETH_P_IP}} << ACL_TYPE | u64{protocol} << ACL_PROTOCOL;
  const bool icmp = protocol == acl_icmp_of(ipv6);
  if (acl_has_ports(protocol) != 0 || icmp) {
    const __u8* upper = acl_at(&bytes, at, ACL_ICMP_SIZE);
    if (upper == nullptr) return {};
    if (icmp) kind |= acl_icmp_kind(upper[0], ipv6) & (ACL_REQUEST | ACL_REPLY);
    else kind |= ACL_HAS_PORTS;
    const u64 first = acl_host16(acl_get16(upper + (icmp ? 4 : 0)));
    key.word[ACL_PORTS_WORD] = first << 16 | (icmp ? first : acl_host16(acl_get16(upper + 2)));
  }
  acl_flow flow{};
  return acl_flow_of(&key, &flow) != 0 ? std::optional(flow) : std::nullopt;
}

acl_key first_frame(const acl_state& state) noexcept {
  const bool high = (state.phase & ACL_FROM_HIGH) != 0, ipv6 = (state.word & ACL_WORD_IPV6) != 0;
  const u8 protocol = protocol_of(state.word);
  const u64 low_port = state.word & 0xffff, high_port = state.word >> 16 & 0xffff;
  const u8 flags = state.flags & (ACL_FIN | ACL_SYN | ACL_RST | ACL_ACK);
  acl_key key{};
  std::copy_n(&state.address[high ? 2 : 0], 2, &key.word[0]);
  std::copy_n(&state.address[high ? 0 : 2], 2, &key.word[2]);
  u64& kind = key.word[ACL_KIND_WORD];
  kind = u64{ipv6 ? u16{ETH_P_IPV6} : u16{ETH_P_IP}} << ACL_TYPE | u64{protocol} << ACL_PROTOCOL | u64{state.vlan} << ACL_VLAN |
         u64{state.flags} << ACL_FLAGS;
  if (protocol != IPPROTO_TCP || flags == ACL_SYN) kind |= ACL_OPENS;
  if (acl_has_ports(protocol) != 0) kind |= ACL_HAS_PORTS;
  if (is_echo(state.word)) kind |= ACL_REQUEST;
  key.word[ACL_PORTS_WORD] = high ? high_port << 16 | low_port : low_port << 16 | high_port;
  return key;
}

}  // namespace weir::acl
