// SPDX-License-Identifier: BSD-3-Clause
// acl_log: the last frames that rules with `log` matched.
#pragma once

#include <array>
#include <vector>

#include "core/base/spin_lock.hh"
#include "core/frame/frame.hh"

namespace weir::acl {

struct Sample {
  u64 number = 0;   // of all that there were, from 1
  u64 time_ns = 0;  // of CLOCK_REALTIME
  u32 rule = 0;     // its place, from 0
  bool drops = false;
  PortSlot port;
  u32 length = 0;  // of the frame
  u32 kept = 0;    // bytes of it
  std::array<u8, 128> bytes{};
};

// Written by the workers. The lock is held for as long as a sample is copied.
class Log {
 public:
  static constexpr std::size_t samples_kept = 256;

  void note(const Frame& frame, u32 rule, bool drops) noexcept;
  // The oldest first.
  [[nodiscard]] std::vector<Sample> samples() const;

 private:
  mutable SpinLock lock_;
  u64 noted_ = 0;
  std::array<Sample, samples_kept> ring_;
};

}  // namespace weir::acl
