// SPDX-License-Identifier: BSD-3-Clause
// kit_test: the plugin test kit finds what is wrong with a plugin, and nothing with one that is right.
#include <linux/in.h>  // as a plugin's header may have it, in front of the kit's

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <set>

#include "any_verdict.skel.h"
#include "core/pipeline/registry.hh"
#include "kit/egress_kit.hh"
#include "kit/table.hh"

namespace weir::kit {
namespace {

using testing::HasSubstr;

enum odd_drop { ODD };

// Drops frames whose last byte is odd; sends the others to the second port, with a first byte that is one more.
class OddBytes final : public Stage {
 public:
  static Result<std::unique_ptr<Stage>> make(const ConfigNode&, StageContext&) { return std::make_unique<OddBytes>(); }
  void process(Burst& burst) noexcept override {
    for (Frame& frame : burst) {
      if (frame.data[frame.length - 1] % 2 == 1) burst.drop(frame, ODD);
      else ++frame.data[0], burst.transmit(frame, PortSlot{1});
    }
  }
};

const Plugin odd_bytes{.name = "odd_bytes", .says = "", .drops = {"odd"}, .make = OddBytes::make};

UserHalf made(PlainMemory& memory, FakeContext& context) {
  Result<UserHalf> half = UserHalf::make(odd_bytes, "", context, memory);
  if (!half) broken(half.error().what.c_str());
  return std::move(*half);
}

TEST(Table, says_nothing_of_claims_that_hold) {
  FakeContext context({"a", "b"});
  PlainMemory memory;
  UserHalf half = made(memory, context);
  EXPECT_EQ(differences(half, {{"odd", {4, 5}, drop(0)}, {"even", {4, 6}, redirect(1), {5, 6}}}), "");
}

TEST(Table, names_each_claim_that_does_not_hold_and_what_is_otherwise) {
  FakeContext context({"a", "b"});
  PlainMemory memory;
  UserHalf half = made(memory, context);
  EXPECT_EQ(differences(half, {{"sent", {4, 5}, redirect(1)}, {"holds", {4, 5}, drop(0)}, {"unchanged", {4, 6}, redirect(1)}}),
            "sent: the verdict is drop own reason 0, not redirect 1\n"
            "unchanged: the frame is 2 bytes 05 06, not 2 bytes 04 06");
}

// A kernel half that does as the frame says, beside a user half that does not.
TEST(KernelAgreement, takes_a_punt_for_the_user_halfs_and_names_the_first_frame_that_differs) {
  if (const std::string why = no_kernel(); !why.empty()) GTEST_SKIP() << why;
  const Plugin plugin{.name = "any_verdict",
                      .says = "",
                      .drops = {"odd"},
                      .punts = {"any"},
                      .make = OddBytes::make,
                      .kernel_half = WEIR_KERNEL_HALF(any_verdict)};
  Packet punts(16), stays(16);
  punts[0] = WEIR_PUNT, stays[0] = WEIR_TO_STACK;
  const auto agreed = both_halves_agree(plugin, "", {"a", "b"}, {{0, punts}, {1, punts}});
  ASSERT_TRUE(agreed) << agreed.error().what;
  EXPECT_EQ(agreed->frames, 2u);
  EXPECT_EQ(agreed->punted, 2u);
  const auto differs = both_halves_agree(plugin, "", {"a", "b"}, {{0, punts}, {1, stays}, {0, stays}});
  ASSERT_FALSE(differs);
  EXPECT_THAT(differs.error().what, testing::StartsWith("any_verdict: frame 2 in by port b, 16 bytes 04 00"));
  EXPECT_THAT(differs.error().what, testing::EndsWith(": with the kernel half the verdict is to_stack 0, not redirect 1"));
  EXPECT_EQ(both_halves_agree(odd_bytes, "", {"a"}, {}).error().what, "odd_bytes: it has no kernel half");
}

// Offloads the flow of each frame to the second port.
class Offloads final : public Stage {
 public:
  static Result<std::unique_ptr<Stage>> make(const ConfigNode&, StageContext& context) {
    return std::make_unique<Offloads>(context.flows());
  }
  explicit Offloads(Flows& flows) : flows_(flows) {}
  void process(Burst& burst) noexcept override {
    for (Frame& frame : burst) flows_.offload(flows_.key_of(frame), FlowAction::transmit(PortSlot{1}));
  }

 private:
  Flows& flows_;
};

Packet of_a_flow() { return FrameBuilder().ethernet(station(1), station(2)).ipv4("192.0.2.1", "192.0.2.2").udp(IPPROTO_UDP, 2).build(); }

TEST(FakeFlows, hold_what_is_offloaded_once_a_test_has_opened_them) {
  const Plugin plugin{.name = "offloads", .says = "", .make = Offloads::make, .per_flow = true};
  FakeContext context({"a", "b"});
  PlainMemory memory;
  auto half = UserHalf::make(plugin, "", context, memory);
  ASSERT_TRUE(half) << half.error().what;
  half->run(0, of_a_flow());
  EXPECT_EQ(context.flows().offloads().size(), 0u) << "as in a run without kernel halves";
  context.flows().open();
  half->run(0, of_a_flow());
  ASSERT_EQ(context.flows().offloads().size(), 1u);
  EXPECT_EQ(context.flows().offloads()[0].action.fate(), FLOW_REDIRECT);
  EXPECT_EQ(context.flows().offloads()[0].action.argument(), 1);
  EXPECT_EQ(context.flows().offloads()[0].key.source_port(), IPPROTO_UDP);
}

TEST(FakeFlows, stay_closed_for_a_plugin_without_per_flow) {
  const Plugin plugin{.name = "offloads", .says = "", .make = Offloads::make};
  FakeContext context({"a", "b"});
  context.flows().open();
  PlainMemory memory;
  auto half = UserHalf::make(plugin, "", context, memory);
  ASSERT_TRUE(half) << half.error().what;
  context.flows().open();
  EXPECT_FALSE(context.flows().any());
  half->run(0, of_a_flow());
  EXPECT_EQ(context.flows().offloads().size(), 0u);
}

TEST(Traffic, is_the_same_for_one_seed_and_has_frames_of_each_kind) {
  const Traffic traffic = random_traffic(7, 2000, 3);
  EXPECT_EQ(traffic, random_traffic(7, 2000, 3));
  EXPECT_NE(traffic, random_traffic(8, 2000, 3));
  std::set<u32> ports;
  std::set<u16> types;
  for (const auto& [port, bytes] : traffic) {
    ASSERT_GE(bytes.size(), 14u);
    ports.insert(port);
    types.insert(static_cast<u16>(bytes[12] << 8 | bytes[13]));
  }
  EXPECT_EQ(ports, (std::set<u32>{0, 1, 2}));
  EXPECT_THAT(types, testing::IsSupersetOf({0x0800, 0x0806, 0x86dd, 0x8100, 0x88a8}));
}

TEST(Traffic, reads_a_capture_and_refuses_one_that_ends_in_a_frame) {
  const std::string whole = std::string(WEIR_TEST_DATA) + "/../data/conversation.pcap";
  const Result<Traffic> traffic = captured_traffic(whole, 2);
  ASSERT_TRUE(traffic) << traffic.error().what;
  ASSERT_GT(traffic->size(), 10u);
  EXPECT_EQ((*traffic)[1].first, 1u);
  const std::string cut = testing::TempDir() + fmt::format("weir_kit_{}.pcap", ::getpid());
  std::filesystem::copy_file(whole, cut, std::filesystem::copy_options::overwrite_existing);
  std::filesystem::resize_file(cut, std::filesystem::file_size(cut) - 1);
  const Result<Traffic> none = captured_traffic(cut, 2);
  std::filesystem::remove(cut);
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().what, fmt::format("{}: read frame {}: the file ends in it", cut, traffic->size()));
}

const EgressModule& module_of(const char* name) {
  static const Registry registry = [] {
    Result<Registry> loaded = Registry::load();
    if (!loaded) broken(loaded.error().what.c_str());
    return std::move(*loaded);
  }();
  return *registry.egress_module(name);
}

TEST(EgressKit, runs_the_host_build_with_its_keys) {
  Result<EgressHost> host = EgressHost::make(module_of("vlan_push"), "vid = 7");
  ASSERT_TRUE(host) << host.error().what;
  const FrameBuilder plain = FrameBuilder().ethernet(station(1), station(2));
  EXPECT_EQ(differences(*host, {{"a tag more", plain.build(), transmitted(), FrameBuilder(plain).vlan(7).build()}}), "");
  EXPECT_THAT(differences(*host, {{"none", plain.build(), transmitted()}}), HasSubstr("none: the frame is 18 bytes"));
  const Result<EgressHost> none = EgressHost::make(module_of("vlan_push"), "vid = 4095");
  ASSERT_FALSE(none);
  EXPECT_THAT(none.error().what, HasSubstr("port[0].egress[0].vid: is 4095"));
}

TEST(KernelEgressKit, runs_both_builds_over_one_traffic) {
  if (const std::string why = no_kernel(); !why.empty()) GTEST_SKIP() << why;
  const Result<std::size_t> agreed = both_builds_agree(module_of("vlan_push"), "vid = 7", random_traffic(test_seed(), 2000, 1));
  ASSERT_TRUE(agreed) << agreed.error().what;
  EXPECT_EQ(*agreed, 2000u);
  auto kernel = EgressKernel::load(module_of("count"), "");
  ASSERT_TRUE(kernel) << kernel.error().what;
  const Packet bytes = FrameBuilder().ethernet(station(1), station(2), ETH_P_ARP).pad(60);
  EXPECT_EQ(differences(**kernel, {{"counted", bytes, transmitted()}}), "");
  EXPECT_EQ((*kernel)->counter("arp"), 1u);
  EXPECT_EQ((*kernel)->counter("bytes"), 60u);
}

}  // namespace
}  // namespace weir::kit
