// SPDX-License-Identifier: BSD-3-Clause
// egress: what each egress program and chains of them cost per frame, by test runs in the kernel.
//   egress --check                      only checks: what the kernel's build makes of a frame is what the host build makes of it
//   egress REPEAT PASSES [--reverse]    checks, then times: PASSES times through all cases, REPEAT frames a call; prints JSON
#include <bpf/bpf.h>
#include <linux/bpf.h>
#include <time.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "bpf/abi/link.h"
#include "core/config/config.hh"
#include "core/egress.hh"
#include "core/kernel/accounts_map.hh"
#include "core/kernel/join.hh"
#include "core/kernel/object.hh"
#include "core/pipeline/accounts.hh"
#include "core/pipeline/egress_chain.hh"
#include "core/pipeline/egress_config.hh"
#include "core/pipeline/registry.hh"
#include "empty.skel.h"
#include "fresh.skel.h"
#include "kit/frames.hh"

// The host side of the programs' own header: struct egress_frame.
extern "C" {
#include "bpf/lib/egress.bpf.h"
extern const egress_program weir_egress_empty;
}

namespace {

using namespace weir;
using kit::Packet;

constexpr std::size_t frame_size = 64, headroom = 256;
constexpr u32 longest_chain = 8;

// So many rules, of which only the last one matches.
std::string rules(u32 number) {
  std::string all;
  for (u32 i = 1; i < number; ++i) all += fmt::format("{{ action = \"drop\", dst = \"192.0.2.{}\", protocol = \"tcp\", dport = 80 }}, ", i);
  return fmt::format("otherwise = \"drop\", rules = [{}{{ action = \"permit\", dst = \"10.0.0.0/8\", protocol = \"udp\" }}]", all);
}

// Every program that there is, with the keys of a plain use. `tagged`: it does its work on frames that have a tag.
struct Use {
  std::string name, program, keys;
  bool tagged = false;
};
const std::vector<Use> uses = {
    {"empty", "empty", ""},
    {"count", "count", ""},
    {"dscp", "dscp", "set = 46"},
    {"encap_ipip", "encap_ipip", R"(local = "192.0.2.1", remote = "198.51.100.1")"},
    {"encap_vxlan", "encap_vxlan", R"(vni = 7, local = "192.0.2.1", remote = "198.51.100.1", dst = "02:00:00:00:00:77")"},
    {"filter 1", "filter", rules(1)},
    {"filter 8", "filter", rules(8)},
    {"filter 64", "filter", rules(64)},
    {"mac_rewrite", "mac_rewrite", R"(src = "02:00:00:00:00:66", dst = "02:00:00:00:00:77")"},
    {"mtu_guard", "mtu_guard", "mtu = 1500"},
    {"police", "police", "cir_bps = 800_000_000_000, burst_bytes = 1_000_000_000"},  // everything is green
    {"sample", "sample", "n = 1000"},
    {"ttl", "ttl", ""},
    {"vlan_pop", "vlan_pop", "", true},
    {"vlan_push", "vlan_push", "vid = 100"},
    {"vlan_rewrite", "vlan_rewrite", "vid = 200", true},
};

struct Case {
  std::string name;
  std::vector<std::string> chain;  // of uses
  bool called = false;             // by tail calls, as a chain that cannot be one program is
};

std::vector<Case> cases() {
  std::vector<Case> made{{"none", {}}};
  for (const Use& use : uses) made.push_back({use.name, {use.name}});
  for (const u32 length : {2u, 4u, 8u}) made.push_back({fmt::format("{} empty", length), std::vector<std::string>(length, "empty")});
  made.push_back({"2 programs", {"ttl", "mac_rewrite"}});
  made.push_back({"4 programs", {"ttl", "dscp", "mac_rewrite", "vlan_push"}});
  made.push_back({"8 programs", {"vlan_pop", "count", "ttl", "dscp", "mac_rewrite", "vlan_push", "vlan_rewrite", "mtu_guard"}});
  made.push_back({"8 by calls", made.back().chain, true});
  return made;
}

const Use& use_of(const std::string& name) { return *std::ranges::find(uses, name, &Use::name); }

template <typename T>
T must(Result<T> result) {
  if (!result) broken(result.error().what.c_str());
  return std::move(*result);
}

// The modules that `weir run` loads, and the empty program.
const Registry& registry() {
  static const Registry modules = must(Registry::load());
  static const EgressModule empty{&weir_egress_empty, WEIR_KERNEL_HALF(::empty)()};
  static const Registry all = [] {
    std::vector<const EgressModule*> found{&empty};
    for (const std::string& program : modules.egress_programs()) found.push_back(modules.egress_module(program));
    return Registry::of({}, found);
  }();
  return all;
}

// Programs without a row in the table.
std::string forgotten() {
  for (const std::string& program : registry().egress_programs())
    if (std::ranges::find(uses, program, &Use::program) == uses.end()) return program;
  return "";
}

Packet frame_for(const Case& one) {
  kit::FrameBuilder frame;
  frame.ethernet(kit::station(1), kit::station(2));
  if (!one.chain.empty() && use_of(one.chain.front()).tagged) frame.vlan(7);
  frame.ipv4("10.0.0.1", "10.0.0.2").udp(1, 2);
  return frame.payload(std::string(frame_size - frame.build().size(), 'w')).build();
}

std::vector<EgressConfig> configs_of(const Case& one) {
  std::string chain;
  for (const std::string& name : one.chain) {
    const Use& use = use_of(name);
    chain += fmt::format("{{ program = \"{}\"{}{} }},", use.program, use.keys.empty() ? "" : ", ", use.keys);
  }
  const auto parsed = parse_config(fmt::format("[[port]]\nname = \"p\"\ndriver = \"null\"\negress = [{}]\n", chain), one.name, registry());
  if (!parsed) broken(parsed.error().front().text().c_str());
  return parsed->ports[0].egress;
}

std::vector<u8> settings_of(const EgressConfig& config, const egress_program& program) {
  std::vector<u8> settings(program.config_size);
  fill_egress_config(program, config.keys, {kit::station(77), 1500}, settings.data());
  return settings;
}

// What the host builds make of the frame.
Result<Packet> by_host(const Case& one) {
  const Packet bytes = frame_for(one);
  Packet memory(headroom + bytes.size());
  std::ranges::copy(bytes, memory.begin() + headroom);
  egress_frame frame{memory.data() + headroom, static_cast<u32>(bytes.size()), headroom, nullptr};
  for (const EgressConfig& config : configs_of(one)) {
    const egress_program& program = *registry().egress_module(config.program)->host;
    std::vector<u64> state(program.state_size / 8), shared(program.shared_size != nullptr ? *program.shared_size / 8 : 0);
    frame.shared = shared.data();
    const u32 verdict = program.run(&frame, settings_of(config, program).data(), state.data());
    if (verdict != EGRESS_TRANSMIT) return fail("{} drops the frame that it is timed with: {}", config.program, program.drops[verdict - 1]);
  }
  return Packet(frame.data, frame.data + frame.length);
}

// CPU time of this thread, in nanoseconds: what others do on the CPU meanwhile is not in it.
u64 cpu_time() noexcept {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<u64>(now.tv_sec) * 1'000'000'000 + static_cast<u64>(now.tv_nsec);
}

// A chain in the kernel, as a port has it: each program over maps of its own, tail calls by the port's program array. In front of it
// stands `fresh`, which makes the frame new.
class Rig {
 public:
  static Result<std::unique_ptr<Rig>> load(const Case& one) {
    std::unique_ptr<Rig> made(new Rig);
    TRY_VOID(made->set_up(one));
    made->bytes_ = frame_for(one);
    made->expected_ = TRY(by_host(one));
    return made;
  }

  // Nanoseconds of CPU time of one call, checked afterwards: the last frame came out as the host build makes it, and every program of the
  // chain let all of them go.
  Result<u64> run(u32 repeat) {
    std::array<u64, longest_chain> before{};
    for (u32 place = 0; place < places_.size(); ++place) before[place] = passed(place);
    Packet out(4096);
    LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = bytes_.data(), .data_out = out.data(),
                .data_size_in = static_cast<u32>(bytes_.size()), .data_size_out = static_cast<u32>(out.size()),
                .repeat = static_cast<int>(repeat));
    const u64 start = cpu_time();
    const int err = ::bpf_prog_test_run_opts(start_, &options);
    const u64 end = cpu_time();
    if (err != 0) return fail_errno(-err, "test run");
    out.resize(options.data_size_out);
    if (options.retval != XDP_PASS || out != expected_) return fail("what comes out is not what the host build makes of the frame");
    for (u32 place = 0; place < places_.size(); ++place)
      if (passed(place) - before[place] != repeat) return fail("program {} of the chain did not see and let go every frame", place);
    return end - start;
  }

  // Nanoseconds per frame. In front of a test run of more than one frame the kernel patches itself (net/bpf/test_run.c,
  // bpf_prog_change_xdp), for more than a millisecond, which a call for two frames costs alone.
  Result<double> time(u32 repeat) {
    const u64 two = TRY(run(2));
    return (static_cast<double>(TRY(run(repeat + 2))) - static_cast<double>(two)) / repeat;
  }

 private:
  struct Place {
    BpfObject object;
    BpfMap state, config;
    Mapping settings;
  };
  static constexpr u32 blocks = WEIR_MAX_PORTS + longest_chain;  // the ports', then the chain's
  Rig() = default;
  [[nodiscard]] u64 passed(u32 place) const noexcept { return account_.kernel(WEIR_MAX_PORTS + place).verdict[WEIR_NEXT]; }

  Result<> set_up(const Case& one) {
    const u32 rows = possible_cpus();
    accounts_ = TRY(AccountsMap::create(rows, blocks));
    account_ = Accounts(TRY(accounts_.map().map_memory()), rows, rows, blocks);
    chain_ = TRY(BpfMap::create("chain", {BPF_MAP_TYPE_PROG_ARRAY, 4, 4, longest_chain}));
    std::array<u8, frame_size> frame;
    std::ranges::copy(frame_for(one), frame.begin());
    for (const char* program : {"fresh", "none"}) {
      BpfObject& object = ends_.emplace_back(TRY(BpfObject::open(program, WEIR_KERNEL_HALF(::fresh)())));
      TRY_VOID(object.use("chain", chain_.fd()));
      TRY_VOID(object.constants(".rodata.fresh", frame));
      TRY_VOID(object.load(program));
    }
    start_ = ends_[0].program_fd("fresh");
    const std::vector<EgressConfig> configs = configs_of(one);
    for (const EgressConfig& config : configs) TRY_VOID(add(config, places_.size() + 1 == configs.size()));
    const int none = ends_[1].program_fd("none");
    if (configs.empty()) return chain_.set(0, &none);
    return configs.size() > 1 && !one.called ? join(configs) : Result<>{};
  }

  // As a port's chain is.
  Result<> join(const std::vector<EgressConfig>& configs) {
    std::vector<JoinPart> parts;
    for (std::size_t place = 0; place < configs.size(); ++place)
      parts.push_back({places_[place].object, configs[place].program + "_test", static_cast<u32>(place) + 1});
    joined_ = TRY(join_programs("chain", parts, chain_));
    const int fd = joined_.get();
    return chain_.set(0, &fd);
  }

  Result<> add(const EgressConfig& config, bool last) {
    const EgressModule& module = *registry().egress_module(config.program);
    const u32 number = static_cast<u32>(places_.size()), rows = EGRESS_FIRST_ROW + possible_cpus();
    Place& place = places_.emplace_back(TRY(BpfObject::open(config.program, module.elf)));
    place.state =
        TRY(BpfMap::create("state", {BPF_MAP_TYPE_ARRAY, 4, static_cast<u32>(egress_stride(*module.host)) * rows, 1, BPF_F_MMAPABLE}));
    TRY_VOID(place.object.use("accounts", accounts_.fd()));
    TRY_VOID(place.object.use("chain", chain_.fd()));
    if (place.object.has_map(".data.config")) {
      const MapShape shape = TRY(place.object.shape(".data.config"));
      place.config = TRY(BpfMap::create("config", shape));
      place.settings = TRY(place.config.map_memory());
      std::ranges::copy(settings_of(config, *module.host), place.settings.data());
      TRY_VOID(place.object.use(".data.config", place.config.fd()));
    }
    const egress_link link{.accounts = accounts_.link(), .block = WEIR_MAX_PORTS + number, .next = last ? WEIR_NO_NEXT : number + 1};
    TRY_VOID(place.object.link(link, {.accounts = accounts_.memory(), .state = place.state.fd()}));
    const std::string program = config.program + "_test";
    TRY_VOID(place.object.load(program));
    const int fd = place.object.program_fd(program);
    return chain_.set(number, &fd);
  }

  Packet bytes_, expected_;
  AccountsMap accounts_;
  BpfMap chain_;
  Accounts account_{Mapping(), 0, 0, 0};
  std::vector<BpfObject> ends_;
  std::vector<Place> places_;
  Fd joined_;
  int start_ = -1;
};

struct Loaded {
  Case of;
  std::unique_ptr<Rig> rig;
  std::vector<double> ns;
};

// One frame alone, then several: the second one shows that `fresh` makes the frame what it was.
Result<std::vector<Loaded>> load_all() {
  std::vector<Loaded> all;
  for (Case& one : cases()) {
    auto rig = Rig::load(one);
    for (const u32 repeat : {1u, 300u})
      if (auto ran = rig ? (*rig)->run(repeat) : std::unexpected(rig.error()); !ran) return fail("{}: {}", one.name, ran.error().what);
    all.push_back({std::move(one), std::move(*rig), {}});
  }
  return all;
}

double median(std::vector<double> values) {
  std::ranges::nth_element(values, values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2));
  return values[values.size() / 2];
}

Result<nlohmann::json> time_all(std::vector<Loaded>& all, u32 repeat, u32 passes) {
  for (u32 pass = 0; pass < passes; ++pass)
    for (Loaded& each : all) {
      const auto ran = each.rig->time(repeat);
      if (!ran) return fail("{}: {}", each.of.name, ran.error().what);
      each.ns.push_back(*ran);
    }
  nlohmann::json said = nlohmann::json::array();
  for (const Loaded& each : all) said.push_back({{"name", each.of.name}, {"chain", each.of.chain}, {"ns", median(each.ns)}});
  return said;
}

int complain(const std::string& what) {
  fmt::print(stderr, "bench egress: {}\n", what);
  return 1;
}

int usage() {
  fmt::print(stderr, "usage: egress --check | REPEAT PASSES [--reverse]\n");
  return 2;
}

}  // namespace

int main(int words, char** word) {
  const bool check = words == 2 && std::string_view(word[1]) == "--check";
  const bool reverse = words == 4 && std::string_view(word[3]) == "--reverse";
  const u32 repeat = words > 2 ? static_cast<u32>(std::strtoul(word[1], nullptr, 10)) : 0;
  const u32 passes = words > 2 ? static_cast<u32>(std::strtoul(word[2], nullptr, 10)) : 0;
  if (!check && (repeat == 0 || passes == 0 || words > 4 || (words == 4 && !reverse))) return usage();
  if (const std::string program = forgotten(); !program.empty())
    return complain(fmt::format("no keys for the egress program {}: give it a row of `uses` in bench/egress.cc", program));
  auto all = load_all();
  if (!all) return complain(all.error().what);
  if (check) {
    fmt::print("bench egress: {} cases: the kernel makes of a frame what the host build makes of it\n", all->size());
    return 0;
  }
  if (reverse) std::ranges::reverse(*all);
  const auto said = time_all(*all, repeat, passes);
  if (!said) return complain(said.error().what);
  fmt::print("{}\n", said->dump());
  return 0;
}
