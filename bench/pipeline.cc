// SPDX-License-Identifier: BSD-3-Clause
// pipeline: what the user pipeline costs per frame, in memory: source port, Runner, empty stages, the real patch, null port.
//   pipeline [--reverse] [--benchmark_...]   checks every case, then times each; with instructions where the CPU counts them
//   pipeline --check                         only checks: what comes out is what went in, in order, and every account is right
//   pipeline --count POLLS                   for callgrind: runs each case's polls in counted_polls(), says "CASE FRAMES" for each
#include <benchmark/benchmark.h>
#include <linux/perf_event.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <utility>

#include "core/base/fd.hh"
#include "core/pipeline/registry.hh"
#include "core/port/null_port.hh"
#include "core/worker/runner.hh"
#include "kit/plugin_kit.hh"

namespace {

using namespace weir;
using kit::Packet;

constexpr PortSlot in{0}, out{1};
constexpr u32 longest_pipeline = 8, frame_size = 2048, frame_count = 1024, frame_length = 60;

// libweir calls it and cannot see it. Each is of a type and of code of its own, as different plugins are: a call with many targets.
template <u32 number>
class Empty final : public Stage {
 public:
  void process(Burst&) noexcept override { asm volatile("" : : "i"(number)); }
};

template <u32... numbers>
std::unique_ptr<Stage> empty_stage(u32 number, std::integer_sequence<u32, numbers...>) {
  std::unique_ptr<Stage> made;
  ((number == numbers ? static_cast<void>(made = std::make_unique<Empty<numbers>>()) : void()), ...);
  return made;
}

// A queue that only receives: free frames, at most `burst` at a time, as a receive ring under load gives them.
class Supply : public Queue {
 public:
  explicit Supply(u32 burst) : burst_(burst) {}
  u32 receive(Burst& burst, FrameCache& cache) noexcept override { return supply(burst, cache, burst_); }
  u32 transmit(const Frame*, u32, FrameCache&) noexcept override { return 0; }
  bool reclaim(FrameCache&) noexcept override { return false; }
  [[nodiscard]] u32 held() const noexcept override { return 0; }

 protected:
  static u32 supply(Burst& burst, FrameCache& cache, u32 number) noexcept {
    std::array<u64, Burst::capacity> chunks;
    const u32 got = cache.take(chunks.data(), number);
    for (u32 i = 0; i < got; ++i) burst.push({.data = cache.pool().base() + chunks[i], .length = frame_length, .port = in});
    return got;
  }
  u32 burst_;
};

// The same, with these bytes in the frames, once.
class Replay final : public Supply {
 public:
  Replay(u32 burst, const std::vector<Packet>& packets) : Supply(burst), packets_(packets) {}
  u32 receive(Burst& burst, FrameCache& cache) noexcept override {
    const u32 got = supply(burst, cache, std::min(burst_, static_cast<u32>(packets_.size() - at_)));
    for (Frame& frame : burst) {
      const Packet& packet = packets_[at_++];
      std::memcpy(frame.data, packet.data(), packet.size());
      frame.length = static_cast<u32>(packet.size());
    }
    return got;
  }

 private:
  const std::vector<Packet>& packets_;
  std::size_t at_ = 0;
};

// Keeps the bytes of what is transmitted.
class Record final : public Queue {
 public:
  explicit Record(std::vector<Packet>& packets) : packets_(packets) {}
  u32 receive(Burst&, FrameCache&) noexcept override { return 0; }
  u32 transmit(const Frame* frames, u32 number, FrameCache& cache) noexcept override {
    for (u32 i = 0; i < number; ++i) {
      packets_.emplace_back(frames[i].data, frames[i].data + frames[i].length);
      cache.release(frames[i]);
    }
    return number;
  }
  bool reclaim(FrameCache&) noexcept override { return false; }
  [[nodiscard]] u32 held() const noexcept override { return 0; }

 private:
  std::vector<Packet>& packets_;
};

class OneQueue final : public Port {
 public:
  explicit OneQueue(std::unique_ptr<Queue> queue) : queue_(std::move(queue)) {}
  [[nodiscard]] u32 queues() const noexcept override { return 1; }
  [[nodiscard]] Queue& queue(u32) noexcept override { return *queue_; }

 private:
  std::unique_ptr<Queue> queue_;
};

template <typename T>
T must(Result<T> result) {
  if (!result) broken(result.error().what.c_str());
  return std::move(*result);
}

// The module that `weir run` loads.
const Plugin& patch() {
  static const Registry modules = must(Registry::load());
  const Plugin* found = modules.plugin("patch");
  if (found == nullptr) broken("the plugin patch is not there: build it first");
  return *found;
}

// One worker's data path: `empty` stages and patch, from one port to the other.
class Rig {
 public:
  Rig(u32 empty, std::unique_ptr<Queue> source, std::unique_ptr<Port> sink)
      : empty_(empty),
        pool_(must(FramePool::create(frame_count, frame_size))),
        path_(Accounts(must(Mapping::anonymous(blocks() * sizeof(account))), 0, 1, blocks())),
        runner_(path_, *pool_, 0, 0, build(std::move(source), std::move(sink))) {}

  u32 poll() noexcept { return runner_.poll(); }

  // What is wrong after so many frames have come in and gone out; empty: nothing.
  [[nodiscard]] std::string complaint(u64 frames, u64 bytes) const {
    if (pool_->free() + runner_.free() != frame_count || runner_.held() != 0) return "not every frame came back";
    for (u32 block = 0; block < blocks(); ++block) {
      account expected{};
      if (block == in.value) expected.frames = frames, expected.bytes = bytes;
      if (block == out.value) expected.tx = frames, expected.tx_bytes = bytes;
      if (block != out.value) expected.verdict[block == in.value || block == blocks() - 1 ? WEIR_REDIRECT : WEIR_NEXT] = frames;
      if (std::memcmp(&path_.accounts.at(0, block), &expected, sizeof expected) != 0) return fmt::format("account {} is wrong", block);
    }
    return "";
  }

 private:
  [[nodiscard]] u32 blocks() const noexcept { return 2 + empty_ + 1; }  // the ports', then the stages'

  std::vector<Runner::RxQueue> build(std::unique_ptr<Queue> source, std::unique_ptr<Port> sink) {
    auto pipeline = std::make_unique<Pipeline>();
    for (u32 i = 0; i < empty_; ++i) append(*pipeline, empty_stage(i, std::make_integer_sequence<u32, longest_pipeline>()));
    auto last = must(patch().make(must(context_.keys(patch(), R"(pairs = [["in", "out"]])")), context_));
    if (const Result<> bound = last->bind(memory_); !bound) broken(bound.error().what.c_str());
    append(*pipeline, std::move(last));
    std::vector<Runner::RxQueue> queues{{in, source.get()}};
    path_.ports.resize(2);
    path_.ports[in.value].port = std::make_unique<OneQueue>(std::move(source));
    path_.ports[in.value].pipeline = pipeline.get();
    path_.ports[out.value].port = std::move(sink);
    path_.ports[out.value].block = out.value;
    path_.pipelines.push_back(std::move(pipeline));
    return queues;
  }
  static void append(Pipeline& pipeline, std::unique_ptr<Stage> stage) {
    const u32 number = static_cast<u32>(pipeline.stages.size());
    pipeline.stages.push_back({.stage = std::move(stage), .number = number, .block = 2 + number});
  }

  u32 empty_;
  kit::FakeContext context_{{"in"}, {"out"}};
  kit::PlainMemory memory_;
  std::unique_ptr<FramePool> pool_;
  DataPath path_;
  Runner runner_;
};

struct Case {
  u32 empty, burst;
  [[nodiscard]] std::string name() const { return fmt::format("pipeline/empty:{}/burst:{}", empty, burst); }
  [[nodiscard]] Rig rig() const { return {empty, std::make_unique<Supply>(burst), std::make_unique<NullPort>()}; }
};

// The two ends of a pipeline's length, whose difference is what is asked for, next to each other in time.
std::vector<Case> cases() {
  std::vector<Case> made;
  for (const u32 burst : {1, 2, 4, 8, 16, 32, 64})
    for (const u32 empty : {0, 8, 1, 2, 3, 4, 5, 6, 7}) made.push_back({empty, burst});
  return made;
}

// Frames of all lengths, no two alike.
std::vector<Packet> some_packets() {
  std::vector<Packet> packets;
  for (u32 i = 0; i < 1000; ++i) {
    packets.push_back(kit::FrameBuilder().ethernet(kit::station(i), kit::station(i + 1)).pad(60 + i * 7919 % 1455));
    for (std::size_t at = 14; at < packets.back().size(); ++at) packets.back()[at] = static_cast<u8>(i + at * 31);
  }
  return packets;
}

// Against the plainest reference: the same frames in the same order.
std::string check(const Case& one, const std::vector<Packet>& packets) {
  std::vector<Packet> sent;
  Rig rig(one.empty, std::make_unique<Replay>(one.burst, packets), std::make_unique<OneQueue>(std::make_unique<Record>(sent)));
  u64 bytes = 0;
  for (const Packet& packet : packets) bytes += packet.size();
  u64 came = 0;
  while (const u32 got = rig.poll()) came += got;
  if (came != packets.size()) return fmt::format("{} frames came in of {}", came, packets.size());
  if (sent.size() != packets.size()) return fmt::format("{} frames went out of {}", sent.size(), packets.size());
  if (sent != packets) return "a frame went out changed, or out of order";
  return rig.complaint(packets.size(), bytes);
}

bool check_all(const std::vector<Case>& all) {
  const std::vector<Packet> packets = some_packets();
  for (const Case& one : all)
    if (const std::string wrong = check(one, packets); !wrong.empty()) {
      fmt::print(stderr, "bench pipeline: {}: {}\n", one.name(), wrong);
      return false;
    }
  return true;
}

// Instructions that this thread executes in user space, where the machine lets one count them.
class Instructions {
 public:
  Instructions() {
    perf_event_attr wanted{};
    wanted.type = PERF_TYPE_HARDWARE;
    wanted.size = sizeof wanted;
    wanted.config = PERF_COUNT_HW_INSTRUCTIONS;
    wanted.exclude_kernel = wanted.exclude_hv = 1;
    counter_ = Fd(static_cast<int>(::syscall(SYS_perf_event_open, &wanted, 0, -1, -1, PERF_FLAG_FD_CLOEXEC)));
  }
  [[nodiscard]] bool available() const noexcept { return static_cast<bool>(counter_); }
  [[nodiscard]] u64 read() const noexcept {
    u64 count = 0;
    return available() && ::read(counter_.get(), &count, sizeof count) == sizeof count ? count : 0;
  }

 private:
  Fd counter_;
};

#ifdef __clang__
constexpr const char* compiler = __VERSION__;
#else
constexpr const char* compiler = "gcc " __VERSION__;
#endif

constexpr u32 warm_up_polls = 64;

void time_case(benchmark::State& state, const Case& one) {
  Rig rig = one.rig();
  const Instructions instructions;
  for (u32 i = 0; i < warm_up_polls; ++i) rig.poll();
  const u64 before = instructions.read();
  for (auto _ : state) benchmark::DoNotOptimize(rig.poll());
  const u64 executed = instructions.read() - before;
  const u64 frames = static_cast<u64>(state.iterations()) * one.burst;
  const u64 all = frames + u64{warm_up_polls} * one.burst;
  if (const std::string wrong = rig.complaint(all, all * frame_length); !wrong.empty()) state.SkipWithError(wrong.c_str());
  state.counters["per_frame"] = benchmark::Counter(one.burst, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
  if (instructions.available()) state.counters["instructions"] = static_cast<double>(executed) / static_cast<double>(frames);
}

// callgrind knows it by its name.
extern "C" [[gnu::noinline]] void counted_polls(Rig& rig, u32 polls) {
  for (u32 i = 0; i < polls; ++i) rig.poll();
}

void count_all(const std::vector<Case>& all, u32 polls) {
  for (const Case& one : all) {
    Rig rig = one.rig();
    for (u32 i = 0; i < warm_up_polls; ++i) rig.poll();
    counted_polls(rig, polls);
    fmt::print("{} {}\n", one.name(), polls * one.burst);
  }
}

int usage() {
  fmt::print(stderr, "usage: pipeline [--reverse] [--benchmark_...] | --check | --count POLLS\n");
  return 2;
}

}  // namespace

int main(int words, char** word) {
  std::vector<Case> all = cases();
  benchmark::Initialize(&words, word);
  const std::string mode = words > 1 ? word[1] : "";
  const u32 polls = words == 3 && mode == "--count" ? static_cast<u32>(std::strtoul(word[2], nullptr, 10)) : 0;
  if (words > 2 ? polls == 0 : words == 2 && mode != "--check" && mode != "--reverse") return usage();
  if (polls > 0) {
    count_all(all, polls);
    return 0;
  }
  if (!check_all(all)) return 1;
  if (mode == "--check") {
    fmt::print("bench pipeline: {} cases: every frame came out, in order and unchanged, and is accounted for\n", all.size());
    return 0;
  }
  if (mode == "--reverse") std::ranges::reverse(all);
  for (const Case& one : all) benchmark::RegisterBenchmark(one.name().c_str(), time_case, one);
  benchmark::AddCustomContext("compiler", compiler);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
