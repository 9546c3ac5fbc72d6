// SPDX-License-Identifier: BSD-3-Clause
// state: what a stage keeps beyond a burst, where several threads run it at once: a row for each thread, or one behind a lock.
#pragma once

#include <mutex>
#include <utility>
#include <vector>

#include "bpf/abi/account.h"
#include "core/base/spin_lock.hh"
#include "core/pipeline/stage.hh"

namespace weir {

// One T for each thread that may run the stage: written without a lock in process(), and by nobody else. What tick(), gauges() or answer()
// read of it beside process() are atomics, or may be torn.
template <typename T>
class PerThread {
 public:
  explicit PerThread(const StageContext& context) : rows_(context.threads()) {}
  [[nodiscard]] T& of(const Burst& burst) noexcept { return rows_[burst.thread()].value; }
  // All of them, one thread's after the other's.
  template <typename Visitor>
  void visit(const Visitor& visitor) const {
    for (const Row& row : rows_) visitor(row.value);
  }

 private:
  struct alignas(WEIR_CACHE_LINE) Row {  // a line of its own, which no other CPU wants
    T value{};
  };
  std::vector<Row> rows_;
};

// One T for all threads, which only its holder sees. process() holds it for a few instructions, once a burst rather than once a frame: all
// others wait, and spin.
template <typename T>
class Shared {
 public:
  template <typename... Arguments>
  explicit Shared(Arguments&&... arguments) : value_(std::forward<Arguments>(arguments)...) {}
  // What `act(T&)` returns.
  template <typename Act>
  decltype(auto) hold(const Act& act) {
    const std::scoped_lock held(lock_);
    return act(value_);
  }
  template <typename Act>
  decltype(auto) hold(const Act& act) const {
    const std::scoped_lock held(lock_);
    return act(value_);
  }

 private:
  mutable SpinLock lock_;
  T value_;
};

}  // namespace weir
