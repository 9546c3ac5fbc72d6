// SPDX-License-Identifier: BSD-3-Clause
// acl_log: a ring of samples.
#include "plugins/acl/acl_log.hh"

#include <time.h>

#include <algorithm>
#include <mutex>

namespace weir::acl {

void Log::note(const Frame& frame, u32 rule, bool drops) noexcept {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME_COARSE, &now);  // read from memory, without a system call
  const std::scoped_lock hold(lock_);
  Sample& sample = ring_[noted_++ % ring_.size()];
  sample.number = noted_;
  sample.time_ns = static_cast<u64>(now.tv_sec) * 1'000'000'000 + static_cast<u64>(now.tv_nsec);
  sample.rule = rule, sample.drops = drops;
  sample.port = frame.port, sample.length = frame.length;
  sample.kept = std::min<u32>(frame.length, sample.bytes.size());
  std::copy_n(frame.data, sample.kept, sample.bytes.begin());
}

std::vector<Sample> Log::samples() const {
  std::vector<Sample> all;
  all.reserve(ring_.size());
  const std::scoped_lock hold(lock_);
  for (u64 at = noted_ > ring_.size() ? noted_ - ring_.size() : 0; at < noted_; ++at) all.push_back(ring_[at % ring_.size()]);
  return all;
}

}  // namespace weir::acl
