// SPDX-License-Identifier: BSD-3-Clause
// flow_table: a flow's place is written before its word and freed after it. A place is taken again only when two ticks have passed: so long
// no program works with it, and what it then holds are the flow's counters.
#include "core/pipeline/flow_table.hh"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <utility>

namespace weir {
namespace {

constexpr u32 rest_ticks = 2;  // of a second: one of them is whole
// A flow that is in use is not evicted for another one, which would be worth no more; else a table that is too small would hold nothing.
constexpr u32 least_idle_s = 2;

template <typename Flow>
void store_word(Flow& flow, u64 word) noexcept {
  std::atomic_ref<u64>(flow.word).store(word, std::memory_order_release);
}

template <typename T>
T load(const T& from) noexcept {
  return std::atomic_ref(const_cast<T&>(from)).load(std::memory_order_relaxed);
}

void put_addresses(flow4& flow, const flow_key& key) noexcept { flow.addresses = key.addresses[0]; }
void put_addresses(flow6& flow, const flow_key& key) noexcept { std::ranges::copy(key.addresses, flow.addresses); }
bool has_addresses(const flow4& flow, const flow_key& key) noexcept { return flow.addresses == key.addresses[0]; }
bool has_addresses(const flow6& flow, const flow_key& key) noexcept { return std::ranges::equal(flow.addresses, key.addresses); }
void get_addresses(const flow4& flow, flow_key& key) noexcept {
  key.version = 4;
  key.addresses[0] = flow.addresses;
}
void get_addresses(const flow6& flow, flow_key& key) noexcept {
  key.version = 6;
  std::ranges::copy(flow.addresses, key.addresses);
}

// Both buckets of a hash, held, in an order that all keep.
class Held {
 public:
  Held(SpinLock& one, SpinLock& other) noexcept : first_(&one < &other ? one : other), second_(&one < &other ? &other : &one) {
    if (second_ == &first_) second_ = nullptr;
    first_.lock();
    if (second_ != nullptr) second_->lock();
  }
  Held(const Held&) = delete;
  ~Held() {
    if (second_ != nullptr) second_->unlock();
    first_.unlock();
  }

 private:
  SpinLock& first_;
  SpinLock* second_;
};

}  // namespace

FlowTable::FlowTable(const Memory& memory, u64 seed)
    : ipv4_{memory.ipv4, std::vector<Note>(memory.ipv4.size())},
      ipv6_{memory.ipv6, std::vector<Note>(memory.ipv6.size())},
      rewrites_(memory.rewrites),
      seed_(seed),
      mask_(static_cast<u32>(memory.ipv4.size() - 1)),
      entries_(memory.entries),
      locks_(std::make_unique<SpinLock[]>(stripes)) {
  if (entries_ != nullptr) std::atomic_ref(entries_->epoch).store(FLOW_EPOCH(0), std::memory_order_relaxed);
}

FlowKey FlowTable::key_of(const Frame& frame) const noexcept {
  const u32 epoch = this->epoch();
  if (frame.kept > 1 && frame.kept != FLOW_EPOCH(epoch)) {
    if (entries_ != nullptr) std::atomic_ref(entries_->handled).fetch_add(1, std::memory_order_relaxed);  // it may have been asked for
    return {};
  }
  FlowKey key = flow_key_of(frame);
  key.epoch = epoch;
  return key;
}

bool FlowTable::put(Owner owner, const Entry& entry) noexcept {
  const std::optional<flow_rewrite> rewrite = entry.action.rewrite(entry.key);
  if (entries_ != nullptr) std::atomic_ref(entries_->handled).fetch_add(1, std::memory_order_relaxed);
  bool room = true;
  if (rewrite && (entry.key.of.version == 4 ? put(ipv4_, owner, entry, *rewrite, room) : put(ipv6_, owner, entry, *rewrite, room)))
    return true;
  add(&Counts::refused);
  if (room) return false;
  if (refused_now_.fetch_add(1, std::memory_order_relaxed) == most_refused && entries_ != nullptr)
    std::atomic_ref(entries_->open).store(0, std::memory_order_relaxed);
  return false;
}

template <typename Flow>
bool FlowTable::put(Family<Flow>& family, Owner owner, const Entry& entry, const flow_rewrite& rewrite, bool& room) noexcept {
  const FlowKey& key = entry.key;
  const u64 hash = flow_hash(&key.of, key.of.word, seed_);
  const Held hold(lock_of(flow_place(hash, 0, mask_)), lock_of(flow_place(hash, FLOW_BUCKET, mask_)));
  if (key.epoch != epoch()) return false;
  u32 place = 0, oldest = 0;
  bool found = false, live = false;
  room = false;
  for (u32 number = 0; number < FLOW_PLACES && !live; ++number) {
    const u32 at = flow_place(hash, number, mask_);
    const Flow& flow = family.flows[at];
    const Note& note = family.notes[at];
    if (note.state == State::live && flow.word == key.of.word && has_addresses(flow, key.of)) place = at, live = true;
    else if (note.state == State::free && !room) place = at, room = true;
    else if (note.state == State::live && (!found || load(flow.tail.seen_s) < load(family.flows[oldest].tail.seen_s)))
      oldest = at, found = true;
  }
  if (!live && !room) {
    const u32 second = now_s_.load(std::memory_order_relaxed);
    if (found && second - std::min(second, load(family.flows[oldest].tail.seen_s)) >= least_idle_s)
      end(family.flows[oldest], family.notes[oldest], FlowEnd::evicted);
    return false;
  }
  // One that TCP has ended is over only when its stage is told so.
  if (live && (load(family.flows[place].tail.owner) & FLOW_ENDED) != 0) return false;
  const std::optional<u32> number = rewrites_.take(rewrite);
  room = number.has_value();
  if (!number) return false;
  Flow& flow = family.flows[place];
  Note& note = family.notes[place];
  const flow_act act{*number, entry.action.fate(), entry.action.argument(), owner.block};
  const u32 now = now_s_.load(std::memory_order_relaxed);
  if (live) {
    const u32 before = flow.tail.act.rewrite;
    u64 word = 0;
    std::memcpy(&word, &act, sizeof word);
    std::atomic_ref(*reinterpret_cast<u64*>(&flow.tail.act)).store(word, std::memory_order_release);
    rewrites_.release(before);
    add(&Counts::updated);
  } else {
    flow.tail = {};
    flow.tail.act = act;
    flow.tail.seen_s = now;
    put_addresses(flow, key.of);
    store_word(flow, key.of.word);
    note.since_s = now;
    add(&Counts::added);
    add(&Counts::count);
  }
  note.cookie = entry.cookie;
  note.idle_s = entry.times.idle_s;
  note.hard_s = entry.times.hard_s;
  note.stage = owner.stage;
  std::atomic_ref(note.state).store(State::live, std::memory_order_relaxed);
  note.was_to = key.was_to;
  return true;
}

template <typename Flow>
void FlowTable::end(Flow& flow, Note& note, FlowEnd why) noexcept {
  // What it was stays in the addresses, and in the word's upper half here.
  std::atomic_ref(note.state).store(State::ending, std::memory_order_relaxed);
  note.why = why;
  note.ended = ticks_.load(std::memory_order_relaxed);
  store_word(flow, flow.word & ~FLOW_USED);
  constexpr std::array counters = {&Counts::expired,    &Counts::expired, &Counts::ended,
                                   &Counts::taken_back, &Counts::evicted, &Counts::flushed};
  add(counters[static_cast<std::size_t>(why)]);
  add(&Counts::count, ~u64{0});
}

template <typename Flow>
FlowTable::Seen FlowTable::seen(const Flow& flow, const Note& note) const noexcept {
  Seen now{};
  now.owner = {note.stage, load(flow.tail.act.block)};
  now.cookie = note.cookie;
  now.key.of.word = flow.word | FLOW_USED;
  now.key.of.protocol = now.key.protocol();
  get_addresses(flow, now.key.of);
  now.key.was_to = note.was_to;
  now.frames = load(flow.tail.frames) + load(flow.tail.other_frames);
  now.bytes = load(flow.tail.bytes) + load(flow.tail.other_bytes);
  const u32 second = now_s_.load(std::memory_order_relaxed);
  now.age_s = second - note.since_s;
  now.idle_s = second - std::min(second, load(flow.tail.seen_s));
  now.fate = flow.tail.act.fate;
  now.argument = flow.tail.act.argument;
  now.rewrite = rewrites_.at(flow.tail.act.rewrite);
  return now;
}

std::optional<u32> FlowTable::idle_s(const FlowKey& key) const noexcept {
  if (!key) return {};
  return key.of.version == 4 ? idle_s(ipv4_, key) : idle_s(ipv6_, key);
}

template <typename Flow>
std::optional<u32> FlowTable::idle_s(const Family<Flow>& family, const FlowKey& key) const noexcept {
  const u64 hash = flow_hash(&key.of, key.of.word, seed_);
  for (u32 number = 0; number < FLOW_PLACES; ++number) {
    const u32 at = flow_place(hash, number, mask_);
    const std::scoped_lock hold(lock_of(at));
    const Flow& flow = family.flows[at];
    if (family.notes[at].state != State::live || flow.word != key.of.word || !has_addresses(flow, key.of)) continue;
    const u32 now = now_s_.load(std::memory_order_relaxed);
    return now - std::min(now, load(flow.tail.seen_s));
  }
  return {};
}

u64 FlowTable::take_back(const Which& which, FlowEnd why) noexcept {
  const u32 epoch = epoch_.fetch_add(1, std::memory_order_acq_rel) + 1;
  if (entries_ != nullptr) std::atomic_ref(entries_->epoch).store(FLOW_EPOCH(epoch), std::memory_order_relaxed);
  // A put() that has seen the epoch of before holds its bucket: behind this it has come to its end, and is found below.
  for (u32 stripe = 0; stripe < stripes; ++stripe) const std::scoped_lock wait(locks_[stripe]);
  return take_back(ipv4_, which, why) + take_back(ipv6_, which, why);
}

template <typename Flow>
u64 FlowTable::take_back(Family<Flow>& family, const Which& which, FlowEnd why) noexcept {
  u64 number = 0;
  for (u32 at = 0; at <= mask_; ++at) {
    Note& note = family.notes[at];
    if (std::atomic_ref(note.state).load(std::memory_order_relaxed) != State::live) continue;
    const std::scoped_lock hold(lock_of(at));
    if (note.state != State::live || !which(seen(family.flows[at], note))) continue;
    end(family.flows[at], note, why);
    ++number;
  }
  return number;
}

void FlowTable::visit(const std::function<bool(const Seen&)>& visitor, bool all) const {
  if (visit(ipv4_, visitor, all)) visit(ipv6_, visitor, all);
}

template <typename Flow>
bool FlowTable::visit(const Family<Flow>& family, const std::function<bool(const Seen&)>& visitor, bool all) const {
  const auto concerns = [all](State state) { return state == State::live || (all && state == State::ending); };
  for (u32 at = 0; at <= mask_; ++at) {
    if (!concerns(std::atomic_ref(const_cast<State&>(family.notes[at].state)).load(std::memory_order_relaxed))) continue;
    std::optional<Seen> now;
    {
      const std::scoped_lock hold(lock_of(at));
      if (concerns(family.notes[at].state)) now = seen(family.flows[at], family.notes[at]);
    }
    if (now && !visitor(*now)) return false;
  }
  return true;
}

void FlowTable::tick(u32 now_s, const Told& told) {
  now_s_.store(now_s, std::memory_order_relaxed);
  refused_now_.store(0, std::memory_order_relaxed);
  ticks_.fetch_add(1, std::memory_order_relaxed);
  if (entries_ != nullptr) {
    // What does not come any more was lost on its way. While others come, those that are missing may still be under way.
    const u64 wanted = std::atomic_ref(entries_->wanted).load(std::memory_order_relaxed);
    u64 handled = std::atomic_ref(entries_->handled).load(std::memory_order_relaxed);
    if (std::exchange(handled_before_, handled) == handled || handled > wanted)  // some come unasked
      std::atomic_ref(entries_->handled).compare_exchange_strong(handled, wanted, std::memory_order_relaxed);
    std::atomic_ref(entries_->open).store(1, std::memory_order_relaxed);
  }
  const u32 from = swept_, to = std::min(mask_, from + longest_sweep - 1);
  sweep(ipv4_, from, to, told);
  sweep(ipv6_, from, to, told);
  swept_ = to == mask_ ? 0 : to + 1;
  rewrites_.age();
}

template <typename Flow>
void FlowTable::sweep(Family<Flow>& family, u32 from, u32 to, const Told& told) {
  const u32 now = now_s_.load(std::memory_order_relaxed);
  for (u32 at = from; at <= to; ++at) {
    Note& note = family.notes[at];
    if (std::atomic_ref(note.state).load(std::memory_order_relaxed) == State::free) continue;
    Flow& flow = family.flows[at];
    std::optional<std::pair<Owner, EndedFlow>> over;
    {
      const std::scoped_lock hold(lock_of(at));
      if (note.state == State::live) {
        const u32 seen_s = load(flow.tail.seen_s);
        if ((load(flow.tail.owner) & FLOW_ENDED) != 0) end(flow, note, FlowEnd::tcp);
        else if (note.idle_s > 0 && now - std::min(now, seen_s) >= note.idle_s) end(flow, note, FlowEnd::idle);
        else if (note.hard_s > 0 && now - note.since_s >= note.hard_s) end(flow, note, FlowEnd::hard);
      } else if (note.state == State::ending && ticks_.load(std::memory_order_relaxed) - note.ended >= rest_ticks) {
        const Seen last = seen(flow, note);
        over.emplace(last.owner, EndedFlow{last.key, last.cookie, note.why, last.frames, last.bytes});
        add(&Counts::hits, last.frames);
        rewrites_.release(flow.tail.act.rewrite);
        store_word(flow, 0);
        std::atomic_ref(note.state).store(State::free, std::memory_order_relaxed);
      }
    }
    if (over) told(over->first, over->second);
  }
}

u64 FlowTable::hits() const {
  u64 sum = counts().hits;
  const auto add_up = [&](const auto& family) {
    for (u32 at = 0; at <= mask_; ++at) {
      if (std::atomic_ref(const_cast<State&>(family.notes[at].state)).load(std::memory_order_relaxed) == State::free) continue;
      const std::scoped_lock hold(lock_of(at));
      if (family.notes[at].state == State::free) continue;
      sum += load(family.flows[at].tail.frames) + load(family.flows[at].tail.other_frames);
    }
  };
  add_up(ipv4_), add_up(ipv6_);
  return sum;
}

FlowTable::Counts FlowTable::counts() const noexcept {
  Counts now{};
  for (u64 Counts::*counter : {&Counts::count, &Counts::hits, &Counts::added, &Counts::updated, &Counts::expired, &Counts::ended,
                               &Counts::evicted, &Counts::taken_back, &Counts::flushed, &Counts::refused})
    now.*counter = std::atomic_ref(counts_.*counter).load(std::memory_order_relaxed);
  return now;
}

}  // namespace weir
