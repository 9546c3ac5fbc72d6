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
#include <bit>
#include <cerrno>
#include <chrono>
#include <thread>

#include "core/base/fd.hh"

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define WEIR_THREAD_SANITIZER
extern "C" void __tsan_acquire(void*);
extern "C" void __tsan_release(void*);
#endif
#endif

namespace weir {
namespace {

// A task begins behind what was done before it was given to TBB, and what it does is done for who waits for it. TBB's library sees to that,
// and since it is not built with the thread sanitizer, has to be believed.
void hand_to_task([[maybe_unused]] void* what) noexcept {
#ifdef WEIR_THREAD_SANITIZER
  __tsan_release(what);
#endif
}
void take_in_task([[maybe_unused]] void* what) noexcept {
#ifdef WEIR_THREAD_SANITIZER
  __tsan_acquire(what);
#endif
}

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

void wake(const Fd& fd) noexcept {
  const u64 one = 1;
  static_cast<void>(::write(fd.get(), &one, sizeof one) == sizeof one);  // one that cannot be written is already readable
}

void relax() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

using Clock = std::chrono::steady_clock;

// A worker as the guard sees it.
struct Watched {
  Runner* worker;
  Runner::Place seen;
  bool taken = false;  // the guard polls for it
  void let_in() noexcept {
    taken = false;
    worker->let_in();
  }
};

}  // namespace

struct Workers::Impl {
  Impl(std::vector<std::unique_ptr<Runner>> all, Crew of, std::vector<Lanes*> them, std::vector<u32> where)
      : runners(std::move(all)),
        crew(of),
        lanes(std::move(them)),
        cpus(std::move(where)),
        threads(tbb::global_control::max_allowed_parallelism, runners.size() + 1),
        arena(static_cast<int>(runners.size()), 0) {}

  void work(Loop& loop) noexcept;
  u32 work_off(Runner& runner, bool pressed) noexcept;
  u32 drain_any(Runner& runner) noexcept;
  void call_help() noexcept;
  void help() noexcept;
  void guard(Runner& runner) noexcept;
  // As a task. The loops are such that never end.
  template <typename Act>
  void run(const Act& act) {
    hand_to_task(this);
    arena.enqueue(group.defer([this, act] {
      take_in_task(this);
      act();
      hand_to_task(this);
    }));
  }
  void rest() noexcept;
  void rest_letting_in(std::vector<Watched>& all) noexcept;
  void wake_all() const noexcept;
  [[nodiscard]] u32 loops_running() const noexcept { return static_cast<u32>(loops.size()) + (crew.guard ? 1 : 0); }
  [[nodiscard]] u32 pending() const noexcept;
  [[nodiscard]] u64 pending_ns() const noexcept;
  [[nodiscard]] bool any_ready() const noexcept;
  [[nodiscard]] u32 cpu(u32 runner) const noexcept { return cpus[runner % cpus.size()]; }
  void go_on() noexcept;

  std::vector<std::unique_ptr<Runner>> runners;
  Crew crew;
  std::vector<Lanes*> lanes;
  std::vector<u32> cpus;
  std::vector<Loop> loops;
  Fd wake_guard;
  std::atomic<bool> started{false};
  std::atomic<bool> stopping{false};
  std::atomic<bool> halt{false};  // a request to stand still
  std::atomic<u32> resting{0};    // loops that stand still
  std::atomic<u32> running{0};    // loops that have not ended
  std::atomic<u32> helping{0};    // tasks that have been called and have not ended
  std::atomic<u64> helpers{0};    // of the helpers' runners, those that are in use
  std::atomic<u32> asleep{0};     // workers
  tbb::global_control threads;    // TBB would start no more threads than there are CPUs, and counts the caller's
  tbb::task_arena arena;
  tbb::task_group group;  // the loops, and who helps
};

void Workers::Impl::work(Loop& loop) noexcept {
  const Pinned pinned(loop.cpu);
  while (!started.load(std::memory_order_acquire)) relax();
  u32 idle = 0;
  while (!stopping.load(std::memory_order_relaxed)) {
    if (halt.load(std::memory_order_acquire)) rest();
    const u32 got = loop.runner->poll();
    if (got + (lanes.empty() ? 0 : work_off(*loop.runner, got >= Burst::capacity)) > 0) {
      idle = 0;
    } else if (++idle > patience && !crew.spin && !must_spin(loop)) {
      asleep.fetch_add(1);
      if (!any_ready()) sleep(loop);  // who gives frames to lanes looks at `asleep` behind that
      asleep.fetch_sub(1);
    }
  }
  // Frames of lanes go where they would have gone.
  while (pending() > 0)
    if (halt.load(std::memory_order_acquire)) rest();
    else if (drain_any(*loop.runner) == 0) relax();
  // And what lies in rings, as far as the device takes it.
  constexpr int kicks = 100;
  for (int i = 0; i < kicks && !loop.runner->empty_rings(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  running.fetch_sub(1, std::memory_order_release);
  running.notify_all();
}

namespace {

// In lanes: where a worker that is pressed for time works some off before it polls again, and so much that helpers are sure to find
// something.
constexpr u32 plenty = 8 * Burst::capacity;
// A helper is called for each of these.
constexpr u32 worth_help = 2 * Burst::capacity;
constexpr u64 worth_help_ns = 50'000;
// As long as its queues may go without being polled.
constexpr auto longest_share = std::chrono::microseconds(64);

}  // namespace

u32 Workers::Impl::work_off(Runner& runner, bool pressed) noexcept {
  u32 waiting = pending();
  if (waiting == 0) return 0;
  if (waiting >= worth_help || pending_ns() > worth_help_ns) call_help();
  u32 done = drain_any(runner);
  if (!pressed || waiting < plenty) return done;
  const auto end = Clock::now() + longest_share;
  while (pending() >= plenty && Clock::now() < end) {
    const u32 some = drain_any(runner);
    if (some == 0) relax();
    done += some;
  }
  return done;
}

// The stages behind first: frames that are nearly through.
u32 Workers::Impl::drain_any(Runner& runner) noexcept {
  for (auto each = lanes.rbegin(); each != lanes.rend(); ++each)
    if (const u32 done = runner.drain(**each); done > 0) return done;
  return 0;
}

u32 Workers::Impl::pending() const noexcept {
  u32 frames = 0;
  for (const Lanes* each : lanes) frames += each->pending();
  return frames;
}

// What working them off takes one thread.
u64 Workers::Impl::pending_ns() const noexcept {
  u64 ns = 0;
  for (const Lanes* each : lanes) ns += u64{each->pending()} * each->cost_ns();
  return ns;
}

bool Workers::Impl::any_ready() const noexcept {
  return std::ranges::any_of(lanes, [](const Lanes* each) { return each->any_ready(); });
}

// TBB keeps the memory of tasks that have ended for those to come.
void Workers::Impl::call_help() noexcept {
  u32 now = helping.load(std::memory_order_relaxed);
  if (now < crew.helpers) {
    if (now * worth_help < pending() && helping.compare_exchange_strong(now, now + 1)) run([this] { help(); });
  } else if (asleep.load() > 0) {
    for (const Loop& loop : loops) wake(loop.wake);
  }
}

// Ends when there is nothing to do: TBB's thread sleeps then.
void Workers::Impl::help() noexcept {
  u64 used = helpers.load();
  u32 own = static_cast<u32>(std::countr_one(used));
  while (!helpers.compare_exchange_weak(used, used | u64{1} << own)) own = static_cast<u32>(std::countr_one(used));
  Runner& runner = *runners[crew.workers + own];
  {
    const Pinned pinned(cpu(crew.workers + own));
    constexpr u32 longest_idle = 4096;  // turns, some hundred microseconds
    u32 idle = 0;
    while (idle < longest_idle && !halt.load(std::memory_order_acquire)) {
      if (drain_any(runner) > 0) idle = 0;
      else if (!runner.reclaim_drained() && stopping.load(std::memory_order_relaxed)) break;
      else ++idle, relax();
    }
  }
  helpers.fetch_and(~(u64{1} << own));
  helping.fetch_sub(1);
  helping.notify_all();
}

namespace {

constexpr int guard_nap_ms = 10, stand_in_nap_ms = 1;

}  // namespace

// A parallel stage that keeps a worker keeps its queues from being polled, and with them ports that have nothing to do with the stage. Then
// this thread polls them. It works off no lanes, so that it is never kept itself.
void Workers::Impl::guard(Runner& runner) noexcept {
  while (!started.load(std::memory_order_acquire)) relax();
  std::vector<Watched> all;
  for (const Loop& loop : loops) all.push_back({loop.runner, loop.runner->place()});
  const auto lanes_of = [this](u32 stage) -> Lanes* {
    for (Lanes* each : lanes)
      if (each->pipeline().stages[each->stage()].number == stage) return each;
    return nullptr;
  };
  pollfd nap{wake_guard.get(), POLLIN, 0};
  Clock::time_point next = Clock::now();
  while (true) {
    if (halt.load(std::memory_order_acquire)) rest_letting_in(all);
    const bool time = Clock::now() >= next;  // who is where it was a nap ago is kept there
    if (time) next = Clock::now() + std::chrono::milliseconds(guard_nap_ms);
    bool any_taken = false;
    u32 got = 0;
    for (Watched& each : all) {
      const Runner::Place now = each.worker->place();
      if (each.taken && now != each.seen) {
        each.let_in();
      } else if (!each.taken && time && now == each.seen && now.inside() && now.of_parallel()) {
        if (Lanes* of = lanes_of(now.stage()); of != nullptr) each.taken = each.worker->take_over(now, *of);
      }
      if (time && !each.taken) each.seen = now;
      any_taken |= each.taken;
      if (each.taken && !stopping.load(std::memory_order_relaxed)) got += runner.poll_for(*each.worker);
    }
    // What lies in lanes beside those that are kept has no other worker, perhaps.
    if ((got > 0 && pending() >= worth_help) || (any_taken && any_ready())) call_help();
    if (!any_taken && stopping.load(std::memory_order_relaxed)) break;
    if (got == 0 && (any_taken || !stopping.load(std::memory_order_relaxed))) {
      ::poll(&nap, 1, any_taken ? stand_in_nap_ms : guard_nap_ms);
      u64 count = 0;
      if (nap.revents != 0) static_cast<void>(::read(wake_guard.get(), &count, sizeof count) == sizeof count);
    }
  }
  while (pending() > 0)  // the workers may have ended before this one put its last frames there
    if (drain_any(runner) == 0) relax();
  running.fetch_sub(1, std::memory_order_release);
  running.notify_all();
}

void Workers::Impl::rest() noexcept {
  resting.fetch_add(1);
  resting.notify_all();
  halt.wait(true);
  resting.fetch_sub(1);
  resting.notify_all();
}

// Of the guard: a worker that has come back meanwhile waits for it, and could not come to rest.
void Workers::Impl::rest_letting_in(std::vector<Watched>& all) noexcept {
  resting.fetch_add(1);
  resting.notify_all();
  while (halt.load()) {
    for (Watched& each : all)
      if (each.taken && each.worker->place() != each.seen) each.let_in();
    if (std::ranges::none_of(all, &Watched::taken)) halt.wait(true);
    else std::this_thread::sleep_for(std::chrono::milliseconds(stand_in_nap_ms));
  }
  resting.fetch_sub(1);
  resting.notify_all();
}

void Workers::Impl::wake_all() const noexcept {
  for (const Loop& loop : loops) wake(loop.wake);
  if (wake_guard) wake(wake_guard);
}

// Behind a rest.
void Workers::Impl::go_on() noexcept {
  halt = false;
  halt.notify_all();
  // The next request must not count a thread that is still leaving this one.
  for (u32 now = resting; now != 0; now = resting) resting.wait(now);
  if (any_ready()) wake_all();
}

Workers::Workers(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Result<std::unique_ptr<Workers>> Workers::start(std::vector<std::unique_ptr<Runner>> runners, const std::vector<u32>& cpus) {
  const Crew crew{.workers = static_cast<u32>(runners.size())};
  return start(std::move(runners), cpus, crew, {});
}

Result<std::unique_ptr<Workers>> Workers::start(std::vector<std::unique_ptr<Runner>> runners, const std::vector<u32>& cpus,
                                                const Crew& crew, std::vector<Lanes*> lanes) {
  auto made = std::make_unique<Impl>(std::move(runners), crew, std::move(lanes), cpus);
  for (u32 i = 0; i < crew.workers; ++i) made->loops.push_back(TRY(loop_of(*made->runners[i], made->cpu(i))));
  Impl* const impl = made.get();
  if (crew.guard) {
    made->wake_guard = Fd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
    if (!made->wake_guard) return fail_errno(errno, "workers: create an eventfd");
  }
  impl->running = impl->loops_running();
  for (Loop& loop : impl->loops) impl->run([impl, &loop] { impl->work(loop); });
  if (crew.guard) impl->run([impl] { impl->guard(*impl->runners.back()); });
  impl->started.store(true, std::memory_order_release);
  return std::unique_ptr<Workers>(new Workers(std::move(made)));
}

Workers::~Workers() {
  impl_->stopping = true;
  impl_->wake_all();
  for (std::atomic<u32>* left : {&impl_->running, &impl_->helping})
    for (u32 now = *left; now != 0; now = *left) left->wait(now);
  impl_->group.wait();
  take_in_task(impl_.get());
}

void Workers::at_rest(const std::function<void()>& act) {
  for (const auto& runner : impl_->runners) {
    const Runner::Place kept = runner->place();
    while (kept.inside() && kept.of_parallel() && runner->place() == kept) std::this_thread::yield();
  }
  impl_->halt = true;
  impl_->wake_all();
  for (u32 now = impl_->resting; now != impl_->loops_running(); now = impl_->resting) impl_->resting.wait(now);
  for (u32 now = impl_->helping; now != 0; now = impl_->helping) impl_->helping.wait(now);
  act();
  impl_->go_on();
}

bool Workers::look(const std::function<void(u32 kept)>& act, u32 patience_ms) {
  impl_->halt = true;
  impl_->wake_all();
  const auto end = Clock::now() + std::chrono::milliseconds(patience_ms);
  std::vector<Runner*> kept;
  const auto all_still = [&] { return impl_->resting + static_cast<u32>(kept.size()) == impl_->loops_running() + impl_->helping; };
  bool still = all_still();
  for (; !still && Clock::now() < end; still = all_still()) {
    for (const auto& runner : impl_->runners)
      if (std::ranges::find(kept, runner.get()) == kept.end() && runner->keep_out(runner->place())) kept.push_back(runner.get());
    std::this_thread::yield();
  }
  if (still) act(static_cast<u32>(kept.size()));
  for (Runner* runner : kept) runner->let_in();
  impl_->go_on();
  return still;
}

void Workers::serve(PortSlot port, const std::vector<Queue*>& queues) {
  for (Loop& loop : impl_->loops) loop.runner->drop_queues(port);
  for (std::size_t i = 0; i < queues.size(); ++i) impl_->loops[(port.value + i) % impl_->loops.size()].runner->add_queue({port, queues[i]});
  for (const auto& runner : impl_->runners) runner->fit_ways();
  for (Loop& loop : impl_->loops) list_sleepers(loop);
}

const std::vector<std::unique_ptr<Runner>>& Workers::runners() const noexcept { return impl_->runners; }
const std::vector<Lanes*>& Workers::lanes() const noexcept { return impl_->lanes; }
u32 Workers::cpu(u32 runner) const noexcept { return impl_->cpu(runner); }
const Crew& Workers::crew() const noexcept { return impl_->crew; }

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
