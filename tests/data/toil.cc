// SPDX-License-Identifier: BSD-3-Clause
// toil: a stage that takes its time over each frame, and lets it go on; for tests of lanes. It has state of each kind that a stage may
// have.
//   [[pipeline.stage]]  plugin = "toil"  parallel = true  ns = 1000
#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

#include "core/plugin.hh"

namespace {

using namespace weir;
using Clock = std::chrono::steady_clock;

struct Ethernet {
  u8 addresses[12];
  u8 type[2];
};
constexpr u8 stalling[] = {0x88, 0xb6};

class Toil final : public Stage {
 public:
  enum class Counter { stalls };

  Toil(u32 ns, u32 stall_ms, const StageContext& context) : ns_(ns), stall_ms_(stall_ms), worked_(context) {}
  static Result<std::unique_ptr<Stage>> make(const ConfigNode& keys, StageContext& context) {
    const auto number = [&](const char* key) { return static_cast<u32>(keys.integer(key)); };
    return std::make_unique<Toil>(number("ns"), number("stall_ms"), context);
  }
  void process(Burst& burst) noexcept override {
    for (const Frame& frame : burst) {
      const auto* header = frame.header<Ethernet>();
      if (header == nullptr || !std::ranges::equal(header->type, stalling)) continue;
      burst.count(Counter::stalls);
      std::this_thread::sleep_for(std::chrono::milliseconds(stall_ms_));  // which no other plugin may do
    }
    for (const auto end = Clock::now() + std::chrono::nanoseconds(u64{ns_} * burst.size()); Clock::now() < end;) continue;
    std::atomic<u64>& frames = worked_.of(burst).frames;
    frames.store(frames.load(std::memory_order_relaxed) + burst.size(), std::memory_order_relaxed);
    bursts_.hold([&](Bursts& seen) {
      ++seen.number;
      seen.longest = std::max(seen.longest, burst.size());
    });
  }
  [[nodiscard]] std::vector<std::pair<std::string, u64>> gauges() const override {
    u64 threads = 0, frames = 0;
    worked_.visit([&](const Worked& one) {
      threads += one.frames > 0;
      frames += one.frames;
    });
    const Bursts seen = bursts_.hold([](const Bursts& now) { return now; });
    return {{"threads", threads}, {"frames", frames}, {"bursts", seen.number}, {"longest", seen.longest}};
  }

 private:
  struct Worked {
    std::atomic<u64> frames{0};
  };
  struct Bursts {
    u64 number = 0;
    u32 longest = 0;
  };
  const u32 ns_, stall_ms_;   // read by all threads, written by none
  PerThread<Worked> worked_;  // a row for each
  Shared<Bursts> bursts_;     // one behind a lock
};

}  // namespace

WEIR_PLUGIN(.name = "toil", .says = "takes its time over each frame, and lets it go on",
            .keys = {Key::integer("ns", 0, 1'000'000).otherwise("0").as("for each frame"),
                     Key::integer("stall_ms", 0, 60'000).otherwise("0").as("for each frame of EtherType 0x88b6, besides")},
            .counters = {"stalls"}, .make = Toil::make)
