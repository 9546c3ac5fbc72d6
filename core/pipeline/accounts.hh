// SPDX-License-Identifier: BSD-3-Clause
// accounts: the table of all counters, shared with the kernel programs where there are any (bpf/abi/account.h says who writes what).
#pragma once

#include "bpf/abi/account.h"
#include "core/base/mapping.hh"

namespace weir {

// Adds every counter of the one to the other's.
inline void add_up(account& into, const account& of) noexcept {
  auto* sums = reinterpret_cast<u64*>(&into);
  const auto* counters = reinterpret_cast<const u64*>(&of);
  for (std::size_t i = 0; i < sizeof(account) / sizeof(u64); ++i) sums[i] += counters[i];
}

class Accounts {
 public:
  // `memory` holds rows * blocks accounts; the first `cpus` rows are the kernel's.
  Accounts(Mapping memory, u32 cpus, u32 rows, u32 blocks) noexcept
      : memory_(std::move(memory)), cpus_(cpus), rows_(rows), blocks_(blocks) {}

  [[nodiscard]] u32 rows() const noexcept { return rows_; }
  [[nodiscard]] u32 blocks() const noexcept { return blocks_; }
  [[nodiscard]] u32 worker_row(u32 worker) const noexcept { return cpus_ + worker; }
  [[nodiscard]] account& at(u32 row, u32 block) const noexcept {
    return reinterpret_cast<account*>(memory_.data())[static_cast<std::size_t>(row) * blocks_ + block];
  }
  // A copy with all its rows at zero, for take().
  [[nodiscard]] Result<Accounts> blank() const {
    return Accounts(TRY(Mapping::anonymous(sizeof(account) * rows_ * blocks_)), cpus_, rows_, blocks_);
  }
  // Row by row what `other`, of the same shape, holds now.
  void take(const Accounts& other, u32 from, u32 to) noexcept {
    const std::size_t count = static_cast<std::size_t>(to - from) * blocks_ * sizeof(account) / sizeof(u64);
    const auto* counters = reinterpret_cast<const volatile u64*>(&other.at(from, 0));
    auto* into = reinterpret_cast<u64*>(&at(from, 0));
    for (std::size_t i = 0; i < count; ++i) into[i] = counters[i];
  }
  [[nodiscard]] account kernel(u32 block) const noexcept { return sum(block, 0, cpus_); }
  [[nodiscard]] account user(u32 block) const noexcept { return sum(block, cpus_, rows_); }

 private:
  [[nodiscard]] account sum(u32 block, u32 from, u32 to) const noexcept {
    account total{};
    auto* into = reinterpret_cast<u64*>(&total);
    for (u32 row = from; row < to; ++row) {
      const auto* counters = reinterpret_cast<const volatile u64*>(&at(row, block));  // others write while we read
      for (std::size_t i = 0; i < sizeof(account) / sizeof(u64); ++i) into[i] += counters[i];
    }
    return total;
  }
  Mapping memory_;
  u32 cpus_, rows_, blocks_;
};

}  // namespace weir
