// SPDX-License-Identifier: BSD-3-Clause
// workers_test: loops on several threads that stand still when asked to, and that lose no frame when they stop.
#include "core/worker/workers.hh"

#include <gtest/gtest.h>
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <thread>

#include "kit/fake_port.hh"

namespace weir {
namespace {

using namespace kit;

// Ports whose frames come back at once, so that workers never run out of work: what a worker takes from one port it sends to all.
class Mills {
 public:
  static constexpr u32 ports = 4, frames = 600;

  explicit Mills(u32 workers)
      : pool(std::move(*FramePool::create(4096, 2048))),
        path(Accounts(std::move(*Mapping::anonymous((1 + workers) * ports * 2 * sizeof(account))), 1, 1 + workers, ports * 2)) {
    Pipeline& pipeline = *path.pipelines.emplace_back(std::make_unique<Pipeline>());
    pipeline.stages.push_back({"", nullptr, std::make_unique<Onward>(*this), 0, ports});
    std::vector<std::vector<Runner::RxQueue>> queues(workers);
    for (u16 slot = 0; slot < ports; ++slot) {
      path.ports.push_back({.name = "", .port = std::make_unique<FakePort>(1), .pipeline = &pipeline, .egress = {}, .block = slot});
      queue(slot).wire = PortSlot{slot};
      queues[slot % workers].push_back({PortSlot{slot}, &queue(slot)});
    }
    std::vector<std::unique_ptr<Runner>> runners;
    for (u32 i = 0; i < workers; ++i) runners.push_back(std::make_unique<Runner>(path, *pool, i, 1 + i, std::move(queues[i])));
    auto started = Workers::start(std::move(runners), allowed_cpus());
    if (!started) broken(started.error().what.c_str());
    running = std::move(*started);
  }
  void set_going() {
    for (u32 i = 0; i < frames; ++i) {
      u64 chunk = 0;
      pool->take(&chunk, 1);
      queue(static_cast<u16>(i % ports))
          .deliver({.data = pool->base() + chunk, .length = 60, .port = PortSlot{static_cast<u16>(i % ports)}});
    }
  }
  void wait_for_more(u64 than) const {
    while (passed.load() <= than) std::this_thread::yield();
  }
  // Only at rest, or behind the end.
  void expect_conserved() {
    u64 held = 0, cached = 0, in = 0, tx = 0, transmitted = 0;
    for (u16 slot = 0; slot < ports; ++slot)
      held += queue(slot).held(), in += path.accounts.user(slot).frames, tx += path.accounts.user(slot).tx,
          transmitted += queue(slot).transmitted;
    if (running)
      for (const auto& runner : running->runners()) cached += runner->free(), held += runner->held();
    EXPECT_EQ(held, frames);
    EXPECT_EQ(in, tx);
    EXPECT_EQ(tx, transmitted);
    EXPECT_EQ(in, passed.load());
    EXPECT_EQ(pool->free() + cached + held, pool->count());
  }

  std::atomic<u32> busy = 0;    // stages in process()
  std::atomic<u64> passed = 0;  // frames through it
  std::atomic<u64> adrift = 0;  // bursts taken on a thread that was not held on one CPU
  std::unique_ptr<FramePool> pool;
  DataPath path;
  std::unique_ptr<Workers> running;

 private:
  class Onward final : public Stage {
   public:
    explicit Onward(Mills& mills) : mills_(mills) {}
    void process(Burst& burst) noexcept override {
      ++mills_.busy;
      cpu_set_t set;
      if (::pthread_getaffinity_np(::pthread_self(), sizeof set, &set) != 0 || CPU_COUNT(&set) != 1) ++mills_.adrift;
      for (u32 to = 0; Frame & frame : burst) burst.transmit(frame, PortSlot{static_cast<u16>(to++ % ports)});
      mills_.passed += burst.size();
      --mills_.busy;
    }

   private:
    Mills& mills_;
  };
  FakeQueue& queue(u16 port) { return static_cast<FakeQueue&>(path.ports[port].port->queue(0)); }
};

class AnyWorkers : public testing::TestWithParam<u32> {};
INSTANTIATE_TEST_SUITE_P(Number, AnyWorkers, testing::Values(1, 2, 4), testing::PrintToStringParamName());

TEST_P(AnyWorkers, stand_still_at_rest_and_go_on_behind_it) {
  Mills mills(GetParam());
  mills.set_going();
  u64 before = 0;
  for (u32 i = 0; i < 20; ++i) {
    mills.wait_for_more(before);
    mills.running->at_rest([&] {
      before = mills.passed;
      EXPECT_EQ(mills.busy.load(), 0u);
      for (u32 turn = 0; turn < 3; ++turn) std::this_thread::yield();  // whoever would move has the time to
      mills.expect_conserved();
      EXPECT_EQ(mills.passed.load(), before);
    });
    ASSERT_FALSE(HasFailure()) << "rest " << i;
  }
}

TEST_P(AnyWorkers, stop_without_losing_a_frame) {
  Mills mills(GetParam());
  mills.set_going();
  mills.wait_for_more(10'000);
  mills.running.reset();
  mills.expect_conserved();
}

TEST_P(AnyWorkers, are_held_on_a_cpu_each_and_leave_the_caller_alone) {
  const std::vector<u32> before = allowed_cpus();
  {
    Mills mills(GetParam());
    mills.set_going();
    mills.wait_for_more(10'000);
    mills.running.reset();
    EXPECT_EQ(mills.adrift.load(), 0u);
  }
  EXPECT_EQ(allowed_cpus(), before);
}

TEST_P(AnyWorkers, rest_and_stop_when_nothing_comes_in) {
  Mills mills(GetParam());
  u32 rests = 0;
  for (u32 i = 0; i < 3; ++i) mills.running->at_rest([&] { rests += mills.running->runners().size() == GetParam() ? 1 : 0; });
  EXPECT_EQ(rests, 3u);
}

}  // namespace
}  // namespace weir
