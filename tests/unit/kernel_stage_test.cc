// SPDX-License-Identifier: BSD-3-Clause
// kernel_stage_test: kernel halves that are wrong: what they say is bounded, counted and told, and what the verifier refuses is said.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "bpf/abi/link.h"
#include "core/plugin.hh"
#include "kit/plugin_kit.hh"

#include "any_verdict.skel.h"
#include "past_the_end.skel.h"

namespace weir {
namespace {

using namespace kit;
using testing::HasSubstr;

const Plugin anything{.name = "any_verdict",
                      .says = "anything",
                      .keys = {},
                      .drops = {"one", "two"},
                      .counters = {},
                      .punts = {},
                      .make = nullptr,
                      .kernel_half = WEIR_KERNEL_HALF(any_verdict)};
const Plugin refused{.name = "past_the_end",
                     .says = "nothing",
                     .keys = {},
                     .drops = {},
                     .counters = {},
                     .punts = {},
                     .make = nullptr,
                     .kernel_half = WEIR_KERNEL_HALF(past_the_end)};

class KernelStage : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = no_kernel(); !why.empty()) GTEST_SKIP() << why;
  }
  // Of a half that is told to answer this.
  Result<Outcome> answer(u32 verdict, u32 argument, u32 counter = 0) {
    auto kernel = TRY(KernelHalf::open(anything, context_));
    TRY_VOID(kernel->load());
    const std::array<u32, 3> order{verdict, argument, counter};
    Packet bytes(60);
    std::memcpy(bytes.data(), order.data(), sizeof order);
    return kernel->run(0, bytes);
  }
  FakeContext context_{{"a", "b"}};
};

TEST_F(KernelStage, drops_under_its_names) {
  for (u32 reason : {0u, 1u}) {
    const auto out = answer(WEIR_DROP, reason);
    ASSERT_TRUE(out) << out.error().what;
    EXPECT_EQ(out->verdict, kit::drop(reason));
  }
}

TEST_F(KernelStage, is_told_of_a_reason_that_it_does_not_name) {
  for (const u32 reason : std::vector<u32>{2, WEIR_DROP_UNNAMED - WEIR_DROP_OWN, WEIR_DROPS - WEIR_DROP_OWN, 255, ~0u, ~0u - WEIR_DROP_OWN,
                                           ~0u - WEIR_DROP_OWN + 1}) {
    const auto out = answer(WEIR_DROP, reason);
    ASSERT_FALSE(out) << reason;
    const u32 counted = std::min(reason, u32{WEIR_DROP_UNNAMED - WEIR_DROP_OWN});
    EXPECT_EQ(out.error().what, fmt::format("any_verdict: its kernel half drops a frame under reason {}, and it names 2", counted));
  }
}

TEST_F(KernelStage, counts_nothing_that_is_not_there) {
  for (u32 counter : {u32{WEIR_COUNTERS - 1}, u32{WEIR_COUNTERS}, ~0u}) {
    const auto out = answer(WEIR_TO_STACK, 0, counter);
    ASSERT_TRUE(out) << out.error().what;
    EXPECT_EQ(out->verdict.what, WEIR_TO_STACK);
  }
}

TEST_F(KernelStage, sends_a_frame_for_a_port_that_only_user_space_sends_to_there) {
  for (u32 port : {2u, 63u}) {
    const auto out = answer(WEIR_REDIRECT, port);
    ASSERT_TRUE(out) << out.error().what;
    EXPECT_EQ(out->verdict.what, WEIR_PUNT) << port;
  }
}

TEST_F(KernelStage, looks_the_entry_of_a_port_up) {
  for (const auto& [port, there] : std::vector<std::pair<u32, bool>>{{0, true}, {1, true}, {2, false}, {64, false}, {~0u, false}}) {
    const auto out = answer(WEIR_VERDICTS, port);
    ASSERT_TRUE(out) << out.error().what;
    EXPECT_EQ(out->verdict, kit::drop(there ? 0 : 1)) << port;
  }
}

TEST_F(KernelStage, misses_a_port_that_is_not_there) {
  for (u32 port : {64u, ~0u}) {
    const auto out = answer(WEIR_REDIRECT, port);
    ASSERT_TRUE(out) << out.error().what;
    EXPECT_EQ(out->verdict.what, WEIR_DROP) << port;
  }
}

TEST_F(KernelStage, comes_with_the_words_of_the_verifier_that_refuses_it) {
  auto kernel = KernelHalf::open(refused, context_);
  ASSERT_TRUE(kernel) << kernel.error().what;
  ::unsetenv("WEIR_BPF_LOG");
  const Result<> loaded = (*kernel)->load();
  ASSERT_FALSE(loaded);
  EXPECT_THAT(loaded.error().what, HasSubstr("the kernel's verifier refuses its program"));
  EXPECT_THAT(loaded.error().what, HasSubstr("outside of the packet"));
  EXPECT_THAT(loaded.error().what, testing::EndsWith("WEIR_BPF_LOG=FILE in the environment writes the whole log"));
  EXPECT_EQ(std::ranges::count(loaded.error().what, '\n'), 0);
}

TEST_F(KernelStage, writes_the_whole_log_where_it_is_asked_to) {
  const std::string file = std::filesystem::temp_directory_path() / fmt::format("weir-log-{}", ::getpid());
  ::setenv("WEIR_BPF_LOG", file.c_str(), 1);
  auto kernel = KernelHalf::open(refused, context_);
  ASSERT_TRUE(kernel) << kernel.error().what;
  const Result<> loaded = (*kernel)->load();
  ::unsetenv("WEIR_BPF_LOG");
  ASSERT_FALSE(loaded);
  EXPECT_THAT(loaded.error().what, testing::EndsWith("the whole log is in " + file));
  std::ostringstream log;
  log << std::ifstream(file).rdbuf();
  std::filesystem::remove(file);
  EXPECT_THAT(log.str(), HasSubstr("invalid access to packet"));
  EXPECT_THAT(log.str(), HasSubstr("processed "));
}

}  // namespace
}  // namespace weir
