// SPDX-License-Identifier: BSD-3-Clause
// runner_test: bursts to completion over ports that the test fills and empties, where no frame may get lost or be in two places.
#include "core/worker/runner.hh"

#include <gtest/gtest.h>

#include <set>

#include "kit/fake_port.hh"
#include "kit/frames.hh"

// The host side of the egress programs' own header: struct egress_frame.
extern "C" {
#include "bpf/lib/egress.bpf.h"
}

namespace weir {
namespace {

using namespace kit;
using Texts = std::vector<std::string>;

struct FakeStack final : StackEntry {
  std::optional<weir_drop> submit(PortSlot port, std::span<const u8> bytes) noexcept override {
    if (full) return WEIR_DROP_STACK_FULL;
    taken.push_back(fmt::format("{} {}", port.value, std::string(bytes.begin(), bytes.end())));
    return std::nullopt;
  }
  [[nodiscard]] u32 held() const noexcept override { return 0; }
  bool full = false;
  Texts taken;
};

enum class Reason {};

// A frame says what each stage is to do, in two letters: "-." leaves it, "r1" transmits by port 1, "f0" floods to group 0, "s." gives it to
// the host stack, "d2" drops it under reason 2.
class Obeying final : public Stage {
 public:
  explicit Obeying(u32 place) : at_(2 * place) {}
  void process(Burst& burst) noexcept override {
    for (Frame& frame : burst) {
      const u8* order = frame.header<u8>(at_);
      const u16 argument = order != nullptr && at_ + 1 < frame.length ? static_cast<u16>(order[1] - '0') : u16{0};
      if (order == nullptr) continue;
      if (*order == 'r') burst.transmit(frame, PortSlot{argument});
      else if (*order == 'f') burst.flood(frame, GroupSlot{argument});
      else if (*order == 's') burst.to_stack(frame);
      else if (*order == 'd') burst.drop(frame, Reason{argument});
    }
  }

 private:
  u32 at_;
};

u32 sign(egress_frame* frame, const void*, void*) {
  if (frame->data[frame->length - 1] == 'x') return EGRESS_DROP(4);
  ++frame->data[0], frame->data[frame->length++] = '+';
  return EGRESS_TRANSMIT;
}
const egress_program signing{.name = "sign", .run = sign};

// Ports, pipelines and one runner for all queues. Whatever a test does, every frame is somewhere in the end.
class Mill {
 public:
  static constexpr u32 blocks = 32, first_stage = 8, first_egress = 16;

  explicit Mill(u32 ports, u32 frames = 512, u32 queues = 1, u32 number = 0)
      : pool(std::move(*FramePool::create(frames, 2048))),
        path(Accounts(std::move(*Mapping::anonymous(3 * blocks * sizeof(account))), 1, 3, blocks)) {
    path.stack = &stack;
    std::vector<Runner::RxQueue> polled;
    for (u16 slot = 0; slot < ports; ++slot) {
      path.ports.push_back({.name = "", .port = std::make_unique<FakePort>(queues), .pipeline = nullptr, .egress = {}, .block = slot});
      for (u32 i = 0; i < queues; ++i) polled.push_back({PortSlot{slot}, &queue(slot, i)});
    }
    runner.emplace(path, *pool, number, path.accounts.worker_row(number), std::move(polled));
  }
  ~Mill() {
    expect_conserved();
    expect_every_frame_once();
  }

  // Obeying stages, for all ports. `first`: the number of the first one in the instance.
  void serve(u32 stages, u32 first = 0) {
    Pipeline& pipeline = *path.pipelines.emplace_back(std::make_unique<Pipeline>());
    for (u32 i = 0; i < stages; ++i) pipeline.stages.push_back({"", nullptr, std::make_unique<Obeying>(i), first + i, first_stage + i});
    for (PortEntry& port : path.ports) port.pipeline = &pipeline;
  }
  void sign_at(u16 port) { path.ports[port].egress.append({&signing, nullptr, nullptr, 0, nullptr, first_egress + port}); }
  // False: there is no free frame.
  bool arrive(u16 port, std::string_view text, u32 stage = 0) {
    u64 chunk = 0;
    if (runner->cache().take(&chunk, 1) != 1) return false;
    u8* data = pool->base() + chunk + 256;
    std::ranges::copy(text, data);
    queue(port).deliver({.data = data, .length = static_cast<u32>(text.size()), .port = PortSlot{port}, .stage = static_cast<u8>(stage)});
    return true;
  }
  FakeQueue& queue(u16 port, u32 index = 0) { return static_cast<FakeQueue&>(path.ports[port].port->queue(index)); }
  Texts& sent(u16 port) { return queue(port).sent; }
  [[nodiscard]] account of(u32 block) const { return path.accounts.user(block); }
  [[nodiscard]] u64 dropped(u32 port, weir_drop reason) const { return of(port).drop[reason]; }

  void expect_conserved() {
    u64 frames = pool->free() + runner->free() + runner->held(), in = 0, copies = 0, tx = 0, transmitted = 0, stacked = 0, drops = 0;
    EXPECT_EQ(runner->held(), 0u);
    for (u16 slot = 0; slot < path.ports.size(); ++slot) {
      const account port = of(slot);
      in += port.frames, copies += port.counter[WEIR_PORT_COPIES], tx += port.tx, stacked += port.verdict[WEIR_TO_STACK];
      for (FakeQueue& each : static_cast<FakePort&>(*path.ports[slot].port).all) frames += each.held(), transmitted += each.transmitted;
      u64 fates = 0;
      for (u32 verdict : {WEIR_REDIRECT, WEIR_FLOOD, WEIR_TO_STACK, WEIR_DROP}) fates += port.verdict[verdict];
      EXPECT_EQ(port.frames, fates) << "port " << slot << ": what came in, and what became of it";
    }
    for (u32 block = 0; block < blocks; ++block)
      for (u64 reason : of(block).drop) drops += reason;
    EXPECT_EQ(frames, pool->count()) << "free, in rings and in bursts";
    EXPECT_EQ(in + copies, tx + stacked + drops) << "came in, and went";
    EXPECT_EQ(tx, transmitted);
    EXPECT_EQ(stacked, stack.taken.size());
  }

  // A frame with two owners would hide one that is lost from the sums.
  void expect_every_frame_once() {
    FrameCache& cache = runner->cache();
    for (PortEntry& port : path.ports)
      for (FakeQueue& each : static_cast<FakePort&>(*port.port).all) {
        each.stuck = false;
        each.reclaim(cache);
        for (Burst burst; each.receive(burst, cache) > 0; burst.clear())
          for (const Frame& frame : burst) cache.release(frame);
      }
    std::set<u64> all;
    for (u64 frame = 0; cache.take(&frame, 1) == 1;) all.insert(frame);
    EXPECT_EQ(all.size(), pool->count());
    for (u64 frame : all) cache.release(frame);
  }

  std::unique_ptr<FramePool> pool;
  FakeStack stack;
  DataPath path;
  std::optional<Runner> runner;
};

TEST(Runner, carries_out_each_verdict) {
  Mill mill(4);
  mill.serve(1);
  mill.path.groups = {{PortSlot{2}, PortSlot{3}}};
  for (const char* text : {"r1 a", "f0 b", "s. c", "d3 d", "-. e", "r1 f"}) mill.arrive(0, text);
  EXPECT_EQ(mill.runner->poll(), 6u);
  EXPECT_EQ(mill.sent(1), (Texts{"r1 a", "r1 f"}));
  EXPECT_EQ(mill.sent(2), Texts{"f0 b"});
  EXPECT_EQ(mill.sent(3), Texts{"f0 b"});
  EXPECT_EQ(mill.stack.taken, (Texts{"0 s. c", "0 -. e"}));
  const account port = mill.of(0), stage = mill.of(Mill::first_stage);
  const u64 by_stage[] = {1, 2, 1, 0, 1, 1}, by_port[] = {0, 2, 1, 0, 2, 1};
  for (u32 verdict = 0; verdict < WEIR_VERDICTS; ++verdict) {
    EXPECT_EQ(stage.verdict[verdict], by_stage[verdict]) << verdict;
    EXPECT_EQ(port.verdict[verdict], by_port[verdict]) << verdict;
  }
  EXPECT_EQ(stage.drop[WEIR_DROP_OWN + 3], 1u);
  EXPECT_EQ(port.bytes, 24u);
  EXPECT_EQ(mill.of(1).tx_bytes, 8u);
}

TEST(Runner, gives_frames_without_a_verdict_to_the_host_stack) {
  Mill mill(2);
  mill.serve(2);
  mill.path.ports[1].pipeline = nullptr;
  mill.arrive(0, "-.-. a");
  mill.arrive(1, "r0 b");
  mill.runner->poll();
  EXPECT_EQ(mill.stack.taken, (Texts{"0 -.-. a", "1 r0 b"}));
  EXPECT_EQ(mill.of(Mill::first_stage).verdict[WEIR_NEXT] + mill.of(Mill::first_stage + 1).verdict[WEIR_NEXT], 2u);
}

TEST(Runner, counts_a_reason_that_no_plugin_can_name_as_unnamed) {
  Mill mill(1);
  mill.serve(1);
  mill.arrive(0, "dz a");
  mill.runner->poll();
  const account stage = mill.of(Mill::first_stage);
  EXPECT_EQ(stage.drop[WEIR_DROP_UNNAMED], 1u);
  EXPECT_EQ(stage.verdict[WEIR_DROP], 1u);
}

TEST(Runner, drops_by_name_what_the_host_stack_does_not_take) {
  Mill mill(1);
  mill.stack.full = true;
  mill.arrive(0, "a");
  mill.runner->poll();
  mill.path.stack = nullptr;
  mill.arrive(0, "b");
  mill.runner->poll();
  EXPECT_EQ(mill.dropped(0, WEIR_DROP_STACK_FULL), 1u);
  EXPECT_EQ(mill.dropped(0, WEIR_DROP_STACK_FAILED), 1u);
}

TEST(Runner, floods_by_copies_and_never_to_where_a_frame_came_from) {
  Mill mill(3);
  mill.serve(1);
  mill.path.groups = {{PortSlot{0}, PortSlot{1}, PortSlot{2}}};
  mill.sign_at(0);
  mill.sign_at(2);
  mill.arrive(1, "f0");
  mill.runner->poll();
  EXPECT_EQ(mill.sent(1), Texts{});
  for (u16 port : {0, 2}) EXPECT_EQ(mill.sent(port), Texts{"g0+"}) << "what egress programs do to one copy does not show in another";
  EXPECT_EQ(mill.of(1).counter[WEIR_PORT_COPIES], 1u);
}

TEST(Runner, drops_by_name_what_has_no_target) {
  Mill mill(2);
  mill.serve(1);
  mill.path.groups = {{PortSlot{0}}, {}};
  for (const char* text : {"f0", "f1", "f2", "r2", "r1"}) mill.arrive(0, text);
  mill.runner->poll();
  EXPECT_EQ(mill.dropped(0, WEIR_DROP_NO_ENTRY), 3u) << "a group without another member, a group without any, a port that is not there";
  EXPECT_EQ(mill.dropped(0, WEIR_DROP_NO_GROUP), 1u);
  EXPECT_EQ(mill.sent(1), Texts{"r1"});
}

TEST(Runner, floods_as_far_as_there_are_free_frames) {
  Mill mill(4, 2);
  mill.serve(1);
  mill.path.groups = {{PortSlot{1}, PortSlot{2}, PortSlot{3}}};
  mill.arrive(0, "f0");
  mill.runner->poll();
  EXPECT_EQ(mill.sent(1).size() + mill.sent(2).size() + mill.sent(3).size(), 2u);
  EXPECT_EQ(mill.dropped(1, WEIR_DROP_NO_FRAME) + mill.dropped(2, WEIR_DROP_NO_FRAME) + mill.dropped(3, WEIR_DROP_NO_FRAME), 1u);
}

TEST(Runner, drops_what_a_port_cannot_send_by_the_reason_why) {
  Mill mill(4);
  mill.serve(1);
  mill.queue(1).room = 3, mill.queue(1).stuck = true;
  mill.path.ports[2].longest = 4;
  mill.path.ports[3].longest = 0;
  for (const char* text : {"r1 a", "r1 b", "r1 c", "r1 d", "r1 e", "r2 a", "r2 bc", "r3 a"}) mill.arrive(0, text);
  mill.runner->poll();
  EXPECT_EQ(mill.sent(1), (Texts{"r1 a", "r1 b", "r1 c"}));
  EXPECT_EQ(mill.of(1).tx_bytes, 12u);
  EXPECT_EQ(mill.dropped(1, WEIR_DROP_RING_FULL), 2u);
  EXPECT_EQ(mill.sent(2), Texts{"r2 a"});
  EXPECT_EQ(mill.dropped(2, WEIR_DROP_TOO_LONG), 1u);
  EXPECT_EQ(mill.dropped(3, WEIR_DROP_DEVICE_DOWN), 1u);
  EXPECT_TRUE(mill.runner->unsent()) << "the ring waits for another kick";
  mill.queue(1).stuck = false;
  mill.runner->poll();
  EXPECT_FALSE(mill.runner->unsent());
}

TEST(Runner, waits_for_a_ring_that_empties) {
  Mill mill(2);
  mill.serve(1);
  mill.queue(1).room = 2;
  Texts all;
  for (char letter = 'a'; letter < 'k'; ++letter) mill.arrive(0, all.emplace_back(std::string("r1") + letter));
  mill.runner->poll();
  EXPECT_EQ(mill.sent(1), all);
}

TEST(Runner, runs_the_egress_chain_before_a_port_takes_a_frame) {
  Mill mill(3);
  mill.serve(1);
  mill.sign_at(1);
  mill.path.ports[1].longest = 5;
  for (const char* text : {"r1 a", "r2 x", "r1 x", "r1 bc"}) mill.arrive(0, text);
  mill.runner->poll();
  EXPECT_EQ(mill.sent(1), Texts{"s1 a+"});
  EXPECT_EQ(mill.sent(2), Texts{"r2 x"});
  EXPECT_EQ(mill.of(Mill::first_egress + 1).drop[WEIR_DROP_OWN + 4], 1u);
  EXPECT_EQ(mill.dropped(1, WEIR_DROP_TOO_LONG), 1u) << "the length counts behind the programs";
  EXPECT_EQ(mill.of(1).tx_bytes, 5u);
}

TEST(Runner, starts_a_frame_at_the_stage_that_punted_it) {
  Mill mill(4);
  mill.serve(3, 7);
  mill.arrive(0, "r1r2r3", 8);
  mill.arrive(0, "r1r2r3", 9);
  mill.arrive(0, "r1-.-.", 9);
  for (u32 elsewhere : {7u, 0u, 6u, 10u, 255u}) mill.arrive(0, "r1r2r3", elsewhere);
  mill.runner->poll();
  EXPECT_EQ(mill.sent(2), Texts{"r1r2r3"});
  EXPECT_EQ(mill.sent(3), Texts{"r1r2r3"});
  EXPECT_EQ(mill.stack.taken, Texts{"0 r1-.-."});
  EXPECT_EQ(mill.sent(1).size(), 5u) << "a number of another pipeline starts at the front";
  EXPECT_EQ(mill.of(Mill::first_stage).verdict[WEIR_REDIRECT], 5u);
}

TEST(Runner, keeps_the_order_of_frames_that_start_at_different_stages) {
  Mill mill(2);
  mill.serve(3);
  std::mt19937 dice(1);
  Texts all;
  for (u32 i = 0; i < 300; ++i) mill.arrive(0, all.emplace_back(fmt::format("r1r1r1 {}", i)), dice() % 3);
  while (mill.runner->poll() > 0) continue;
  EXPECT_EQ(mill.sent(1), all);
}

TEST(Runner, sends_more_than_a_burst_to_one_port_in_order) {
  Mill mill(4);
  mill.serve(1);
  Texts all;
  for (u16 port : {0, 1, 2})
    for (u32 i = 0; i < Burst::capacity; ++i) mill.arrive(port, all.emplace_back(fmt::format("r3 {} {}", port, i)));
  EXPECT_EQ(mill.runner->poll(), 3 * Burst::capacity);
  EXPECT_EQ(mill.sent(3), all);
}

TEST(Runner, sends_by_its_own_queue_of_a_port) {
  Mill mill(2, 512, 3, 1);
  mill.serve(1);
  mill.arrive(0, "r1");
  mill.runner->poll();
  EXPECT_EQ(mill.queue(1, 1).sent, Texts{"r1"});
}

// Anything at all, over and over: orders for stages, ports and groups that may not be there, and ports that go and come back.
class Storm {
 public:
  explicit Storm(std::mt19937& dice) : dice_(dice), ports_(2 + below(4)), mill_(ports_, 40 + below(500)) {
    mill_.serve(below(4), below(3));
    for (u32 group = below(4); group > 0; --group) {
      std::vector<PortSlot>& members = mill_.path.groups.emplace_back();
      for (u16 port = 0; port < ports_; ++port)
        if (below(3) > 0) members.push_back(PortSlot{port});
    }
    for (u16 port = 0; port < ports_; ++port)
      if (below(3) == 0) mill_.sign_at(port);
  }
  void blow() {
    const u16 port = static_cast<u16>(below(ports_));
    mill_.queue(port).room = below(3) > 0 ? 4096 : below(100);
    mill_.queue(port).stuck = below(4) == 0;
    mill_.path.ports[port].longest = below(3) > 0 ? 2048 : below(30);
    mill_.stack.full = below(5) == 0;
    for (u16 to = 0; to < ports_; ++to)
      for (u32 number = below(100); number > 0; --number) mill_.arrive(to, order(), below(5));
    mill_.runner->poll();
  }
  Mill& mill() { return mill_; }

 private:
  u32 below(u32 limit) { return static_cast<u32>(dice_() % limit); }
  std::string order() {
    std::string text;
    for (u32 words = below(5); words > 0; --words) text += {"--rrrffsdd"[below(10)], static_cast<char>('0' + below(7))};
    return text + std::string(1 + below(20), "x."[below(2)]);
  }
  std::mt19937& dice_;
  u32 ports_;
  Mill mill_;
};

TEST(Runner, loses_no_frame_whatever_stages_and_ports_do) {
  const u32 seed = test_seed();
  SCOPED_TRACE(fmt::format("WEIR_TEST_SEED={}", seed));
  std::mt19937 dice(seed);
  account seen{};
  for (u32 round = 0; round < 40; ++round) {
    Storm storm(dice);
    for (u32 i = 0; i < 60; ++i) {
      storm.blow();
      storm.mill().expect_conserved();
      ASSERT_FALSE(testing::Test::HasFailure()) << "round " << round << ", poll " << i;
    }
    for (u32 block = 0; block < Mill::blocks; ++block)
      for (u32 reason = 0; reason < WEIR_DROPS; ++reason) seen.drop[reason] += storm.mill().of(block).drop[reason];
  }
  for (u32 reason : {WEIR_DROP_NO_ENTRY, WEIR_DROP_NO_GROUP, WEIR_DROP_RING_FULL, WEIR_DROP_NO_FRAME, WEIR_DROP_STACK_FULL,
                     WEIR_DROP_TOO_LONG, WEIR_DROP_DEVICE_DOWN, WEIR_DROP_OWN})
    EXPECT_GT(seen.drop[reason], 0u) << "the dice never reach reason " << reason;
}

}  // namespace
}  // namespace weir
