// SPDX-License-Identifier: BSD-3-Clause
// l2_switch_test: the user half by itself, the kernel half by test runs, and both against each other.
#include "plugins/l2_switch/l2_switch.h"

#include <gtest/gtest.h>

#include <atomic>
#include <set>
#include <thread>

#include "kit/plugin_kit.hh"

namespace {

using namespace weir;
using namespace weir::kit;

Packet frame(const Mac& source, const Mac& destination) { return FrameBuilder().ethernet(source, destination).pad(60); }

// A switch of ports p0, p1, … and a clock that the test moves.
struct Switch {
  explicit Switch(std::string_view keys = "", u32 ports = 4) : context(names(ports)), user(bound(keys, memory)) {}

  static std::vector<std::string> names(u32 ports) {
    std::vector<std::string> names;
    for (u32 i = 0; i < ports; ++i) names.push_back(fmt::format("p{}", i));
    return names;
  }
  UserHalf bound(std::string_view keys, StageMemory& in) {
    Result<UserHalf> made = UserHalf::make(weir_plugin, keys, context, in);
    if (!made) broken(made.error().what.c_str());
    return std::move(*made);
  }
  Verdict run(u32 port, const Mac& source, const Mac& destination) { return user.run(port, frame(source, destination)).verdict; }
  // The next run of the instance, over the memory that this one leaves.
  void restart(std::string_view keys) { user = bound(keys, memory); }
  void pass(u32 seconds) {
    const u32 start = memory.config<l2_config>().now_s;
    for (u32 s = 1; s <= seconds; ++s) user.stage().tick(start + s);
  }

  PlainMemory memory;
  FakeContext context;
  UserHalf user;
};

std::string refusal(std::string_view keys) {
  FakeContext context({"p0", "p1", "p2"});
  PlainMemory memory;
  const Result<UserHalf> made = UserHalf::make(weir_plugin, keys, context, memory);
  return made ? "" : made.error().what;
}

TEST(L2Switch, FloodsAnUnknownDestinationToTheMembers) {
  Switch bridge(R"(ports = ["p0", "p1", "p3"])");
  EXPECT_EQ(bridge.run(0, station(1), station(2)), flood(0));
  EXPECT_EQ(bridge.context.groups().at(0), (std::vector{PortSlot{0}, PortSlot{1}, PortSlot{3}}));
}

TEST(L2Switch, FloodsGroupAddresses) {
  Switch bridge;
  EXPECT_EQ(bridge.run(0, station(1), broadcast), flood());
  EXPECT_EQ(bridge.run(0, station(1), mac("33:33:00:00:00:01")), flood());
  EXPECT_EQ(bridge.run(0, station(1), mac("01:00:5e:00:00:fb")), flood());
}

TEST(L2Switch, SendsToTheOnePortWhereTheDestinationWasSeen) {
  Switch bridge;
  bridge.run(2, station(1), broadcast);
  EXPECT_EQ(bridge.run(0, station(2), station(1)), redirect(2));
  EXPECT_EQ(bridge.run(1, station(3), station(2)), redirect(0));
  EXPECT_EQ(bridge.user.counter("learned"), 3u);
  EXPECT_EQ(bridge.user.gauge("addresses"), 3u);
}

TEST(L2Switch, LearnsWithinABurst) {
  Switch bridge;
  const auto out = bridge.user.run({{0, frame(station(1), broadcast)}, {1, frame(station(2), station(1))}});
  EXPECT_EQ(out[1].verdict, redirect(0));
}

TEST(L2Switch, TellsAddressesApartThatDifferInOneBit) {
  Switch bridge;
  bridge.run(1, station(0), broadcast);
  for (u32 bit = 0; bit < 48; ++bit) {
    Mac other = station(0);
    other[bit / 8] = static_cast<u8>(other[bit / 8] ^ 1u << bit % 8);
    EXPECT_EQ(bridge.run(0, station(9), other), flood()) << "bit " << bit;
  }
}

TEST(L2Switch, DropsFramesBetweenStationsOfOnePort) {
  Switch bridge;
  bridge.run(1, station(1), broadcast);
  EXPECT_EQ(bridge.run(1, station(2), station(1)), drop(L2_SAME_PORT));
  EXPECT_EQ(bridge.run(0, station(3), station(2)), redirect(1)) << "the sender of a dropped frame is learned all the same";
}

TEST(L2Switch, GoesByAddressAloneWhateverTheTag) {
  Switch bridge;
  bridge.user.run(1, FrameBuilder().ethernet(station(1), broadcast).vlan(100).pad(60));
  EXPECT_EQ(bridge.user.run(0, FrameBuilder().ethernet(station(2), station(1)).vlan(200, 3, 0x88a8).pad(60)).verdict, redirect(1));
}

TEST(L2Switch, MovesAnAddressWithItsStation) {
  Switch bridge;
  bridge.run(1, station(1), broadcast);
  bridge.run(2, station(1), broadcast);
  EXPECT_EQ(bridge.run(0, station(2), station(1)), redirect(2));
  EXPECT_EQ(bridge.user.counter("moved"), 1u);
  EXPECT_EQ(bridge.user.gauge("addresses"), 2u);
}

TEST(L2Switch, GivesLinkLocalFramesToTheHostStack) {
  Switch bridge;
  for (u8 last = 0; last < 16; ++last) EXPECT_EQ(bridge.run(0, station(1), {0x01, 0x80, 0xc2, 0, 0, last}), to_stack());
  EXPECT_EQ(bridge.run(0, station(1), mac("01:80:c2:00:00:10")), flood());
  EXPECT_EQ(bridge.run(0, station(1), mac("01:80:c2:00:01:00")), flood());
}

TEST(L2Switch, DropsByName) {
  Switch bridge(R"(ports = ["p0", "p1"])");
  EXPECT_EQ(bridge.run(0, mac("00:00:00:00:00:00"), broadcast), drop(L2_BAD_SOURCE));
  EXPECT_EQ(bridge.run(0, mac("01:00:00:00:00:01"), broadcast), drop(L2_BAD_SOURCE));
  EXPECT_EQ(bridge.run(0, broadcast, station(1)), drop(L2_BAD_SOURCE));
  EXPECT_EQ(bridge.run(3, station(1), broadcast), drop(L2_NOT_A_MEMBER));
  EXPECT_EQ(bridge.user.run(0, Packet(13)).verdict, drop(L2_TRUNCATED));
  EXPECT_EQ(bridge.user.run(0, Packet(0)).verdict, drop(L2_TRUNCATED));
  EXPECT_EQ(bridge.user.gauge("addresses"), 0u);
  EXPECT_EQ(weir_plugin.drops, (std::vector<std::string>{"truncated", "bad_source", "not_a_member", "same_port"}));
}

TEST(L2Switch, FloodsToAnAddressOfZeroes) {
  Switch bridge;
  EXPECT_EQ(bridge.run(0, station(1), Mac{}), flood()) << "a free entry is not the address zero";
}

TEST(L2Switch, ForgetsAnAddressThatIsUnheardOf) {
  Switch bridge("ageing_s = 40");
  bridge.run(1, station(1), broadcast);
  bridge.pass(40);
  EXPECT_EQ(bridge.run(0, station(2), station(1)), redirect(1)) << "no older than ageing_s";
  bridge.pass(15);
  EXPECT_EQ(bridge.run(0, station(2), station(1)), flood());
  EXPECT_EQ(bridge.user.gauge("aged"), 1u);
  EXPECT_EQ(bridge.user.gauge("addresses"), 1u);
}

TEST(L2Switch, KeepsAnAddressThatIsHeardOf) {
  Switch bridge("ageing_s = 5");
  for (int second = 0; second < 60; ++second) {
    bridge.run(1, station(1), broadcast);
    bridge.pass(1);
  }
  EXPECT_EQ(bridge.user.gauge("aged"), 0u);
  EXPECT_EQ(bridge.user.counter("learned"), 1u);
}

TEST(L2Switch, LearnsNoMoreThanTableSizeAndFloodsTheRest) {
  Switch bridge("table_size = 64");
  for (u32 i = 0; i < 400; ++i) bridge.run(i % 4, station(i), broadcast);
  EXPECT_EQ(bridge.user.gauge("addresses"), 64u);
  EXPECT_EQ(bridge.user.counter("learned"), 64u);
  EXPECT_EQ(bridge.user.counter("table_full"), 336u);
  u32 known = 0;
  for (u32 i = 0; i < 400; ++i) known += bridge.run((i + 1) % 4, station(0), station(i)) == redirect(i % 4);
  EXPECT_GE(known, 63u) << "the asking station moved";
}

TEST(L2Switch, FillsItsTable) {
  const u32 seed = test_seed();
  SCOPED_TRACE(fmt::format("WEIR_TEST_SEED={}", seed));
  std::mt19937 dice(seed);
  Switch bridge("table_size = 16384");
  for (u32 i = 0; i < 16384; ++i) bridge.run(dice() % 4, station(i), broadcast);
  EXPECT_EQ(bridge.user.counter("learned"), 16384u) << "of " << bridge.user.counter("table_full") << " refused";
}

TEST(L2Switch, PutsMostAddressesWhereTheFirstLookUpFindsThem) {
  Switch bridge("table_size = 16384");
  for (u32 i = 0; i < 8192; ++i) bridge.run(0, station(i), broadcast);
  const l2_config& config = bridge.memory.config<l2_config>();
  const std::span<l2_bucket> table = *bridge.memory.array<l2_bucket>("table", config.mask + 1);
  u32 first = 0;
  for (u32 i = 0; i < 8192; ++i) {
    const u64 address = l2_address(station(i).data());
    __u64 word = 0;
    first += l2_in(&table[l2_first(l2_hash(address, config.seed), config.mask)], address, &word) != nullptr;
  }
  EXPECT_GT(first, 8192u * 9 / 10);
}

TEST(L2Switch, LearnsAgainWhenAgeingMakesRoom) {
  Switch bridge("table_size = 64\nageing_s = 5");
  for (u32 i = 0; i < 100; ++i) bridge.run(0, station(i), broadcast);
  bridge.pass(20);
  EXPECT_EQ(bridge.user.gauge("addresses"), 0u);
  bridge.run(0, station(500), broadcast);
  EXPECT_EQ(bridge.run(1, station(501), station(500)), redirect(0));
}

TEST(L2Switch, LimitsTheAddressesOfAPort) {
  Switch bridge("max_per_port = 3\nageing_s = 5");
  for (u32 i = 0; i < 10; ++i) EXPECT_EQ(bridge.run(0, station(i), broadcast), flood());
  EXPECT_EQ(bridge.user.counter("port_full"), 7u);
  bridge.run(1, station(20), broadcast);
  EXPECT_EQ(bridge.run(2, station(21), station(20)), redirect(1)) << "other ports go on learning";
  EXPECT_EQ(bridge.run(0, station(20), broadcast), flood());
  EXPECT_EQ(bridge.run(2, station(21), station(20)), redirect(1)) << "nothing moves to a full port";
  EXPECT_EQ(bridge.user.counter("port_full"), 8u);
  bridge.run(1, station(0), broadcast);
  EXPECT_EQ(bridge.run(2, station(21), station(0)), redirect(1)) << "from a full port it may move";
  bridge.run(0, station(9), broadcast);
  EXPECT_EQ(bridge.run(2, station(21), station(9)), redirect(0)) << "which makes room there";
}

TEST(L2Switch, NeverMovesAndNeverForgetsAStaticAddress) {
  Switch bridge("ageing_s = 2\nstatic = [{ mac = \"02:00:00:00:00:01\", port = \"p2\" }]");
  EXPECT_EQ(bridge.run(0, station(2), station(1)), redirect(2));
  EXPECT_EQ(bridge.run(1, station(1), station(2)), redirect(0)) << "forwarded, not learned";
  EXPECT_EQ(bridge.user.counter("static_moved"), 1u);
  bridge.pass(60);
  EXPECT_EQ(bridge.run(0, station(2), station(1)), redirect(2));
}

TEST(L2Switch, StaticAddressesDoNotCountAgainstTheLimitOfAPort) {
  Switch bridge(R"(max_per_port = 1
                   static = [{ mac = "02:00:00:00:00:01", port = "p0" }, { mac = "02:00:00:00:00:02", port = "p0" }])");
  bridge.run(0, station(3), broadcast);
  EXPECT_EQ(bridge.run(1, station(4), station(3)), redirect(0));
}

TEST(L2Switch, RefusesWhatCannotBe) {
  const auto refused = [](std::string_view keys, std::string_view because) {
    const std::string what = refusal(keys);
    EXPECT_TRUE(what.starts_with("test.toml:6:")) << keys << ": " << what;
    EXPECT_NE(what.find(because), std::string::npos) << keys << ": " << what;
  };
  refused(R"(ports = ["p0", "p1", "p0"])", "twice");
  refused(R"(ports = ["p0"])", "must have from 2");
  refused(R"(ports = ["p0", "p9"])", "p9");
  refused("ageing_s = 0", "from 1 to 86400");
  refused("ageing_s = 86401", "from 1 to 86400");
  refused("table_size = 2000000", "to 1048576");
  refused(R"(static = [{ mac = "01:00:5e:00:00:01", port = "p0" }])", "static[0].mac");
  refused(R"(static = [{ mac = "00:00:00:00:00:00", port = "p0" }])", "static[0].mac");
  refused(R"(static = [{ mac = "02:00:00:00:00:01", port = "p0" }, { mac = "02:00:00:00:00:01", port = "p1" }])", "static[1].mac");
  refused("static = [{ mac = \"02:00:00:00:00:01\", port = \"p2\" }]\nports = [\"p0\", \"p1\"]", "static[0].port");
}

TEST(L2Switch, RefusesMoreStaticAddressesThanTheTableHolds) {
  std::string keys = "table_size = 64\nstatic = [";
  for (u32 i = 0; i < 65; ++i) keys += fmt::format("{{ mac = \"02:00:00:00:01:{:02x}\", port = \"p0\" }},", i);
  const std::string what = refusal(keys + "]");
  EXPECT_TRUE(what.starts_with("test.toml:7:") && what.find("table_size") != std::string::npos) << what;
}

TEST(L2Switch, RefusesASwitchOfOnePort) {
  FakeContext context({"p0"});
  PlainMemory memory;
  EXPECT_FALSE(UserHalf::make(weir_plugin, "", context, memory));
}

TEST(L2Switch, KeepsWhatAnEarlierRunLearned) {
  Switch bridge;
  for (u32 i = 0; i < 500; ++i) bridge.run(i % 4, station(i), broadcast);
  bridge.restart("");
  EXPECT_EQ(bridge.user.gauge("addresses"), 500u);
  for (u32 i = 1; i < 500; ++i) EXPECT_EQ(bridge.run((i + 1) % 4, station(1000), station(i)), redirect(i % 4));
  EXPECT_EQ(bridge.user.counter("learned"), 1u);
}

TEST(L2Switch, ForgetsAnEarlierRunsAddressesOfPortsThatLeft) {
  Switch bridge;
  bridge.run(0, station(1), broadcast);
  bridge.run(3, station(2), broadcast);
  bridge.restart(R"(ports = ["p0", "p1", "p2"])");
  EXPECT_EQ(bridge.user.gauge("addresses"), 1u);
  EXPECT_EQ(bridge.run(1, station(3), station(2)), flood(1)) << "the group of the new members";
  EXPECT_EQ(bridge.run(1, station(3), station(1)), redirect(0));
}

TEST(L2Switch, PutsStaticAddressesAnewAfterARestart) {
  Switch bridge("static = [{ mac = \"02:00:00:00:00:01\", port = \"p2\" }]");
  bridge.run(0, station(5), broadcast);
  bridge.restart("static = [{ mac = \"02:00:00:00:00:05\", port = \"p3\" }]");
  EXPECT_EQ(bridge.run(1, station(9), station(1)), flood()) << "no longer in the file";
  EXPECT_EQ(bridge.run(1, station(9), station(5)), redirect(3)) << "learned elsewhere before it was static";
  EXPECT_EQ(bridge.user.gauge("addresses"), 2u);
}

TEST(L2Switch, CountsAnEarlierRunsAddressesAgainstItsLimits) {
  Switch bridge("table_size = 64");
  for (u32 i = 0; i < 3; ++i) bridge.run(0, station(i), broadcast);
  bridge.restart("table_size = 64\nmax_per_port = 4");
  bridge.run(0, station(10), broadcast);
  bridge.run(0, station(11), broadcast);
  EXPECT_EQ(bridge.user.counter("port_full"), 1u);
}

TEST(L2Switch, MakesNoAddressOlderWhileNoDaemonRan) {
  Switch bridge("ageing_s = 100");
  bridge.run(0, station(1), broadcast);
  bridge.pass(60);
  l2_config& config = bridge.memory.config<l2_config>();
  const std::span<l2_bucket> table = *bridge.memory.array<l2_bucket>("table", config.mask + 1);
  config.now_s -= 5000;  // all that has been was so much earlier
  for (l2_bucket& bucket : table)
    for (l2_entry& entry : bucket.entry) entry.seen_s -= 5000;
  bridge.restart("ageing_s = 100");
  bridge.pass(30);
  EXPECT_EQ(bridge.user.gauge("addresses"), 1u);
  bridge.pass(100);
  EXPECT_EQ(bridge.user.gauge("addresses"), 0u);
}

TEST(L2Switch, StaysWithinATableSizeThatBecameSmaller) {
  Switch bridge("table_size = 64");
  for (u32 i = 0; i < 64; ++i) bridge.run(0, station(i), broadcast);
  const std::string fixed = "table_size = 40\nstatic = [{ mac = \"02:00:00:00:01:01\", port = \"p1\" }]";
  bridge.restart(fixed);
  EXPECT_LE(bridge.user.gauge("addresses"), 40u);
  EXPECT_EQ(bridge.run(0, station(1), station(0x101)), redirect(1));
}

TEST(L2Switch, KeepsEveryStaticAddressWhenTheTableIsFull) {
  Switch bridge("table_size = 32");
  for (u32 i = 0; i < 400; ++i) bridge.run(0, station(i), broadcast);
  std::string keys = "table_size = 32\nstatic = [";
  for (u32 i = 0; i < 32; ++i) keys += fmt::format("{{ mac = \"02:00:00:00:01:{:02x}\", port = \"p{}\" }},", i, i % 4);
  bridge.restart(keys + "]");
  EXPECT_EQ(bridge.user.gauge("addresses"), 32u);
  for (u32 i = 0; i < 32; ++i) EXPECT_EQ(bridge.run((i + 1) % 4, station(7), station(0x100 + i)), redirect(i % 4)) << i;
}

TEST(L2Switch, IsNotHarmedByWhatIsNoTable) {
  const u32 seed = test_seed();
  SCOPED_TRACE(fmt::format("WEIR_TEST_SEED={}", seed));
  std::mt19937_64 dice(seed);
  Switch bridge("table_size = 64");
  const std::span<l2_bucket> table = *bridge.memory.array<l2_bucket>("table", 32);
  for (l2_bucket& bucket : table)
    for (l2_entry& entry : bucket.entry) entry = {dice(), static_cast<u32>(dice()), 0};
  bridge.restart("table_size = 64");
  EXPECT_LE(bridge.user.gauge("addresses"), 64u);
  bridge.run(0, station(1), broadcast);
  for (u32 i = 0; i < 1000; ++i) {
    const Verdict verdict = bridge.run(1, station(2), station(static_cast<u32>(dice())));
    EXPECT_TRUE(verdict.what != WEIR_REDIRECT || verdict.argument < 4) << verdict;
  }
}

TEST(L2Switch, LearnsFromSeveralWorkersAtOnce) {
  Switch bridge("table_size = 4096");
  constexpr u32 stations = 2000;
  std::atomic<u64> learned{0};
  const auto work = [&](u32 number) {
    account counts{};
    for (u32 round = 0; round < 4; ++round)
      for (u32 i = 0; i < stations; ++i) {
        const u32 each = (i * 7 + number * 13) % stations;
        Packet bytes = frame(station(each), broadcast);
        Burst burst;
        burst.charge(&counts);
        burst.push({.data = bytes.data(), .length = static_cast<u32>(bytes.size()), .port = PortSlot{static_cast<u16>(each % 4)}});
        bridge.user.stage().process(burst);
      }
    learned += counts.counter[L2_LEARNED];
    EXPECT_EQ(counts.counter[L2_ADDRESS_MOVED], 0u);
  };
  {
    std::jthread one(work, 1), two(work, 2), three(work, 3);
    for (u32 second = 0; second < 20; ++second) bridge.pass(1);
  }
  EXPECT_EQ(learned, stations);
  EXPECT_EQ(bridge.user.gauge("addresses"), stations);
  for (u32 i = 0; i < stations; ++i) EXPECT_EQ(bridge.run((i + 1) % 4, station(stations), station(i)), redirect(i % 4));
}

// Both halves over one table.
class KernelL2Switch : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = no_kernel(); !why.empty()) GTEST_SKIP() << why;
  }
  void open(std::string_view keys = "", u32 ports = 4) {
    context.emplace(Switch::names(ports));
    auto opened = KernelHalf::open(weir_plugin, *context);
    ASSERT_TRUE(opened) << opened.error().what;
    kernel = std::move(*opened);
    auto made = UserHalf::make(weir_plugin, keys, *context, kernel->memory());
    ASSERT_TRUE(made) << made.error().what;
    user.emplace(std::move(*made));
    const Result<> loaded = kernel->load();
    ASSERT_TRUE(loaded) << loaded.error().what;
  }
  Verdict in_kernel(u32 port, const Packet& bytes) {
    const Result<Outcome> out = kernel->run(port, bytes);
    if (!out) ADD_FAILURE() << out.error().what;
    EXPECT_TRUE(!out || out->bytes == bytes) << "a switch changes nothing";
    return out ? out->verdict : Verdict{};
  }
  // As in an instance: by the kernel half, and by the user half what that punts.
  Verdict run(u32 port, const Packet& bytes) {
    const Verdict verdict = in_kernel(port, bytes);
    if (verdict.what != WEIR_PUNT) return verdict;
    ++punts;
    return user->run(port, bytes).verdict;
  }
  l2_config& config() { return kernel->memory().array<l2_config>(".data.config", 1)->front(); }
  std::span<l2_bucket> table() { return *kernel->memory().array<l2_bucket>("table", config().mask + 1); }
  u32 seen(const Mac& station) {
    for (l2_bucket& bucket : table())
      for (l2_entry& entry : bucket.entry)
        if (entry.word != 0 && l2_address_of(entry.word) == l2_address(station.data())) return entry.seen_s;
    return 0;
  }
  void pass(u32 seconds) {
    const u32 start = config().now_s;
    for (u32 s = 1; s <= seconds; ++s) user->stage().tick(start + s);
  }

  std::optional<FakeContext> context;
  std::unique_ptr<KernelHalf> kernel;
  std::optional<UserHalf> user;
  u32 punts = 0;
};

TEST_F(KernelL2Switch, PuntsAnAddressUntilItIsLearned) {
  open();
  EXPECT_EQ(in_kernel(0, frame(station(1), broadcast)), punt(L2_NEW_ADDRESS));
  user->run(0, frame(station(1), broadcast));
  EXPECT_EQ(in_kernel(0, frame(station(1), broadcast)), flood());
  EXPECT_EQ(in_kernel(1, frame(station(1), broadcast)), punt(L2_MOVED));
  EXPECT_EQ(weir_plugin.punts, (std::vector<std::string>{"new_address", "moved"}));
}

TEST_F(KernelL2Switch, RedirectsWhatTheTableKnows) {
  open();
  for (u32 port = 0; port < 4; ++port) run(port, frame(station(port), broadcast));
  EXPECT_EQ(punts, 4u);
  for (u32 from = 0; from < 4; ++from)
    for (u32 to = 0; to < 4; ++to)
      EXPECT_EQ(in_kernel(from, frame(station(from), station(to))), from == to ? drop(L2_SAME_PORT) : redirect(to));
}

TEST_F(KernelL2Switch, DecidesAsTheUserHalfAlone) {
  const u32 seed = test_seed();
  SCOPED_TRACE(fmt::format("WEIR_TEST_SEED={}", seed));
  std::mt19937 dice(seed);
  const std::string keys =
      "ageing_s = 3\nmax_per_port = 12\nports = [\"p0\", \"p1\", \"p2\", \"p3\"]\n"
      "static = [{ mac = \"02:00:00:00:00:01\", port = \"p0\" }, { mac = \"02:00:00:00:00:02\", port = \"p3\" }]";
  open(keys, 5);
  FakeContext alone_context(Switch::names(5));
  PlainMemory alone_memory;
  auto alone = UserHalf::make(weir_plugin, keys, alone_context, alone_memory);
  ASSERT_TRUE(alone) << alone.error().what;
  const auto address = [&]() -> Mac {
    const u32 kind = dice() % 100;
    if (kind < 1) return Mac{};
    if (kind < 3) return {0x01, 0x80, 0xc2, 0, 0, static_cast<u8>(dice() % 20)};
    if (kind < 8) return broadcast;
    if (kind < 10) return {static_cast<u8>(dice()), static_cast<u8>(dice()), 0, 0, 0, static_cast<u8>(dice())};
    return station(dice() % 60);
  };
  // Both were bound by the machine's clock, perhaps in different seconds.
  u32 now = std::max(config().now_s, alone_memory.config<l2_config>().now_s);
  const auto second = [&] {
    user->stage().tick(++now);
    alone->stage().tick(now);
  };
  second();
  for (u32 i = 0; i < 10000; ++i) {
    const Packet bytes = FrameBuilder().ethernet(address(), address(), static_cast<u16>(dice())).pad(14 + dice() % 1500);
    const u32 port = dice() % 100 < 3 ? 4 : dice() % 4;
    const Verdict wanted = alone->run(port, bytes).verdict;
    ASSERT_EQ(run(port, bytes), wanted) << "frame " << i << " from port " << port;
    if (dice() % 50 == 0) second();
  }
  EXPECT_GT(punts, 100u);
  EXPECT_LT(punts, 9000u) << "the kernel half does most of it";
  for (const std::string& name : weir_plugin.counters) EXPECT_EQ(kernel->counter(name) + user->counter(name), alone->counter(name)) << name;
  for (const char* name : {"addresses", "aged"}) EXPECT_EQ(user->gauge(name), alone->gauge(name)) << name;
  EXPECT_GT(alone->gauge("aged"), 10u);
}

TEST_F(KernelL2Switch, KeepsAnAddressThatOnlyTheKernelHearsOf) {
  open("ageing_s = 20");
  run(0, frame(station(1), broadcast));
  run(1, frame(station(2), broadcast));
  for (u32 second = 0; second < 60; ++second) {
    pass(1);
    in_kernel(0, frame(station(1), station(2)));
    EXPECT_EQ(seen(station(1)), config().now_s);
  }
  EXPECT_EQ(user->gauge("addresses"), 1u);
  EXPECT_EQ(in_kernel(0, frame(station(1), station(2))), flood()) << "nobody heard of the other one";
}

TEST_F(KernelL2Switch, DoesNotPuntForAFullTable) {
  open("table_size = 32\nageing_s = 5");
  for (u32 i = 0; i < 300; ++i) run(0, frame(station(i), broadcast));
  ASSERT_EQ(user->gauge("addresses"), 32u);
  EXPECT_EQ(in_kernel(0, frame(station(1000), broadcast)), flood());
  EXPECT_EQ(kernel->counter("table_full") + user->counter("table_full"), 300u - 32u + 1u);
  pass(1);
  EXPECT_EQ(in_kernel(0, frame(station(1000), broadcast)), flood()) << "still full";
  pass(20);
  EXPECT_EQ(in_kernel(0, frame(station(1000), broadcast)), punt(L2_NEW_ADDRESS)) << "there is room again";
}

TEST_F(KernelL2Switch, PuntsOnceASecondForAnAddressThatFindsNoPlace) {
  open("table_size = 32");
  std::vector<Mac> rivals;  // of one pair of buckets
  for (u32 i = 0; rivals.size() < 9; ++i) {
    const u64 hash = l2_hash(l2_address(station(i).data()), config().seed);
    const std::set<u32> choices{l2_first(hash, config().mask), l2_second(hash, config().mask)};
    if (choices == std::set<u32>{0, 1}) rivals.push_back(station(i));
  }
  for (const Mac& rival : rivals) run(0, frame(rival, broadcast));
  EXPECT_EQ(user->gauge("addresses"), 8u);
  for (u32 second = 0; second < 3; ++second) {
    punts = 0;
    for (u32 i = 0; i < 10; ++i) EXPECT_EQ(run(0, frame(rivals.back(), broadcast)), flood());
    EXPECT_LE(punts, 1u);
    pass(1);
  }
}

TEST_F(KernelL2Switch, DoesNotPuntForAFullPort) {
  open("max_per_port = 2");
  for (u32 i = 0; i < 2; ++i) run(0, frame(station(i), broadcast));
  EXPECT_EQ(in_kernel(0, frame(station(7), broadcast)), flood());
  EXPECT_EQ(kernel->counter("port_full"), 1u);
  EXPECT_EQ(in_kernel(1, frame(station(7), broadcast)), punt(L2_NEW_ADDRESS)) << "other ports have room";
  run(1, frame(station(0), broadcast));
  EXPECT_EQ(in_kernel(0, frame(station(8), broadcast)), punt(L2_NEW_ADDRESS)) << "one moved away";
}

TEST_F(KernelL2Switch, NamesTheLimitThatTheUserHalfWouldName) {
  open("table_size = 32\nmax_per_port = 32");
  for (u32 i = 0; i < 200; ++i) run(0, frame(station(i), broadcast));
  pass(1);
  const u64 before = user->counter("port_full");
  user->run(0, frame(station(1000), broadcast));
  ASSERT_EQ(user->counter("port_full"), before + 1) << "port and table are both full";
  const u64 in_kernel_before = kernel->counter("port_full");
  EXPECT_EQ(in_kernel(0, frame(station(1001), broadcast)), flood());
  EXPECT_EQ(kernel->counter("port_full"), in_kernel_before + 1);
}

TEST_F(KernelL2Switch, DoesNotPuntForAStaticAddressOnAnotherPort) {
  open("static = [{ mac = \"02:00:00:00:00:01\", port = \"p2\" }]");
  EXPECT_EQ(in_kernel(1, frame(station(1), broadcast)), flood());
  EXPECT_EQ(kernel->counter("static_moved"), 1u);
}

TEST_F(KernelL2Switch, LeavesFramesForGroupsOfTwoAsRedirects) {
  open("", 2);
  run(0, frame(station(1), broadcast));
  EXPECT_EQ(in_kernel(0, frame(station(1), station(2))), redirect(1));
}

}  // namespace
