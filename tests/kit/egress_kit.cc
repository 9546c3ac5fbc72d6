// SPDX-License-Identifier: BSD-3-Clause
// egress_kit: the surroundings of an egress program in a test: its configuration, its state, and an account of its verdicts.
#include "kit/egress_kit.hh"

#include <bpf/bpf.h>

#include <algorithm>
#include <sstream>

#include "bpf/abi/note.h"
#include "core/config/config.hh"
#include "core/pipeline/egress_chain.hh"
#include "core/pipeline/egress_config.hh"
#include "core/pipeline/registry.hh"

// The host side of the programs' own header: struct egress_frame.
extern "C" {
#include "bpf/lib/egress.bpf.h"
}

namespace weir::kit {
namespace {

constexpr u32 headroom = 256;

std::vector<u64> words(std::size_t bytes) { return std::vector<u64>((bytes + sizeof(u64) - 1) / sizeof(u64)); }

// The program's configuration, as a port of a file that says so much gets it.
Result<std::vector<u64>> config_of(const EgressModule& module, std::string_view keys) {
  const egress_program& program = *module.host;
  const std::string file = fmt::format("[[port]]\nname = \"p\"\ndriver = \"null\"\negress = [{{ program = \"{}\"{}{} }}]\n", program.name,
                                       keys.empty() ? "" : ", ", keys);
  const auto parsed = parse_config(file, "test.toml", Registry::of({}, {&module}));
  if (!parsed) return std::unexpected(Error{Failure::invalid, parsed.error().front().text()});
  std::vector<u64> config = words(program.config_size);
  fill_egress_config(program, parsed->ports[0].egress[0].keys, {station(77), 1500}, reinterpret_cast<u8*>(config.data()));
  return config;
}

std::size_t place_of(const egress_program& program, std::string_view name) {
  for (std::size_t i = 0; program.counters[i] != nullptr; ++i)
    if (program.counters[i] == name) return i;
  broken("a test asks for a counter that the egress program does not declare");
}

template <typename Run>
std::string run_all(const std::vector<Case>& cases, Run run) {
  std::string lines;
  for (const Case& each : cases) {
    const Result<Outcome> got = run(each.in);
    const std::string what = got ? difference({each.verdict, each.out.empty() ? each.in : each.out}, *got) : got.error().what;
    if (!what.empty()) lines += fmt::format("{}{}: {}", lines.empty() ? "" : "\n", each.claim, what);
  }
  return lines;
}

}  // namespace

Result<EgressHost> EgressHost::make(const EgressModule& module, std::string_view keys) {
  EgressHost made(*module.host);
  made.config_ = TRY(config_of(module, keys));
  made.state_ = words(module.host->state_size);
  if (module.host->shared_size != nullptr) made.shared_ = words(*module.host->shared_size);
  return made;
}

Outcome EgressHost::run(const Packet& bytes) {
  Packet memory(headroom + bytes.size());  // a frame lies on an even address
  std::ranges::copy(bytes, memory.begin() + headroom);
  egress_frame frame{memory.data() + headroom, static_cast<u32>(bytes.size()), headroom, shared_.data(), 0, 0, nullptr};
  const u32 verdict = program_->run(&frame, config_.data(), state_.data());
  return {verdict == EGRESS_TRANSMIT ? transmitted() : drop(verdict - 1), Packet(frame.data, frame.data + frame.length)};
}

u64 EgressHost::counter(std::string_view name) const { return state_.at(place_of(*program_, name)); }

Result<std::unique_ptr<EgressKernel>> EgressKernel::load(const EgressModule& module, std::string_view keys) {
  const std::vector<u64> config = TRY(config_of(module, keys));
  BpfObject object = TRY(BpfObject::open(module.host->name, module.elf));
  std::unique_ptr<EgressKernel> made(new EgressKernel(*module.host, std::move(object)));
  TRY_VOID(made->set_up(config));
  return made;
}

// Maps as an instance makes them.
Result<> EgressKernel::set_up(const std::vector<u64>& config) {
  const u32 rows = possible_cpus() + 1;
  accounts_map_ = TRY(AccountsMap::create(rows, WEIR_MAX_PORTS));
  accounts_ = Accounts(TRY(accounts_map_.map().map_memory()), possible_cpus(), rows, WEIR_MAX_PORTS);
  TRY_VOID(object_.use("accounts", accounts_map_.fd()));
  const u32 size = static_cast<u32>(egress_stride(program_)) * (EGRESS_FIRST_ROW + rows);
  const BpfMap& state = maps_.emplace_back(TRY(BpfMap::create("state", {BPF_MAP_TYPE_ARRAY, 4, size, 1, BPF_F_MMAPABLE})));
  state_memory_ = TRY(state.map_memory());
  const int state_fd = state.fd();
  for (const char* name : {".data.config", ".data.shared"}) {
    if (!object_.has_map(name)) continue;
    const MapShape shape = TRY(object_.shape(name));
    const BpfMap& map = maps_.emplace_back(TRY(BpfMap::create(name + 1, shape)));
    if (std::string_view(name) == ".data.config") {
      config_memory_ = TRY(map.map_memory());
      std::memcpy(config_memory_.data(), config.data(), program_.config_size);
    }
    TRY_VOID(object_.use(name, map.fd()));
  }
  if (object_.has_map("notes")) {
    const BpfMap& ring = maps_.emplace_back(TRY(BpfMap::create("notes", {BPF_MAP_TYPE_RINGBUF, 0, 0, NOTE_RING_BYTES, 0})));
    TRY_VOID(object_.use("notes", ring.fd()));
  }
  const egress_link link{.accounts = accounts_map_.link(), .block = 0, .next = WEIR_NO_NEXT, .port = 3, .place = 2};
  TRY_VOID(object_.link(link, {accounts_map_.memory(), state_fd, -1}));
  return object_.load(std::string(program_.name) + "_test");
}

Result<Outcome> EgressKernel::run(const Packet& bytes) {
  const account before = accounts_.kernel(0);
  Outcome outcome{transmitted(), Packet(bytes.size() + 512)};
  LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = bytes.data(), .data_out = outcome.bytes.data(),
              .data_size_in = static_cast<u32>(bytes.size()), .data_size_out = static_cast<u32>(outcome.bytes.size()));
  if (const int err = ::bpf_prog_test_run_opts(object_.program_fd(std::string(program_.name) + "_test"), &options); err != 0)
    return fail_errno(-err, fmt::format("{}: run its kernel build over a frame of {} bytes", program_.name, bytes.size()));
  outcome.bytes.resize(options.data_size_out);
  const account after = accounts_.kernel(0);
  if (after.verdict[WEIR_NEXT] == before.verdict[WEIR_NEXT] + 1) return outcome;
  for (u32 reason = WEIR_DROP_OWN; reason < WEIR_DROPS; ++reason)
    if (after.drop[reason] == before.drop[reason] + 1) {
      outcome.verdict = {WEIR_DROP, reason};
      return outcome;
    }
  return fail("{}: its kernel build ended with action {} and counted no verdict", program_.name, options.retval);
}

u64 EgressKernel::counter(std::string_view name) const {
  u64 sum = 0;
  for (u32 row = 0; row < possible_cpus(); ++row)
    sum +=
        reinterpret_cast<const u64*>(state_memory_.data() + (EGRESS_FIRST_ROW + row) * egress_stride(program_))[place_of(program_, name)];
  return sum;
}

std::string differences(EgressHost& build, const std::vector<Case>& cases) {
  return run_all(cases, [&](const Packet& in) -> Result<Outcome> { return build.run(in); });
}

std::string differences(EgressKernel& build, const std::vector<Case>& cases) {
  return run_all(cases, [&](const Packet& in) { return build.run(in); });
}

Result<std::size_t> both_builds_agree(const EgressModule& module, std::string_view keys, const Traffic& traffic) {
  EgressHost host = TRY(EgressHost::make(module, keys));
  const std::unique_ptr<EgressKernel> kernel = TRY(EgressKernel::load(module, keys));
  std::size_t frames = 0;
  for (const auto& [port, bytes] : traffic) {
    ++frames;
    const Outcome got = TRY(kernel->run(bytes));
    if (const std::string what = difference(host.run(bytes), got); !what.empty())
      return fail("{}: frame {}, {} bytes {:02x}: in the kernel {}", module.host->name, frames, bytes.size(), fmt::join(bytes, " "), what);
  }
  return frames;
}

}  // namespace weir::kit
