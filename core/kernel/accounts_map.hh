// SPDX-License-Identifier: BSD-3-Clause
// accounts_map: the map of all counters, in the one of two shapes that the kernel allows for its size.
#pragma once

#include "bpf/abi/link.h"
#include "core/base/result.hh"
#include "core/kernel/object.hh"

namespace weir {

// Rows of `blocks` counters each, memory-mapped; the layout of the memory is the same in both shapes.
class AccountsMap {
 public:
  // One value of all rows, at whose address programs count; above, a value for each row, which they look up.
  static constexpr u64 largest_value = u64{1} << 28;  // bytes: the verifier follows no offset beyond 2^29 (BPF_MAX_VAR_OFF)
  AccountsMap() = default;
  static Result<AccountsMap> create(u32 rows, u32 blocks, u64 largest = largest_value);
  // `fd` must be a map of either shape for so many rows and blocks.
  static Result<AccountsMap> adopt(Fd fd, u32 rows, u32 blocks);

  [[nodiscard]] const BpfMap& map() const noexcept { return map_; }
  [[nodiscard]] int fd() const noexcept { return map_.fd(); }
  // For BpfObject::link().
  [[nodiscard]] accounts_link link() const noexcept { return {possible_cpus(), u64{sizeof(account)} * blocks_, whole_}; }
  [[nodiscard]] int memory() const noexcept { return whole_ ? map_.fd() : -1; }

 private:
  AccountsMap(BpfMap map, u32 blocks, bool whole) : map_(std::move(map)), blocks_(blocks), whole_(whole) {}
  BpfMap map_;
  u32 blocks_ = 0;
  bool whole_ = false;
};

}  // namespace weir
