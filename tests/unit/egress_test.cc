// SPDX-License-Identifier: BSD-3-Clause
// egress_test: each egress program by its host build, by its BPF build, and both against each other.
#include <bpf/bpf.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <latch>
#include <map>
#include <set>
#include <thread>

#include "bpf/abi/egress.h"
#include "bpf/abi/encap_ipip.h"
#include "bpf/abi/encap_vxlan.h"
#include "bpf/abi/link.h"
#include "bpf/abi/note.h"
#include "bpf/abi/police.h"
#include "bpf/abi/vlan_push.h"
#include "called.skel.h"
#include "core/config/config.hh"
#include "core/kernel/accounts_map.hh"
#include "core/kernel/join.hh"
#include "core/kernel/object.hh"
#include "core/pipeline/egress_chain.hh"
#include "core/pipeline/egress_config.hh"
#include "core/pipeline/notes.hh"
#include "core/pipeline/registry.hh"
#include "kit/plugin_kit.hh"

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

// What a build told user space of frames.
struct Noted {
  note head;
  Packet bytes;
};

std::vector<Noted> read_all(Notes& notes) {
  std::vector<Noted> all;
  notes.read([&](const note& head, std::span<const u8> bytes) { all.push_back({head, {bytes.begin(), bytes.end()}}); });
  return all;
}

std::unique_ptr<Notes> notes_over(int ring) {
  auto made = Notes::create(ring);
  if (!made) broken(made.error().what.c_str());
  return std::move(*made);
}

// One of the two builds of a program, with a configuration and a state.
class Build {
 public:
  explicit Build(const Configured& of) : program_(of.program) {}
  virtual ~Build() = default;
  virtual Answer run(const Packet& bytes) = 0;
  [[nodiscard]] virtual std::vector<u64> state() const = 0;
  [[nodiscard]] Counters counters() const { return counters_of(program_, state()); }
  [[nodiscard]] const egress_program& program() const noexcept { return program_; }
  std::vector<Noted> noted() { return read_all(*notes_); }

 protected:
  const egress_program& program_;
  std::unique_ptr<Notes> notes_;
};

class HostBuild final : public Build {
 public:
  explicit HostBuild(const Configured& of)
      : Build(of),
        config_(of.config),
        state_(program_.state_size / 8),
        shared_(program_.shared_size != nullptr ? *program_.shared_size / 8 : 0) {
    notes_ = notes_over(-1);
  }
  Answer run(const Packet& bytes) override { return run(bytes, headroom); }
  Answer run(const Packet& bytes, u32 room) {
    Packet memory(headroom + bytes.size());  // a frame lies on an even address
    std::ranges::copy(bytes, memory.begin() + headroom);
    const egress_notes way = notes_->way(PortSlot{3});
    egress_frame frame{memory.data() + headroom, static_cast<u32>(bytes.size()), room, shared_.data(), now_, 5, &way};
    const u32 verdict = program_.run(&frame, config_.data(), state_.data());
    return {verdict, Packet(frame.data, frame.data + frame.length)};
  }
  [[nodiscard]] std::vector<u64> state() const override { return state_; }
  void set_clock(u64 now) noexcept { now_ = now; }
  // As a change of a program's keys finds its state.
  void configure(const Configured& of) { config_ = of.config; }

 private:
  std::vector<u8> config_;
  std::vector<u64> state_, shared_;
  u64 now_ = 0;  // the clock's own
};

// The program NAME_test over maps as the instance makes them: rows for the CPUs, and one for a worker behind them.
class KernelBuild final : public Build {
 public:
  static Result<std::unique_ptr<KernelBuild>> load(const Configured& of, u64 largest = AccountsMap::largest_value,
                                                   u32 next = WEIR_NO_NEXT) {
    std::unique_ptr<KernelBuild> made(new KernelBuild(of, TRY(BpfObject::open(of.program.name, of.elf))));
    TRY_VOID(made->set_up(of.config, largest, next));
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
        sum[i] += reinterpret_cast<const u64*>(state_memory_.data() + (EGRESS_FIRST_ROW + row) * egress_stride(program_))[i];
    return sum;
  }
  // The frame through a chain of the host build over the same memory, as the instance hands it out.
  Packet run_on_a_worker(const Packet& bytes) {
    const auto pool = std::move(*FramePool::create(1, 2048));
    FrameCache cache(*pool);
    std::ranges::copy(bytes, pool->base() + headroom);
    Frame frame{.data = pool->base() + headroom, .length = static_cast<u32>(bytes.size())};
    EgressChain chain;
    if (notes_) chain.tell(notes_->way(PortSlot{3}));
    chain.append({&program_, config_memory_.data(), state_memory_.data() + EGRESS_FIRST_ROW * egress_stride(program_),
                  egress_stride(program_), shared(), 0});
    EXPECT_EQ(chain.run(&frame, 1, account_, possible_cpus(), cache), 1u);
    return {frame.data, frame.data + frame.length};
  }
  [[nodiscard]] const Accounts& accounts() const noexcept { return account_; }
  [[nodiscard]] const BpfObject& object() const noexcept { return object_; }
  [[nodiscard]] const BpfMap& chain() const noexcept { return chain_; }
  [[nodiscard]] bool whole() const noexcept { return accounts_.memory() >= 0; }
  [[nodiscard]] u8* config() const noexcept { return config_memory_.data(); }

 private:
  KernelBuild(const Configured& of, BpfObject object) : Build(of), object_(std::move(object)) {}
  Result<> set_up(const std::vector<u8>& config, u64 largest, u32 next) {
    const u32 rows = possible_cpus() + 1;
    accounts_ = TRY(AccountsMap::create(rows, WEIR_MAX_PORTS, largest));
    account_ = Accounts(TRY(accounts_.map().map_memory()), possible_cpus(), rows, WEIR_MAX_PORTS);
    const u32 stride = static_cast<u32>(egress_stride(program_));
    state_ = TRY(BpfMap::create("state", {BPF_MAP_TYPE_ARRAY, 4, stride * (EGRESS_FIRST_ROW + rows), 1, BPF_F_MMAPABLE}));
    state_memory_ = TRY(state_.map_memory());
    TRY_VOID(object_.use("accounts", accounts_.fd()));
    chain_ = TRY(BpfMap::create("chain", {BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 8, 0}));
    TRY_VOID(object_.use("chain", chain_.fd()));
    if (object_.has_map("notes")) {
      ring_ = TRY(BpfMap::create("notes", {BPF_MAP_TYPE_RINGBUF, 0, 0, NOTE_RING_BYTES, 0}));
      TRY_VOID(object_.use("notes", ring_.fd()));
      notes_ = notes_over(ring_.fd());
    }
    if (object_.has_map(".data.config")) {
      const MapShape shape = TRY(object_.shape(".data.config"));
      config_ = TRY(BpfMap::create("config", shape));
      config_memory_ = TRY(config_.map_memory());
      std::ranges::copy(config, config_memory_.data());
      TRY_VOID(object_.use(".data.config", config_.fd()));
    }
    if (program_.shared_size != nullptr) {
      const MapShape shape = TRY(object_.shape(".data.shared"));
      shared_ = TRY(BpfMap::create("shared", shape));
      shared_memory_ = TRY(shared_.map_memory());
      TRY_VOID(object_.use(".data.shared", shared_.fd()));
    }
    const egress_link link{.accounts = accounts_.link(), .block = 0, .next = next, .port = 3, .place = 2};
    TRY_VOID(object_.link(link, {.accounts = accounts_.memory(), .state = state_.fd()}));
    return object_.load(program_.name + std::string("_test"));
  }
  u8* shared() { return program_.shared_size != nullptr ? shared_memory_.data() + WEIR_FRAME_NOTES : nullptr; }
  static u32 verdict_of(const account& before, const account& after, u32 action) {
    if (action == XDP_PASS) return after.verdict[WEIR_NEXT] == before.verdict[WEIR_NEXT] + 1 ? EGRESS_TRANSMIT : ~0u;
    for (u32 reason = WEIR_DROP_OWN; reason < WEIR_DROPS; ++reason)
      if (action == XDP_DROP && after.drop[reason] == before.drop[reason] + 1) return EGRESS_DROP(reason - WEIR_DROP_OWN);
    return ~0u;  // counted otherwise than it ended
  }

  BpfObject object_;
  AccountsMap accounts_;
  BpfMap state_, config_, shared_, ring_, chain_;
  Mapping state_memory_, config_memory_, shared_memory_;
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

// The same with what the program counts beside.
Case drops(const char* claim, const char* program, const std::string& keys, const Packet& in, std::string_view reason, Counters counters) {
  Case made = drops(claim, program, keys, in, reason);
  made.counters = std::move(counters);
  return made;
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

Case permits(const char* claim, const std::string& keys, const Packet& frame, const std::string& by = "permitted") {
  return becomes(claim, "filter", keys, frame, frame, {{by, 1}});
}
Case denies(const char* claim, const std::string& keys, const Packet& frame, const std::string& by = "denied") {
  return drops(claim, "filter", keys, frame, "denied", {{by, 1}});
}
Case cannot_read(const char* claim, const std::string& keys, const Packet& frame) {
  return drops(claim, "filter", keys, frame, "unreadable");
}

// Rules, without what is around them.
std::string rules(const std::string& each, const char* otherwise = "permit") {
  return fmt::format("otherwise = \"{}\", rules = [{}]", otherwise, each);
}
const std::string no_ssh = rules(R"({ action = "drop", protocol = "tcp", dport = 22 })");
const std::string dns_alone = rules(R"({ action = "permit", dport = 53 }, { action = "permit", sport = 53 })", "drop");
const std::string net4 = rules(R"({ action = "drop", src = "10.0.0.0/25", dst = "10.0.0.2" })");
const std::string net6 = rules(R"({ action = "drop", src = "fd00::/127", dst = "fd00::/16" })");
const std::string tcp4 = rules(R"({ action = "permit", protocol = "tcp", dst = "0.0.0.0/0" })", "drop");
const std::string no_icmp = rules(R"({ action = "drop", protocol = "icmp" }, { action = "drop", protocol = 58 })");
const std::string ranges = rules(R"({ action = "permit", sport = "1024-65535", dport = "80-443" })", "drop");

// An extension header of IPv6, 8 bytes and `more` times 8, in front of the header `next`.
Packet extension(u8 next, u8 more = 0) {
  Packet header(8 + 8 * more);
  header[0] = next, header[1] = more;
  return header;
}
Packet fragment6(u8 next, u16 offset, bool more = true) {
  const auto word = static_cast<u16>(offset / 8 << 3 | (more ? 1 : 0));
  return {next, 0, static_cast<u8>(word >> 8), static_cast<u8>(word), 0, 0, 0, 1};
}
// The first eight bytes of TCP, UDP and others.
Packet ports(u16 source, u16 destination) {
  return {
      static_cast<u8>(source >> 8), static_cast<u8>(source), static_cast<u8>(destination >> 8), static_cast<u8>(destination), 0, 8, 0, 0};
}
Packet v6_with(u8 first, std::initializer_list<Packet> headers) {
  FrameBuilder frame = v6().protocol(first);
  for (const Packet& each : headers) frame.payload(each);
  return frame.build();
}

// As a rate, nothing comes within a test.
const std::string two_colours = "cir_bps = 1, burst_bytes = 60";
const std::string one_rate = "cir_bps = 1, burst_bytes = 59, excess_bytes = 60";
const std::string two_rates = "cir_bps = 1, burst_bytes = 60, pir_bps = 2, peak_burst_bytes = 61";

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

    permits("permits_where_there_are_no_rules", "", udp(v4()), "otherwise"),
    denies("denies_what_no_rule_matches", rules("", "drop"), udp(v4()), "otherwise"),
    permits("permits_arp_by_a_rule_that_asks_for_nothing", rules(R"({ action = "permit" })", "drop"),
            FrameBuilder().ethernet(station(1), broadcast, ETH_P_ARP).pad(60)),
    permits("matches_no_arp_by_a_protocol", rules(R"({ action = "drop", protocol = 0 })"),
            FrameBuilder().ethernet(station(1), broadcast, ETH_P_ARP).pad(60), "otherwise"),
    permits("matches_no_arp_by_a_network_of_all", rules(R"({ action = "drop", src = "0.0.0.0/0" }, { action = "drop", src = "::/0" })"),
            FrameBuilder().ethernet(station(1), broadcast, ETH_P_ARP).pad(60), "otherwise"),
    permits("matches_no_arp_by_ports", rules(R"({ action = "drop", dport = "0-65535" })"),
            FrameBuilder().ethernet(station(1), broadcast, ETH_P_ARP).pad(60), "otherwise"),
    permits("takes_the_first_rule_that_matches", rules(R"({ action = "permit", protocol = "udp" }, { action = "drop" })"), udp(v4())),
    denies("takes_the_next_rule_where_the_first_does_not_match", rules(R"({ action = "permit", protocol = "udp" }, { action = "drop" })"),
           v4().tcp(1, 2).build()),
    denies("denies_a_port_of_ipv4", no_ssh, v4().tcp(1, 22).build()),
    denies("denies_a_port_of_ipv6", no_ssh, v6().tcp(1, 22).build()),
    denies("denies_behind_two_tags", no_ssh, tagged(9, 1, ETH_P_8021AD).vlan(7).ipv4("10.0.0.1", "10.0.0.2").tcp(1, 22).build()),
    permits("permits_another_port", no_ssh, v4().tcp(22, 23).build(), "otherwise"),
    permits("permits_the_port_of_another_protocol", no_ssh, v4().udp(1, 22).build(), "otherwise"),
    permits("permits_by_port_alone_udp", dns_alone, v4().udp(1000, 53).build()),
    permits("permits_by_port_alone_tcp", dns_alone, v6().tcp(53, 1000).build()),
    permits("permits_by_port_alone_sctp", dns_alone, v4().protocol(132).payload(ports(1, 53)).build()),
    denies("finds_no_ports_in_another_protocol", dns_alone, v4().protocol(47).payload(ports(1, 53)).build(), "otherwise"),
    denies("matches_a_prefix_of_ipv4", net4, udp(v4())),
    denies("matches_the_last_address_of_a_prefix", net4, ethernet(1, 2).ipv4("10.0.0.127", "10.0.0.2").build()),
    permits("matches_no_address_behind_a_prefix", net4, ethernet(1, 2).ipv4("10.0.0.128", "10.0.0.2").build(), "otherwise"),
    permits("matches_no_address_beside_a_host", net4, ethernet(1, 2).ipv4("10.0.0.1", "10.0.0.3").build(), "otherwise"),
    denies("matches_a_prefix_of_ipv6", net6, udp(v6())),
    permits("matches_no_address_behind_a_prefix_of_ipv6", net6, ethernet(1, 2).ipv6("fd00::2", "fd00::1").build(), "otherwise"),
    permits("matches_no_address_before_a_prefix_of_ipv6", net6, ethernet(1, 2).ipv6("fd00::1", "fc00::1").build(), "otherwise"),
    permits("matches_all_of_ipv4", tcp4, v4().tcp(1, 2).build()),
    denies("matches_none_of_ipv6_by_all_of_ipv4", tcp4, v6().tcp(1, 2).build(), "otherwise"),
    denies("knows_icmp_by_name", no_icmp, v4().icmp(8, 0).build()),
    denies("knows_icmpv6_by_number", no_icmp, v6().icmp(135, 0).build()),
    permits("permits_the_ends_of_ranges", ranges, v4().tcp(1024, 443).build()),
    permits("permits_the_other_ends_of_ranges", ranges, v4().udp(65535, 80).build()),
    denies("denies_below_a_range", ranges, v4().tcp(1023, 443).build(), "otherwise"),
    denies("denies_above_a_range", ranges, v4().tcp(1024, 444).build(), "otherwise"),
    denies("finds_ports_behind_options_of_ipv4", no_ssh,
           with(v4().protocol(6).payload(Packet(8, 1)).payload(ports(1, 22)).build(), 14, 0x47)),
    denies("finds_ports_in_a_first_fragment", no_ssh, with(v4().tcp(1, 22).build(), 14 + 6, 0x20)),
    permits("finds_no_ports_in_a_later_fragment", no_ssh, with(v4().tcp(1, 22).build(), 14 + 7, 185), "otherwise"),
    denies("permits_no_later_fragment_by_ports", ranges, with(v4().tcp(1024, 443).build(), 14 + 7, 1), "otherwise"),
    permits("permits_a_later_fragment_by_protocol", tcp4, with(v4().tcp(1024, 443).build(), 14 + 6, 0x1f)),
    denies("finds_ports_behind_extension_headers", no_ssh,
           v6_with(0, {extension(43), extension(60, 2), extension(44, 1), fragment6(6, 0), ports(1, 22)})),
    permits("finds_no_ports_in_a_later_fragment_of_ipv6", no_ssh, v6_with(44, {fragment6(6, 8), ports(1, 22)}), "otherwise"),
    permits("permits_a_later_fragment_of_ipv6_by_protocol", rules(R"({ action = "permit", protocol = "tcp" })", "drop"),
            v6_with(60, {extension(44), fragment6(6, 1232, false), ports(1, 22)})),
    permits("does_not_walk_on_in_a_later_fragment", no_ssh, v6_with(44, {fragment6(60, 8), extension(6), ports(1, 22)}), "otherwise"),
    permits("does_not_look_behind_an_authentication_header", no_ssh, v6_with(51, {extension(6), ports(1, 22)}), "otherwise"),
    cannot_read("does_not_judge_what_has_too_many_extension_headers", no_ssh,
                v6_with(60, {extension(60), extension(60), extension(60), extension(60), extension(6), ports(1, 22)})),
    cannot_read("does_not_judge_the_protocol_of_a_header_that_is_cut", no_icmp, v6_with(60, {Packet{6, 0, 1, 2, 3, 4, 5}})),
    cannot_read("does_not_judge_what_ends_behind_an_extension_header", no_ssh, v6_with(60, {extension(6, 200)})),
    cannot_read("does_not_judge_ports_that_are_cut", no_ssh, cut(v4().tcp(1, 22).build(), 34 + 3)),
    permits("judges_a_protocol_whose_ports_are_cut", no_icmp, cut(v4().tcp(1, 22).build(), 34 + 3), "otherwise"),
    permits("judges_by_another_protocol_what_has_its_ports_cut", no_ssh, cut(v4().udp(1, 22).build(), 34 + 3), "otherwise"),
    permits("judges_by_addresses_what_has_too_many_extension_headers",
            rules(R"({ action = "permit", src = "fd00::1" }, { action = "drop" })"),
            v6_with(60, {extension(60), extension(60), extension(60), extension(60), extension(6), ports(1, 22)})),
    drops("judges_no_ipv4_header_that_is_cut", "filter", "", cut(udp(v4()), 14 + 19), "truncated"),
    drops("judges_no_ipv4_header_that_is_too_short", "filter", "", with(udp(v4()), 14, 0x44), "truncated"),
    drops("judges_no_ipv6_header_that_is_cut", "filter", "", cut(udp(v6()), 14 + 39), "truncated"),
    drops("judges_nothing_behind_a_tag_that_is_cut", "filter", "", cut(tagged(7).build(), 17), "truncated"),
    drops("judges_nothing_of_less_than_ethernet", "filter", "", Packet(13, 5), "truncated"),

    becomes("transmits_green", "police", two_colours, v4().pad(60), v4().pad(60), {{"green", 1}, {"green_bytes", 60}}),
    drops("drops_red", "police", two_colours, v4().pad(61), "violated", {{"red", 1}, {"red_bytes", 61}}),
    becomes("transmits_red_that_is_to_go", "police", two_colours + ", red = \"transmit\"", v4().pad(61), v4().pad(61),
            {{"red", 1}, {"red_bytes", 61}}),
    becomes("transmits_green_of_two_colours_by_frames", "police", "cir_fps = 1, burst_frames = 1", v4().pad(1514), v4().pad(1514),
            {{"green", 1}, {"green_bytes", 1514}}),
    becomes("marks_red_of_ipv4", "police", two_colours + ", red = \"remark\", red_dscp = 63", v4().traffic_class(3).pad(61),
            v4().traffic_class(0xff).pad(61), {{"red", 1}, {"red_bytes", 61}}),
    becomes("marks_red_of_ipv6_behind_a_tag", "police", two_colours + ", red = \"remark\", red_dscp = 8",
            udp(tagged(7).ipv6("fd00::1", "fd00::2").traffic_class(46 << 2 | 1)),
            udp(tagged(7).ipv6("fd00::1", "fd00::2").traffic_class(8 << 2 | 1)), {{"red", 1}, {"red_bytes", 71}}),
    becomes("marks_nothing_that_is_not_ip", "police", two_colours + ", red = \"remark\", red_dscp = 8", ethernet(1, 2).pad(61),
            ethernet(1, 2).pad(61), {{"red", 1}, {"red_bytes", 61}, {"unmarked", 1}}),
    drops("marks_no_header_that_is_cut", "police", "cir_bps = 1, burst_bytes = 32, red = \"remark\", red_dscp = 8", cut(udp(v4()), 14 + 19),
          "truncated", {{"red", 1}, {"red_bytes", 33}}),
    drops("marks_no_tag_that_is_cut", "police", "cir_bps = 1, burst_bytes = 16, red = \"remark\", red_dscp = 8", cut(tagged(7).build(), 17),
          "truncated", {{"red", 1}, {"red_bytes", 17}}),
    becomes("transmits_less_than_ethernet", "police", two_colours, Packet(13, 5), Packet(13, 5), {{"green", 1}, {"green_bytes", 13}}),
    becomes("transmits_green_of_one_rate", "police", one_rate, v4().pad(59), v4().pad(59), {{"green", 1}, {"green_bytes", 59}}),
    becomes("transmits_yellow_of_one_rate", "police", one_rate, v4().pad(60), v4().pad(60), {{"yellow", 1}, {"yellow_bytes", 60}}),
    drops("drops_red_of_one_rate", "police", one_rate, v4().pad(61), "violated", {{"red", 1}, {"red_bytes", 61}}),
    drops("drops_yellow_that_is_to_be", "police", one_rate + ", yellow = \"drop\"", v4().pad(60), "exceeded",
          {{"yellow", 1}, {"yellow_bytes", 60}}),
    becomes("transmits_green_of_two_rates", "police", two_rates, v4().pad(60), v4().pad(60), {{"green", 1}, {"green_bytes", 60}}),
    becomes("marks_yellow_of_two_rates", "police", two_rates + ", yellow = \"remark\", yellow_dscp = 12, red = \"remark\", red_dscp = 14",
            v4().pad(61), v4().traffic_class(12 << 2).pad(61), {{"yellow", 1}, {"yellow_bytes", 61}}),
    becomes("marks_red_of_two_rates", "police", two_rates + ", yellow = \"remark\", yellow_dscp = 12, red = \"remark\", red_dscp = 14",
            v4().pad(62), v4().traffic_class(14 << 2).pad(62), {{"red", 1}, {"red_bytes", 62}}),
    drops("drops_red_of_two_rates", "police", two_rates, v4().pad(62), "violated", {{"red", 1}, {"red_bytes", 62}}),

    becomes("shows_a_frame", "sample", "n = 1", v4().pad(1514), v4().pad(1514), {{"sampled", 1}}),
    becomes("shows_a_bare_ethernet_header", "sample", "n = 1, snap_bytes = 14", ethernet(1, 2).build(), ethernet(1, 2).build(),
            {{"sampled", 1}}),
    becomes("shows_as_much_of_a_frame_as_there_may_be", "sample", "n = 1, snap_bytes = 2048", v4().pad(1515), v4().pad(1515),
            {{"sampled", 1}}),
    becomes("does_not_show_the_first_of_two", "sample", "n = 2", v4().pad(60), v4().pad(60)),
    drops("tells_of_a_frame_that_is_too_long", "mtu_guard", "mtu = 100, answer = true", v4().pad(115), "too_long", {{"told", 1}}),
    drops("tells_of_a_frame_of_ipv6_behind_a_tag", "mtu_guard", "mtu = 100, answer = true", tagged(7).ipv6("fd00::1", "fd00::2").pad(119),
          "too_long", {{"told", 1}}),
    drops("tells_of_nothing_that_is_not_ip", "mtu_guard", "mtu = 100, answer = true", ethernet(1, 2).pad(115), "too_long"),
    becomes("tells_of_nothing_that_fits", "mtu_guard", "mtu = 100, answer = true", v4().pad(114), v4().pad(114)),
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

void stay_on_this_cpu() {
  cpu_set_t only;
  CPU_ZERO(&only);
  CPU_SET(static_cast<u32>(::sched_getcpu()), &only);
  ::sched_setaffinity(0, sizeof only, &only);
}

// The one knows the device that a frame came in by, the other the port.
void expect_same_notes(const std::vector<Noted>& kernel, const std::vector<Noted>& host) {
  ASSERT_EQ(kernel.size(), host.size());
  for (std::size_t i = 0; i < host.size(); ++i) {
    const note &one = kernel[i].head, &other = host[i].head;
    EXPECT_EQ(kernel[i].bytes, host[i].bytes);
    EXPECT_EQ(std::tuple(one.kind, one.length, one.captured, one.mtu, one.out),
              std::tuple(other.kind, other.length, other.captured, other.mtu, other.out));
    EXPECT_LT(std::max(one.time, other.time) - std::min(one.time, other.time), 10'000'000'000u);
    EXPECT_EQ(std::tuple(one.in, other.in, other.device), std::tuple(NOTE_NO_PORT, 5, 0u));
    EXPECT_NE(one.device, 0u);
  }
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
    const bool one_cpu = program == "sample";  // whose n-th frame it is depends on the CPU
    cpu_set_t before;
    ::sched_getaffinity(0, sizeof before, &before);
    if (one_cpu) stay_on_this_cpu();
    for (u32 i = 0; i < 1000; ++i) {
      const Packet frame = random_frame(dice);
      ASSERT_EQ((*kernel)->run(frame), host.run(frame)) << "frame " << i;
      if (host.program().notes != nullptr) expect_same_notes((*kernel)->noted(), host.noted());
    }
    ::sched_setaffinity(0, sizeof before, &before);
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
      {R"({ program = "filter", rules = [{ action = "drop", src = "10.0.0.1", dst = "::1" }] })", "not both IPv4 or both IPv6"},
      {R"({ program = "filter", rules = [{ action = "drop", protocol = "icmp", dport = 1 }] })", "ports of a protocol that has none"},
      {R"({ program = "police" })", "neither cir_bps nor cir_fps"},
      {R"({ program = "police", cir_bps = 1 })", "cir_bps is given without burst_bytes"},
      {R"({ program = "police", cir_fps = 1 })", "cir_fps is given without burst_frames"},
      {R"({ program = "police", cir_fps = 1, burst_bytes = 1 })", "in bits and bytes stand beside keys in frames"},
      {R"({ program = "police", cir_bps = 2, burst_bytes = 1, pir_bps = 3 })", "only one is given"},
      {R"({ program = "police", cir_bps = 2, burst_bytes = 1, pir_bps = 3, peak_burst_bytes = 1, excess_bytes = 1 })",
       "an excess burst and a peak rate"},
      {R"({ program = "police", cir_bps = 2, burst_bytes = 1, pir_bps = 1, peak_burst_bytes = 1 })", "below the committed rate"},
      {R"({ program = "police", cir_bps = 2, burst_bytes = 1, yellow = "transmit" })", "yellow has no frames"},
      {R"({ program = "police", cir_bps = 2, burst_bytes = 1, red = "remark" })", "red_dscp go together"},
      {R"({ program = "police", cir_bps = 2, burst_bytes = 1, red_dscp = 1 })", "red_dscp go together"},
      {R"({ program = "police", cir_bps = 2, burst_bytes = 1, excess_bytes = 1, yellow = "remark" })", "yellow_dscp go together"},
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

TEST(EgressHost, takes_as_many_rules_as_it_says) {
  std::string sixty_three;
  for (int i = 0; i < 63; ++i) sixty_three += fmt::format("{{ action = \"drop\", dst = \"10.0.1.{}\" }}, ", i);
  const std::string keys = rules(sixty_three + R"({ action = "drop", dst = "10.0.0.2" })");
  HostBuild host(Configured("filter", keys));
  EXPECT_EQ(host.run(udp(v4())).verdict, EGRESS_DROP(0));
  const auto refused =
      parse_config(file_with("filter", rules(sixty_three + R"({ action = "drop" }, { action = "drop" })")), "f", registry());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error()[0].what, "has 65 elements, must have from 0 to 64");
  if (const std::string why = no_kernel(); !why.empty()) GTEST_SKIP() << why;
  auto kernel = KernelBuild::load(Configured("filter", keys));
  ASSERT_TRUE(kernel) << kernel.error().what;
  EXPECT_EQ((*kernel)->run(udp(v4())).verdict, EGRESS_DROP(0));
}

// The meters of RFC 2697 and RFC 2698, colour-blind, as these write them: whole tokens in buckets.
class Meter {
 public:
  enum Colour { green, yellow, red };
  // In tokens; rates by `per` nanoseconds. No peak rate: one rate.
  Meter(u64 per, u64 rate, u64 burst, u64 excess, u64 peak_rate, u64 peak_burst)
      : per_(per), rate_(rate), peak_rate_(peak_rate), burst_(burst), excess_(excess), peak_burst_(peak_burst) {}
  Colour colour(u64 now, u64 tokens) {
    const u64 more = come(now, rate_), stays = std::min(more, burst_ - in_burst_);
    in_burst_ += stays;
    in_excess_ += std::min(more - stays, excess_ - in_excess_);
    in_peak_ += std::min(come(now, peak_rate_), peak_burst_ - in_peak_);
    now_ = now;
    return peak_rate_ != 0 ? of_two_rates(tokens) : of_one_rate(tokens);
  }

 private:
  [[nodiscard]] u64 come(u64 now, u64 rate) const {
    using u128 = unsigned __int128;
    return static_cast<u64>(u128{now} * rate / per_ - u128{now_} * rate / per_);
  }
  Colour of_one_rate(u64 tokens) {
    if (in_burst_ >= tokens) return in_burst_ -= tokens, green;
    if (in_excess_ >= tokens) return in_excess_ -= tokens, yellow;
    return red;
  }
  Colour of_two_rates(u64 tokens) {
    if (in_peak_ < tokens) return red;
    in_peak_ -= tokens;
    if (in_burst_ < tokens) return yellow;
    return in_burst_ -= tokens, green;
  }
  u64 per_, rate_, peak_rate_, burst_, excess_, peak_burst_;
  u64 in_burst_ = burst_, in_excess_ = excess_, in_peak_ = peak_burst_, now_ = 0;
};

// Which colour a frame of a build had: what it counts more than before.
Meter::Colour colour_of(HostBuild& build, const Packet& frame) {
  const std::vector<u64> before = build.state();
  build.run(frame);
  const std::vector<u64> after = build.state();
  return static_cast<Meter::Colour>(std::ranges::mismatch(before, after).in1 - before.begin());
}

class PoliceModes : public testing::TestWithParam<const char*> {};

// Random rates, bursts, lengths and gaps, over the first two seconds of a clock, where no rate is rounded; and rates that are whole parts
// of a byte in a nanosecond, years later.
TEST_P(PoliceModes, colours_frames_as_the_rfcs_have_it) {
  const std::string_view mode = GetParam();
  const u32 seed = test_seed();
  SCOPED_TRACE(fmt::format("WEIR_TEST_SEED={}", seed));
  std::mt19937_64 dice(seed);
  const auto between = [&](u64 low, u64 high) { return std::uniform_int_distribution<u64>(low, high)(dice); };
  std::array<u32, 3> seen{};
  for (int round = 0; round < 600; ++round) {
    const bool late = round % 2 == 1, frames = mode.ends_with("_frames");
    constexpr std::array<u64, 7> exact{400'000'000'000, 100'000'000'000, 10'000'000'000, 2'500'000'000,
                                       1'000'000'000,   500'000'000,     7'812'500};
    u64 rate = late ? exact[between(0, exact.size() - 1)] : static_cast<u64>(std::pow(10, between(50, 116) / 10.0));
    if (frames) rate = late ? 1'000'000'000 >> between(0, 9) : between(100, 1'000'000'000);
    const u64 per = frames ? 1'000'000'000 : 8'000'000'000, longest = frames ? 5 : 9000;
    const u64 burst = between(1, 3 * longest), second = between(1, 3 * longest);
    const u64 peak = mode.starts_with("two_rates") ? rate * between(1, 3) : 0;
    if (peak > (frames ? 1'000'000'000 : 800'000'000'000)) continue;
    const char *bits = frames ? "fps" : "bps", *bytes = frames ? "frames" : "bytes";
    std::string keys = fmt::format("cir_{} = {}, burst_{} = {}, red = \"transmit\"", bits, rate, bytes, burst);
    if (mode.starts_with("one_rate")) keys += fmt::format(", excess_{} = {}", bytes, second);
    if (peak != 0) keys += fmt::format(", pir_{} = {}, peak_burst_{} = {}", bits, peak, bytes, second);
    SCOPED_TRACE(keys);
    HostBuild build(Configured("police", keys));
    Meter meter(per, rate, burst, mode.starts_with("one_rate") ? second : 0, peak, peak != 0 ? second : 0);
    u64 now = late ? 9 * 365 * 86'400'000'000'000 : between(1, 1000);
    const u64 end = late ? now * 2 : 2'000'000'000;
    for (int i = 0; i < 300 && now < end; ++i) {
      const Packet frame(between(14, 2000), 5);
      const u64 tokens = frames ? 1 : frame.size();
      build.set_clock(now);
      const Meter::Colour colour = meter.colour(now, tokens);
      ASSERT_EQ(colour_of(build, frame), colour) << "frame " << i << " of " << frame.size() << " bytes at " << now;
      ++seen[colour];
      const u64 gap = static_cast<u64>(static_cast<double>(tokens * per) / static_cast<double>(rate));
      now += between(0, 40) == 0 ? gap * 20 : between(0, gap * 3 / 2);
    }
  }
  EXPECT_GT(seen[Meter::green], 300u);
  EXPECT_GT(seen[Meter::red], 300u);
  EXPECT_EQ(seen[Meter::yellow] > 300, !mode.starts_with("two_colours")) << seen[Meter::yellow];
}

INSTANTIATE_TEST_SUITE_P(Host, PoliceModes,
                         testing::Values("two_colours_bytes", "two_colours_frames", "one_rate_bytes", "one_rate_frames", "two_rates_bytes",
                                         "two_rates_frames"),
                         [](const testing::TestParamInfo<const char*>& of) { return std::string(of.param); });

TEST(Police, gives_each_token_once_however_many_ask) {
  const struct {
    const char* keys;
    u64 green, yellow;
  } given[] = {{"cir_fps = 1, burst_frames = 500000", 500000, 0},
               {"cir_fps = 1, burst_frames = 300000, excess_frames = 200000", 300000, 200000},
               {"cir_fps = 1, burst_frames = 300000, pir_fps = 1, peak_burst_frames = 500000", 300000, 200000}};
  for (const auto& [keys, green, yellow] : given) {
    SCOPED_TRACE(keys);
    const Configured of("police", keys);
    std::vector<u64> shared(*of.program.shared_size / 8);
    std::array<std::array<u64, POLICE_COUNTERS>, 4> states{};
    {
      std::latch start(states.size());
      std::vector<std::jthread> threads;
      for (auto& state : states)
        threads.emplace_back([&] {
          Packet bytes(60);
          egress_frame frame{bytes.data(), 60, 0, shared.data(), 1'000'000'001, 0, nullptr};
          start.arrive_and_wait();
          for (int i = 0; i < 200000; ++i) of.program.run(&frame, of.config.data(), state.data());
        });
    }
    std::array<u64, POLICE_COLOURS> sum{};
    for (const auto& state : states)
      for (std::size_t colour = 0; colour < sum.size(); ++colour) sum[colour] += state[colour];
    EXPECT_EQ(sum, (std::array<u64, POLICE_COLOURS>{green, yellow, 800000 - green - yellow}));
  }
}

TEST(Police, a_token_is_there_in_the_nanosecond_that_it_is_due) {
  HostBuild build(Configured("police", "cir_fps = 200_000_000, burst_frames = 1, red = \"transmit\""));
  for (const auto& [now, colour] : {std::pair(5u, Meter::green), std::pair(9u, Meter::red), std::pair(10u, Meter::green),
                                    std::pair(1'999'999'999u, Meter::green), std::pair(2'000'000'000u, Meter::green)}) {
    build.set_clock(now);
    EXPECT_EQ(colour_of(build, Packet(60, 5)), colour) << now;
  }
}

TEST(Police, another_rate_works_within_a_burst_on_the_state_that_is_there) {
  constexpr u64 hour = 3'600'000'000'000;
  const Packet frame(1000, 5);
  HostBuild build(Configured("police", "cir_bps = 80_000_000_000, burst_bytes = 2000, red = \"transmit\""));
  build.set_clock(hour);
  EXPECT_EQ(colour_of(build, frame), Meter::green);
  build.configure(Configured("police", "cir_bps = 8_000_000, burst_bytes = 2000, red = \"transmit\""));
  EXPECT_EQ(colour_of(build, frame), Meter::red);
  build.set_clock(hour + 1'000'000);
  EXPECT_EQ(colour_of(build, frame), Meter::green);
  EXPECT_EQ(colour_of(build, frame), Meter::red);
}

// Both builds, run by what a test asks of either.
void in_both_builds(const Configured& of, const std::function<void(Build&)>& test) {
  HostBuild host(of);
  test(host);
  if (!no_kernel().empty()) return;
  auto kernel = KernelBuild::load(of);
  ASSERT_TRUE(kernel) << kernel.error().what;
  test(**kernel);
}

TEST(KernelSample, shows_every_nth_frame) {
  stay_on_this_cpu();
  in_both_builds(Configured("sample", "n = 3, snap_bytes = 40"), [](Build& build) {
    for (u16 number = 1; number <= 10; ++number) build.run(v4().udp(number, 2).pad(100));
    const std::vector<Noted> noted = build.noted();
    ASSERT_EQ(noted.size(), 3u);
    u16 number = 0;
    for (const Noted& each : noted) {
      EXPECT_EQ(each.bytes, cut(v4().udp(number += 3, 2).pad(100), 40));
      EXPECT_EQ(std::tuple(each.head.kind, each.head.length, each.head.captured, each.head.out), std::tuple(NOTE_SAMPLE, 100u, 40u, 3));
    }
    EXPECT_EQ(build.counters(), (Counters{{"sampled", 3}}));
  });
}

TEST(KernelSample, cuts_to_each_length_that_may_be_asked_for) {
  for (const u32 snap : {14u, 127u, 128u, 129u, 512u, 513u, 1514u, 2048u})
    in_both_builds(Configured("sample", fmt::format("n = 1, snap_bytes = {}", snap)), [snap](Build& build) {
      Packet frame = v4().pad(1514);
      for (std::size_t i = 34; i < frame.size(); ++i) frame[i] = static_cast<u8>(i * 7);
      for (const std::size_t size : {14u, 15u, 127u, 128u, 129u, 511u, 512u, 513u, 1514u}) {
        build.run(cut(frame, size));
        const std::vector<Noted> noted = build.noted();
        ASSERT_EQ(noted.size(), 1u);
        EXPECT_EQ(noted[0].bytes, cut(frame, std::min<std::size_t>(size, snap)));
        EXPECT_EQ(noted[0].head.length, size);
      }
    });
}

TEST(KernelSample, what_finds_the_ring_full_is_counted_and_what_comes_later_is_shown) {
  in_both_builds(Configured("sample", "n = 1, snap_bytes = 2048"), [](Build& build) {
    const u32 frames = 2000;
    for (u32 i = 0; i < frames; ++i) build.run(v4().pad(1514));
    std::size_t shown = build.noted().size();
    EXPECT_GT(shown, 100u);
    EXPECT_LT(shown, frames);
    EXPECT_EQ(build.counters(), (Counters{{"sampled", shown}, {"lost", frames - shown}}));
    build.run(v4().pad(60));
    EXPECT_EQ(build.noted().size(), 1u);
  });
}

TEST(Sample, is_lost_by_none_of_many_that_write_while_one_reads) {
  const auto notes = notes_over(-1);
  const Configured of("sample", "n = 1, snap_bytes = 64");
  constexpr u32 writers = 4, frames = 20000;
  std::vector<std::vector<u64>> states(writers, std::vector<u64>(of.program.state_size / 8));
  std::atomic<u32> running{writers};
  std::vector<std::jthread> threads;
  for (u16 writer = 0; writer < writers; ++writer)
    threads.emplace_back([&, writer] {
      const egress_notes way = notes->way(PortSlot{writer});
      Packet bytes(64);
      for (u32 i = 0; i < frames; ++i) {
        std::ranges::fill(bytes, static_cast<u8>(writer + i * writers));
        egress_frame frame{bytes.data(), 64, 0, nullptr, 0, 0, &way};
        of.program.run(&frame, of.config.data(), states[writer].data());
      }
      --running;
    });
  u64 read = 0, wrong = 0;
  for (bool last = false; !last;) {
    last = running == 0;
    for (const Noted& each : read_all(*notes)) {
      ++read;
      wrong += each.bytes.size() != 64 || each.bytes[0] % writers != each.head.out || Packet(64, each.bytes[0]) != each.bytes;
    }
  }
  u64 sampled = 0, lost = 0;
  for (const auto& state : states) sampled += state[0], lost += state[1];
  EXPECT_EQ(std::pair(read, wrong), std::pair(sampled, u64{0}));
  EXPECT_EQ(sampled + lost, u64{writers} * frames);
}

TEST(KernelMtuGuard, tells_what_an_answer_needs) {
  in_both_builds(Configured("mtu_guard", "mtu = 1400, answer = true"), [](Build& build) {
    const Packet frame = udp(tagged(7).ipv4("10.0.0.1", "10.0.0.2"));
    Packet longer = frame;
    longer.resize(1419, 9);
    build.run(longer);
    build.run(frame);
    const std::vector<Noted> noted = build.noted();
    ASSERT_EQ(noted.size(), 1u);
    EXPECT_EQ(noted[0].bytes, cut(longer, 1254));
    EXPECT_EQ(std::tuple(noted[0].head.kind, noted[0].head.length, noted[0].head.mtu), std::tuple(NOTE_TOO_BIG, 1419u, 1400u));
  });
}

TEST(KernelEgressBuilds, draw_on_one_bucket) {
  if (const std::string why = no_kernel(); !why.empty()) GTEST_SKIP() << why;
  const Packet frame = v4().pad(60);
  for (const auto& [keys, yellow] :
       {std::pair("cir_bps = 1, burst_bytes = 190, red = \"transmit\"", 0u),
        std::pair("cir_bps = 1, burst_bytes = 190, excess_bytes = 130, red = \"transmit\"", 2u),
        std::pair("cir_bps = 1, burst_bytes = 190, pir_bps = 1, peak_burst_bytes = 310, red = \"transmit\"", 2u)}) {
    SCOPED_TRACE(keys);
    auto build = KernelBuild::load(Configured("police", keys));
    ASSERT_TRUE(build) << build.error().what;
    for (int i = 0; i < 4; ++i) {
      EXPECT_EQ((*build)->run(frame).bytes, frame);
      EXPECT_EQ((*build)->run_on_a_worker(frame), frame);
    }
    Counters counters{{"green", 3}, {"green_bytes", 180}, {"red", 5 - yellow}, {"red_bytes", 60 * (5 - yellow)}};
    if (yellow != 0) counters["yellow"] = yellow, counters["yellow_bytes"] = yellow * 60;
    EXPECT_EQ((*build)->counters(), counters);
  }
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

TEST(KernelEgressBuilds, count_also_where_the_accounts_are_too_large_for_one_value) {
  if (const std::string why = no_kernel(); !why.empty()) GTEST_SKIP() << why;
  auto counting = KernelBuild::load(Configured("count", ""), 0);
  ASSERT_TRUE(counting) << counting.error().what;
  ASSERT_FALSE((*counting)->whole());
  EXPECT_EQ((*counting)->run(ethernet(1, 2).pad(60)).verdict, EGRESS_TRANSMIT);
  EXPECT_EQ((*counting)->accounts().kernel(0).verdict[WEIR_NEXT], 1u);
}

TEST(KernelJoin, goes_on_in_the_next_program) {
  if (const std::string why = no_kernel(); !why.empty()) GTEST_SKIP() << why;
  auto ttl = KernelBuild::load(Configured("ttl", ""), AccountsMap::largest_value, 1);
  auto rewrite = KernelBuild::load(Configured("mac_rewrite", addresses(5, 6)));
  ASSERT_TRUE(ttl && rewrite);
  const JoinPart parts[] = {{(*ttl)->object(), "ttl_test", 1}, {(*rewrite)->object(), "mac_rewrite_test"}};
  const Result<Fd> joined = join_programs("both", parts, (*ttl)->chain());
  ASSERT_TRUE(joined) << joined.error().what;
  EXPECT_EQ(program_name(program_id(joined->get())), "both");
  const auto run = [&](const Packet& bytes) {
    Packet out(4096);
    LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = bytes.data(), .data_out = out.data(), .data_size_in = static_cast<u32>(bytes.size()),
                .data_size_out = static_cast<u32>(out.size()));
    EXPECT_EQ(::bpf_prog_test_run_opts(joined->get(), &options), 0);
    out.resize(options.data_size_out);
    return std::pair(options.retval, out);
  };
  EXPECT_EQ(run(udp(v4_ttl(9))), std::pair(u32{XDP_PASS}, udp(ethernet(5, 6).ipv4("10.0.0.1", "10.0.0.2", 8))));
  EXPECT_EQ(run(udp(v4_ttl(1))).first, u32{XDP_DROP});
  EXPECT_EQ((*ttl)->accounts().kernel(0).verdict[WEIR_NEXT], 1u);
  EXPECT_EQ((*ttl)->accounts().kernel(0).verdict[WEIR_DROP], 1u);
  EXPECT_EQ((*rewrite)->accounts().kernel(0).verdict[WEIR_NEXT], 1u) << "what the first drops the second does not see";
}

TEST(KernelJoin, leaves_programs_with_functions_of_their_own_to_calls) {
  if (const std::string why = no_kernel(); !why.empty()) GTEST_SKIP() << why;
  Result<BpfObject> called = BpfObject::open("called", WEIR_KERNEL_HALF(::called)());
  ASSERT_TRUE(called);
  ASSERT_TRUE(called->load("alone"));
  const JoinPart parts[] = {{*called, "alone", 1}, {*called, "alone"}};
  const Result<Fd> joined = join_programs("both", parts, {});
  ASSERT_FALSE(joined);
  EXPECT_EQ(joined.error().failure, Failure::unsupported);
  EXPECT_EQ(joined.error().what, "alone has functions of its own");
}

TEST(KernelJoin, leaves_programs_that_call_by_another_array_to_calls) {
  if (const std::string why = no_kernel(); !why.empty()) GTEST_SKIP() << why;
  auto ttl = KernelBuild::load(Configured("ttl", ""), AccountsMap::largest_value, 1);
  auto other = KernelBuild::load(Configured("ttl", ""));
  ASSERT_TRUE(ttl && other);
  const JoinPart parts[] = {{(*ttl)->object(), "ttl_test", 1}, {(*other)->object(), "ttl_test"}};
  const Result<Fd> joined = join_programs("both", parts, (*other)->chain());
  ASSERT_FALSE(joined);
  EXPECT_EQ(joined.error().failure, Failure::unsupported);
}

TEST(KernelJoin, puts_a_program_in_the_place_of_the_function_of_the_last_part) {
  if (const std::string why = no_kernel(); !why.empty()) GTEST_SKIP() << why;
  Result<BpfObject> called = BpfObject::open("called", WEIR_KERNEL_HALF(::called)()), itself = called->again();
  ASSERT_TRUE(called && itself);
  ASSERT_TRUE(called->load("alone"));
  ASSERT_TRUE(itself->load("drops"));
  const JoinPart part{*called, "alone", 0, itself->instructions("drops")};
  const Result<Fd> joined = join_programs("around", {&part, 1}, {});
  ASSERT_TRUE(joined) << joined.error().what;
  Packet in(60), out(4096);
  LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = in.data(), .data_out = out.data(), .data_size_in = static_cast<u32>(in.size()),
              .data_size_out = static_cast<u32>(out.size()));
  ASSERT_EQ(::bpf_prog_test_run_opts(joined->get(), &options), 0);
  EXPECT_EQ(options.retval, u32{XDP_DROP}) << "`alone` lets 60 bytes go, and `drops` in its place drops them";
}

TEST(KernelLink, refuses_constants_of_another_kind_of_program) {
  if (const std::string why = no_kernel(); !why.empty()) GTEST_SKIP() << why;
  Result<BpfObject> called = BpfObject::open("called", WEIR_KERNEL_HALF(::called)());
  ASSERT_TRUE(called);
  const Result<> linked = called->link(egress_link{}, {});
  ASSERT_FALSE(linked);
  EXPECT_EQ(linked.error().what,
            "called: program mistaken asks for a constant of another kind of program: include only what is for its own kind");
}

TEST(Cpus, are_counted_by_the_highest_number_of_the_list) {
  for (const auto& [list, cpus] : {std::pair("0\n", 0u), std::pair("0", 1u), std::pair("0-3", 4u), std::pair("0-3,8-11", 12u),
                                   std::pair("0,2", 3u), std::pair("", 0u), std::pair("0-", 0u), std::pair("4294967295", 0u)})
    EXPECT_EQ(cpus_in(list), cpus) << list;
}

TEST(KernelLink, refuses_a_placeholder_that_the_loader_does_not_find) {
  if (const std::string why = no_kernel(); !why.empty()) GTEST_SKIP() << why;
  Result<BpfObject> called = BpfObject::open("called", WEIR_KERNEL_HALF(::called)());
  ASSERT_TRUE(called);
  ASSERT_TRUE(called->link(program_link{}, {}));
  const Result<> loaded = called->load("asks");
  ASSERT_FALSE(loaded);
  EXPECT_EQ(loaded.error().what,
            "called: program asks calls a function that asks the runtime for something: make that function static __always_inline");
}

}  // namespace
}  // namespace weir
