// SPDX-License-Identifier: BSD-3-Clause
// patch_test: both halves of patch, alone and against each other.
#include <gtest/gtest.h>

#include "kit/table.hh"
#include "plugins/patch/patch.h"

namespace {

using namespace weir;
using namespace weir::kit;

const Packet anything = FrameBuilder().ethernet(station(1), station(2)).payload("water").build();

UserHalf patched(std::string_view pairs, FakeContext& context, StageMemory& memory) {
  Result<UserHalf> made = UserHalf::make(weir_plugin, pairs, context, memory);
  if (!made) broken(made.error().what.c_str());
  return std::move(*made);
}

std::string refusal(std::string_view keys) {
  FakeContext context({"a", "b", "c", "d"});
  PlainMemory memory;
  const Result<UserHalf> made = UserHalf::make(weir_plugin, keys, context, memory);
  return made ? "" : made.error().what;
}

TEST(Patch, SendsBothWaysBetweenThePortsOfAPair) {
  FakeContext context({"a", "b", "c", "d"});
  PlainMemory memory;
  UserHalf patch = patched(R"(pairs = [["a", "c"], ["d", "b"]])", context, memory);
  const auto out = patch.run({{0, anything}, {1, anything}, {2, anything}, {3, anything}});
  EXPECT_EQ(out[0].verdict, redirect(2));
  EXPECT_EQ(out[1].verdict, redirect(3));
  EXPECT_EQ(out[2].verdict, redirect(0));
  EXPECT_EQ(out[3].verdict, redirect(1));
  for (const Outcome& each : out) EXPECT_EQ(each.bytes, anything);
}

TEST(Patch, DropsWhatHasNoPartnerByName) {
  FakeContext context({"a", "b", "c"});
  PlainMemory memory;
  UserHalf patch = patched(R"(pairs = [["a", "b"]])", context, memory);
  EXPECT_EQ(patch.run(2, anything).verdict, drop(PATCH_UNPAIRED));
  EXPECT_EQ(weir_plugin.drops.at(PATCH_UNPAIRED), "unpaired");
}

TEST(Patch, TakesAPartnerOfNoPipeline) {
  FakeContext context({"a"}, {"sink"});
  PlainMemory memory;
  EXPECT_EQ(patched(R"(pairs = [["a", "sink"]])", context, memory).run(0, anything).verdict, redirect(1));
}

TEST(Patch, RefusesAPortInTwoPairsAtItsPlace) {
  const std::string what = refusal(R"(pairs = [["a", "b"], ["c", "a"]])");
  EXPECT_TRUE(what.starts_with("test.toml:6:")) << what;
  EXPECT_NE(what.find("\"a\" is in two pairs"), std::string::npos) << what;
  EXPECT_NE(refusal(R"(pairs = [["a", "b"], ["b", "a"]])").find("in two pairs"), std::string::npos);
}

TEST(Patch, RefusesAPortThatIsItsOwnPartner) { EXPECT_NE(refusal(R"(pairs = [["a", "a"]])").find("own partner"), std::string::npos); }

TEST(Patch, RefusesWhatIsNoPair) {
  for (const char* keys :
       {"", "pairs = []", R"(pairs = ["a", "b"])", R"(pairs = [["a"]])", R"(pairs = [["a", "b", "c"]])", R"(pairs = [["a", "nowhere"]])"})
    EXPECT_TRUE(refusal(keys).starts_with("test.toml:")) << keys << ": " << refusal(keys);
}

TEST(KernelPatch, DecidesAsTheUserHalf) {
  if (const std::string why = no_kernel(); !why.empty()) GTEST_SKIP() << why;
  FakeContext context({"a", "b", "c", "d", "e"});
  auto kernel = KernelHalf::open(weir_plugin, context);
  ASSERT_TRUE(kernel) << kernel.error().what;
  UserHalf patch = patched(R"(pairs = [["a", "c"], ["d", "b"]])", context, (*kernel)->memory());
  const Result<> loaded = (*kernel)->load();
  ASSERT_TRUE(loaded) << loaded.error().what;
  for (u32 port = 0; port < 5; ++port)
    for (std::size_t size : {14, 60, 1514}) {
      const Packet bytes = FrameBuilder().ethernet(station(port), broadcast).pad(size);
      const Result<Outcome> out = (*kernel)->run(port, bytes);
      ASSERT_TRUE(out) << out.error().what;
      EXPECT_EQ(out->verdict, patch.run(port, bytes).verdict) << "port " << port;
      EXPECT_EQ(out->bytes, bytes);
    }
}

TEST(KernelPatch, KnowsEveryPortByItsOwnBit) {
  if (const std::string why = no_kernel(); !why.empty()) GTEST_SKIP() << why;
  std::vector<std::string> names;
  for (u32 port = 0; port < WEIR_MAX_PORTS; ++port) names.push_back(fmt::format("p{}", port));
  FakeContext context(names);
  auto kernel = KernelHalf::open(weir_plugin, context);
  ASSERT_TRUE(kernel) << kernel.error().what;
  UserHalf patch = patched(R"(pairs = [["p0", "p63"], ["p1", "p32"], ["p2", "p31"]])", context, (*kernel)->memory());
  ASSERT_TRUE((*kernel)->load());
  for (const auto& [from, to] : {std::pair(0u, 63u), std::pair(1u, 32u), std::pair(2u, 31u)}) {
    const u64 bit = 1ull << to;
    const auto out = [&](const port_entries& bits) { return *(*kernel)->run_without_entries(from, anything, bits); };
    EXPECT_EQ(out({}).what, WEIR_PUNT) << to << ": user space can send there";
    EXPECT_EQ(out({.fused = 0, .deleted = bit}), (Verdict{WEIR_DROP, WEIR_DROP_NO_ENTRY})) << to;
    EXPECT_EQ(out({.fused = 0, .deleted = ~bit}).what, WEIR_PUNT) << to << ": others are deleted";
    EXPECT_EQ(out({.fused = bit, .deleted = bit}), (Verdict{WEIR_DROP, WEIR_DROP_NO_ENTRY})) << to << ": its chain has gone";
    EXPECT_EQ((*kernel)->run(from, anything)->verdict, redirect(to));
  }
}

TEST(KernelPatch, AgreesWithTheUserHalf) {
  if (const std::string why = no_kernel(); !why.empty()) GTEST_SKIP() << why;
  const u32 seed = test_seed();
  SCOPED_TRACE(fmt::format("WEIR_TEST_SEED={}", seed));
  const auto agreed = both_halves_agree(weir_plugin, R"(pairs = [["a", "c"]])", {"a", "b", "c"}, random_traffic(seed, 100'000, 3));
  ASSERT_TRUE(agreed) << agreed.error().what;
  EXPECT_EQ(agreed->frames, 100'000u);
  EXPECT_EQ(agreed->punted, 0u);
}

}  // namespace
