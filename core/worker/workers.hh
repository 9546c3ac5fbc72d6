// SPDX-License-Identifier: BSD-3-Clause
// workers: one poll loop per CPU, run inside a TBB arena whose threads are pinned.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "core/base/result.hh"
#include "core/worker/runner.hh"

namespace weir {

class Workers {
 public:
  // Starts a loop for each runner. `cpus`: where the threads go, one each, in turn; at least one. `spin`: a loop without frames does not
  // sleep.
  static Result<std::unique_ptr<Workers>> start(std::vector<std::unique_ptr<Runner>> runners, const std::vector<u32>& cpus,
                                                bool spin = false);
  Workers(const Workers&) = delete;
  // Stops the loops, each at the end of a turn.
  ~Workers();

  // Runs `act` while every worker stands between two turns: no frame is in a burst, and what workers read may be changed.
  void at_rest(const std::function<void()>& act);
  // Only at rest. Takes a port's present queues from the workers, and spreads these over them.
  void serve(PortSlot port, const std::vector<Queue*>& queues);
  // Only at rest.
  [[nodiscard]] const std::vector<std::unique_ptr<Runner>>& runners() const noexcept;

 private:
  struct Impl;
  explicit Workers(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// The CPUs that this process may run on.
std::vector<u32> allowed_cpus();

}  // namespace weir
