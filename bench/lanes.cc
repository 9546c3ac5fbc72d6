// SPDX-License-Identifier: BSD-3-Clause
// lanes: what two CPUs make of a stage that costs so much for each frame, against one, in memory: source, one parallel stage, sink.
//   lanes [--rounds N]   by turns one CPU and two, and the ratio of frames a second; each flow's order is checked all the while.
//                        "always lanes" is what lanes cost where they are not worth it, "nobody helps" the same on one CPU
//   lanes --check        only the order: 10 million frames through lanes, worked off by two CPUs
#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <optional>
#include <string>
#include <thread>

#include "core/worker/workers.hh"
#include "kit/flow_port.hh"

namespace {

using namespace weir;
using Clock = std::chrono::steady_clock;

constexpr PortSlot in{0}, out{1};
constexpr u32 frame_count = 16384, frame_size = 2048, flows = 4096, stage_block = 2, blocks = 3;

// So many multiplications that wait for one another.
u64 multiply(u64 seed, u32 times) noexcept {
  for (u32 i = 0; i < times; ++i) {
    seed = seed * 0x9e3779b97f4a7c15 + 1;
    asm volatile("" : "+r"(seed));
  }
  return seed;
}

double multiplications_per_ns() {
  constexpr u32 times = 1'000'000;
  double best = 0;
  for (int i = 0; i < 20; ++i) {
    const auto began = Clock::now();
    multiply(static_cast<u64>(i), times);
    best = std::max(best, times / std::chrono::duration<double, std::nano>(Clock::now() - began).count());
  }
  return best;
}

// Works for so long over each frame, and sends it on.
class Toil final : public Stage {
 public:
  explicit Toil(u32 times) : times_(times) {}
  void process(Burst& burst) noexcept override {
    for (Frame& frame : burst) {
      if (times_ > 0) multiply(frame.data[NumberedAt], times_);
      burst.transmit(frame, out);
    }
  }

 private:
  static constexpr u32 NumberedAt = kit::NumberedFrame::at;
  u32 times_;
};

template <typename T>
T must(Result<T> result) {
  if (!result) broken(result.error().what.c_str());
  return std::move(*result);
}

enum class Way { plain, parallel, always_lanes };

class Rig {
 public:
  Rig(u32 times, Way way, const std::vector<u32>& cpus)
      : crew_(crew(way, static_cast<u32>(cpus.size()))),
        pool_(must(FramePool::create(frame_count, frame_size))),
        path_(Accounts(must(Mapping::anonymous(sizeof(account) * crew_.threads() * blocks)), 0, crew_.threads(), blocks)) {
    auto pipeline = std::make_unique<Pipeline>();
    if (way != Way::plain) {
      Lanes::Shape shape = Lanes::shape_for(crew_.drainers(), frame_count, 1);
      if (way == Way::always_lanes) shape.dear_ns = 0;
      lanes_.emplace(*pipeline, 0, 0, shape, 1);
    }
    pipeline->stages.push_back(
        {.stage = std::make_unique<Toil>(times), .number = 0, .block = stage_block, .lanes = lanes_ ? &*lanes_ : nullptr});
    auto source = std::make_unique<kit::NumberedSource>(in, 0, flows);
    auto sink = std::make_unique<kit::OrderedSink>(flows);
    source_ = source.get(), sink_ = sink.get();
    path_.ports.resize(2);
    path_.ports[0].port = std::make_unique<kit::MadePort>(std::move(source));
    path_.ports[0].pipeline = pipeline.get();
    path_.ports[1].port = std::make_unique<kit::MadePort>(std::move(sink));
    path_.ports[1].block = 1;
    path_.pipelines.push_back(std::move(pipeline));
    std::vector<std::unique_ptr<Runner>> runners;
    for (u32 i = 0; i < crew_.threads(); ++i) {
      std::vector<Runner::RxQueue> queues;
      if (i == 0) queues.push_back({in, source_});
      runners.push_back(std::make_unique<Runner>(path_, *pool_, i, i, std::move(queues)));
    }
    std::vector<Lanes*> lanes;
    if (lanes_) lanes.push_back(&*lanes_);
    workers_ = must(Workers::start(std::move(runners), cpus, crew_, std::move(lanes)));
  }

  void give(u64 frames) noexcept { source_->to_give = frames; }
  [[nodiscard]] u64 taken() const noexcept { return sink_->taken; }
  [[nodiscard]] bool spread() const noexcept { return lanes_ && lanes_->spreads(); }
  [[nodiscard]] u64 overflow() const noexcept { return lanes_ ? lanes_->overflow() : 0; }
  // Frames that were worked off by others than the worker that polls.
  [[nodiscard]] u64 helped() {
    u64 frames = 0;
    workers_->at_rest([&] {
      for (std::size_t i = 1; i < workers_->runners().size(); ++i) frames += workers_->runners()[i]->numbers().drained;
    });
    return frames;
  }
  // Stops, and says what is wrong; empty: nothing.
  std::string complaint() {
    workers_.reset();
    if (sink_->late != 0) return fmt::format("{} frames overtook others of their flow", sink_->late.load());
    const account port = path_.accounts.user(0);
    const u64 lost = port.drop[WEIR_DROP_LANE_FULL];
    if (pool_->free() != frame_count) return fmt::format("{} frames of {} are free in the end", pool_->free(), frame_count);
    if (source_->given != sink_->taken + lost)
      return fmt::format("{} came in, {} went out, {} dropped", source_->given.load(), taken(), lost);
    if (lost != overflow()) return fmt::format("{} frames dropped as lane_full, {} counted by the lanes", lost, overflow());
    if (sink_->missing > lost) return fmt::format("{} frames are missing, {} were dropped", sink_->missing.load(), lost);
    return "";
  }

 private:
  static Crew crew(Way way, u32 cpus) { return way == Way::plain ? Crew{} : Crew{.workers = 1, .helpers = cpus - 1, .guard = true}; }
  Crew crew_;
  std::unique_ptr<FramePool> pool_;
  DataPath path_;
  std::optional<Lanes> lanes_;
  kit::NumberedSource* source_;
  kit::OrderedSink* sink_;
  std::unique_ptr<Workers> workers_;
};

// CPU time of this process, in seconds.
double own_time() {
  rusage own{};
  ::getrusage(RUSAGE_SELF, &own);
  const auto seconds = [](const timeval& time) { return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6; };
  return seconds(own.ru_utime) + seconds(own.ru_stime);
}

// And that of all others, in seconds of all CPUs.
double others_time() {
  std::ifstream stat("/proc/stat");
  std::string cpu;
  double user = 0, nice = 0, system = 0, idle = 0, wait = 0, irq = 0, soft = 0, steal = 0;
  stat >> cpu >> user >> nice >> system >> idle >> wait >> irq >> soft >> steal;
  return (user + nice + system + irq + soft + steal) / static_cast<double>(::sysconf(_SC_CLK_TCK)) - own_time();
}

struct Measured {
  double rate;    // frames a second,
  double by_cpu;  // and of CPU time, times the CPUs
  double others;  // CPUs that something else had
  u64 lost;
};

Measured measure(u32 times, Way way, const std::vector<u32>& cpus) {
  constexpr auto warm_up = std::chrono::milliseconds(150), window = std::chrono::milliseconds(400);
  Rig rig(times, way, cpus);
  rig.give(~u64{0} >> 1);
  std::this_thread::sleep_for(warm_up);
  const double before = others_time(), spent = own_time();
  const auto began = Clock::now();
  const u64 first = rig.taken();
  std::this_thread::sleep_for(window);
  const double seconds = std::chrono::duration<double>(Clock::now() - began).count();
  const double rate = static_cast<double>(rig.taken() - first) / seconds;
  const double by_cpu = rate * seconds / (own_time() - spent) * static_cast<double>(cpus.size());
  const double busy = (others_time() - before) / seconds;
  const u64 lost = rig.overflow();
  rig.give(0);
  if (const std::string wrong = rig.complaint(); !wrong.empty()) broken(("bench lanes: " + wrong).c_str());
  return {rate, by_cpu, busy, lost};
}

double median(std::vector<double> of) {
  std::ranges::sort(of);
  return of[of.size() / 2];
}

// By turns, until there are so many pairs in which nothing else used the CPUs, or no more hope for them.
void compare(const char* name, double per_ns, u32 cost_ns, Way way, const std::vector<u32>& cpus, u32 rounds) {
  const u32 times = static_cast<u32>(per_ns * cost_ns);
  constexpr double quiet = 0.04;
  std::vector<double> ratios, one, two, by_cpu, cpu_one, cpu_two;
  u64 lost = 0;
  for (u32 i = 0; i < 3 * rounds && ratios.size() < rounds; ++i) {
    const Measured plain = measure(times, Way::plain, {cpus.front()}), lanes = measure(times, way, cpus);
    by_cpu.push_back(lanes.by_cpu / plain.by_cpu);
    cpu_one.push_back(1e9 / plain.by_cpu), cpu_two.push_back(1e9 * static_cast<double>(cpus.size()) / lanes.by_cpu);
    if (plain.others > quiet * 2 || lanes.others > quiet) continue;
    ratios.push_back(lanes.rate / plain.rate);
    one.push_back(plain.rate), two.push_back(lanes.rate);
    lost += lanes.lost;
  }
  fmt::print("{:<12} {:>4} ns: ", name, cost_ns);
  if (ratios.empty()) fmt::print("something else used the CPUs in all {} rounds, ", by_cpu.size());
  else
    fmt::print("one CPU {:6.2f} M/s, two {:6.2f} M/s, ratio {:.2f} ({:.2f} to {:.2f}, {} of {} rounds), {} frames lost, ",
               median(one) / 1e6, median(two) / 1e6, median(ratios), std::ranges::min(ratios), std::ranges::max(ratios), ratios.size(),
               by_cpu.size(), lost);
  fmt::print("ratio by CPU time {:.2f}, {:.0f} and {:.0f} ns of it a frame\n", median(by_cpu), median(cpu_one), median(cpu_two));
  std::fflush(stdout);
}

int check(double per_ns, const std::vector<u32>& cpus) {
  constexpr u64 frames = 10'000'000;
  for (const u32 cost_ns : {0u, 200u}) {
    Rig rig(static_cast<u32>(per_ns * cost_ns), Way::always_lanes, cpus);
    rig.give(frames);
    while (rig.taken() + rig.overflow() < frames) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const u64 helped = rig.helped(), lost = rig.overflow();
    if (const std::string wrong = rig.complaint(); !wrong.empty()) {
      fmt::print(stderr, "bench lanes: {} ns: {}\n", cost_ns, wrong);
      return 1;
    }
    fmt::print(
        "bench lanes: {} ns: {} frames of {} flows through lanes, {} of them on another CPU, {} dropped as lane_full: each flow in order\n",
        cost_ns, frames, flows, helped, lost);
  }
  return 0;
}

}  // namespace

int main(int words, char** word) {
  std::vector<u32> cpus = allowed_cpus();
  if (cpus.size() > 2) cpus.resize(2);
  const std::string mode = words > 1 ? word[1] : "";
  const u32 rounds = words == 3 && mode == "--rounds" ? static_cast<u32>(std::strtoul(word[2], nullptr, 10)) : 5;
  if (words > 3 || rounds == 0 || (words == 2 && mode != "--check") || (words == 3 && mode != "--rounds")) {
    fmt::print(stderr, "usage: lanes [--rounds N] | --check\n");
    return 2;
  }
  const double per_ns = multiplications_per_ns();
  if (mode == "--check") return check(per_ns, cpus);
  if (cpus.size() < 2) {
    fmt::print(stderr, "bench lanes: it takes two CPUs\n");
    return 1;
  }
  for (const u32 cost_ns : {200, 500, 1000, 100, 50, 0}) compare("parallel", per_ns, cost_ns, Way::parallel, cpus, rounds);
  compare("always lanes", per_ns, 0, Way::always_lanes, cpus, rounds);
  compare("nobody helps", per_ns, 0, Way::always_lanes, {cpus.front()}, rounds);
  return 0;
}
