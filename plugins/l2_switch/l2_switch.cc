// SPDX-License-Identifier: BSD-3-Clause
// l2_switch: a learning Ethernet switch. Frames go to the port where their destination was last seen as a source, else to all ports but
// their own. Addresses are learned from every frame, move with their station, and age. VLAN tags are not looked at: one address table.
//   [[pipeline.stage]]
//   plugin = "l2_switch"
//   ports = ["a", "b", "c"]      # members; left out: all ports of the pipeline
//   ageing_s = 300               # an address unheard of for so long is forgotten
//   table_size = 16384           # addresses; a full table floods and counts
//   max_per_port = 0             # learned addresses of one port; 0: no limit
//   static = [{ mac = "02:00:00:00:00:01", port = "a" }]   # never age, never move
// Frames for 01:80:c2:00:00:00 to 0f go to the host stack. Drops: a source that is a group address or zero (bad_source), a port that is no
// member (not_a_member), a destination behind the port the frame came in by (same_port), less than an Ethernet header (truncated).
#include "core/plugin.hh"

#include <linux/if_ether.h>
#include <time.h>

#include <algorithm>
#include <bit>
#include <mutex>
#include <random>
#include <type_traits>

#include "core/base/spin_lock.hh"
#include "plugins/l2_switch/l2_switch.h"

#include "l2_switch.skel.h"

namespace {

using namespace weir;

constexpr u32 sweep_s = 10;  // the whole table is looked at this often, or four times in an ageing time

u32 clock_s() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<u32>(now.tv_sec);
}

template <typename T>
T load(T& from) noexcept {
  return std::atomic_ref(from).load(std::memory_order_acquire);
}
template <typename T>
void store(T& to, std::type_identity_t<T> value) noexcept {
  std::atomic_ref(to).store(value, std::memory_order_release);
}

l2_entry* free_in(l2_bucket& bucket) noexcept {
  const auto at = std::ranges::find(bucket.entry, 0u, &l2_entry::word);
  return at == std::end(bucket.entry) ? nullptr : at;
}

class L2Switch final : public Stage {
 public:
  static Result<std::unique_ptr<Stage>> make(const ConfigNode& keys, StageContext& context);
  Result<> bind(StageMemory& memory) override;
  void take_state(const StageRemains& before) override;
  void process(Burst& burst) noexcept override {
    for (Frame& frame : burst) decide(burst, frame);
  }
  void tick(u32 now_s) noexcept override;
  [[nodiscard]] std::vector<std::pair<std::string, u64>> gauges() const override {
    std::scoped_lock hold(lock_);
    return {{"addresses", addresses_}, {"aged", aged_}};
  }

 private:
  struct Static {
    u64 address;
    PortSlot port;
  };
  Result<> read_members(const ConfigNode& keys, StageContext& context);
  Result<> read_statics(const ConfigNode& keys, StageContext& context);

  void decide(Burst& burst, Frame& frame) noexcept;
  void learn(Burst& burst, u64 address, u32 port) noexcept;
  void insert(Burst& burst, u64 address, u32 port) noexcept;
  void move(Burst& burst, l2_entry& entry, u64 address, u32 port) noexcept;
  [[nodiscard]] std::array<l2_bucket*, 2> buckets(u64 address) const noexcept;
  l2_entry* find(u64 address, __u64& word) const noexcept;
  l2_entry* free_entry(u64 address) const noexcept;
  l2_entry* make_room(u64 address) noexcept;
  void set(l2_entry& entry, u64 word) noexcept;
  void tally(u64 word, int by) noexcept;
  [[nodiscard]] bool closed(u32 port) const noexcept { return max_per_port_ != 0 && per_port_[port] >= max_per_port_; }
  void adopt(u32 now_s, u32 away_s) noexcept;
  [[nodiscard]] bool adoptable(const l2_entry& entry, u64 learned) const noexcept;
  Result<> put_statics();
  void publish_limits() noexcept;

  // Of the file.
  u64 members_ = 0;
  GroupSlot group_;
  u32 ageing_s_ = 0, table_size_ = 0, max_per_port_ = 0;
  std::vector<Static> statics_;
  // Shared with the kernel half.
  l2_config* config_ = nullptr;
  std::span<l2_bucket> table_;
  // Of the writers.
  mutable SpinLock lock_;
  u64 addresses_ = 0, aged_ = 0;
  std::array<u64, WEIR_MAX_PORTS> per_port_{};  // learned ones
  std::size_t sweep_at_ = 0;
};

Result<std::unique_ptr<Stage>> L2Switch::make(const ConfigNode& keys, StageContext& context) {
  auto made = std::make_unique<L2Switch>();
  made->ageing_s_ = static_cast<u32>(keys.integer("ageing_s"));
  made->table_size_ = static_cast<u32>(keys.integer("table_size"));
  made->max_per_port_ = static_cast<u32>(keys.integer("max_per_port"));
  TRY_VOID(made->read_members(keys, context));
  TRY_VOID(made->read_statics(keys, context));
  return made;
}

Result<> L2Switch::read_members(const ConfigNode& keys, StageContext& context) {
  std::vector<PortSlot> ports;
  for (const ConfigValue& name : keys.list("ports")) ports.push_back(*context.port(std::get<std::string>(name.value)));
  if (!keys.has("ports")) ports = context.ports();
  for (PortSlot port : ports) {
    if ((members_ >> port.value & 1) != 0) return keys.refuse("ports", fmt::format("port \"{}\" is named twice", context.name(port)));
    members_ |= u64{1} << port.value;
  }
  if (ports.size() < 2) return keys.refuse("ports", fmt::format("a switch of {} ports; it needs at least 2", ports.size()));
  group_ = TRY(context.group(ports));
  return {};
}

Result<> L2Switch::read_statics(const ConfigNode& keys, StageContext& context) {
  for (const ConfigNode& entry : keys.tables("static")) {
    const u64 address = l2_address(entry.mac("mac").data());
    const PortSlot port = *context.port(entry.string("port"));
    if ((members_ >> port.value & 1) == 0)
      return entry.refuse("port", fmt::format("port \"{}\" is not a member of this switch", entry.string("port")));
    if (std::ranges::find(statics_, address, &Static::address) != statics_.end()) return entry.refuse("mac", "is listed twice");
    statics_.push_back({address, port});
  }
  if (statics_.size() > table_size_)
    return keys.refuse("static", fmt::format("has {} addresses, more than table_size = {}", statics_.size(), table_size_));
  return {};
}

Result<> L2Switch::bind(StageMemory& memory) {
  // Half full at most, so that an address nearly always finds a place in one of its two buckets.
  const u32 buckets = std::bit_ceil(std::max(16u, table_size_ / (L2_SLOTS / 2)));
  config_ = &TRY(memory.array<l2_config>(".data.config", 1)).front();
  table_ = TRY(memory.array<l2_bucket>("table", buckets));
  if (config_->seed == 0) config_->seed = (u64{std::random_device()()} << 32 | std::random_device()()) | 1;
  config_->mask = buckets - 1;
  config_->group = group_.value;
  const u32 now_s = clock_s(), away_s = now_s - config_->now_s;
  store(config_->now_s, now_s);
  store(config_->members, members_);
  std::scoped_lock hold(lock_);
  adopt(now_s, away_s);
  TRY_VOID(put_statics());
  publish_limits();
  return {};
}

// Addresses that its predecessor has learned, as far as they are still allowed.
void L2Switch::take_state(const StageRemains& before) {
  std::scoped_lock hold(lock_);
  for (const l2_bucket& bucket : before.array<l2_bucket>("table"))
    for (const l2_entry& entry : bucket.entry) {
      const u64 word = load(const_cast<l2_entry&>(entry).word), address = l2_address_of(word);
      const u32 port = l2_port_of(word);
      __u64 known = 0;
      if ((word & 0xff) != L2_USED || port >= WEIR_MAX_PORTS || (members_ >> port & 1) == 0 || closed(port)) continue;
      if (addresses_ >= table_size_ || find(address, known) != nullptr) continue;
      l2_entry* to = free_entry(address);
      if (to == nullptr) continue;
      set(*to, word);
      store(to->seen_s, load(const_cast<l2_entry&>(entry).seen_s));
    }
  publish_limits();
}

// What an earlier run learned stays, as far as the file still allows it. The time without a daemon makes nobody older: its kernel half
// went on, but on a clock that stood still.
void L2Switch::adopt(u32 now_s, u32 away_s) noexcept {
  u64 learned = 0;
  for (l2_bucket& bucket : table_)
    for (l2_entry& entry : bucket.entry) {
      if (entry.word == 0) continue;
      if (!adoptable(entry, learned)) {
        store(entry.word, 0);
        continue;
      }
      learned += (entry.word & L2_STATIC) == 0;
      tally(entry.word, 1);
      store(entry.seen_s, std::min(entry.seen_s + away_s, now_s));
    }
}

// Nothing is taken on trust: the earlier run may have ended in the middle of a write, or have been another version.
bool L2Switch::adoptable(const l2_entry& entry, u64 learned) const noexcept {
  const u64 address = l2_address_of(entry.word);
  const u32 port = l2_port_of(entry.word);
  __u64 word = 0;
  if ((entry.word & 0xff) == (L2_USED | L2_STATIC)) {  // its kernel half works by it all the while
    const auto same = std::ranges::find(statics_, address, &Static::address);
    return same != statics_.end() && same->port.value == port && find(address, word) == &entry;
  }
  return (entry.word & 0xff) == L2_USED && address != 0 && !l2_multicast(address) && port < WEIR_MAX_PORTS && (members_ >> port & 1) != 0 &&
         find(address, word) == &entry && !closed(port) && learned < table_size_ - statics_.size();
}

Result<> L2Switch::put_statics() {
  for (const Static& fixed : statics_) {
    __u64 word = 0;
    l2_entry* entry = find(fixed.address, word);
    if (entry == nullptr) entry = free_entry(fixed.address);
    if (entry == nullptr) entry = make_room(fixed.address);
    if (entry == nullptr)
      return fail("put {} static addresses: the buckets of one are full of others; make table_size larger", statics_.size());
    set(*entry, l2_word(fixed.address, fixed.port.value, L2_USED | L2_STATIC));
  }
  return {};
}

std::array<l2_bucket*, 2> L2Switch::buckets(u64 address) const noexcept {
  const u64 hash = l2_hash(address, config_->seed);
  return {&table_[l2_first(hash, config_->mask)], &table_[l2_second(hash, config_->mask)]};
}

l2_entry* L2Switch::find(u64 address, __u64& word) const noexcept {
  const auto [first, second] = buckets(address);
  if (l2_entry* entry = l2_in(first, address, &word)) return entry;
  return l2_in(second, address, &word);
}

void L2Switch::decide(Burst& burst, Frame& frame) noexcept {
  const u8* bytes = frame.data;
  if (frame.length < ETH_HLEN) return burst.drop(frame, L2_TRUNCATED);
  const u64 destination = l2_address(bytes), source = l2_address(bytes + ETH_ALEN);
  const u32 port = frame.port.value;
  l2_decision decision{};
  if (l2_refuse(config_, port, source, destination, &decision) == 0) {
    learn(burst, source, port);
    __u64 to = 0;
    if (!l2_multicast(destination)) find(destination, to);
    decision = l2_forward(port, to);
  }
  switch (decision.fate) {
    case L2_TRANSMIT:
      return burst.transmit(frame, PortSlot{static_cast<u16>(decision.argument)});
    case L2_FLOOD:
      return burst.flood(frame, group_);
    case L2_TO_STACK:
      return burst.to_stack(frame);
    case L2_DROP:
      return burst.drop(frame, static_cast<l2_drop>(decision.argument));
  }
}

void L2Switch::learn(Burst& burst, u64 address, u32 port) noexcept {
  __u64 word = 0;
  if (l2_entry* entry = find(address, word); entry != nullptr && l2_port_of(word) == port) {
    const u32 now = load(config_->now_s);
    if (load(entry->seen_s) != now) store(entry->seen_s, now);
    return;
  }
  std::scoped_lock hold(lock_);
  if (l2_entry* entry = find(address, word)) move(burst, *entry, address, port);  // again: another worker may have been first
  else insert(burst, address, port);
}

void L2Switch::move(Burst& burst, l2_entry& entry, u64 address, u32 port) noexcept {
  if (l2_port_of(entry.word) == port) return;
  if ((entry.word & L2_STATIC) != 0) return burst.count(L2_STATIC_MOVED);
  if (closed(port)) return burst.count(L2_PORT_FULL);
  set(entry, l2_word(address, port, L2_USED));
  burst.count(L2_ADDRESS_MOVED);
  publish_limits();
}

void L2Switch::insert(Burst& burst, u64 address, u32 port) noexcept {
  if (closed(port)) return burst.count(L2_PORT_FULL);
  l2_entry* entry = addresses_ < table_size_ ? free_entry(address) : nullptr;
  if (entry == nullptr) {
    // The kernel half stops to punt until the next tick, also when only this address's buckets are full: a table that is nearly full
    // gets one round of punts a second, not one for every frame.
    store(config_->full, 1);
    return burst.count(L2_TABLE_FULL);
  }
  set(*entry, l2_word(address, port, L2_USED));
  burst.count(L2_LEARNED);
  publish_limits();
}

// The first of its buckets where there is room, so that most look-ups end there. When both are full, one of their addresses moves over to
// its own other bucket: to be first there and then no longer here. A reader that misses it in between floods or punts one frame.
l2_entry* L2Switch::free_entry(u64 address) const noexcept {
  for (l2_bucket* bucket : buckets(address))
    if (l2_entry* entry = free_in(*bucket)) return entry;
  for (l2_bucket* bucket : buckets(address))
    for (l2_entry& entry : bucket->entry) {
      const auto [first, second] = buckets(l2_address_of(entry.word));
      l2_entry* to = free_in(first == bucket ? *second : *first);
      if (to == nullptr) continue;
      store(to->seen_s, entry.seen_s);
      store(to->word, entry.word);
      store(entry.word, 0);
      return &entry;
    }
  return nullptr;
}

// A learned address of its buckets is forgotten.
l2_entry* L2Switch::make_room(u64 address) noexcept {
  for (l2_bucket* bucket : buckets(address))
    for (l2_entry& entry : bucket->entry)
      if ((entry.word & L2_STATIC) == 0) {
        set(entry, 0);
        return &entry;
      }
  return nullptr;
}

// One store, so that a reader sees the old word or the new one.
void L2Switch::set(l2_entry& entry, u64 word) noexcept {
  tally(entry.word, -1);
  tally(word, 1);
  if (word != 0) store(entry.seen_s, load(config_->now_s));
  store(entry.word, word);
}

void L2Switch::tally(u64 word, int by) noexcept {
  if (word == 0) return;
  addresses_ += static_cast<u64>(by);
  if ((word & L2_STATIC) == 0) per_port_[l2_port_of(word)] += static_cast<u64>(by);
}

// Tells the kernel half for which ports there is nothing to learn.
void L2Switch::publish_limits() noexcept {
  u64 full_ports = 0;
  for (u32 port = 0; port < WEIR_MAX_PORTS; ++port)
    if (closed(port)) full_ports |= u64{1} << port;
  if (config_->closed != full_ports) store(config_->closed, full_ports);
}

void L2Switch::tick(u32 now_s) noexcept {
  store(config_->now_s, now_s);
  const std::size_t share = (table_.size() + std::clamp(ageing_s_ / 4, 1u, sweep_s) - 1) / std::clamp(ageing_s_ / 4, 1u, sweep_s);
  for (std::size_t i = 0; i < share; ++i, sweep_at_ = (sweep_at_ + 1) % table_.size())
    for (l2_entry& entry : table_[sweep_at_].entry) {
      const u64 word = load(entry.word);
      if (word == 0 || (word & L2_STATIC) != 0 || now_s - load(entry.seen_s) <= ageing_s_) continue;
      std::scoped_lock hold(lock_);
      if (entry.word != word) continue;  // moved just now
      set(entry, 0);
      ++aged_;
    }
  std::scoped_lock hold(lock_);
  store(config_->full, addresses_ < table_size_ ? 0 : 1);
  publish_limits();
}

}  // namespace

WEIR_PLUGIN(.name = "l2_switch", .says = "a learning Ethernet switch",
            .keys = {Key::list("ports", Key::port(""), 2, WEIR_MAX_PORTS).optional().as("members; left out: all ports of the pipeline"),
                     Key::integer("ageing_s", 1, 86400).otherwise("300").as("an address unheard of for so long is forgotten"),
                     Key::integer("table_size", 1, 1 << 20).otherwise("16384").as("addresses; a full table floods and counts"),
                     Key::integer("max_per_port", 0, 1 << 20).otherwise("0").as("learned addresses of one port; 0: no limit"),
                     Key::list("static", Key::table("", {Key::station("mac"), Key::port("port")}), 0, 1 << 20)
                         .optional()
                         .as("addresses that never age and never move")},
            .drops = {"truncated", "bad_source", "not_a_member", "same_port"},
            .counters = {"learned", "moved", "table_full", "port_full", "static_moved"}, .punts = {"new_address", "moved"},
            .make = L2Switch::make, .kernel_half = WEIR_KERNEL_HALF(l2_switch))
