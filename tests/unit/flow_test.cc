// SPDX-License-Identifier: BSD-3-Clause
// flow_test: the flow cache: what user space puts in is what the kernel does, to the byte; what is of no flow goes the long way.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <net/if.h>
#include <sys/socket.h>
#include <time.h>

#include <bpf/bpf.h>
#include <atomic>
#include <cstring>
#include <map>
#include <set>
#include <thread>
#include <unordered_map>

#include "bpf/abi/link.h"
#include "core/kernel/accounts_map.hh"
#include "core/kernel/object.hh"
#include "core/pipeline/flow_table.hh"
#include "core/plugin.hh"
#include "kit/plugin_kit.hh"
#include "kit/traffic.hh"

#include "any_verdict.skel.h"

namespace weir {
namespace {

using namespace kit;
using testing::ElementsAre;

constexpr u32 places = 64, stage_block = WEIR_MAX_PORTS;
constexpr FlowTable::Owner owner{7, stage_block};
enum Reason { reason_of_test };

Frame frame_of(Packet& bytes, u16 port = 0) {
  return {.data = bytes.data(), .length = static_cast<u32>(bytes.size()), .port = PortSlot{port}};
}

FlowKey key_of(Packet bytes, u16 port = 0) { return flow_key_of(frame_of(bytes, port)); }

FrameBuilder ipv4(u8 ttl = 64, u32 to = 2) { return FrameBuilder().ethernet(station(1), station(to)).ipv4("10.0.0.1", "10.0.0.2", ttl); }
FrameBuilder ipv6(u8 limit = 64, u32 to = 2) { return FrameBuilder().ethernet(station(1), station(to)).ipv6("fd00::1", "fd00::2", limit); }
FlowAction::Address address(const char* text) {
  FlowAction::Address made{};
  if (::inet_pton(std::strchr(text, ':') != nullptr ? AF_INET6 : AF_INET, text, made.data()) != 1)
    broken("a test names an IP address that is none");
  return made;
}

TEST(FlowKey, finds_its_flow_in_a_table_and_no_other) {
  std::unordered_map<FlowKey, int> table;
  std::vector<FlowKey> keys;
  for (u16 port = 0; port < 2; ++port)
    for (u16 from = 1; from <= 500; ++from) {
      keys.push_back(key_of(ipv4().udp(from, 2).build(), port));
      keys.push_back(key_of(ipv6().udp(from, 2).build(), port));
    }
  for (std::size_t i = 0; i < keys.size(); ++i) table[keys[i]] = static_cast<int>(i);
  ASSERT_EQ(table.size(), keys.size());
  std::set<u64> hashes;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    FlowKey other = keys[i];
    other.epoch = 7, other.of.ttl = 1, other.of.tcp_flags = 16;  // of the frame, not of its flow
    EXPECT_EQ(table.at(other), static_cast<int>(i));
    EXPECT_EQ(other.hash(), keys[i].hash());
    hashes.insert(keys[i].hash());
  }
  EXPECT_EQ(hashes.size(), keys.size());
}

// The table over memory of its own.
class FlowTables : public testing::Test {
 protected:
  std::vector<flow4> ipv4_ = std::vector<flow4>(places);
  std::vector<flow6> ipv6_ = std::vector<flow6>(places);
  std::vector<flow_rewrite> rewrites_ = std::vector<flow_rewrite>(places);
  FlowTable table_{{ipv4_, ipv6_, rewrites_}, 0x1234567890abcdefull};
  std::vector<EndedFlow> ended_;
  bool put(const FlowKey& key, FlowTimes times = {}, u64 cookie = 0) {
    return table_.put(owner, {key, FlowAction::transmit(PortSlot{1}), times, cookie});
  }
  // And the seconds before it, as far as they matter.
  void tick(u32 now_s) {
    for (u32 second = std::max(last_ + 1, now_s - 3); second <= now_s; ++second)
      table_.tick(second, [&](FlowTable::Owner of, const EndedFlow& flow) {
        EXPECT_EQ(of.stage, owner.stage);
        ended_.push_back(flow);
      });
    last_ = now_s;
  }
  u32 last_ = 0;
  flow4& only() {
    const auto at = std::ranges::find_if(ipv4_, [](const flow4& flow) { return flow.word != 0; });
    if (at == ipv4_.end()) broken("a test looks for a flow and there is none");
    return *at;
  }
};

TEST_F(FlowTables, an_idle_flow_ends_and_its_counters_come_back) {
  tick(100);
  const FlowKey key = key_of(ipv4().udp(1, 2).build());
  ASSERT_TRUE(put(key, {.idle_s = 10}, 42));
  only().tail.frames = 3, only().tail.bytes = 180, only().tail.other_frames = 2, only().tail.other_bytes = 120, only().tail.seen_s = 105;
  tick(114);
  EXPECT_EQ(table_.counts().count, 1u);
  EXPECT_EQ(table_.idle_s(key), 9u);
  tick(115);
  EXPECT_EQ(table_.counts().count, 0u);
  EXPECT_EQ(table_.idle_s(key), std::nullopt);
  only().tail.frames++;  // a program that had found it before
  EXPECT_TRUE(ended_.empty());
  tick(116);
  tick(117);
  ASSERT_EQ(ended_.size(), 1u);
  EXPECT_EQ(ended_[0].why, FlowEnd::idle);
  EXPECT_EQ(ended_[0].cookie, 42u);
  EXPECT_EQ(ended_[0].frames, 6u);
  EXPECT_EQ(ended_[0].bytes, 300u);
  EXPECT_TRUE(ended_[0].key.same(key));
  EXPECT_EQ(table_.counts().expired, 1u);
}

TEST_F(FlowTables, a_stage_in_front_takes_flows_of_others_back_and_what_it_decided_before_is_refused) {
  tick(100);
  AllFlows all;
  EXPECT_FALSE(all.any());
  EXPECT_EQ(all.idle_s(key_of(ipv4().udp(1, 2).build())), std::nullopt);
  all.connect(table_);
  const auto frame_of = [](Packet& bytes) {
    return Frame{.data = bytes.data(), .length = static_cast<u32>(bytes.size()), .port = PortSlot{0}};
  };
  Packet one = ipv4().udp(1, 2).build(), other = ipv4().udp(1, 3).build();
  ASSERT_TRUE(put(key_of(one)));
  ASSERT_TRUE(put(key_of(other)));
  EXPECT_EQ(all.idle_s(key_of(one)), 0u);
  Frame before = frame_of(one), fresh = frame_of(one), kept = frame_of(one);
  Burst::keep(kept);
  all.decide_now(before);
  all.decide_now(kept);
  EXPECT_EQ(kept.kept, 1) << "it stays one that nobody is to offload";
  all.take_back([](const FlowKey& key) { return key.destination_port() == 2; });
  EXPECT_EQ(all.idle_s(key_of(one)), std::nullopt);
  EXPECT_EQ(all.idle_s(key_of(other)), 0u);
  EXPECT_FALSE(table_.key_of(before));
  all.decide_now(fresh);
  EXPECT_TRUE(table_.key_of(fresh));
}

TEST_F(FlowTables, a_flow_ends_at_its_hard_limit_however_busy_it_is) {
  tick(100);
  ASSERT_TRUE(put(key_of(ipv4().udp(1, 2).build()), {.idle_s = 10, .hard_s = 30}));
  for (u32 now = 101; now < 130; ++now) only().tail.seen_s = now, tick(now);
  EXPECT_EQ(table_.counts().count, 1u);
  tick(130);
  EXPECT_EQ(table_.counts().count, 0u);
  tick(132);
  ASSERT_EQ(ended_.size(), 1u);
  EXPECT_EQ(ended_[0].why, FlowEnd::hard);
}

TEST_F(FlowTables, a_flow_that_tcp_has_ended_is_told_and_not_taken_up_before) {
  tick(100);
  const FlowKey key = key_of(ipv4().tcp(1, 2).build());
  ASSERT_TRUE(put(key));
  only().tail.owner = FLOW_ENDED | 1;
  EXPECT_FALSE(put(key));
  tick(101);
  EXPECT_EQ(table_.counts().ended, 1u);
  EXPECT_TRUE(put(key)) << "at another of its places";
  tick(103);
  ASSERT_EQ(ended_.size(), 1u);
  EXPECT_EQ(ended_[0].why, FlowEnd::tcp);
  EXPECT_EQ(table_.counts().count, 1u);
}

TEST_F(FlowTables, a_flow_that_is_there_gets_the_new_action) {
  tick(100);
  const FlowKey key = key_of(ipv4().udp(1, 2).build());
  ASSERT_TRUE(put(key));
  ASSERT_TRUE(table_.put(owner, {key, FlowAction::drop(reason_of_test), {}, 0}));
  EXPECT_EQ(only().tail.act.fate, FLOW_DROP);
  EXPECT_EQ(table_.counts().count, 1u);
  EXPECT_EQ(table_.counts().updated, 1u);
}

TEST_F(FlowTables, what_was_decided_before_flows_were_taken_back_is_refused) {
  Packet bytes = ipv4().udp(1, 2).build(), other = ipv4().udp(1, 3).build();
  tick(100);
  const FlowKey before = table_.key_of(frame_of(bytes)), late = table_.key_of(frame_of(other));
  ASSERT_TRUE(put(before));
  EXPECT_EQ(table_.take_back([](const FlowTable::Seen& flow) { return flow.key.destination_port() == 2; }, FlowEnd::taken_back), 1u);
  EXPECT_EQ(only().word & FLOW_USED, 0u);
  EXPECT_FALSE(put(late));
  EXPECT_TRUE(put(table_.key_of(frame_of(other))));
  EXPECT_EQ(table_.counts().refused, 1u);
  EXPECT_EQ(table_.counts().taken_back, 1u);
}

TEST_F(FlowTables, a_full_table_evicts_what_was_seen_longest_ago_and_counts) {
  tick(100);
  u32 kept = 0;
  for (u16 port = 1; port < 1000; ++port) kept += put(key_of(ipv4().udp(port, 2).build()));
  const FlowTable::Counts now = table_.counts();
  EXPECT_EQ(now.added, kept);
  EXPECT_EQ(now.count, kept);
  EXPECT_EQ(kept, places);
  EXPECT_EQ(now.refused, 999 - kept);
  EXPECT_EQ(now.evicted, 0u) << "those that are in use stay";
  tick(102);
  for (u16 port = 1000; port < 2000; ++port) EXPECT_FALSE(put(key_of(ipv4().udp(port, 2).build())));
  EXPECT_EQ(table_.counts().evicted, places);
  EXPECT_EQ(table_.counts().count, 0u);
  EXPECT_TRUE(ended_.empty());
  tick(104);
  EXPECT_EQ(ended_.size(), places);
  EXPECT_FALSE(std::ranges::any_of(ended_, [](const EndedFlow& flow) { return flow.why != FlowEnd::evicted; }));
  EXPECT_TRUE(put(key_of(ipv4().udp(2000, 2).build()))) << "their places are free again";
}

TEST_F(FlowTables, kernel_halves_stop_to_ask_while_a_full_table_refuses) {
  port_entries entries{};
  u64& open = entries.open;
  FlowTable table({ipv4_, ipv6_, rewrites_, &entries}, 1);
  const auto tick_it = [&](u32 now_s) { table.tick(now_s, [](FlowTable::Owner, const EndedFlow&) {}); };
  tick_it(100);
  EXPECT_EQ(open, 1u);
  u16 port = 1;
  for (; open == 1 && port < 5000; ++port)
    table.put(owner, {key_of(ipv4().udp(port, 2).build()), FlowAction::transmit(PortSlot{1}), {}, 0});
  EXPECT_EQ(open, 0u);
  EXPECT_GT(table.counts().refused, 1000u);
  tick_it(101);
  EXPECT_EQ(open, 1u) << "for another try";
}

TEST_F(FlowTables, what_was_lost_on_its_way_is_given_up_when_no_other_comes) {
  port_entries entries{};
  FlowTable table({ipv4_, ipv6_, rewrites_, &entries}, 1);
  const auto tick_it = [&](u32 now_s) { table.tick(now_s, [](FlowTable::Owner, const EndedFlow&) {}); };
  const auto handle = [&](u16 port) { table.put(owner, {key_of(ipv4().udp(port, 2).build()), FlowAction::transmit(PortSlot{1}), {}, 0}); };
  entries.wanted = 10;
  handle(1);
  tick_it(100);
  EXPECT_EQ(entries.handled, 1u) << "others may come";
  handle(2);
  tick_it(101);
  EXPECT_EQ(entries.handled, 2u);
  tick_it(102);
  EXPECT_EQ(entries.handled, 10u);
}

// A decision that was looked up before flows were taken back is never in the table behind it, however the two fall together.
TEST_F(FlowTables, no_flow_of_an_old_decision_outlives_the_taking_back) {
  Packet bytes = ipv4().udp(1, 2).build();
  const Frame frame = frame_of(bytes);
  std::atomic<u64> way = 0;
  std::atomic<bool> stop = false;
  std::thread worker([&] {
    while (!stop) {
      const FlowKey key = table_.key_of(frame);
      const u64 decided = way.load();
      if (key) table_.put(owner, {key, FlowAction::transmit(PortSlot{1}), {}, decided});
    }
  });
  u64 wrong = 0;
  for (u64 turn = 1; turn <= 20000; ++turn) {
    way = turn;
    table_.take_back([&](const FlowTable::Seen& flow) { return flow.cookie != turn; }, FlowEnd::taken_back);
    table_.visit([&](const FlowTable::Seen& flow) { return wrong += flow.cookie != turn, true; });
    if (turn % 4 == 0) table_.tick(static_cast<u32>(turn), [](FlowTable::Owner, const EndedFlow&) {});
  }
  stop = true;
  worker.join();
  EXPECT_EQ(wrong, 0u);
}

TEST_F(FlowTables, the_one_that_was_seen_longest_ago_goes) {
  // Flows whose hash has the same buckets: found by trying.
  const auto pair = [&](u16 port) {
    const FlowKey key = key_of(ipv4().udp(port, 2).build());
    const u64 hash = flow_hash(&key.of, key.of.word, 0x1234567890abcdefull);
    return std::pair(flow_place(hash, 0, places - 1) / FLOW_BUCKET, flow_place(hash, FLOW_BUCKET, places - 1) / FLOW_BUCKET);
  };
  std::map<std::pair<u32, u32>, std::vector<u16>> alike;
  std::vector<u16> nine;
  for (u16 port = 1; port < 60000 && nine.empty(); ++port) {
    auto& ports = alike[pair(port)];
    ports.push_back(port);
    if (ports.size() == FLOW_PLACES + 1 && pair(port).first != pair(port).second) nine = ports;
  }
  ASSERT_EQ(nine.size(), FLOW_PLACES + 1u);
  for (u32 i = 0; i < FLOW_PLACES; ++i) {
    table_.tick(100 + (i + FLOW_PLACES - 2) % FLOW_PLACES, [](FlowTable::Owner, const EndedFlow&) {});
    ASSERT_TRUE(put(key_of(ipv4().udp(nine[i], 2).build())));
  }
  tick(110);
  EXPECT_FALSE(put(key_of(ipv4().udp(nine[FLOW_PLACES], 2).build())));
  tick(112);
  ASSERT_EQ(ended_.size(), 1u);
  EXPECT_EQ(ended_[0].key.source_port(), nine[2]);
  EXPECT_TRUE(put(key_of(ipv4().udp(nine[FLOW_PLACES], 2).build())));
}

TEST_F(FlowTables, flows_of_both_versions_are_listed) {
  tick(100);
  ASSERT_TRUE(put(key_of(ipv4().udp(1, 2).build(), 3), {}, 4));
  ASSERT_TRUE(put(key_of(ipv6().udp(5, 6).build(), 7), {}, 8));
  std::vector<std::pair<u16, u64>> seen;
  table_.visit([&](const FlowTable::Seen& flow) {
    seen.emplace_back(flow.key.port().value, flow.cookie);
    return true;
  });
  EXPECT_THAT(seen, ElementsAre(std::pair(3, 4), std::pair(7, 8)));
}

TEST_F(FlowTables, what_cannot_be_done_with_a_frame_is_not_promised) {
  tick(100);
  const FlowKey untagged = key_of(ipv4().udp(1, 2).build()), gre = key_of(ipv4().protocol(47).payload("0123456789").build());
  const FlowKey tagged = key_of(FrameBuilder().ethernet(station(1), station(2)).vlan(5).ipv4("10.0.0.1", "10.0.0.2").udp(1, 2).build());
  ASSERT_TRUE(untagged && gre && tagged);
  const auto refused = [&](const FlowKey& key, FlowAction action) { return !table_.put(owner, {key, action, {}, 0}); };
  const FlowAction out = FlowAction::transmit(PortSlot{1});
  EXPECT_TRUE(refused(untagged, FlowAction(out).vlan(7)));
  EXPECT_TRUE(refused(untagged, FlowAction(out).pop()));
  EXPECT_TRUE(refused(tagged, FlowAction(out).push(7, 0)));
  EXPECT_TRUE(refused(tagged, FlowAction(out).pop().vlan(7)));
  EXPECT_TRUE(refused(gre, FlowAction(out).source(address("10.0.0.9"), 1)));
  EXPECT_TRUE(refused(untagged, FlowAction::transmit(PortSlot{64})));
  EXPECT_TRUE(refused(FlowKey{}, out));
  EXPECT_EQ(table_.counts().refused, 7u);
  EXPECT_EQ(table_.counts().added, 0u);
}

// Against a plain list of what is held how often.
TEST(FlowRewritesTest, those_that_are_alike_share_a_place) {
  const u32 seed = test_seed();
  SCOPED_TRACE(fmt::format("WEIR_TEST_SEED={}", seed));
  std::mt19937 dice(seed);
  std::vector<flow_rewrite> memory(places);
  FlowRewrites table(memory);
  std::map<u8, std::pair<u32, u32>> held;  // by what it is: number, holds
  const auto of = [](u8 kind) {
    flow_rewrite made;
    std::memset(&made, 0, sizeof made);
    made.dscp = kind;
    return made;
  };
  for (u32 turn = 0; turn < 200000; ++turn) {
    const u8 kind = static_cast<u8>(dice() % 100);
    if (turn % 64 == 0) table.age();
    if (dice() % 2 == 0) {
      const std::optional<u32> number = table.take(of(kind));
      if (const auto at = held.find(kind); at != held.end()) {
        ASSERT_EQ(number, at->second.first);
        ++at->second.second;
      } else if (number) {
        held[kind] = {*number, 1};
      }
      if (!number) continue;
      ASSERT_EQ(table.at(*number).dscp, kind);
    } else if (const auto at = held.find(kind); at != held.end()) {
      const u32 number = at->second.first;
      if (--at->second.second == 0) held.erase(at);
      table.release(number);
      ASSERT_EQ(table.at(number).dscp, kind) << "a program may be reading it";
    }
  }
}

// The kernel's side, over a stage that gives other frames a verdict of its own.
class KernelFlows : public testing::Test {
 protected:
  static constexpr u64 seed = 0x0f1e2d3c4b5a6978ull;
  void SetUp() override {
    if (const std::string why = no_kernel(); !why.empty()) GTEST_SKIP() << why;
    const Result<> done = load(0);
    ASSERT_TRUE(done) << done.error().what;
  }
  static u32 clock_s() {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<u32>(now.tv_sec);
  }
  Result<> load(u64 weak_order) {
    object_.emplace(TRY(BpfObject::open("flows", WEIR_KERNEL_HALF(any_verdict)())));
    const u32 blocks = WEIR_MAX_PORTS + 1;
    accounts_ = TRY(AccountsMap::create(possible_cpus(), blocks));
    memory_ = TRY(accounts_.map().map_memory());
    ports_ = TRY(BpfMap::create("ports", {BPF_MAP_TYPE_DEVMAP, 4, sizeof(bpf_devmap_val), WEIR_MAX_PORTS, 0}));
    entries_ = TRY(BpfMap::create("entries", {BPF_MAP_TYPE_ARRAY, 4, sizeof(port_entries), 1, 0}));
    flows4_ = TRY(BpfMap::create("flows4", {BPF_MAP_TYPE_ARRAY, 4, sizeof(flow4), places, BPF_F_MMAPABLE}));
    flows6_ = TRY(BpfMap::create("flows6", {BPF_MAP_TYPE_ARRAY, 4, sizeof(flow6), places, BPF_F_MMAPABLE}));
    rewrites_ = TRY(BpfMap::create("rewrites", {BPF_MAP_TYPE_ARRAY, 4, sizeof(flow_rewrite), places, BPF_F_MMAPABLE}));
    flows4_memory_ = TRY(flows4_.map_memory());
    flows6_memory_ = TRY(flows6_.map_memory());
    rewrites_memory_ = TRY(rewrites_.map_memory());
    table_ = std::make_unique<FlowTable>(FlowTable::Memory{std::span(reinterpret_cast<flow4*>(flows4_memory_.data()), places),
                                                           std::span(reinterpret_cast<flow6*>(flows6_memory_.data()), places),
                                                           std::span(reinterpret_cast<flow_rewrite*>(rewrites_memory_.data()), places)},
                                         seed);
    now_.present = 0xf, now_.now_s = 100;
    TRY_VOID(entries_.set(0, &now_));
    last_ = 0;
    tick(100);
    sockets_ = TRY(BpfMap::create("sockets", {BPF_MAP_TYPE_XSKMAP, 4, 4, 1, 0}));
    socket_ = Fd(::socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0));
    const int fd = socket_.get();
    TRY_VOID(sockets_.set(0, &fd));
    now_.now_s = clock_s();
    TRY_VOID(entries_.set(0, &now_));
    const bpf_devmap_val entry{.ifindex = ::if_nametoindex("lo"), .bpf_prog = {-1}};
    for (u32 port = 0; port < 4; ++port) TRY_VOID(ports_.set(port, &entry));
    for (const auto& [name, map] :
         {std::pair{"ports", &ports_}, {"flows4", &flows4_}, {"flows6", &flows6_}, {"rewrites", &rewrites_}, {"sockets", &sockets_}})
      TRY_VOID(object_->use(name, map->fd()));
    TRY_VOID(object_->use("accounts", accounts_.fd()));
    const stage_link stage{.block = stage_block, .go = WEIR_GO_STACK, .ports = WEIR_MAX_PORTS, .miss = XDP_DROP, .offloads = 1};
    const ingress_link port{.port = 2, .queues = 1, .flow_mask = places - 1, .flow_seed = seed, .blocks = blocks, .weak_order = weak_order};
    TRY_VOID(object_->link(program_link{accounts_.link(), stage, port}, {.accounts = accounts_.memory(), .entries = entries_.fd()}));
    program_ = object_->first_program() + "_entry";
    return object_->load(program_);
  }
  void tick(u32 now_s) {
    for (u32 second = std::max(last_ + 1, now_s - 3); second <= now_s; ++second)
      table_->tick(second, [&](FlowTable::Owner, const EndedFlow& flow) { ended_.push_back(flow); });
    last_ = now_s;
  }
  u32 last_ = 0;
  [[nodiscard]] const account& row(u32 block) const {
    // The program runs on this CPU or another: the sum is what counts.
    static account total;
    total = {};
    for (u32 cpu = 0; cpu < possible_cpus(); ++cpu) {
      const auto* words =
          reinterpret_cast<const u64*>(&reinterpret_cast<const account*>(memory_.data())[cpu * (WEIR_MAX_PORTS + 1) + block]);
      for (std::size_t i = 0; i < sizeof total / sizeof(u64); ++i) reinterpret_cast<u64*>(&total)[i] += words[i];
    }
    return total;
  }
  struct Ran {
    bool hit;
    u32 action;
    Packet out;
  };
  Ran run(const Packet& bytes) {
    const u64 before = table_->hits();
    Ran ran{false, 0, Packet(bytes.size() + 64)};
    LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = bytes.data(), .data_out = ran.out.data(),
                .data_size_in = static_cast<u32>(bytes.size()), .data_size_out = static_cast<u32>(ran.out.size()));
    const int err = ::bpf_prog_test_run_opts(object_->program_fd(program_), &options);
    EXPECT_EQ(err, 0) << std::strerror(-err);
    ran.out.resize(options.data_size_out);
    ran.action = options.retval;
    ran.hit = table_->hits() != before;
    return ran;
  }
  bool put(Packet bytes, const FlowAction& action, FlowTimes times = {}) {
    return table_->put(owner, {table_->key_of(frame_of(bytes, 2)), action, times, 0});
  }

  Fd socket_;
  std::optional<BpfObject> object_;
  AccountsMap accounts_;
  BpfMap sockets_, ports_, entries_, flows4_, flows6_, rewrites_;
  Mapping memory_, flows4_memory_, flows6_memory_, rewrites_memory_;
  std::unique_ptr<FlowTable> table_;
  port_entries now_{};
  std::string program_;
  std::vector<EndedFlow> ended_;
};

TEST_F(KernelFlows, counts_what_it_redirects_at_the_port_the_stage_and_the_flow) {
  for (const Packet& bytes : {ipv4().udp(1, 2).build(), ipv6().tcp(3, 4).build()}) {
    EXPECT_FALSE(run(bytes).hit);
    ASSERT_TRUE(put(bytes, FlowAction::transmit(PortSlot{1})));
    const account port = row(2), stage = row(stage_block), out = row(1);
    for (int times = 0; times < 3; ++times) {
      const Ran ran = run(bytes);
      EXPECT_TRUE(ran.hit);
      EXPECT_EQ(ran.action, u32{XDP_REDIRECT});
      EXPECT_EQ(ran.out, bytes);
    }
    EXPECT_EQ(row(2).verdict[WEIR_REDIRECT], port.verdict[WEIR_REDIRECT] + 3);
    EXPECT_EQ(row(stage_block).verdict[WEIR_REDIRECT], stage.verdict[WEIR_REDIRECT] + 3);
    EXPECT_EQ(row(1).counter[WEIR_PORT_QUEUED], out.counter[WEIR_PORT_QUEUED] + 3);
    table_->visit([&](const FlowTable::Seen& flow) {
      if (!flow.key.same(key_of(bytes, 2))) return true;
      EXPECT_EQ(flow.frames, 3u);
      EXPECT_EQ(flow.bytes, 3 * bytes.size());
      return true;
    });
  }
}

TEST_F(KernelFlows, tells_a_stage_what_its_user_half_could_offload) {
  constexpr Mac asks{WEIR_VERDICTS + 1};
  const auto v4 = [&] { return FrameBuilder().ethernet(station(1), asks).ipv4("10.0.0.1", "10.0.0.2"); };
  const Packet first = v4().udp(1, 2).build(), opens = v4().tcp(1, 2, 2).build(), ends = v4().tcp(1, 2, 1).build(),
               of_none = v4().icmp(3, 4).build();
  const auto wanted = [&](const Packet& bytes) {
    const account before = row(stage_block);
    EXPECT_FALSE(run(bytes).hit);
    const account now = row(stage_block);
    EXPECT_EQ(now.verdict[WEIR_DROP], before.verdict[WEIR_DROP] + 1);
    return now.drop[WEIR_DROP_OWN] != before.drop[WEIR_DROP_OWN];
  };
  EXPECT_FALSE(wanted(first)) << "the cache is full";
  now_.open = 1;
  ASSERT_TRUE(entries_.set(0, &now_));
  EXPECT_TRUE(wanted(first));
  EXPECT_TRUE(wanted(opens));
  EXPECT_FALSE(wanted(ends));
  EXPECT_FALSE(wanted(of_none));
  now_.wanted = 1000, now_.handled = 1000 - WEIR_MOST_WANTED;
  ASSERT_TRUE(entries_.set(0, &now_));
  EXPECT_FALSE(wanted(first)) << "user space does not keep up";
  now_.handled++;
  ASSERT_TRUE(entries_.set(0, &now_));
  EXPECT_TRUE(wanted(first));
  EXPECT_FALSE(wanted(first));
  now_.handled = now_.wanted;
  now_.now_s = clock_s() - 4;
  ASSERT_TRUE(entries_.set(0, &now_));
  EXPECT_FALSE(wanted(first)) << "the process stands still";
  now_.now_s = clock_s();
  ASSERT_TRUE(entries_.set(0, &now_));
  EXPECT_TRUE(wanted(first));
  sockets_.remove(0);
  EXPECT_FALSE(wanted(first)) << "it has died";
  const int fd = socket_.get();
  ASSERT_TRUE(sockets_.set(0, &fd));
  ASSERT_TRUE(put(v4().tcp(1, 2).build(), FlowAction::transmit(PortSlot{1})));
  EXPECT_TRUE(wanted(opens)) << "it begins anew";
  EXPECT_FALSE(run(ends).hit) << "the stages see the end";
  EXPECT_FALSE(wanted(v4().tcp(1, 2).build())) << "until its stage is told that it has ended";
}

TEST_F(KernelFlows, gives_frames_the_fates_that_there_are) {
  const Packet bytes = ipv4().udp(1, 2).build();
  ASSERT_TRUE(put(bytes, FlowAction::drop(reason_of_test)));
  EXPECT_EQ(run(bytes).action, u32{XDP_DROP});
  EXPECT_EQ(row(stage_block).drop[WEIR_DROP_OWN], 1u);
  ASSERT_TRUE(put(bytes, FlowAction::to_stack()));
  EXPECT_EQ(run(bytes).action, u32{XDP_PASS});
  EXPECT_EQ(row(stage_block).verdict[WEIR_TO_STACK], 1u);
}

// The frame as a builder makes it anew: its checksums owe nothing to the code under test.
TEST_F(KernelFlows, changes_frames_as_if_they_were_built_so) {
  struct Changed {
    const char* claim;
    Packet in;
    FlowAction action;
    Packet out;
  };
  const auto v4 = [](const char* from, const char* to, u8 ttl = 64) {
    return FrameBuilder().ethernet(station(1), station(2)).ipv4(from, to, ttl);
  };
  const auto v6 = [](const char* from, const char* to) { return FrameBuilder().ethernet(station(1), station(2)).ipv6(from, to); };
  const auto tagged = [](u16 vid, u8 pcp) {
    return FrameBuilder().ethernet(station(1), station(2)).vlan(vid, pcp).ipv4("10.0.0.1", "10.0.0.2").udp(1, 2).payload("abc").build();
  };
  const auto out = [] { return FlowAction::transmit(PortSlot{1}); };
  Packet no_checksum = ipv4().udp(1, 2).payload("abcd").build(),
         no_checksum_out = v4("192.0.2.1", "10.0.0.2").udp(7, 2).payload("abcd").build();
  for (Packet* each : {&no_checksum, &no_checksum_out}) (*each)[40] = (*each)[41] = 0;
  const Changed all[] = {
      {"addresses of Ethernet", ipv4().udp(1, 2).build(), out().addresses(station(4), station(3)),
       FrameBuilder().ethernet(station(3), station(4)).ipv4("10.0.0.1", "10.0.0.2").udp(1, 2).build()},
      {"TTL", ipv4(64).udp(1, 2).build(), out().ttl(), ipv4(63).udp(1, 2).build()},
      {"the last TTL but one", ipv4(2).udp(1, 2).build(), out().ttl(), ipv4(1).udp(1, 2).build()},
      {"hop limit", ipv6(64).tcp(1, 2).build(), out().ttl(), ipv6(63).tcp(1, 2).build()},
      {"DSCP of IPv4, ECN kept", ipv4().traffic_class(3).udp(1, 2).build(), out().dscp(46),
       ipv4().traffic_class(46 << 2 | 3).udp(1, 2).build()},
      {"DSCP of IPv6", ipv6().traffic_class(0xfd).udp(1, 2).build(), out().dscp(8), ipv6().traffic_class(8 << 2 | 1).udp(1, 2).build()},
      {"DSCP and TTL", ipv4(9).udp(1, 2).build(), out().dscp(1).ttl(), ipv4(8).traffic_class(4).udp(1, 2).build()},
      {"VLAN", tagged(5, 3), out().vlan(99), tagged(99, 3)},
      {"a tag more", ipv4().udp(1, 2).payload("abc").build(), out().push(100, 5), tagged(100, 5)},
      {"a tag less", tagged(5, 3), out().pop(), ipv4().udp(1, 2).payload("abc").build()},
      {"a tag more and addresses", ipv4().udp(1, 2).payload("abc").build(), out().push(100, 5).addresses(station(4), station(3)),
       FrameBuilder().ethernet(station(3), station(4)).vlan(100, 5).ipv4("10.0.0.1", "10.0.0.2").udp(1, 2).payload("abc").build()},
      {"source of UDP", ipv4().udp(1, 2).payload("abc").build(), out().source(address("192.0.2.1"), 7),
       v4("192.0.2.1", "10.0.0.2").udp(7, 2).payload("abc").build()},
      {"destination of TCP", ipv4().tcp(1, 2).payload("abc").build(), out().destination(address("192.0.2.1"), 80),
       v4("10.0.0.1", "192.0.2.1").tcp(1, 80).payload("abc").build()},
      {"both, TTL and DSCP", ipv4().tcp(1, 2).build(),
       out().source(address("1.2.3.4"), 5).destination(address("6.7.8.9"), 10).ttl().dscp(3),
       v4("1.2.3.4", "6.7.8.9", 63).traffic_class(12).tcp(5, 10).build()},
      {"no UDP checksum stays none", no_checksum, out().source(address("192.0.2.1"), 7), no_checksum_out},
      {"identifier of echo", ipv4().icmp(8, 0, 77).payload("abc").build(), out().source(address("192.0.2.1"), 78),
       v4("192.0.2.1", "10.0.0.2").icmp(8, 0, 78).payload("abc").build()},
      {"both of IPv6", ipv6().udp(1, 2).payload("abc").build(),
       out().source(address("2001:db8::1"), 7).destination(address("2001:db8::2"), 8),
       v6("2001:db8::1", "2001:db8::2").udp(7, 8).payload("abc").build()},
      {"echo of IPv6", ipv6().icmp(129, 0, 77).payload("abc").build(), out().destination(address("2001:db8::2"), 0),
       v6("fd00::1", "2001:db8::2").icmp(129, 0, 77).payload("abc").build()},
  };
  for (const u64 weak_order : {0, 1}) {
    const Result<> done = load(weak_order);
    ASSERT_TRUE(done) << done.error().what;
    for (const Changed& each : all) {
      ASSERT_TRUE(put(each.in, each.action)) << each.claim;
      const Ran ran = run(each.in);
      EXPECT_TRUE(ran.hit) << each.claim;
      EXPECT_EQ(ran.out, each.out) << each.claim;
      table_->take_back([](const FlowTable::Seen&) { return true; }, FlowEnd::flushed);
      tick(102), tick(104), tick(106);
    }
  }
}

TEST_F(KernelFlows, leaves_to_the_stages_what_needs_a_second_look) {
  const FlowAction action = FlowAction::transmit(PortSlot{1}).ttl().addresses(station(4), station(3)).longest(100);
  const Packet bytes = ipv4().udp(1, 2).payload("abc").build(), tcp = ipv4().tcp(1, 2).build(), six = ipv6().udp(1, 2).build();
  for (const Packet& each : {bytes, tcp, six}) ASSERT_TRUE(put(each, action));
  EXPECT_TRUE(run(bytes).hit && run(tcp).hit && run(six).hit);
  const auto with = [](Packet frame, std::size_t at, u8 value) {
    frame[at] = value;
    return frame;
  };
  const auto mended = [](Packet frame) {  // its IPv4 checksum
    frame[24] = frame[25] = 0;
    const u16 sum = internet_checksum(internet_sum(std::span(frame).subspan(14, 20)));
    frame[24] = static_cast<u8>(sum >> 8), frame[25] = static_cast<u8>(sum);
    return frame;
  };
  const std::pair<const char*, Packet> others[] = {
      {"the last hop", ipv4(1).udp(1, 2).payload("abc").build()},
      {"the last hop of IPv6", ipv6(1).udp(1, 2).build()},
      {"another destination of Ethernet", ipv4(64, 9).udp(1, 2).payload("abc").build()},
      {"longer than the way out", ipv4().udp(1, 2).payload(std::string(100, 'x')).build()},
      {"a wrong checksum", with(bytes, 24, static_cast<u8>(bytes[24] + 1))},
      {"a first fragment", mended(with(bytes, 20, 0x20))},
      {"a later fragment", mended(with(bytes, 21, 1))},
      {"options", mended(with(bytes, 14, 0x46))},
      {"a length beyond the frame", mended(with(bytes, 17, 200))},
      {"a length below its header", mended(with(bytes, 17, 19))},
      {"a cut header", Packet(bytes.begin(), bytes.begin() + 33)},
      {"a new connection", ipv4().tcp(1, 2, 0x02).build()},
      {"another tag",
       FrameBuilder().ethernet(station(1), station(2)).vlan(1).ipv4("10.0.0.1", "10.0.0.2").udp(1, 2).payload("abc").build()},
      {"an error about the flow", ipv4().icmp(3, 4).payload(std::span(bytes).subspan(14)).build()},
      {"version 5 inside", with(six, 14, 0x50)},
      {"a payload beyond the frame", with(six, 19, 200)},
      {"an extension header", with(six, 20, 60)},
  };
  for (const auto& [claim, frame] : others) {
    const Ran ran = run(frame);
    EXPECT_FALSE(ran.hit) << claim;
    EXPECT_EQ(ran.out.size() >= 14 ? Packet(ran.out.begin() + static_cast<std::ptrdiff_t>(ran.out.size() - frame.size()), ran.out.end())
                                   : ran.out,
              frame)
        << claim << ": it is changed";
  }
  now_.present = 0;
  ASSERT_TRUE(entries_.set(0, &now_));
  EXPECT_FALSE(run(bytes).hit) << "no entry";
}

TEST_F(KernelFlows, a_connection_that_ends_takes_its_flow_with_it) {
  for (const u8 flags : {0x11, 0x04}) {
    const Packet going = ipv4().tcp(flags, 2).build(), last = ipv4().tcp(flags, 2, flags).build();
    ASSERT_TRUE(put(going, FlowAction::transmit(PortSlot{1})));
    EXPECT_FALSE(key_of(last, 2)) << "it begins none either";
    EXPECT_TRUE(run(going).hit);
    EXPECT_FALSE(run(last).hit) << "the stages see the end";
    EXPECT_FALSE(run(going).hit);
  }
  tick(101), tick(103);
  ASSERT_EQ(ended_.size(), 2u);
  EXPECT_EQ(ended_[0].why, FlowEnd::tcp);
  EXPECT_EQ(ended_[0].frames, 1u);
}

TEST_F(KernelFlows, what_is_taken_back_meets_no_frame) {
  const Packet bytes = ipv4().udp(1, 2).build();
  ASSERT_TRUE(put(bytes, FlowAction::transmit(PortSlot{1})));
  ASSERT_TRUE(run(bytes).hit);
  table_->take_back([](const FlowTable::Seen&) { return true; }, FlowEnd::taken_back);
  EXPECT_FALSE(run(bytes).hit);
}

// Both halves find the same flows, whatever comes: what user space finds none for, the kernel does not touch.
TEST_F(KernelFlows, finds_the_flows_that_user_space_finds) {
  const u32 dice_seed = test_seed();
  SCOPED_TRACE(fmt::format("WEIR_TEST_SEED={}", dice_seed));
  u32 found = 0;
  for (const auto& [port, bytes] : random_traffic(dice_seed, 20000, 1)) {
    const FlowKey key = key_of(bytes, 2);
    const bool begins = key && (key.of.tcp_flags & (FLOW_TCP_SYN | FLOW_TCP_ACK)) == FLOW_TCP_SYN;
    // An empty table each time, over the same memory.
    for (const Mapping* memory : {&flows4_memory_, &flows6_memory_})
      std::memset(memory->data(), 0, memory == &flows4_memory_ ? places * sizeof(flow4) : places * sizeof(flow6));
    FlowTable table({std::span(reinterpret_cast<flow4*>(flows4_memory_.data()), places),
                     std::span(reinterpret_cast<flow6*>(flows6_memory_.data()), places),
                     std::span(reinterpret_cast<flow_rewrite*>(rewrites_memory_.data()), places)},
                    seed);
    ASSERT_EQ(table.put(owner, {key, FlowAction::drop(reason_of_test), {}, 0}), static_cast<bool>(key));
    found += static_cast<bool>(key);
    static_cast<void>(run(bytes));
    ASSERT_EQ(table.hits(), key && !begins ? 1 : 0) << testing::PrintToString(bytes);
  }
  EXPECT_GT(found, 2000u);
}

// Any action, any frame: the checksums that were right are right, and only what was to change has changed.
TEST_F(KernelFlows, random_changes_leave_right_checksums) {
  const u32 dice_seed = test_seed();
  SCOPED_TRACE(fmt::format("WEIR_TEST_SEED={}", dice_seed));
  std::mt19937 dice(dice_seed);
  const auto digit = [&] { return dice() % 250 + 1; };
  for (u32 turn = 0; turn < 3000; ++turn) {
    const bool six = dice() % 2 == 0;
    const u32 kind = dice() % 3, ttl = dice() % 200 + 2;
    const std::string from[2] = {
        six ? fmt::format("fd00:{:x}::{:x}", dice() % 65536, digit()) : fmt::format("10.{}.{}.{}", digit(), digit(), digit()),
        six ? fmt::format("2001:db8:{:x}::{:x}", dice() % 65536, digit()) : fmt::format("192.0.2.{}", digit())};
    const std::string to[2] = {six ? fmt::format("fd01::{:x}", digit()) : fmt::format("10.200.{}.{}", digit(), digit()),
                               six ? fmt::format("2001:db8::{:x}", digit()) : fmt::format("198.51.100.{}", digit())};
    const u16 ports[4] = {static_cast<u16>(dice()), static_cast<u16>(dice()), static_cast<u16>(dice()), static_cast<u16>(dice())};
    const std::string payload(dice() % 60, static_cast<char>(dice()));
    const u8 mark = static_cast<u8>(dice() % 64);
    const auto build = [&](u32 which, u8 hops, u8 dscp) {
      FrameBuilder made = FrameBuilder().ethernet(station(1), station(2));
      if (six) made.ipv6(from[which], to[which], hops);
      else made.ipv4(from[which], to[which], hops);
      made.traffic_class(static_cast<u8>(dscp << 2));
      if (kind == 0) made.udp(ports[2 * which], ports[2 * which + 1]);
      if (kind == 1) made.tcp(ports[2 * which], ports[2 * which + 1]);
      if (kind == 2) made.icmp(six ? 128 : 8, 0, ports[2 * which]);
      return made.payload(payload).build();
    };
    const Packet in = build(0, static_cast<u8>(ttl), 0), want = build(1, static_cast<u8>(ttl - 1), mark);
    ASSERT_TRUE(put(in, FlowAction::transmit(PortSlot{1})
                            .ttl()
                            .dscp(mark)
                            .source(address(from[1].c_str()), ports[2])
                            .destination(address(to[1].c_str()), ports[3])));
    const Ran ran = run(in);
    ASSERT_TRUE(ran.hit);
    ASSERT_EQ(ran.out, want) << testing::PrintToString(in);
    table_->take_back([](const FlowTable::Seen&) { return true; }, FlowEnd::flushed);
    tick(102 + 4 * turn), tick(104 + 4 * turn);
  }
}

}  // namespace
}  // namespace weir
