// SPDX-License-Identifier: BSD-3-Clause
// workers: the arena, the loops, and how they sleep, rest and stop.
#include "core/worker/workers.hh"

#include <oneapi/tbb/global_control.h>
#include <oneapi/tbb/task_arena.h>
#include <oneapi/tbb/task_group.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>

#include "core/base/fd.hh"

namespace weir {
namespace {

// Turns without a frame before a worker sleeps: some tens of microseconds, which is longer than the gap between two frames of any
// flow that is worth spinning for.
constexpr u32 patience = 256;
constexpr int nap_ms = 100;       // asleep, a frame or a request wakes it earlier
constexpr int unsent_nap_ms = 1;  // a ring waits for the device

// Holds the calling thread on one CPU while it lives. Its own, and not TBB's observer of an arena: TBB frees what it keeps for an
// observer when the last thread leaves the arena, which at the end of a process is never.
class Pinned {
 public:
  explicit Pinned(u32 cpu) noexcept {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    // Best effort: a worker on another CPU is slower, not wrong.
    held_ = ::pthread_getaffinity_np(::pthread_self(), sizeof before_, &before_) == 0 &&
            ::pthread_setaffinity_np(::pthread_self(), sizeof set, &set) == 0;
  }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  ~Pinned() {
    if (held_) static_cast<void>(::pthread_setaffinity_np(::pthread_self(), sizeof before_, &before_));
  }

 private:
  cpu_set_t before_;
  bool held_;
};

struct Loop {
  Runner* runner;
  u32 cpu;
  Fd wake;
  std::vector<pollfd> sleepers;  // `wake` and the queues' descriptors
};

// Nothing would wake it.
bool must_spin(const Loop& loop) noexcept {
  return std::ranges::any_of(loop.runner->queues(),
                             [](const Runner::RxQueue& each) { return each.queue->descriptor() < 0 && !each.queue->silent(); });
}

void list_sleepers(Loop& loop) {
  loop.sleepers = {{loop.wake.get(), POLLIN, 0}};
  for (const Runner::RxQueue& from : loop.runner->queues())
    if (from.queue->descriptor() >= 0) loop.sleepers.push_back({from.queue->descriptor(), POLLIN, 0});
}

Result<Loop> loop_of(Runner& runner, u32 cpu) {
  Loop loop{&runner, cpu, Fd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)), {}};
  if (!loop.wake) return fail_errno(errno, "workers: create an eventfd");
  list_sleepers(loop);
  return loop;
}

void sleep(Loop& loop) noexcept {
  ::poll(loop.sleepers.data(), loop.sleepers.size(), loop.runner->unsent() ? unsent_nap_ms : nap_ms);
  u64 count = 0;
  if (loop.sleepers.front().revents != 0) static_cast<void>(::read(loop.wake.get(), &count, sizeof count) == sizeof count);
}

}  // namespace

struct Workers::Impl {
  Impl(std::vector<std::unique_ptr<Runner>> all, bool spin)
      : runners(std::move(all)),
        spins(spin),
        threads(tbb::global_control::max_allowed_parallelism, runners.size() + 1),
        arena(static_cast<int>(runners.size()), 0) {}

  void work(Loop& loop) noexcept;
  void rest() noexcept;
  void wake_all() const noexcept;

  std::vector<std::unique_ptr<Runner>> runners;
  const bool spins;
  std::vector<Loop> loops;
  std::atomic<bool> stopping{false};
  std::atomic<bool> halt{false};  // a request to stand still
  std::atomic<u32> resting{0};    // workers that stand still
  tbb::global_control threads;    // TBB would start no more threads than there are CPUs, and counts the caller's
  tbb::task_arena arena;
  tbb::task_group group;  // the loops
};

void Workers::Impl::work(Loop& loop) noexcept {
  const Pinned pinned(loop.cpu);
  u32 idle = 0;
  while (!stopping.load(std::memory_order_relaxed)) {
    if (halt.load(std::memory_order_acquire)) rest();
    if (loop.runner->poll() > 0) idle = 0;
    else if (++idle > patience && !spins && !must_spin(loop)) sleep(loop);
  }
}

void Workers::Impl::rest() noexcept {
  resting.fetch_add(1);
  resting.notify_all();
  halt.wait(true);
  resting.fetch_sub(1);
  resting.notify_all();
}

void Workers::Impl::wake_all() const noexcept {
  const u64 one = 1;
  // An eventfd that cannot be written is already readable.
  for (const Loop& loop : loops) static_cast<void>(::write(loop.wake.get(), &one, sizeof one) == sizeof one);
}

Workers::Workers(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Result<std::unique_ptr<Workers>> Workers::start(std::vector<std::unique_ptr<Runner>> runners, const std::vector<u32>& cpus, bool spin) {
  auto impl = std::make_unique<Impl>(std::move(runners), spin);
  for (const auto& runner : impl->runners) {
    const u32 cpu = cpus[impl->loops.size() % cpus.size()];
    impl->loops.push_back(TRY(loop_of(*runner, cpu)));
  }
  for (Loop& loop : impl->loops) impl->arena.enqueue(impl->group.defer([impl = impl.get(), &loop] { impl->work(loop); }));
  return std::unique_ptr<Workers>(new Workers(std::move(impl)));
}

Workers::~Workers() {
  impl_->stopping = true;
  impl_->wake_all();
  impl_->arena.execute([this] { impl_->group.wait(); });
}

void Workers::at_rest(const std::function<void()>& act) {
  impl_->halt = true;
  impl_->wake_all();
  for (u32 now = impl_->resting; now != impl_->loops.size(); now = impl_->resting) impl_->resting.wait(now);
  act();
  impl_->halt = false;
  impl_->halt.notify_all();
  // The next request must not count a worker that is still leaving this one.
  for (u32 now = impl_->resting; now != 0; now = impl_->resting) impl_->resting.wait(now);
}

void Workers::serve(PortSlot port, const std::vector<Queue*>& queues) {
  for (Loop& loop : impl_->loops) loop.runner->drop_queues(port);
  for (std::size_t i = 0; i < queues.size(); ++i) impl_->runners[(port.value + i) % impl_->runners.size()]->add_queue({port, queues[i]});
  for (Loop& loop : impl_->loops) list_sleepers(loop);
}

const std::vector<std::unique_ptr<Runner>>& Workers::runners() const noexcept { return impl_->runners; }

std::vector<u32> allowed_cpus() {
  std::vector<u32> cpus;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof set, &set) == 0)
    for (u32 cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  if (cpus.empty()) cpus.push_back(0);
  return cpus;
}

}  // namespace weir
