// SPDX-License-Identifier: BSD-3-Clause
// acl_store: the memory that both halves of acl share: two sets of tables, of which one counts, and the hits of rules.
#pragma once

#include <span>
#include <vector>

#include "core/pipeline/stage.hh"
#include "plugins/acl/acl.h"
#include "plugins/acl/acl_kernel.hh"

namespace weir::acl {

// One writer, the control thread; hit() is the workers'.
class Store {
 public:
  // Takes hold of the memory. Of what an earlier run left there, the set that counts is not touched: its kernel half may be at work.
  Result<> bind(StageMemory& memory, u32 room, u32 log_rate, bool offload, bool flags);
  // Fills the set that does not count, and makes it the one that counts: a look-up sees the one before or this one. Rules that the one
  // before had too go on with their hits.
  void put(const RuleSet& rules, const KernelTables& tables) noexcept;
  // Hits of the stage whose place this one takes.
  void take(const StageRemains& before) noexcept;
  // Its keeper, if its table of established flows is the one that has this seed, else 0.
  static u32 keeper_of(const StageRemains& before, u64 seed) noexcept;
  // Adds the hits of the set before to the present ones, when nobody counts there any more.
  void settle() noexcept;
  void clock(u64 second) noexcept;
  [[nodiscard]] u64 second() const noexcept { return control_->second; }
  // Before put(): the table of established flows. Until then that of an earlier run stands, whose kernel half may be at work;
  void keep(u64 seed, u32 mask) noexcept;
  // behind put(): there is none.
  void keep_none() noexcept;
  [[nodiscard]] u32& keeper() noexcept { return control_->keeper; }
  [[nodiscard]] u32 keeper() const noexcept { return control_->keeper; }

  void hit(u32 number) noexcept;
  [[nodiscard]] u64 hits(u32 number) const noexcept;
  [[nodiscard]] const acl_set& current() const noexcept { return control_->set[half_]; }

 private:
  void write(const RuleSet& rules, const KernelTables& tables, u32 half) noexcept;
  [[nodiscard]] std::size_t place(u32 row, u32 half, u32 number) const noexcept {
    return (std::size_t{row} * 2 + half) * ACL_RULES(control_->room) + number;
  }
  [[nodiscard]] u64 sum(u32 half, u32 number) const noexcept;
  void add(u32 number, u64 hits) noexcept;
  [[nodiscard]] std::span<const u64> ids(u32 half) const noexcept { return ids_.subspan(place(0, half, 0), ACL_RULES(control_->room)); }

  acl_control* control_ = nullptr;
  std::span<acl_table> tables_;
  std::span<u64> slots_, hits_, user_hits_, ids_;
  std::span<acl_entry> entries_;
  u32 half_ = 0;           // that counts
  u32 rules_ = 0;          // of it
  std::vector<u32> same_;  // of each rule, its place in the set before, or ACL_NO_RULE; empty: settled
};

}  // namespace weir::acl
