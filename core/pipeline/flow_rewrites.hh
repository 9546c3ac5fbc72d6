// SPDX-License-Identifier: BSD-3-Clause
// flow_rewrites: the table of what is changed in frames of flows; flows that change the same share a place in it.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "bpf/abi/flow.h"
#include "core/base/spin_lock.hh"
#include "core/base/types.hh"

namespace weir {

class FlowRewrites {
 public:
  // `places`: what the kernel reads.
  explicit FlowRewrites(std::span<flow_rewrite> places);

  // The number of its place, held once more; none: the table is full.
  std::optional<u32> take(const flow_rewrite& rewrite) noexcept;
  // One hold less. A place that nobody holds is used again only after the next but one age(): a program may be reading it.
  void release(u32 number) noexcept;
  void age() noexcept;
  [[nodiscard]] const flow_rewrite& at(u32 number) const noexcept { return places_[number]; }

 private:
  [[nodiscard]] u32 home(const flow_rewrite& rewrite) const noexcept;
  u32* find(const flow_rewrite& rewrite) noexcept;
  void forget(u32* cell) noexcept;
  std::span<flow_rewrite> places_;
  std::vector<u32> holds_;
  std::vector<u32> index_;  // of those held, by what they are: number + 1; 0: free
  std::vector<u32> free_, resting_, rested_;
  SpinLock lock_;
};

}  // namespace weir
