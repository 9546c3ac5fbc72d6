// SPDX-License-Identifier: BSD-3-Clause
// acl_store: write one set while the other one counts, and count hits without waiting.
#include "plugins/acl/acl_store.hh"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <type_traits>
#include <unordered_map>

#include "core/kernel/object.hh"

namespace weir::acl {
namespace {

constexpr std::size_t hit_bytes = 64 << 20;  // of the kernel half's hits, and of the user half's: with more CPUs than fit, these share
constexpr u64 id_of_otherwise = 1;

template <typename T>
T load(T& from) noexcept {
  return std::atomic_ref(from).load(std::memory_order_acquire);
}
template <typename T>
void store(T& to, std::type_identity_t<T> value) noexcept {
  std::atomic_ref(to).store(value, std::memory_order_release);
}

// The place of each in `before`, or ACL_NO_RULE. Of those that are twice there, the first.
std::vector<u32> places_in(std::span<const u64> before, std::span<const u64> now) {
  std::unordered_map<u64, u32> known;
  for (u32 i = 0; i < before.size(); ++i) known.emplace(before[i], i);
  std::vector<u32> places;
  for (const u64 id : now) {
    const auto at = known.find(id);
    places.push_back(at == known.end() ? ACL_NO_RULE : at->second);
    if (at != known.end()) known.erase(at);
  }
  return places;
}

}  // namespace

Result<> Store::bind(StageMemory& memory, u32 room, u32 log_rate, bool offload, bool flags) {
  const u32 cpus = possible_cpus();
  const std::size_t row_bytes = 2 * sizeof(u64) * ACL_RULES(room);
  const u32 rows = static_cast<u32>(std::clamp<std::size_t>(hit_bytes / row_bytes, 1, cpus));
  control_ = TRY(memory.array<acl_control>("rule_control", room / ACL_UNIT)).data();
  tables_ = TRY(memory.array<acl_table>("rule_tables", 2 * ACL_MAX_TABLES));
  slots_ = TRY(memory.array<u64>("rule_slots", 2 * ACL_SLOTS(room)));
  entries_ = TRY(memory.array<acl_entry>("rule_entries", 2 * ACL_ENTRIES(room)));
  hits_ = TRY(memory.array<u64>("rule_hits", rows * 2 * ACL_RULES(room)));
  user_hits_ = TRY(memory.array<u64>("user_hits", rows * 2 * ACL_RULES(room)));
  ids_ = TRY(memory.array<u64>("rule_ids", 2 * ACL_RULES(room)));
  TRY_VOID(memory.array<acl_samples>("rule_samples", cpus));
  control_->room = room;
  control_->rows = rows;
  control_->shared = rows < cpus;
  store(control_->log_rate, log_rate);
  store(control_->offload, offload);
  store(control_->flags, flags);
  return {};
}

void Store::put(const RuleSet& rules, const KernelTables& tables) noexcept {
  const u64 generation = load(control_->generation);
  const u32 before = generation & 1, half = before ^ 1;
  write(rules, tables, half);
  half_ = half, rules_ = static_cast<u32>(rules.rules.size());
  const u32 had = generation == 0 ? 0 : std::min(control_->set[before].rules, control_->room) + 1;
  same_ = places_in(ids(before).first(had), ids(half).first(rules_ + 1));
  store(control_->generation, generation + 1);
}

void Store::write(const RuleSet& rules, const KernelTables& made, u32 half) noexcept {
  const u32 room = control_->room, count = static_cast<u32>(rules.rules.size());
  const u32 first_slot = half * ACL_SLOTS(room), first_entry = half * ACL_ENTRIES(room);
  for (std::size_t i = 0; i < made.tables.size(); ++i) {
    acl_table& table = tables_[half * ACL_MAX_TABLES + i] = made.tables[i];
    table.first += first_slot;
  }
  for (std::size_t i = 0; i < made.slots.size(); ++i)
    slots_[first_slot + i] = made.slots[i] == 0 ? 0 : made.slots[i] + (u64{first_entry} << ACL_SLOT_ENTRY);
  std::ranges::copy(made.entries, entries_.begin() + first_entry);
  const std::span<u64> own = ids_.subspan(place(0, half, 0), ACL_RULES(room));
  for (u32 i = 0; i < count; ++i) own[i] = rules.rules[i].id();
  own[count] = id_of_otherwise;
  for (u32 row = 0; row < control_->rows; ++row)
    for (const std::span<u64> all : {hits_, user_hits_}) std::ranges::fill(all.subspan(place(row, half, 0), ACL_RULES(room)), 0);
  control_->set[half] = {.tables = static_cast<u32>(made.tables.size()),
                         .rules = count,
                         .decided = made.decided,
                         .otherwise = rules.otherwise_drops ? ACL_DROPS : 0};
}

// What stands there is looked at as from another build: nothing is taken on trust.
void Store::take(const StageRemains& before) noexcept {
  const auto controls = before.array<acl_control>("rule_control");
  const auto old_hits = before.array<u64>("rule_hits"), old_user_hits = before.array<u64>("user_hits"),
             old_ids = before.array<u64>("rule_ids");
  if (controls.empty()) return;
  const acl_control& old = controls.front();
  const u32 half = old.generation & 1;
  const std::size_t stride = std::size_t{old.room} + 1;
  const auto fits = [&](std::span<const u64> all, std::size_t rows) { return all.size() / 2 / stride >= rows; };
  if (old.set[half].rules > old.room || !fits(old_ids, 1) || !fits(old_hits, old.rows) || !fits(old_user_hits, old.rows)) return;
  const std::vector<u32> places = places_in(old_ids.subspan(half * stride, old.set[half].rules + 1), ids(half_).first(rules_ + 1));
  for (u32 i = 0; i < places.size(); ++i)
    for (u32 row = 0; places[i] != ACL_NO_RULE && row < old.rows; ++row)
      for (const std::span<const u64> all : {old_hits, old_user_hits}) {
        const volatile u64& hits = all[(row * std::size_t{2} + half) * stride + places[i]];  // others write while we read
        add(i, hits);
      }
}

void Store::settle() noexcept {
  for (u32 i = 0; i < same_.size(); ++i)
    if (same_[i] != ACL_NO_RULE) add(i, sum(half_ ^ 1, same_[i]));
  same_.clear();
}

void Store::add(u32 number, u64 hits) noexcept {
  std::atomic_ref(user_hits_[place(0, half_, number)]).fetch_add(hits, std::memory_order_relaxed);
}

// The row of this CPU, so that workers seldom meet in one; they may all the same, when one is moved meanwhile.
void Store::hit(u32 number) noexcept {
  const u32 row = static_cast<u32>(std::max(::sched_getcpu(), 0)) % control_->rows;
  std::atomic_ref(user_hits_[place(row, half_, number)]).fetch_add(1, std::memory_order_relaxed);
}

u64 Store::sum(u32 half, u32 number) const noexcept {
  u64 all = 0;
  for (u32 row = 0; row < control_->rows; ++row) all += load(hits_[place(row, half, number)]) + load(user_hits_[place(row, half, number)]);
  return all;
}

u64 Store::hits(u32 number) const noexcept {
  const bool before = number < same_.size() && same_[number] != ACL_NO_RULE;
  return sum(half_, number) + (before ? sum(half_ ^ 1, same_[number]) : 0);
}

u32 Store::keeper_of(const StageRemains& before, u64 seed) noexcept {
  const auto controls = before.array<acl_control>("rule_control");
  return controls.empty() || controls.front().keeps == 0 || controls.front().seed != seed ? 0 : controls.front().keeper;
}

void Store::keep(u64 seed, u32 mask) noexcept {
  control_->seed = seed, control_->mask = mask;
  store(control_->keeps, 1);
}

void Store::keep_none() noexcept { store(control_->keeps, 0); }

void Store::clock(u64 second) noexcept { store(control_->second, second); }

}  // namespace weir::acl
