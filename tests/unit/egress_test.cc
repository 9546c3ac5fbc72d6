// SPDX-License-Identifier: BSD-3-Clause
// egress_test: each egress program by its host build, by its BPF build, and both against each other.
#include <bpf/bpf.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>

#include "bpf/abi/count.h"
#include "bpf/abi/egress.h"
#include "bpf/abi/link.h"
#include "bpf/abi/mac_rewrite.h"
#include "bpf/egress/count.skel.h"
#include "bpf/egress/mac_rewrite.skel.h"
#include "core/kernel/object.hh"
#include "core/pipeline/egress_chain.hh"
#include "tests/kit/plugin_kit.hh"

// The host side of the programs' own header: struct egress_frame.
extern "C" {
#include "bpf/lib/egress.bpf.h"
extern const egress_program weir_egress_count, weir_egress_mac_rewrite;
}

namespace weir {
namespace {

using namespace kit;

struct Answer {
  u32 verdict = EGRESS_TRANSMIT;
  Packet bytes;
  friend bool operator==(const Answer&, const Answer&) = default;
};

std::ostream& operator<<(std::ostream& out, const Answer& answer) {
  out << (answer.verdict == EGRESS_TRANSMIT ? "transmit" : fmt::format("drop {}", answer.verdict - 1));
  for (u8 byte : answer.bytes) out << fmt::format(" {:02x}", byte);
  return out;
}

// The names of a program's counters, and how far each is.
using Counters = std::map<std::string, u64>;

Counters counters_of(const egress_program& program, const std::vector<u64>& state) {
  Counters counters;
  for (std::size_t i = 0; program.counters[i] != nullptr; ++i)
    if (state[i] != 0) counters[program.counters[i]] = state[i];
  return counters;
}

template <typename Config>
std::vector<u8> bytes_of(const Config& config) {
  const u8* from = reinterpret_cast<const u8*>(&config);
  return {from, from + sizeof config};
}

// One of the two builds of a program, with a configuration and a state.
class Build {
 public:
  explicit Build(const egress_program& program) : program_(program) {}
  virtual ~Build() = default;
  virtual Answer run(const Packet& bytes) = 0;
  [[nodiscard]] virtual std::vector<u64> state() const = 0;
  [[nodiscard]] Counters counters() const { return counters_of(program_, state()); }

 protected:
  const egress_program& program_;
};

class HostBuild final : public Build {
 public:
  HostBuild(const egress_program& program, const std::vector<u8>& config)
      : Build(program), config_(config), state_(program.state_size / 8) {}
  Answer run(const Packet& bytes) override {
    Answer answer{0, bytes};
    egress_frame frame{answer.bytes.data(), static_cast<u32>(bytes.size())};
    answer.verdict = program_.run(&frame, config_.data(), state_.data());
    answer.bytes.assign(frame.data, frame.data + frame.length);
    return answer;
  }
  [[nodiscard]] std::vector<u64> state() const override { return state_; }

 private:
  const std::vector<u8> config_;
  std::vector<u64> state_;
};

// The program NAME_test over maps as the instance makes them: rows for the CPUs, and one for a worker behind them.
class KernelBuild final : public Build {
 public:
  static Result<std::unique_ptr<KernelBuild>> load(const egress_program& program, const std::vector<u8>& config) {
    std::unique_ptr<KernelBuild> made(new KernelBuild(program, TRY(BpfObject::open(program.name, elf_of(program)))));
    TRY_VOID(made->set_up(config));
    return made;
  }
  Answer run(const Packet& bytes) override {
    const account before = account_.kernel(0);
    Answer answer{0, Packet(4096)};
    LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = bytes.data(), .data_out = answer.bytes.data(),
                .data_size_in = static_cast<u32>(bytes.size()), .data_size_out = static_cast<u32>(answer.bytes.size()));
    const int fd = object_.program_fd(program_.name + std::string("_test"));
    if (const int err = ::bpf_prog_test_run_opts(fd, &options); err != 0) broken(std::strerror(-err));
    answer.bytes.resize(options.data_size_out);
    answer.verdict = verdict_of(before, account_.kernel(0), options.retval);
    return answer;
  }
  [[nodiscard]] std::vector<u64> state() const override {
    std::vector<u64> sum(program_.state_size / 8);
    for (u32 row = 0; row <= possible_cpus(); ++row)
      for (std::size_t i = 0; i < sum.size(); ++i)
        sum[i] += reinterpret_cast<const u64*>(state_memory_.data() + (EGRESS_FIRST_ROW + row) * state_.stride())[i];
    return sum;
  }
  // The frame through a chain of the host build over the same memory, as the instance hands it out.
  Packet run_on_a_worker(const Packet& bytes) {
    const auto pool = std::move(*FramePool::create(1, 2048));
    FrameCache cache(*pool);
    std::ranges::copy(bytes, pool->base());
    Frame frame{.data = pool->base(), .length = static_cast<u32>(bytes.size())};
    EgressChain chain;
    chain.append({&program_, config_memory_.data(), state_memory_.data() + EGRESS_FIRST_ROW * state_.stride(), state_.stride(), 0});
    EXPECT_EQ(chain.run(&frame, 1, account_, possible_cpus(), cache), 1u);
    return {frame.data, frame.data + frame.length};
  }
  [[nodiscard]] const Accounts& accounts() const noexcept { return account_; }
  [[nodiscard]] u8* config() const noexcept { return config_memory_.data(); }

 private:
  KernelBuild(const egress_program& program, BpfObject object) : Build(program), object_(std::move(object)) {}
  static std::span<const u8> elf_of(const egress_program& program) {
    return &program == &weir_egress_count ? WEIR_KERNEL_HALF(count)() : WEIR_KERNEL_HALF(mac_rewrite)();
  }
  Result<> set_up(const std::vector<u8>& config) {
    const u32 rows = possible_cpus() + 1;
    accounts_ = TRY(BpfMap::create("accounts", {BPF_MAP_TYPE_ARRAY, 4, sizeof(account), rows, BPF_F_MMAPABLE}));
    account_ = Accounts(TRY(accounts_.map_memory()), possible_cpus(), rows, 1);
    state_ = TRY(BpfMap::create(
        "state", {BPF_MAP_TYPE_ARRAY, 4, static_cast<u32>(egress_stride(program_)), EGRESS_FIRST_ROW + rows, BPF_F_MMAPABLE}));
    state_memory_ = TRY(state_.map_memory());
    TRY_VOID(object_.use("accounts", accounts_.fd()));
    TRY_VOID(object_.use("state", state_.fd()));
    if (object_.has_map(".data.config")) {
      const MapShape shape = TRY(object_.shape(".data.config"));
      config_ = TRY(BpfMap::create("config", shape));
      config_memory_ = TRY(config_.map_memory());
      std::ranges::copy(config, config_memory_.data());
      TRY_VOID(object_.use(".data.config", config_.fd()));
    }
    TRY_VOID(object_.constants(".rodata.weir", egress_link{.unused = {}, .block = 0, .next = WEIR_NO_NEXT}));
    return object_.load(program_.name + std::string("_test"));
  }
  static u32 verdict_of(const account& before, const account& after, u32 action) {
    if (action == XDP_PASS) return after.verdict[WEIR_NEXT] == before.verdict[WEIR_NEXT] + 1 ? EGRESS_TRANSMIT : ~0u;
    for (u32 reason = WEIR_DROP_OWN; reason < WEIR_DROPS; ++reason)
      if (action == XDP_DROP && after.drop[reason] == before.drop[reason] + 1) return EGRESS_DROP(reason - WEIR_DROP_OWN);
    return ~0u;  // counted otherwise than it ended
  }

  BpfObject object_;
  BpfMap accounts_, state_, config_;
  Mapping state_memory_, config_memory_;
  Accounts account_{Mapping(), 0, 0, 0};
};

struct Case {
  const char* claim;
  const egress_program& program;
  std::vector<u8> config;
  Packet in;
  u32 verdict;
  Packet out;
  Counters counters = {};
};

// The same frame, and the counters that it must move.
Case counts(const char* claim, const Packet& frame, Counters counters) {
  counters["bytes"] = frame.size();
  return {claim, weir_egress_count, bytes_of(egress_none{}), frame, EGRESS_TRANSMIT, frame, std::move(counters)};
}

mac_rewrite_config rewrite(std::optional<Mac> source, std::optional<Mac> destination) {
  mac_rewrite_config config{};
  std::ranges::copy(source.value_or(Mac{9, 9, 9, 9, 9, 9}), config.src);
  std::ranges::copy(destination.value_or(Mac{9, 9, 9, 9, 9, 9}), config.dst);
  config.set_src = source.has_value();
  config.set_dst = destination.has_value();
  return config;
}

Case rewrites(const char* claim, const mac_rewrite_config& config, const Packet& in, const Packet& out) {
  return {claim, weir_egress_mac_rewrite, bytes_of(config), in, EGRESS_TRANSMIT, out};
}

FrameBuilder ethernet(u32 source, u32 destination) { return FrameBuilder().ethernet(station(source), station(destination)); }
FrameBuilder v4() { return ethernet(1, 2).ipv4("10.0.0.1", "10.0.0.2"); }
FrameBuilder v6() { return ethernet(1, 2).ipv6("fd00::1", "fd00::2"); }
Packet cut(Packet frame, std::size_t size) { return frame.resize(size), frame; }

const std::vector<Case> cases = {
    counts("counts_tcp_over_ipv4", v4().tcp(1, 2).pad(60), {{"ipv4", 1}, {"tcp", 1}}),
    counts("counts_udp_over_ipv4", v4().udp(1, 2).payload("water").build(), {{"ipv4", 1}, {"udp", 1}}),
    counts("counts_icmp", v4().icmp(8, 0).build(), {{"ipv4", 1}, {"icmp", 1}}),
    counts("counts_tcp_over_ipv6", v6().tcp(1, 2).build(), {{"ipv6", 1}, {"tcp", 1}}),
    counts("counts_icmpv6", v6().icmp(135, 0).build(), {{"ipv6", 1}, {"icmp", 1}}),
    counts("counts_other_protocols_over_ipv4_by_l3_alone", v4().payload("x").build(), {{"ipv4", 1}}),
    counts("counts_arp", FrameBuilder().ethernet(station(1), broadcast, ETH_P_ARP).pad(60), {{"arp", 1}}),
    counts("counts_a_tagged_frame_as_vlan_alone", v4().vlan(7).udp(1, 2).build(), {{"vlan", 1}}),
    counts("counts_a_service_tag_as_vlan", v4().vlan(7, 0, ETH_P_8021AD).build(), {{"vlan", 1}}),
    counts("counts_what_it_does_not_know", ethernet(1, 2).pad(1514), {{"other", 1}}),
    counts("counts_an_ipv4_frame_that_ends_before_its_protocol", cut(v4().build(), 14 + 9), {{"ipv4", 1}}),
    counts("sees_a_protocol_in_the_last_byte_of_a_frame", cut(v4().udp(1, 2).build(), 14 + 10), {{"ipv4", 1}, {"udp", 1}}),
    counts("counts_an_ipv6_frame_that_ends_before_its_protocol", cut(v6().build(), 14 + 6), {{"ipv6", 1}}),
    counts("counts_a_frame_shorter_than_ethernet", Packet(13), {{"other", 1}}),
    counts("counts_a_bare_ethernet_header", ethernet(1, 2).build(), {{"other", 1}}),
    rewrites("sets_both_addresses", rewrite(station(8), station(9)), ethernet(1, 2).pad(60), ethernet(8, 9).pad(60)),
    rewrites("sets_the_source_alone", rewrite(station(8), {}), ethernet(1, 2).pad(60), ethernet(8, 2).pad(60)),
    rewrites("sets_the_destination_alone", rewrite({}, station(9)), ethernet(1, 2).pad(60), ethernet(1, 9).pad(60)),
    rewrites("changes_nothing_when_nothing_is_set", rewrite({}, {}), v4().udp(1, 2).build(), v4().udp(1, 2).build()),
    rewrites("rewrites_a_bare_ethernet_header", rewrite(station(8), station(9)), ethernet(1, 2).build(), ethernet(8, 9).build()),
    {"drops_a_frame_shorter_than_ethernet", weir_egress_mac_rewrite, bytes_of(rewrite(station(8), station(9))), Packet(13, 5),
     EGRESS_DROP(MAC_REWRITE_TRUNCATED), Packet(13, 5)},
};

std::string claim_of(const testing::TestParamInfo<Case>& info) { return info.param.claim; }

void expect_claim(const Case& of, Build& build) {
  EXPECT_EQ(build.run(of.in), (Answer{of.verdict, of.out}));
  EXPECT_EQ(build.counters(), of.counters);
}

class Egress : public testing::TestWithParam<Case> {};
class EgressInKernel : public testing::TestWithParam<Case> {};

TEST_P(Egress, host_build) {
  HostBuild build(GetParam().program, GetParam().config);
  expect_claim(GetParam(), build);
}

TEST_P(EgressInKernel, bpf_build) {
  if (const std::string why = no_kernel(); !why.empty()) GTEST_SKIP() << why;
  auto build = KernelBuild::load(GetParam().program, GetParam().config);
  ASSERT_TRUE(build) << build.error().what;
  expect_claim(GetParam(), **build);
}

// The kernel's test runs take no frame that is shorter than an Ethernet header.
std::vector<Case> runnable() {
  std::vector<Case> chosen;
  std::ranges::copy_if(cases, std::back_inserter(chosen), [](const Case& each) { return each.in.size() >= ETH_HLEN; });
  return chosen;
}

INSTANTIATE_TEST_SUITE_P(Host, Egress, testing::ValuesIn(cases), claim_of);
INSTANTIATE_TEST_SUITE_P(Kernel, EgressInKernel, testing::ValuesIn(runnable()), claim_of);

// Frames that are nearly right: of every kind, cut and damaged.
Packet random_frame(std::mt19937& dice) {
  Packet frame = cases[dice() % cases.size()].in;
  for (u32 damage = dice() % 3; damage > 0 && !frame.empty(); --damage) frame[dice() % frame.size()] = static_cast<u8>(dice());
  if (dice() % 2 == 0) frame.resize(dice() % (dice() % 3 == 0 ? 64 : 1515));
  frame.resize(std::max<std::size_t>(frame.size(), ETH_HLEN));
  return frame;
}

TEST(KernelEgressBuilds, agree_on_random_frames) {
  if (const std::string why = no_kernel(); !why.empty()) GTEST_SKIP() << why;
  const u32 seed = test_seed();
  SCOPED_TRACE(fmt::format("WEIR_TEST_SEED={}", seed));
  std::mt19937 dice(seed);
  for (u32 round = 0; round < 8; ++round) {
    const bool counting = round % 2 == 0;
    const egress_program& program = counting ? weir_egress_count : weir_egress_mac_rewrite;
    const std::optional<Mac> source = dice() % 4 == 0 ? std::nullopt : std::optional(station(dice()));
    const std::vector<u8> config = counting ? std::vector<u8>(8) : bytes_of(rewrite(source, station(dice())));
    HostBuild host(program, config);
    auto kernel = KernelBuild::load(program, config);
    ASSERT_TRUE(kernel) << kernel.error().what;
    for (u32 i = 0; i < 1000; ++i) {
      const Packet frame = random_frame(dice);
      ASSERT_EQ((*kernel)->run(frame), host.run(frame)) << program.name << ", frame " << i;
    }
    EXPECT_EQ((*kernel)->state(), host.state());
  }
}

TEST(KernelEgressBuilds, share_configuration_and_state) {
  if (const std::string why = no_kernel(); !why.empty()) GTEST_SKIP() << why;
  auto counting = KernelBuild::load(weir_egress_count, {});
  auto rewriting = KernelBuild::load(weir_egress_mac_rewrite, bytes_of(rewrite(station(5), station(6))));
  ASSERT_TRUE(counting && rewriting);
  const Packet frame = ethernet(1, 2).pad(60);
  (*counting)->run(frame);
  (*counting)->run_on_a_worker(frame);
  (*counting)->run_on_a_worker(frame);
  EXPECT_EQ((*counting)->counters(), (Counters{{"bytes", 180}, {"other", 3}}));
  EXPECT_EQ((*counting)->accounts().kernel(0).verdict[WEIR_NEXT], 1u);
  EXPECT_EQ((*counting)->accounts().user(0).verdict[WEIR_NEXT], 2u);
  for (const auto& [source, destination] : {std::pair(5u, 6u), std::pair(7u, 8u)}) {
    std::ranges::copy(bytes_of(rewrite(station(source), station(destination))), (*rewriting)->config());
    const Packet out = ethernet(source, destination).pad(60);
    EXPECT_EQ((*rewriting)->run(frame).bytes, out);
    EXPECT_EQ((*rewriting)->run_on_a_worker(frame), out);
  }
}

}  // namespace
}  // namespace weir
