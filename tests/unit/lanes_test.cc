// SPDX-License-Identifier: BSD-3-Clause
// lanes_test: frames of many flows through a parallel stage that several threads run: each flow in order, and no frame lost, whoever is
// kept where and for how long.
#include "core/worker/lanes.hh"

#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "core/pipeline/state.hh"
#include "core/worker/workers.hh"
#include "kit/flow_port.hh"
#include "kit/frames.hh"

namespace weir {
namespace {

using namespace kit;

#if defined(__SANITIZE_THREAD__)
constexpr bool slow = true;
#elif defined(__has_feature)
constexpr bool slow = __has_feature(thread_sanitizer) || __has_feature(address_sanitizer);
#else
constexpr bool slow = false;
#endif
constexpr u32 flows = 512;

// Where frames may be kept until the test lets them go.
class Gate {
 public:
  void shut() noexcept { shut_ = true; }
  void open() noexcept {
    shut_ = false;
    shut_.notify_all();
  }
  void go_through() noexcept {
    if (!shut_.load()) return;
    waiting_.fetch_add(1);
    shut_.wait(true);
    waiting_.fetch_sub(1);
  }
  void wait_for_one() const {
    while (waiting_.load() == 0) std::this_thread::yield();
  }

 private:
  std::atomic<bool> shut_{false};
  std::atomic<u32> waiting_{0};
};

// Sees each flow's frames in their order. What it notes of a flow is without a lock: two threads with frames of one flow would race.
class Noting final : public Stage {
 public:
  Noting(PortSlot to, u32 threads) : to_(to), next_(flows), work_(threads) {}
  void process(Burst& burst) noexcept override {
    gate.go_through();
    for (Frame& frame : burst) {
      const NumberedFrame seen = numbered(frame);
      if (seen.number < next_[seen.flow]) ++late;
      next_[seen.flow] = seen.number + 1;
      burst.transmit(frame, to_);
    }
    work_[burst.thread()].frames.fetch_add(burst.size(), std::memory_order_relaxed);
  }
  [[nodiscard]] u32 threads_that_worked() const {
    return static_cast<u32>(std::ranges::count_if(work_, [](const Work& each) { return each.frames > 0; }));
  }
  Gate gate;
  std::atomic<u64> late{0};

 private:
  struct Work {
    std::atomic<u64> frames{0};
  };
  PortSlot to_;
  std::vector<u64> next_;
  std::vector<Work> work_;
};

// Lets everything go on.
class Onward final : public Stage {
 public:
  void process(Burst&) noexcept override {}
};

struct Plan {
  u32 workers = 1, helpers = 1;
  u32 parallel = 1;   // stages, one behind the other
  u32 dear_ns = 0;    // 0: all frames go through lanes
  u32 limit = 4096;   // frames in lanes
  u32 frames = 8192;  // of the pool
};

// Two ways through the same workers: from source 0 over parallel stages to sink 0, and from source 1 over a plain one to sink 1.
class Mill {
 public:
  static constexpr u16 ports = 4, blocks = 16;
  explicit Mill(const Plan& plan)
      : crew{plan.workers, plan.helpers, true},
        pool(std::move(*FramePool::create(plan.frames, 2048))),
        path(Accounts(std::move(*Mapping::anonymous((1 + crew.threads()) * blocks * sizeof(account))), 1, 1 + crew.threads(), blocks)) {
    Pipeline& lanes_way = *path.pipelines.emplace_back(std::make_unique<Pipeline>());
    Pipeline& plain_way = *path.pipelines.emplace_back(std::make_unique<Pipeline>());
    for (u32 i = 0; i < plan.parallel; ++i) {
      const Lanes::Shape shape{.lanes = 16, .room = 256, .limit = plan.limit, .dear_ns = plan.dear_ns};
      lanes.push_back(std::make_unique<Lanes>(lanes_way, i, i, shape, 7));
      std::unique_ptr<Stage> stage = std::make_unique<Onward>();
      if (i + 1 == plan.parallel) stage.reset(noting = new Noting(PortSlot{2}, crew.threads()));
      lanes_way.stages.push_back({.stage = std::move(stage), .number = i, .block = ports + i, .lanes = lanes.back().get()});
    }
    plain_way.stages.push_back({.stage = std::make_unique<Noting>(PortSlot{3}, crew.threads()), .number = 9, .block = ports + 9});
    std::vector<std::vector<Runner::RxQueue>> queues(crew.threads());
    for (u16 i = 0; i < 2; ++i) {
      auto source = std::make_unique<NumberedSource>(PortSlot{i}, 0, flows, test_seed() + i);
      queues[i % plan.workers].push_back({PortSlot{i}, sources[i] = source.get()});
      path.ports.push_back({.name = "",
                            .port = std::make_unique<MadePort>(std::move(source)),
                            .pipeline = path.pipelines[i].get(),
                            .egress = {},
                            .block = i});
    }
    for (u16 i = 0; i < 2; ++i) {
      // With a queue for each worker, so that it shows when a flow leaves by two.
      std::vector<std::unique_ptr<Queue>> ways;
      auto sink = std::make_unique<OrderedSink>(flows);
      sinks[i] = sink.get();
      ways.push_back(std::move(sink));
      path.ports.push_back(
          {.name = "", .port = std::make_unique<MadePort>(std::move(ways)), .pipeline = nullptr, .egress = {}, .block = 2u + i});
    }
    std::vector<std::unique_ptr<Runner>> runners;
    for (u32 i = 0; i < crew.threads(); ++i) runners.push_back(std::make_unique<Runner>(path, *pool, i, 1 + i, std::move(queues[i])));
    std::vector<Lanes*> all;
    for (const auto& each : lanes) all.push_back(each.get());
    auto started = Workers::start(std::move(runners), allowed_cpus(), crew, std::move(all));
    if (!started) broken(started.error().what.c_str());
    running = std::move(*started);
  }
  ~Mill() {
    stop();
    expect_conserved();
    EXPECT_EQ(pool->free(), pool->count()) << "what was in lanes went where it would have gone";
    expect_order();
  }
  void stop() {
    for (NumberedSource* source : sources) source->to_give = 0;
    running.reset();
  }
  // What has come in has gone out, or was dropped for want of room.
  void wait_for(u16 way, u64 frames) const {
    while (sinks[way]->taken + dropped_live() < frames) std::this_thread::yield();
  }
  [[nodiscard]] u64 dropped_live() const {
    u64 frames = 0;
    for (const auto& each : lanes) frames += each->overflow();
    return frames;
  }
  [[nodiscard]] u64 dropped() const { return path.accounts.user(0).drop[WEIR_DROP_LANE_FULL]; }
  // Only at rest, while no stage keeps a thread, or behind the end.
  void expect_conserved() {
    u64 in_lanes = 0, cached = 0, held = 0;
    for (const auto& each : lanes) in_lanes += each->depth();
    if (running)
      for (const auto& runner : running->runners()) cached += runner->free(), held += runner->held();
    EXPECT_EQ(held, 0u);
    EXPECT_EQ(pool->free() + cached + in_lanes, pool->count());
    const account port = path.accounts.user(0);
    EXPECT_EQ(port.frames, sinks[0]->taken + dropped() + in_lanes);
    EXPECT_EQ(port.frames, port.verdict[WEIR_REDIRECT] + port.verdict[WEIR_DROP] + in_lanes);
    EXPECT_EQ(path.accounts.user(1).frames, sinks[1]->taken.load());
    EXPECT_EQ(dropped(), dropped_live());
  }
  void expect_order() const {
    EXPECT_EQ(noting->late.load(), 0u) << "in the stage";
    for (const OrderedSink* sink : sinks) EXPECT_EQ(sink->late.load(), 0u) << "out of a port";
    EXPECT_LE(sinks[0]->missing.load(), dropped());
    EXPECT_EQ(sinks[1]->missing.load(), 0u);
  }

  Crew crew;
  std::unique_ptr<FramePool> pool;
  DataPath path;
  std::vector<std::unique_ptr<Lanes>> lanes;
  Noting* noting = nullptr;
  std::array<NumberedSource*, 2> sources{};
  std::array<OrderedSink*, 2> sinks{};
  std::unique_ptr<Workers> running;
};

class AnyCrew : public testing::TestWithParam<Plan> {};
INSTANTIATE_TEST_SUITE_P(Plan, AnyCrew,
                         testing::Values(Plan{}, Plan{.workers = 2, .helpers = 0}, Plan{.workers = 2, .helpers = 2, .parallel = 2},
                                         Plan{.workers = 2, .helpers = 1, .dear_ns = ~0u}, Plan{.helpers = 2, .dear_ns = 40}),
                         [](const auto& one) {
                           const Plan& plan = one.param;
                           const std::string mode = plan.dear_ns == 0 ? "lanes" : plan.dear_ns == ~0u ? "inline" : "either";
                           return fmt::format("{}_workers_{}_helpers_{}_stages_{}", plan.workers, plan.helpers, plan.parallel, mode);
                         });

TEST_P(AnyCrew, keeps_each_flow_in_order) {
  SCOPED_TRACE(fmt::format("WEIR_TEST_SEED={}", test_seed()));
  Mill mill(GetParam());
  const u64 frames = slow ? 100'000 : 2'000'000;
  mill.sources[0]->to_give = frames;
  mill.sources[1]->to_give = frames / 10;
  mill.wait_for(0, frames);
}

TEST_P(AnyCrew, rests_with_frames_in_lanes_and_goes_on) {
  Mill mill(GetParam());
  for (NumberedSource* source : mill.sources) source->to_give = ~u64{0} >> 1;
  u64 before = 0;
  for (u32 i = 0; i < 20 && !HasFailure(); ++i) {
    mill.wait_for(0, before + 1000);
    mill.running->at_rest([&] {
      before = mill.sinks[0]->taken + mill.dropped();
      for (u32 turn = 0; turn < 3; ++turn) std::this_thread::yield();  // whoever would move has the time to
      mill.expect_conserved();
      EXPECT_EQ(mill.sinks[0]->taken + mill.dropped(), before);
    });
  }
}

TEST_P(AnyCrew, stops_with_nothing_left_in_lanes) {
  Mill mill(GetParam());
  for (NumberedSource* source : mill.sources) source->to_give = ~u64{0} >> 1;
  mill.wait_for(0, 5000);
}

// However many threads the stage keeps.
TEST_P(AnyCrew, serves_other_ports_while_a_stage_does_not_return) {
  Mill mill(GetParam());
  for (u32 round = 0; round < 3; ++round) {
    mill.noting->gate.shut();
    mill.sources[0]->to_give += slow ? 20'000 : 50'000;
    mill.noting->gate.wait_for_one();
    const u64 other = mill.sinks[1]->taken;
    mill.sources[1]->to_give += 1000;
    while (mill.sinks[1]->taken < other + 1000) std::this_thread::yield();
    // Those who look on see all threads still, at once.
    u32 kept = 0;
    EXPECT_TRUE(mill.running->look([&](u32 threads) { kept = threads; }, 60'000));
    EXPECT_GE(kept, 1u);
    // What comes for the stage meanwhile fills its lanes, and then has a name.
    const u64 before = mill.dropped_live();
    mill.sources[0]->to_give += 10'000;
    while (mill.dropped_live() == before) std::this_thread::yield();
    mill.noting->gate.open();
    mill.wait_for(0, mill.sources[0]->to_give);
    mill.running->at_rest([&] { mill.expect_conserved(); });
    ASSERT_FALSE(HasFailure()) << "round " << round;
  }
}

TEST(Lanes, keep_ten_million_frames_in_order) {
  Mill mill({.workers = 1, .helpers = 1});
  const u64 frames = slow ? 300'000 : 10'000'000;
  mill.sources[0]->to_give = frames;
  mill.wait_for(0, frames);
  mill.stop();
  EXPECT_GE(mill.sources[0]->given.load(), frames);
  EXPECT_EQ(mill.noting->threads_that_worked(), allowed_cpus().size() > 1 ? 2u : mill.noting->threads_that_worked());
}

// One thread that does what two may do, in any order of their turns.
TEST(Lanes, give_frames_to_one_at_a_time_in_their_order) {
  const u32 seed = test_seed();
  SCOPED_TRACE(fmt::format("WEIR_TEST_SEED={}", seed));
  std::mt19937 dice(seed);
  Pipeline pipeline;
  const Lanes::Shape shape{.lanes = 8, .room = 16, .limit = 64, .dear_ns = 0};
  Lanes lanes(pipeline, 0, 0, shape, 1);
  std::vector<u32> pushed(shape.lanes), popped(shape.lanes);
  struct Hand {
    u64 claimed = 0, left = 0;
    u32 frames = 0;
  };
  std::vector<Hand> hands(3);
  u64 all_claimed = 0;
  u32 full = 0, refused = 0;
  for (u32 i = 0; i < 200'000; ++i) {
    Hand& hand = hands[dice() % hands.size()];
    if (dice() % 2 == 0) {
      const u32 lane = dice() % shape.lanes, want = lanes.reserve(1 + dice() % 8);
      refused += want == 0;
      std::array<Frame, 8> frames{};
      for (u32 frame = 0; frame < want; ++frame) frames[frame].length = pushed[lane] + frame;
      const u32 taken = lanes.push(lane, frames.data(), want);
      full += taken < want;
      pushed[lane] += taken;
      if (taken > 0) lanes.offer(u64{1} << lane);
    } else if (hand.claimed == 0) {
      hand.claimed = lanes.claim(1 + dice() % 20, dice());
      ASSERT_EQ(hand.claimed & all_claimed, 0u) << "two have one lane";
      all_claimed |= hand.claimed;
      for (u64 rest = hand.claimed; rest != 0; rest &= rest - 1) {
        const u32 lane = static_cast<u32>(std::countr_zero(rest));
        Burst burst;
        for (u32 skip = dice() % 60; skip > 0; --skip) burst.push(Frame{.length = ~0u});
        lanes.pop(lane, burst);
        for (const Frame& frame : burst) {
          if (frame.length == ~0u) continue;
          ASSERT_EQ(frame.length, popped[lane]++);
          ++hand.frames;
        }
        if (!lanes.empty(lane)) hand.left |= rest & -rest;
      }
    } else {
      all_claimed &= ~hand.claimed;
      lanes.release(hand.claimed, hand.left, hand.frames);
      hand = {};
    }
    u32 depth = 0;
    for (u32 lane = 0; lane < shape.lanes; ++lane) depth += pushed[lane] - popped[lane];
    ASSERT_EQ(lanes.depth(), depth);
    for (const Hand& each : hands) depth += each.frames;
    ASSERT_EQ(lanes.pending(), depth);
    ASSERT_LE(lanes.pending(), shape.limit);
  }
  EXPECT_GT(full, 0u);
  EXPECT_GT(refused, 0u);
}

TEST(Lanes, are_left_alone_while_they_are_held) {
  Pipeline pipeline;
  Lanes lanes(pipeline, 0, 0, {}, 1);
  const Frame frame{};
  ASSERT_EQ(lanes.reserve(1), 1u);
  lanes.push(3, &frame, 1);
  lanes.offer(u64{1} << 3);
  lanes.hold();
  EXPECT_EQ(lanes.claim(64, 0), 0u);
  EXPECT_FALSE(lanes.any_ready());
  lanes.unhold();
  EXPECT_EQ(lanes.claim(64, 0), u64{1} << 3);
}

TEST(Lanes, are_used_by_what_two_bursts_show_to_be_dear) {
  Pipeline pipeline;
  Lanes lanes(pipeline, 0, 0, {.dear_ns = 100}, 1);
  lanes.note(1'000'000, 64);
  EXPECT_FALSE(lanes.spreads()) << "one burst may have been interrupted";
  lanes.note(64 * 30, 64);
  EXPECT_FALSE(lanes.spreads());
  for (int i = 0; i < 2; ++i) lanes.note(64 * 150, 64);
  EXPECT_TRUE(lanes.spreads());
  for (int i = 0; i < 2; ++i) lanes.note(64 * 70, 64);
  EXPECT_TRUE(lanes.spreads()) << "not to and fro";
  for (int i = 0; i < 2; ++i) lanes.note(64 * 30, 64);
  EXPECT_FALSE(lanes.spreads());
}

class FlowHash : public testing::Test {
 protected:
  static u64 of(Packet packet) { return flow_hash({.data = packet.data(), .length = static_cast<u32>(packet.size())}, 5); }
  static Packet ipv4(u32 from, u32 to, u16 from_port, u16 to_port, u8 protocol = 17, u16 fragment = 0) {
    Packet packet(60);
    const u8 head[] = {
        2,  0,       0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 46, 0, 0, static_cast<u8>(fragment >> 8), static_cast<u8>(fragment),
        64, protocol};
    std::ranges::copy(head, packet.begin());
    for (u32 i = 0; i < 4; ++i)
      packet[26 + i] = static_cast<u8>(from >> (24 - 8 * i)), packet[30 + i] = static_cast<u8>(to >> (24 - 8 * i));
    packet[34] = static_cast<u8>(from_port >> 8), packet[35] = static_cast<u8>(from_port);
    packet[36] = static_cast<u8>(to_port >> 8), packet[37] = static_cast<u8>(to_port);
    return packet;
  }
  static Packet tagged(Packet packet, u16 type, u16 vid) {
    const u8 tag[] = {static_cast<u8>(type >> 8), static_cast<u8>(type), static_cast<u8>(vid >> 8), static_cast<u8>(vid)};
    packet.insert(packet.begin() + 12, std::begin(tag), std::end(tag));
    return packet;
  }
  static Packet ipv6(u8 from, u8 to, u16 from_port, u16 to_port, u8 next) {
    Packet packet(80);
    packet[12] = 0x86, packet[13] = 0xdd, packet[14] = 0x60, packet[20] = next, packet[22] = 0x20, packet[37] = from, packet[38] = 0x20,
    packet[53] = to;
    packet[54] = static_cast<u8>(from_port >> 8), packet[55] = static_cast<u8>(from_port);
    packet[56] = static_cast<u8>(to_port >> 8), packet[57] = static_cast<u8>(to_port);
    return packet;
  }
};

TEST_F(FlowHash, is_the_same_both_ways_and_another_for_another_flow) {
  const u64 one = of(ipv4(0x0a000001, 0x0a000002, 1000, 80));
  EXPECT_EQ(one, of(ipv4(0x0a000002, 0x0a000001, 80, 1000)));
  EXPECT_NE(one, of(ipv4(0x0a000001, 0x0a000002, 1001, 80)));
  EXPECT_NE(one, of(ipv4(0x0a000001, 0x0a000002, 80, 1000)));
  EXPECT_NE(one, of(ipv4(0x0a000003, 0x0a000002, 1000, 80)));
  EXPECT_EQ(of(ipv6(1, 2, 7, 9, 6)), of(ipv6(2, 1, 9, 7, 6)));
  EXPECT_NE(of(ipv6(1, 2, 7, 9, 6)), of(ipv6(1, 2, 7, 10, 6)));
}

TEST_F(FlowHash, goes_by_addresses_where_ports_are_not_in_each_frame) {
  const u64 whole = of(ipv4(1, 2, 0, 0, 1));
  for (const u16 fragment : {0x2000, 0x2005, 0x0005}) EXPECT_EQ(of(ipv4(1, 2, 1000, 80, 17, fragment)), whole) << fragment;
  EXPECT_EQ(of(ipv4(1, 2, 1000, 80, 17, 0x4000)), of(ipv4(1, 2, 1000, 80))) << "the bit that forbids fragments is none";
  EXPECT_EQ(of(ipv4(1, 2, 1000, 80, 1)), whole);
  EXPECT_EQ(of(ipv6(1, 2, 7, 9, 44)), of(ipv6(1, 2, 8, 9, 44)));
}

TEST_F(FlowHash, looks_behind_tags_and_stays_within_the_frame) {
  const Packet plain = ipv4(1, 2, 3, 4);
  EXPECT_EQ(of(plain), of(tagged(plain, 0x8100, 5)));
  EXPECT_EQ(of(plain), of(tagged(tagged(plain, 0x8100, 5), 0x88a8, 6)));
  for (std::size_t size = 0; size <= plain.size(); ++size) of(Packet(plain.begin(), plain.begin() + static_cast<std::ptrdiff_t>(size)));
  Packet arp = plain;
  arp[12] = 8, arp[13] = 6;
  Packet back = arp;
  std::swap_ranges(back.begin(), back.begin() + 6, back.begin() + 6);
  EXPECT_EQ(of(arp), of(back));
  back[5] ^= 1;
  EXPECT_NE(of(arp), of(back));
}

TEST_F(FlowHash, spreads_flows_evenly) {
  std::array<u32, 64> lanes{};
  for (u32 i = 0; i < 64'000; ++i)
    ++lanes[of(ipv4(0x0a000000 + i % 200, 0x0a010000 + i / 200 % 200, static_cast<u16>(1024 + i % 7), 443)) >> 32 & 63];
  EXPECT_GT(std::ranges::min(lanes), 750u);
  EXPECT_LT(std::ranges::max(lanes), 1300u);
}

}  // namespace
}  // namespace weir
