// SPDX-License-Identifier: BSD-3-Clause
// workers: one poll loop per CPU, and who helps them with lanes, run inside a TBB arena whose threads are pinned.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "core/base/result.hh"
#include "core/worker/runner.hh"

namespace weir {

// How many threads there are, and what for.
struct Crew {
  u32 workers = 1;                         // poll queues, and work off lanes in between
  static constexpr u32 most_helpers = 64;  // a bit of a word each
  u32 helpers = 0;                         // TBB tasks, each on a CPU without a worker: work off lanes, while there is something in them
  bool guard = false;                      // one thread that polls for a worker that a parallel stage keeps
  bool spin = false;                       // workers without frames do not sleep
  [[nodiscard]] u32 threads() const noexcept { return workers + helpers + (guard ? 1 : 0); }
  // Threads that work off lanes.
  [[nodiscard]] u32 drainers() const noexcept { return workers + helpers; }
};

class Workers {
 public:
  // Starts a loop for each of the first runners, `crew.workers` many; the others are the helpers' and the guard's. `cpus`: where the
  // threads go, one each, in turn; at least one. `lanes`: of all parallel stages, which outlive the workers.
  static Result<std::unique_ptr<Workers>> start(std::vector<std::unique_ptr<Runner>> runners, const std::vector<u32>& cpus,
                                                const Crew& crew, std::vector<Lanes*> lanes);
  // Without lanes: a loop for each runner.
  static Result<std::unique_ptr<Workers>> start(std::vector<std::unique_ptr<Runner>> runners, const std::vector<u32>& cpus);
  Workers(const Workers&) = delete;
  // Stops the loops, each at the end of a turn, when the lanes are empty.
  ~Workers();

  // Runs `act` while every thread stands between two turns: no frame is in a burst, and what workers read may be changed. Frames may be in
  // lanes. While a parallel stage keeps a thread, it waits until that is back, and the others go on.
  void at_rest(const std::function<void()>& act);
  // The same for who only looks: a thread that a parallel stage keeps stands still in it, with its burst. `act` is told how many do.
  // False: after so many milliseconds a thread had not come back from another stage. Nothing was done.
  bool look(const std::function<void(u32 kept)>& act, u32 patience_ms);
  // Only at rest. Takes a port's present queues from the workers, and spreads these over them.
  void serve(PortSlot port, const std::vector<Queue*>& queues);
  // The workers', the helpers', the guard's. What changes with frames is to be read at rest.
  [[nodiscard]] const std::vector<std::unique_ptr<Runner>>& runners() const noexcept;
  [[nodiscard]] const std::vector<Lanes*>& lanes() const noexcept;
  [[nodiscard]] u32 cpu(u32 runner) const noexcept;
  [[nodiscard]] const Crew& crew() const noexcept;

 private:
  struct Impl;
  explicit Workers(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// The CPUs that this process may run on.
std::vector<u32> allowed_cpus();

}  // namespace weir
