// SPDX-License-Identifier: BSD-3-Clause
// egress_test: each egress program by its host build, by its BPF build, and both against each other.
#include <bpf/bpf.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>

#include "bpf/abi/egress.h"
#include "bpf/abi/encap_ipip.h"
#include "bpf/abi/encap_vxlan.h"
#include "bpf/abi/link.h"
#include "bpf/abi/vlan_push.h"
#include "core/config/config.hh"
#include "core/kernel/object.hh"
#include "core/pipeline/egress_chain.hh"
#include "core/pipeline/egress_config.hh"
#include "core/pipeline/registry.hh"
#include "tests/kit/plugin_kit.hh"

// The host side of the programs' own header: struct egress_frame.
extern "C" {
#include "bpf/lib/egress.bpf.h"
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

const Registry& registry() {
  static const Registry loaded = [] {
    Result<Registry> found = Registry::load();
    if (!found) broken(found.error().what.c_str());
    return std::move(*found);
  }();
  return loaded;
}

std::string file_with(const std::string& program, const std::string& keys) {
  return fmt::format("[[port]]\nname = \"p\"\ndriver = \"null\"\negress = [{{ program = \"{}\"{}{} }}]\n", program,
                     keys.empty() ? "" : ", ", keys);
}

// A program with the keys that a configuration file gives it, such as "vid = 100, pcp = 5".
struct Configured {
  const egress_program& program;
  std::span<const u8> elf;
  std::vector<u8> config;

  Configured(const std::string& name, const std::string& keys)
      : program(*registry().egress_module(name)->host), elf(registry().egress_module(name)->elf), config(program.config_size) {
    const auto parsed = parse_config(file_with(name, keys), name, registry());
    if (!parsed) broken(parsed.error().front().text().c_str());
    fill_egress_config(program, parsed->ports[0].egress[0].keys, {station(77), 1500}, config.data());
  }
};

constexpr u32 headroom = 256;

// One of the two builds of a program, with a configuration and a state.
class Build {
 public:
  explicit Build(const Configured& of) : program_(of.program) {}
  virtual ~Build() = default;
  virtual Answer run(const Packet& bytes) = 0;
  [[nodiscard]] virtual std::vector<u64> state() const = 0;
  [[nodiscard]] Counters counters() const { return counters_of(program_, state()); }

 protected:
  const egress_program& program_;
};

class HostBuild final : public Build {
 public:
  explicit HostBuild(const Configured& of)
      : Build(of),
        config_(of.config),
        state_(program_.state_size / 8),
        shared_(program_.shared_size != nullptr ? *program_.shared_size / 8 : 0) {}
  Answer run(const Packet& bytes) override { return run(bytes, headroom); }
  Answer run(const Packet& bytes, u32 room) {
    Packet memory(headroom + bytes.size());  // a frame lies on an even address
    std::ranges::copy(bytes, memory.begin() + headroom);
    egress_frame frame{memory.data() + headroom, static_cast<u32>(bytes.size()), room, shared_.data()};
    const u32 verdict = program_.run(&frame, config_.data(), state_.data());
    return {verdict, Packet(frame.data, frame.data + frame.length)};
  }
  [[nodiscard]] std::vector<u64> state() const override { return state_; }

 private:
  const std::vector<u8> config_;
  std::vector<u64> state_, shared_;
};

// The program NAME_test over maps as the instance makes them: rows for the CPUs, and one for a worker behind them.
class KernelBuild final : public Build {
 public:
  static Result<std::unique_ptr<KernelBuild>> load(const Configured& of) {
    std::unique_ptr<KernelBuild> made(new KernelBuild(of, TRY(BpfObject::open(of.program.name, of.elf))));
    TRY_VOID(made->set_up(of.config));
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
    std::ranges::copy(bytes, pool->base() + headroom);
    Frame frame{.data = pool->base() + headroom, .length = static_cast<u32>(bytes.size())};
    EgressChain chain;
    chain.append(
        {&program_, config_memory_.data(), state_memory_.data() + EGRESS_FIRST_ROW * state_.stride(), state_.stride(), nullptr, 0});
    EXPECT_EQ(chain.run(&frame, 1, account_, possible_cpus(), cache), 1u);
    return {frame.data, frame.data + frame.length};
  }
  [[nodiscard]] const Accounts& accounts() const noexcept { return account_; }
  [[nodiscard]] u8* config() const noexcept { return config_memory_.data(); }

 private:
  KernelBuild(const Configured& of, BpfObject object) : Build(of), object_(std::move(object)) {}
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
  const char* program;
  std::string keys;
  Packet in;
  u32 verdict;
  Packet out;
  Counters counters = {};
};

// The same frame, and the counters that it must move.
Case counts(const char* claim, const Packet& frame, Counters counters) {
  counters["bytes"] = frame.size();
  return {claim, "count", "", frame, EGRESS_TRANSMIT, frame, std::move(counters)};
}

std::string quoted(const Mac& mac) {
  return fmt::format("\"{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}\"", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]);
}

std::string addresses(u32 source, u32 destination) {
  return fmt::format("src = {}, dst = {}", quoted(station(source)), quoted(station(destination)));
}

Case becomes(const char* claim, const char* program, const std::string& keys, const Packet& in, const Packet& out, Counters counters = {}) {
  return {claim, program, keys, in, EGRESS_TRANSMIT, out, std::move(counters)};
}

// Under the program's reason of this name, as it came.
Case drops(const char* claim, const char* program, const std::string& keys, const Packet& in, std::string_view reason) {
  u32 number = 0;
  const char* const* names = registry().egress_module(program)->host->drops;
  while (names[number] != nullptr && names[number] != reason) ++number;
  return {claim, program, keys, in, EGRESS_DROP(number), in};
}

FrameBuilder ethernet(u32 source, u32 destination) { return FrameBuilder().ethernet(station(source), station(destination)); }
FrameBuilder v4() { return ethernet(1, 2).ipv4("10.0.0.1", "10.0.0.2"); }
FrameBuilder v6() { return ethernet(1, 2).ipv6("fd00::1", "fd00::2"); }
Packet cut(Packet frame, std::size_t size) { return frame.resize(size), frame; }
Packet with(Packet frame, std::size_t at, u8 value) { return frame.at(at) = value, frame; }

FrameBuilder tagged(u16 vid, u8 priority = 0, u16 tpid = ETH_P_8021Q) { return ethernet(1, 2).vlan(vid, priority, tpid); }
Packet udp(FrameBuilder below) { return below.udp(1, 2).payload("water").build(); }
FrameBuilder v4_ttl(u8 ttl) { return ethernet(1, 2).ipv4("10.0.0.1", "10.0.0.2", ttl); }
FrameBuilder v6_limit(u8 limit) { return ethernet(1, 2).ipv6("fd00::1", "fd00::2", limit); }

// The frame that `ip` begins, filled up to `size` bytes.
Packet sized(FrameBuilder ip, std::size_t size) { return ip.payload(std::string(size - ip.build().size(), 'w')).build(); }

const std::string over_ipv4 = R"(local = "192.0.2.1", remote = "198.51.100.1")";
const std::string over_ipv6 = R"(local = "2001:db8::1", remote = "2001:db8::2")";
FrameBuilder outer_v4(FrameBuilder link, u8 ttl = 64) { return link.ipv4("192.0.2.1", "198.51.100.1", ttl); }
FrameBuilder outer_v6(FrameBuilder link, u8 limit = 64) { return link.ipv6("2001:db8::1", "2001:db8::2", limit); }

// The packet of a frame, which is behind `at` bytes, behind another IP header.
FrameBuilder encapsulated(FrameBuilder outer, u8 protocol, const Packet& frame, std::size_t at = ETH_HLEN) {
  return outer.protocol(protocol).payload(std::span(frame).subspan(at));
}
Packet ipip(FrameBuilder outer, u8 protocol, const Packet& frame, std::size_t at = ETH_HLEN) {
  return encapsulated(std::move(outer), protocol, frame, at).build();
}

// A frame in VXLAN, with a source port of 0.
Packet vxlan(FrameBuilder outer, u32 vni, const Packet& frame, u16 port = 4789) {
  const std::size_t length = 16 + frame.size();
  const auto low = [](std::size_t value) { return static_cast<u8>(value); };
  const std::array<u8, 16> headers{
      0, 0, low(port >> 8), low(port), low(length >> 8), low(length), 0, 0, 8, 0, 0, 0, low(vni >> 16), low(vni >> 8), low(vni), 0};
  return outer.protocol(IPPROTO_UDP).payload(headers).payload(frame).build();
}
std::string vxlan_keys(const std::string& ends) { return fmt::format("vni = 0x123456, {}, {}", ends, addresses(8, 9)); }
const std::string vxlan_v4 = vxlan_keys(over_ipv4), vxlan_v6 = vxlan_keys(over_ipv6);

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
    becomes("sets_both_addresses", "mac_rewrite", addresses(8, 9), ethernet(1, 2).pad(60), ethernet(8, 9).pad(60)),
    becomes("sets_the_ports_own_address_where_none_is_given", "mac_rewrite", "", ethernet(1, 2).pad(60), ethernet(77, 2).pad(60)),
    becomes("sets_the_destination_beside_the_ports_address", "mac_rewrite", "dst = " + quoted(station(9)), v4().build(),
            ethernet(77, 9).ipv4("10.0.0.1", "10.0.0.2").build()),
    becomes("rewrites_a_bare_ethernet_header", "mac_rewrite", addresses(8, 9), ethernet(1, 2).build(), ethernet(8, 9).build()),
    drops("does_not_rewrite_a_frame_shorter_than_ethernet", "mac_rewrite", "", Packet(13, 5), "truncated"),

    becomes("pushes_a_tag", "vlan_push", "vid = 100", udp(v4()), udp(tagged(100).ipv4("10.0.0.1", "10.0.0.2"))),
    becomes("pushes_a_tag_with_a_priority", "vlan_push", "vid = 4094, pcp = 7", udp(v4()),
            udp(tagged(4094, 7).ipv4("10.0.0.1", "10.0.0.2"))),
    becomes("pushes_a_service_tag", "vlan_push", "vid = 9, tpid = \"802.1ad\"", udp(v6()),
            udp(tagged(9, 0, ETH_P_8021AD).ipv6("fd00::1", "fd00::2"))),
    becomes("pushes_the_priority_of_the_tag_that_is_there", "vlan_push", "vid = 9", tagged(7, 5).pad(64), tagged(9, 5).vlan(7, 5).pad(68)),
    becomes("pushes_its_own_priority_before_that_of_the_tag", "vlan_push", "vid = 9, pcp = 0", tagged(7, 5).pad(64),
            tagged(9, 0).vlan(7, 5).pad(68)),
    becomes("pushes_in_front_of_a_tag_that_is_cut", "vlan_push", "vid = 9", cut(tagged(7, 5).build(), 15),
            cut(tagged(9).vlan(7, 5).build(), 19)),
    becomes("pushes_in_front_of_a_bare_ethernet_header", "vlan_push", "vid = 9", ethernet(1, 2).build(), tagged(9).build()),
    becomes("pushes_as_long_as_the_ports_mtu_allows", "vlan_push", "vid = 9", ethernet(1, 2).pad(1514), tagged(9).pad(1518)),
    drops("pushes_nothing_beyond_the_ports_mtu", "vlan_push", "vid = 9", ethernet(1, 2).pad(1515), "too_long"),
    becomes("pushes_as_long_as_its_own_mtu_allows", "vlan_push", "vid = 9, mtu = 100", ethernet(1, 2).pad(114), tagged(9).pad(118)),
    drops("pushes_nothing_beyond_its_own_mtu", "vlan_push", "vid = 9, mtu = 100", ethernet(1, 2).pad(115), "too_long"),
    drops("pushes_nothing_in_front_of_less_than_ethernet", "vlan_push", "vid = 9", Packet(13, 5), "truncated"),

    becomes("pops_a_tag", "vlan_pop", "", udp(tagged(100, 3).ipv4("10.0.0.1", "10.0.0.2")), udp(v4()), {{"popped", 1}}),
    becomes("pops_the_outer_of_two_tags", "vlan_pop", "", tagged(9, 1, ETH_P_8021AD).vlan(7, 5).pad(68), tagged(7, 5).pad(64),
            {{"popped", 1}}),
    becomes("pops_down_to_a_bare_ethernet_header", "vlan_pop", "", tagged(9).build(), ethernet(1, 2).build(), {{"popped", 1}}),
    becomes("pops_nothing_off_an_untagged_frame", "vlan_pop", "", udp(v4()), udp(v4()), {{"untagged", 1}}),
    drops("pops_no_tag_that_is_cut", "vlan_pop", "", cut(tagged(9).build(), 17), "truncated"),
    drops("pops_nothing_off_less_than_ethernet", "vlan_pop", "", Packet(13, 5), "truncated"),

    becomes("rewrites_the_vlan_and_keeps_the_priority", "vlan_rewrite", "vid = 100", tagged(7, 5).pad(64), tagged(100, 5).pad(64),
            {{"rewritten", 1}}),
    becomes("rewrites_the_priority_and_keeps_the_vlan", "vlan_rewrite", "pcp = 1", tagged(7, 5).pad(64), tagged(7, 1).pad(64),
            {{"rewritten", 1}}),
    becomes("rewrites_the_kind_of_tag_alone", "vlan_rewrite", "tpid = \"802.1ad\"", tagged(7, 5).pad(64),
            tagged(7, 5, ETH_P_8021AD).pad(64), {{"rewritten", 1}}),
    becomes("rewrites_the_outer_of_two_tags", "vlan_rewrite", "vid = 0, pcp = 0, tpid = \"802.1Q\"",
            tagged(9, 1, ETH_P_8021AD).vlan(7, 5).pad(64), tagged(0).vlan(7, 5).pad(64), {{"rewritten", 1}}),
    becomes("rewrites_nothing_of_an_untagged_frame", "vlan_rewrite", "vid = 100", udp(v4()), udp(v4()), {{"untagged", 1}}),
    drops("rewrites_no_tag_that_is_cut", "vlan_rewrite", "vid = 100", cut(tagged(9).build(), 17), "truncated"),

    becomes("decrements_a_ttl", "ttl", "", udp(v4_ttl(64)), udp(v4_ttl(63)), {{"ipv4", 1}}),
    becomes("decrements_the_largest_ttl", "ttl", "", udp(v4_ttl(255)), udp(v4_ttl(254)), {{"ipv4", 1}}),
    becomes("decrements_a_ttl_of_two", "ttl", "", udp(v4_ttl(2)), udp(v4_ttl(1)), {{"ipv4", 1}}),
    becomes("decrements_a_hop_limit", "ttl", "", udp(v6_limit(64)), udp(v6_limit(63)), {{"ipv6", 1}}),
    becomes("decrements_behind_two_tags", "ttl", "", udp(tagged(9, 0, ETH_P_8021AD).vlan(7).ipv4("10.0.0.1", "10.0.0.2", 9)),
            udp(tagged(9, 0, ETH_P_8021AD).vlan(7).ipv4("10.0.0.1", "10.0.0.2", 8)), {{"ipv4", 1}}),
    becomes("decrements_a_hop_limit_behind_a_tag", "ttl", "", udp(tagged(7).ipv6("fd00::1", "fd00::2", 9)),
            udp(tagged(7).ipv6("fd00::1", "fd00::2", 8)), {{"ipv6", 1}}),
    becomes("decrements_nothing_behind_three_tags", "ttl", "", udp(tagged(9).vlan(8).vlan(7).ipv4("10.0.0.1", "10.0.0.2", 1)),
            udp(tagged(9).vlan(8).vlan(7).ipv4("10.0.0.1", "10.0.0.2", 1)), {{"other", 1}}),
    becomes("decrements_nothing_of_another_protocol", "ttl", "", ethernet(1, 2).pad(60), ethernet(1, 2).pad(60), {{"other", 1}}),
    drops("drops_a_ttl_of_one", "ttl", "", udp(v4_ttl(1)), "expired"),
    drops("drops_a_ttl_of_zero", "ttl", "", udp(v4_ttl(0)), "expired"),
    drops("drops_a_hop_limit_of_one", "ttl", "", udp(v6_limit(1)), "expired"),
    drops("drops_a_hop_limit_of_zero", "ttl", "", udp(v6_limit(0)), "expired"),
    drops("decrements_nothing_in_an_ipv4_header_that_is_cut", "ttl", "", cut(udp(v4()), 14 + 19), "truncated"),
    drops("decrements_nothing_in_an_ipv6_header_that_is_cut", "ttl", "", cut(udp(v6()), 14 + 39), "truncated"),
    drops("decrements_nothing_behind_a_tag_that_is_cut", "ttl", "", cut(udp(tagged(7).ipv4("10.0.0.1", "10.0.0.2")), 17), "truncated"),

    becomes("sets_the_dscp_and_keeps_ecn", "dscp", "set = 46", udp(v4().traffic_class(1)), udp(v4().traffic_class(46 << 2 | 1)),
            {{"changed", 1}}),
    becomes("sets_a_dscp_of_zero", "dscp", "set = 0", udp(v4().traffic_class(0xff)), udp(v4().traffic_class(3)), {{"changed", 1}}),
    becomes("sets_the_dscp_of_ipv6_and_keeps_ecn", "dscp", "set = 46", udp(v6().traffic_class(8 << 2 | 2)),
            udp(v6().traffic_class(46 << 2 | 2)), {{"changed", 1}}),
    becomes("sets_the_dscp_behind_a_tag", "dscp", "set = 63", udp(tagged(7).ipv4("10.0.0.1", "10.0.0.2")),
            udp(tagged(7).ipv4("10.0.0.1", "10.0.0.2").traffic_class(63 << 2)), {{"changed", 1}}),
    becomes("maps_a_dscp", "dscp", "map = [{ from = 10, to = 0 }, { from = 0, to = 10 }]", udp(v4()), udp(v4().traffic_class(10 << 2)),
            {{"changed", 1}}),
    becomes("maps_the_other_way_too", "dscp", "map = [{ from = 10, to = 0 }, { from = 0, to = 10 }]", udp(v4().traffic_class(10 << 2)),
            udp(v4()), {{"changed", 1}}),
    becomes("keeps_a_dscp_that_is_not_mapped", "dscp", "map = [{ from = 10, to = 0 }]", udp(v6().traffic_class(11 << 2)),
            udp(v6().traffic_class(11 << 2)), {{"unchanged", 1}}),
    becomes("maps_a_dscp_before_it_sets_others", "dscp", "set = 1, map = [{ from = 10, to = 20 }]", udp(v4().traffic_class(10 << 2)),
            udp(v4().traffic_class(20 << 2)), {{"changed", 1}}),
    becomes("sets_no_dscp_of_another_protocol", "dscp", "set = 46", ethernet(1, 2).pad(60), ethernet(1, 2).pad(60), {{"other", 1}}),
    drops("sets_no_dscp_in_a_header_that_is_cut", "dscp", "set = 46", cut(udp(v4()), 14 + 19), "truncated"),

    becomes("lets_a_frame_go_that_is_as_long_as_the_ports_mtu_allows", "mtu_guard", "", ethernet(1, 2).pad(1514), ethernet(1, 2).pad(1514)),
    drops("drops_a_frame_beyond_the_ports_mtu", "mtu_guard", "", ethernet(1, 2).pad(1515), "too_long"),
    becomes("lets_a_frame_go_that_is_as_long_as_its_own_mtu_allows", "mtu_guard", "mtu = 100", sized(v4(), 114), sized(v4(), 114)),
    drops("drops_a_frame_beyond_its_own_mtu", "mtu_guard", "mtu = 100", sized(v4(), 115), "too_long"),
    becomes("allows_a_tag_beyond_the_mtu", "mtu_guard", "", tagged(7).pad(1518), tagged(7).pad(1518)),
    drops("allows_no_more_than_the_tag", "mtu_guard", "", tagged(7).pad(1519), "too_long"),
    becomes("allows_two_tags_beyond_the_mtu", "mtu_guard", "", tagged(9).vlan(7).pad(1522), tagged(9).vlan(7).pad(1522)),
    drops("allows_no_more_than_two_tags", "mtu_guard", "", tagged(9).vlan(7).pad(1523), "too_long"),
    drops("allows_no_third_tag", "mtu_guard", "", tagged(9).vlan(8).vlan(7).pad(1523), "too_long"),
    becomes("lets_a_frame_go_whose_tag_is_cut", "mtu_guard", "mtu = 68", cut(tagged(7).build(), 15), cut(tagged(7).build(), 15)),
    becomes("lets_less_than_ethernet_go", "mtu_guard", "mtu = 68", Packet(13, 5), Packet(13, 5)),

    becomes("puts_ipv4_into_ipv4", "encap_ipip", over_ipv4, udp(v4()), ipip(outer_v4(ethernet(1, 2)), IPPROTO_IPIP, udp(v4()))),
    becomes("puts_ipv6_into_ipv4", "encap_ipip", over_ipv4, udp(v6()), ipip(outer_v4(ethernet(1, 2)), IPPROTO_IPV6, udp(v6()))),
    becomes("puts_ipv4_into_ipv6", "encap_ipip", over_ipv6, udp(v4()), ipip(outer_v6(ethernet(1, 2)), IPPROTO_IPIP, udp(v4()))),
    becomes("puts_ipv6_into_ipv6", "encap_ipip", over_ipv6, udp(v6()), ipip(outer_v6(ethernet(1, 2)), IPPROTO_IPV6, udp(v6()))),
    becomes("puts_an_outer_ipv4_header_behind_a_tag", "encap_ipip", over_ipv4, udp(tagged(7, 5).ipv6("fd00::1", "fd00::2")),
            ipip(outer_v4(tagged(7, 5)), IPPROTO_IPV6, udp(v6()))),
    becomes("puts_an_outer_ipv6_header_behind_a_tag", "encap_ipip", over_ipv6, udp(tagged(7, 5).ipv4("10.0.0.1", "10.0.0.2")),
            ipip(outer_v6(tagged(7, 5)), IPPROTO_IPIP, udp(v4()))),
    becomes("puts_an_outer_ipv4_header_behind_two_tags", "encap_ipip", over_ipv4,
            tagged(9, 1, ETH_P_8021AD).vlan(7, 5).ipv4("10.0.0.1", "10.0.0.2").build(),
            ipip(outer_v4(tagged(9, 1, ETH_P_8021AD).vlan(7, 5)), IPPROTO_IPIP, v4().build())),
    becomes("puts_an_outer_ipv6_header_behind_two_tags", "encap_ipip", over_ipv6,
            tagged(9, 1, ETH_P_8021AD).vlan(7, 5).ipv6("fd00::1", "fd00::2").build(),
            ipip(outer_v6(tagged(9, 1, ETH_P_8021AD).vlan(7, 5)), IPPROTO_IPV6, v6().build())),
    becomes("copies_dscp_and_ecn_of_ipv4_to_ipv4", "encap_ipip", over_ipv4, udp(v4().traffic_class(46 << 2 | 3)),
            ipip(outer_v4(ethernet(1, 2)).traffic_class(46 << 2 | 3), IPPROTO_IPIP, udp(v4().traffic_class(46 << 2 | 3)))),
    becomes("copies_dscp_and_ecn_of_ipv6_to_ipv4", "encap_ipip", over_ipv4, udp(v6().traffic_class(63 << 2 | 1)),
            ipip(outer_v4(ethernet(1, 2)).traffic_class(63 << 2 | 1), IPPROTO_IPV6, udp(v6().traffic_class(63 << 2 | 1)))),
    becomes("copies_dscp_and_ecn_of_ipv4_to_ipv6", "encap_ipip", over_ipv6, udp(v4().traffic_class(10 << 2 | 2)),
            ipip(outer_v6(ethernet(1, 2)).traffic_class(10 << 2 | 2), IPPROTO_IPIP, udp(v4().traffic_class(10 << 2 | 2)))),
    becomes("copies_dscp_and_ecn_of_ipv6_to_ipv6", "encap_ipip", over_ipv6, udp(v6().traffic_class(0xff)),
            ipip(outer_v6(ethernet(1, 2)).traffic_class(0xff), IPPROTO_IPV6, udp(v6().traffic_class(0xff)))),
    becomes("gives_the_outer_header_its_own_ttl", "encap_ipip", over_ipv4 + ", ttl = 255", udp(v4_ttl(3)),
            ipip(outer_v4(ethernet(1, 2), 255), IPPROTO_IPIP, udp(v4_ttl(3)))),
    becomes("gives_the_outer_header_its_own_hop_limit", "encap_ipip", over_ipv6 + ", ttl = 1", udp(v4_ttl(3)),
            ipip(outer_v6(ethernet(1, 2), 1), IPPROTO_IPIP, udp(v4_ttl(3)))),
    becomes("leaves_padding_outside_of_both_packets", "encap_ipip", over_ipv4, v4().udp(1, 2).pad(60),
            encapsulated(outer_v4(ethernet(1, 2)), IPPROTO_IPIP, v4().udp(1, 2).build()).pad(80)),
    becomes("puts_as_much_into_ipv4_as_the_ports_mtu_allows", "encap_ipip", over_ipv4, sized(v4(), 1494),
            ipip(outer_v4(ethernet(1, 2)), IPPROTO_IPIP, sized(v4(), 1494))),
    drops("puts_nothing_into_ipv4_beyond_the_ports_mtu", "encap_ipip", over_ipv4, sized(v4(), 1495), "too_long"),
    becomes("puts_as_much_into_ipv6_as_the_ports_mtu_allows", "encap_ipip", over_ipv6, sized(v6(), 1474),
            ipip(outer_v6(ethernet(1, 2)), IPPROTO_IPV6, sized(v6(), 1474))),
    drops("puts_nothing_into_ipv6_beyond_the_ports_mtu", "encap_ipip", over_ipv6, sized(v6(), 1475), "too_long"),
    becomes("counts_no_tag_against_the_mtu_of_the_outer_packet", "encap_ipip", over_ipv4, sized(tagged(7).ipv6("fd00::1", "fd00::2"), 1498),
            ipip(outer_v4(tagged(7)), IPPROTO_IPV6, sized(v6(), 1494))),
    drops("puts_nothing_behind_a_tag_beyond_the_mtu", "encap_ipip", over_ipv4, sized(tagged(7).ipv6("fd00::1", "fd00::2"), 1499),
          "too_long"),
    becomes("puts_as_much_into_ipv4_as_its_own_mtu_allows", "encap_ipip", over_ipv4 + ", mtu = 100", sized(v4(), 94),
            ipip(outer_v4(ethernet(1, 2)), IPPROTO_IPIP, sized(v4(), 94))),
    drops("puts_nothing_into_ipv4_beyond_its_own_mtu", "encap_ipip", over_ipv4 + ", mtu = 100", sized(v4(), 95), "too_long"),
    drops("puts_nothing_else_than_ip_into_ip", "encap_ipip", over_ipv4, FrameBuilder().ethernet(station(1), broadcast, ETH_P_ARP).pad(60),
          "not_ip"),
    drops("looks_for_no_packet_behind_three_tags", "encap_ipip", over_ipv4, udp(tagged(9).vlan(8).vlan(7).ipv4("10.0.0.1", "10.0.0.2")),
          "not_ip"),
    drops("puts_no_ipv4_header_that_is_cut_into_ip", "encap_ipip", over_ipv4, cut(udp(v4()), 14 + 19), "truncated"),
    drops("puts_no_ipv6_header_that_is_cut_into_ip", "encap_ipip", over_ipv6, cut(udp(v6()), 14 + 39), "truncated"),
    drops("puts_no_ipv4_packet_that_is_cut_into_ip", "encap_ipip", over_ipv4, cut(udp(v4()), udp(v4()).size() - 1), "truncated"),
    drops("puts_no_ipv6_packet_that_is_cut_into_ip", "encap_ipip", over_ipv4, cut(udp(v6()), udp(v6()).size() - 1), "truncated"),
    drops("puts_no_ipv4_packet_shorter_than_its_header_into_ip", "encap_ipip", over_ipv4, with(udp(v4()), 14 + 3, 19), "truncated"),
    drops("puts_nothing_into_ip_behind_a_tag_that_is_cut", "encap_ipip", over_ipv4, cut(tagged(7).build(), 17), "truncated"),
    drops("puts_nothing_of_less_than_ethernet_into_ip", "encap_ipip", over_ipv4, Packet(13, 5), "truncated"),

    becomes("carries_ipv4_in_vxlan_over_ipv4", "encap_vxlan", vxlan_v4, udp(v4()), vxlan(outer_v4(ethernet(8, 9)), 0x123456, udp(v4()))),
    becomes("carries_ipv6_in_vxlan_over_ipv4", "encap_vxlan", vxlan_v4, udp(v6()), vxlan(outer_v4(ethernet(8, 9)), 0x123456, udp(v6()))),
    becomes("carries_ipv4_in_vxlan_over_ipv6", "encap_vxlan", vxlan_v6, udp(v4()), vxlan(outer_v6(ethernet(8, 9)), 0x123456, udp(v4()))),
    becomes("carries_ipv6_in_vxlan_over_ipv6", "encap_vxlan", vxlan_v6, udp(v6()), vxlan(outer_v6(ethernet(8, 9)), 0x123456, udp(v6()))),
    becomes("carries_tags_in_vxlan", "encap_vxlan", vxlan_v4, udp(tagged(9, 1, ETH_P_8021AD).vlan(7, 5).ipv4("10.0.0.1", "10.0.0.2")),
            vxlan(outer_v4(ethernet(8, 9)), 0x123456, udp(tagged(9, 1, ETH_P_8021AD).vlan(7, 5).ipv4("10.0.0.1", "10.0.0.2")))),
    becomes("carries_padding_in_vxlan", "encap_vxlan", vxlan_v4, v4().udp(1, 2).pad(60),
            vxlan(outer_v4(ethernet(8, 9)), 0x123456, v4().udp(1, 2).pad(60))),
    becomes("carries_what_is_not_ip_in_vxlan", "encap_vxlan", vxlan_v6, FrameBuilder().ethernet(station(1), broadcast, ETH_P_ARP).pad(60),
            vxlan(outer_v6(ethernet(8, 9)), 0x123456, FrameBuilder().ethernet(station(1), broadcast, ETH_P_ARP).pad(60))),
    becomes("carries_a_bare_ethernet_header_in_vxlan", "encap_vxlan", vxlan_v4, ethernet(1, 2).build(),
            vxlan(outer_v4(ethernet(8, 9)), 0x123456, ethernet(1, 2).build())),
    becomes("carries_a_packet_that_is_cut_in_vxlan", "encap_vxlan", vxlan_v4, cut(udp(v4()), 14 + 19),
            vxlan(outer_v4(ethernet(8, 9)), 0x123456, cut(udp(v4()), 14 + 19))),
    becomes("carries_a_tag_that_is_cut_in_vxlan", "encap_vxlan", vxlan_v4, cut(tagged(7).build(), 17),
            vxlan(outer_v4(ethernet(8, 9)), 0x123456, cut(tagged(7).build(), 17))),
    becomes("copies_dscp_and_ecn_of_ipv4_to_vxlan_over_ipv6", "encap_vxlan", vxlan_v6, udp(v4().traffic_class(46 << 2 | 3)),
            vxlan(outer_v6(ethernet(8, 9)).traffic_class(46 << 2 | 3), 0x123456, udp(v4().traffic_class(46 << 2 | 3)))),
    becomes("copies_dscp_and_ecn_behind_a_tag_to_vxlan_over_ipv4", "encap_vxlan", vxlan_v4,
            udp(tagged(7).ipv6("fd00::1", "fd00::2").traffic_class(10 << 2 | 1)),
            vxlan(outer_v4(ethernet(8, 9)).traffic_class(10 << 2 | 1), 0x123456,
                  udp(tagged(7).ipv6("fd00::1", "fd00::2").traffic_class(10 << 2 | 1)))),
    becomes("carries_in_vxlan_with_its_own_port_and_ttl", "encap_vxlan", vxlan_v4 + ", port = 8472, ttl = 3", udp(v4()),
            vxlan(outer_v4(ethernet(8, 9), 3), 0x123456, udp(v4()), 8472)),
    becomes("carries_in_the_last_vxlan_from_the_ports_own_address", "encap_vxlan",
            "vni = 16777215, dst = " + quoted(station(9)) + ", " + over_ipv6, udp(v4()),
            vxlan(outer_v6(ethernet(77, 9)), 16777215, udp(v4()))),
    becomes("carries_as_much_over_ipv4_as_the_ports_mtu_allows", "encap_vxlan", vxlan_v4, sized(v4(), 1464),
            vxlan(outer_v4(ethernet(8, 9)), 0x123456, sized(v4(), 1464))),
    drops("carries_nothing_over_ipv4_beyond_the_ports_mtu", "encap_vxlan", vxlan_v4, sized(v4(), 1465), "too_long"),
    becomes("carries_as_much_over_ipv6_as_the_ports_mtu_allows", "encap_vxlan", vxlan_v6, sized(v4(), 1444),
            vxlan(outer_v6(ethernet(8, 9)), 0x123456, sized(v4(), 1444))),
    drops("carries_nothing_over_ipv6_beyond_the_ports_mtu", "encap_vxlan", vxlan_v6, sized(v4(), 1445), "too_long"),
    drops("counts_the_tag_of_what_it_carries_against_the_mtu", "encap_vxlan", vxlan_v4, tagged(7).pad(1465), "too_long"),
    drops("carries_nothing_beyond_its_own_mtu", "encap_vxlan", vxlan_v4 + ", mtu = 100", sized(v4(), 65), "too_long"),
    drops("carries_nothing_of_less_than_ethernet", "encap_vxlan", vxlan_v4, Packet(13, 5), "truncated"),
};

std::string claim_of(const testing::TestParamInfo<Case>& info) { return info.param.claim; }

u16 vxlan_source_port(const Answer& answer) {
  const std::size_t at = answer.bytes.at(12) == ETH_P_IP >> 8 ? 34 : 54;
  return static_cast<u16>(answer.bytes.at(at) << 8 | answer.bytes.at(at + 1));
}

// A VXLAN's source port depends on the flow: each dynamic one is right, and 0 stands for it.
Answer judged(const Case& of, Answer answer) {
  if (of.program != std::string_view("encap_vxlan") || answer.verdict != EGRESS_TRANSMIT) return answer;
  EXPECT_GE(vxlan_source_port(answer), 49152);
  std::fill_n(answer.bytes.begin() + (answer.bytes.at(12) == ETH_P_IP >> 8 ? 34 : 54), 2, u8{0});
  return answer;
}

void expect_claim(const Case& of, Build& build) {
  EXPECT_EQ(judged(of, build.run(of.in)), (Answer{of.verdict, of.out}));
  EXPECT_EQ(build.counters(), of.counters);
}

class Egress : public testing::TestWithParam<Case> {};
class EgressInKernel : public testing::TestWithParam<Case> {};

TEST_P(Egress, host_build) {
  HostBuild build(Configured(GetParam().program, GetParam().keys));
  expect_claim(GetParam(), build);
}

TEST_P(EgressInKernel, bpf_build) {
  if (const std::string why = no_kernel(); !why.empty()) GTEST_SKIP() << why;
  auto build = KernelBuild::load(Configured(GetParam().program, GetParam().keys));
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
  std::set<std::pair<std::string, std::string>> configured;
  for (const Case& each : cases) configured.emplace(each.program, each.keys);
  std::set<std::string> programs;
  for (const auto& [program, keys] : configured) {
    SCOPED_TRACE(fmt::format("{} {{ {} }}", program, keys));
    programs.insert(program);
    const Configured of(program, keys);
    HostBuild host(of);
    auto kernel = KernelBuild::load(of);
    ASSERT_TRUE(kernel) << kernel.error().what;
    for (u32 i = 0; i < 1000; ++i) {
      const Packet frame = random_frame(dice);
      ASSERT_EQ((*kernel)->run(frame), host.run(frame)) << "frame " << i;
    }
    EXPECT_EQ((*kernel)->state(), host.state());
  }
  const std::vector<std::string> all = registry().egress_programs();
  EXPECT_EQ(programs, std::set<std::string>(all.begin(), all.end())) << "every program has cases here";
}

TEST(EgressHost, keys_that_do_not_fit_together_are_refused) {
  const std::pair<const char*, const char*> refused[] = {
      {"{ program = \"dscp\" }", "neither set nor map"},
      {"{ program = \"dscp\", map = [{ from = 1, to = 2 }, { from = 1, to = 3 }] }", "two entries of one from"},
      {"{ program = \"vlan_rewrite\" }", "none of vid, pcp and tpid"},
      {"{ program = \"encap_ipip\", local = \"192.0.2.1\", remote = \"2001:db8::1\" }", "not both IPv4 or both IPv6"},
  };
  for (const auto& [chain, why] : refused) {
    const auto parsed = parse_config(fmt::format("[[port]]\nname = \"p\"\ndriver = \"null\"\negress = [{}]\n", chain), "f", registry());
    ASSERT_FALSE(parsed) << chain;
    ASSERT_EQ(parsed.error().size(), 1u);
    EXPECT_NE(parsed.error().front().what.find(why), std::string::npos) << parsed.error().front().text();
  }
}

TEST(EgressHost, a_frame_without_headroom_is_not_grown) {
  const struct {
    const char* program;
    std::string keys;
    u32 growth, reason;
  } growing[] = {
      {"vlan_push", "vid = 9", 4, VLAN_PUSH_NO_HEADROOM},     {"encap_ipip", over_ipv4, 20, ENCAP_IPIP_NO_HEADROOM},
      {"encap_ipip", over_ipv6, 40, ENCAP_IPIP_NO_HEADROOM},  {"encap_vxlan", vxlan_v4, 50, ENCAP_VXLAN_NO_HEADROOM},
      {"encap_vxlan", vxlan_v6, 70, ENCAP_VXLAN_NO_HEADROOM},
  };
  const Packet frame = udp(v4());
  for (const auto& [program, keys, growth, reason] : growing) {
    SCOPED_TRACE(fmt::format("{} {{ {} }}", program, keys));
    HostBuild build(Configured(program, keys));
    EXPECT_EQ(build.run(frame, growth - 1), (Answer{EGRESS_DROP(reason), frame}));
    const Answer grown = build.run(frame, growth);
    EXPECT_EQ(grown.verdict, EGRESS_TRANSMIT);
    EXPECT_EQ(grown.bytes.size(), frame.size() + growth);
  }
}

TEST(EgressHost, ends_of_a_tunnel_are_of_one_family) {
  for (const char* program : {"encap_ipip", "encap_vxlan"}) {
    std::string keys = R"(local = "192.0.2.1", remote = "2001:db8::2")";
    if (program == std::string_view("encap_vxlan")) keys += ", vni = 5, dst = " + quoted(station(9));
    const auto refused = parse_config(file_with(program, keys), "file", registry());
    ASSERT_FALSE(refused);
    ASSERT_EQ(refused.error().size(), 1u);
    EXPECT_EQ(refused.error()[0].what, "local and remote are not both IPv4 or both IPv6");
    EXPECT_EQ(refused.error()[0].path, "port[0].egress[0]");
  }
}

TEST(EgressHost, a_flow_in_vxlan_has_one_source_port) {
  HostBuild build(Configured("encap_vxlan", vxlan_v4));
  const auto port = [&](const Packet& frame) { return vxlan_source_port(build.run(frame)); };
  EXPECT_EQ(port(v4().udp(1, 2).payload("water").build()), port(v4_ttl(9).traffic_class(8).udp(1, 2).payload("wine").build()));
  EXPECT_EQ(port(v6().tcp(1, 2, 2).build()), port(v6_limit(9).traffic_class(8).tcp(1, 2, 16, 77).build()));
  // All fragments of a datagram: the first one, by "more to come", has ports, the second one, by its offset, has data in their place.
  EXPECT_EQ(port(with(v4().udp(1, 2).build(), 14 + 6, 0x20)), port(with(v4().udp(3, 4).build(), 14 + 7, 185)));
}

TEST(EgressHost, flows_in_vxlan_have_many_source_ports) {
  HostBuild build(Configured("encap_vxlan", vxlan_v6));
  std::set<u16> by_port, by_address, by_address6, by_station;
  const auto port = [&](const Packet& frame) { return vxlan_source_port(build.run(frame)); };
  for (u16 i = 0; i < 256; ++i) {
    by_port.insert(port(v4().udp(i, 2).build()));
    by_address.insert(port(ethernet(1, 2).ipv4("10.0.0.1", fmt::format("10.0.1.{}", i)).build()));
    by_address6.insert(port(ethernet(1, 2).ipv6("fd00::1", fmt::format("fd00::{:x}", i)).build()));
    by_station.insert(port(ethernet(i, 2).pad(60)));
  }
  for (const auto& ports : {by_port, by_address, by_address6, by_station}) EXPECT_GT(ports.size(), 240u);
}

TEST(KernelEgressBuilds, share_configuration_and_state) {
  if (const std::string why = no_kernel(); !why.empty()) GTEST_SKIP() << why;
  auto counting = KernelBuild::load(Configured("count", ""));
  auto rewriting = KernelBuild::load(Configured("mac_rewrite", addresses(5, 6)));
  ASSERT_TRUE(counting && rewriting);
  const Packet frame = ethernet(1, 2).pad(60);
  (*counting)->run(frame);
  (*counting)->run_on_a_worker(frame);
  (*counting)->run_on_a_worker(frame);
  EXPECT_EQ((*counting)->counters(), (Counters{{"bytes", 180}, {"other", 3}}));
  EXPECT_EQ((*counting)->accounts().kernel(0).verdict[WEIR_NEXT], 1u);
  EXPECT_EQ((*counting)->accounts().user(0).verdict[WEIR_NEXT], 2u);
  for (const auto& [source, destination] : {std::pair(5u, 6u), std::pair(7u, 8u)}) {
    std::ranges::copy(Configured("mac_rewrite", addresses(source, destination)).config, (*rewriting)->config());
    const Packet out = ethernet(source, destination).pad(60);
    EXPECT_EQ((*rewriting)->run(frame).bytes, out);
    EXPECT_EQ((*rewriting)->run_on_a_worker(frame), out);
  }
}

}  // namespace
}  // namespace weir
