// SPDX-License-Identifier: BSD-3-Clause
// plugin_kit: a stage's surroundings in a test, and test runs of its kernel half.
#include "kit/plugin_kit.hh"

#include <bpf/bpf.h>
#include <net/if.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/config/config.hh"
#include "core/pipeline/kernel_side.hh"
#include "core/pipeline/registry.hh"

namespace weir::kit {
namespace {

constexpr const char* names[] = {"next", "redirect", "flood", "punt", "to_stack", "drop"};

u64 counter_of(const Plugin& plugin, const account& account, std::string_view name) {
  const auto at = std::ranges::find(plugin.counters, name);
  if (at == plugin.counters.end()) broken("a test asks for a counter that the plugin does not declare");
  return account.counter[at - plugin.counters.begin()];
}

}  // namespace

std::ostream& operator<<(std::ostream& out, const Verdict& verdict) {
  out << names[verdict.what];
  if (verdict.what == WEIR_DROP && verdict.argument >= WEIR_DROP_OWN) return out << " own reason " << verdict.argument - WEIR_DROP_OWN;
  return out << ' ' << verdict.argument;
}

bool FakeFlows::offload(const FlowKey& key, const FlowAction& action, FlowTimes times, u64 cookie) noexcept {
  if (!open_ || !action.rewrite(key)) return false;
  std::erase_if(offloads_, [&](const Offload& other) { return other.key.same(key); });
  offloads_.push_back({key, action, times, cookie});
  return true;
}

std::optional<u32> FakeFlows::idle_s(const FlowKey& key) const noexcept {
  const bool there = std::ranges::any_of(offloads_, [&](const Offload& offload) { return offload.key.same(key); });
  return there ? std::optional<u32>(0) : std::nullopt;
}

void FakeFlows::take_back(const std::function<bool(const FlowKey&, u64)>& which) noexcept {
  std::erase_if(offloads_, [&](const Offload& offload) { return which(offload.key, offload.cookie); });
}

std::optional<u32> FakeCache::idle_s(const FlowKey& key) const noexcept {
  const auto at = std::ranges::find_if(flows, [&](const Flow& flow) { return flow.key.same(key); });
  return at == flows.end() ? std::nullopt : std::optional(at->idle_s);
}

FakeContext::FakeContext(std::vector<std::string> ports, std::vector<std::string> elsewhere)
    : names_(std::move(ports)), own_(names_.size()) {
  std::ranges::move(elsewhere, std::back_inserter(names_));
}

std::vector<PortSlot> FakeContext::ports() const {
  std::vector<PortSlot> slots;
  for (u16 slot = 0; slot < own_; ++slot) slots.push_back(PortSlot{slot});
  return slots;
}

std::optional<PortSlot> FakeContext::port(std::string_view name) const {
  const auto at = std::ranges::find(names_, name);
  if (at == names_.end()) return std::nullopt;
  return PortSlot{static_cast<u16>(at - names_.begin())};
}

Result<GroupSlot> FakeContext::group(std::span<const PortSlot> ports) {
  std::vector<PortSlot> members(ports.begin(), ports.end());
  std::ranges::sort(members);
  auto at = std::ranges::find(groups_, members);
  if (at == groups_.end()) at = groups_.insert(at, std::move(members));
  return GroupSlot{static_cast<u16>(at - groups_.begin())};
}

Result<ConfigNode> FakeContext::keys(const Plugin& plugin, std::string_view text) const {
  std::string ports;
  for (std::size_t i = 0; i < names_.size(); ++i)
    ports += fmt::format("{{name=\"{}\", driver=\"null\"{}}}, ", names_[i], i < own_ ? ", pipeline=\"main\"" : "");
  const std::string file =
      fmt::format("port = [{}]\n[[pipeline]]\nname = \"main\"\n[[pipeline.stage]]\nplugin = \"{}\"\n{}\n", ports, plugin.name, text);
  auto config = parse_config(file, "test.toml", Registry::of({&plugin}, {}));
  if (!config) return std::unexpected(Error{Failure::invalid, config.error().front().text()});
  return config->pipelines.front().stages.front().keys;
}

Result<u8*> PlainMemory::bytes(std::string_view map, std::size_t entry, u32 count) {
  auto at = held_.find(map);
  if (at == held_.end() || at->second.entry != entry || at->second.count != count)
    at = held_.insert_or_assign(std::string(map), Held{entry, count, TRY(Mapping::anonymous(entry * count))}).first;
  return at->second.memory.data();
}

Result<StageMemory::CommonBytes> PlainMemory::common_bytes(std::string_view map, std::string_view name, std::size_t entry, u32 count) {
  auto& pieces = (shared_ != nullptr ? *shared_ : own_).pieces;
  const std::string key = fmt::format("{} {}", map, name);
  const auto at = pieces.find(key);
  if (at == pieces.end()) {
    InCommon::Piece made{entry, count, {}, TRY(Mapping::anonymous(entry * count)), true};
    return CommonBytes{pieces.emplace(key, std::move(made)).first->second.memory.data(), true};
  }
  if (at->second.entry != entry || at->second.count != count) return fail("{}: has another size", key);
  return CommonBytes{at->second.memory.data(), !std::exchange(at->second.asked, true)};
}

Result<UserHalf> UserHalf::make(const Plugin& plugin, std::string_view keys, FakeContext& context, StageMemory& memory) {
  const ConfigNode node = TRY(context.keys(plugin, keys));
  if (!plugin.per_flow) context.flows().close_for_good();
  UserHalf made(plugin, TRY(plugin.make(node, context)));
  TRY_VOID(made.stage_->bind(memory));
  return made;
}

std::vector<Outcome> UserHalf::run(const std::vector<std::pair<u32, Packet>>& frames) {
  if (frames.size() > Burst::capacity) broken("a test makes a burst of more frames than a burst holds");
  std::vector<Outcome> outcomes;
  Burst burst;
  burst.charge(account_.get());
  for (const auto& [port, bytes] : frames) outcomes.push_back({{}, bytes});
  for (std::size_t i = 0; i < frames.size(); ++i) {
    Packet& bytes = outcomes[i].bytes;
    burst.push({.data = bytes.data(), .length = static_cast<u32>(bytes.size()), .port = PortSlot{static_cast<u16>(frames[i].first)}});
  }
  stage_->process(burst);
  for (std::size_t i = 0; i < frames.size(); ++i) {
    const Frame& frame = burst.begin()[i];
    if (frame.verdict == WEIR_DROP && frame.argument >= WEIR_DROP_OWN + plugin_->drops.size())
      broken("a user half drops a frame under a reason that is none of its plugin's names");
    outcomes[i] = {{static_cast<weir_verdict>(frame.verdict), frame.argument}, Packet(frame.data, frame.data + frame.length)};
  }
  return outcomes;
}

u64 UserHalf::counter(std::string_view name) const { return counter_of(*plugin_, *account_, name); }

u64 UserHalf::gauge(std::string_view name) const {
  for (const auto& [known, value] : stage_->gauges())
    if (known == name) return value;
  broken("a test asks for a gauge that the stage does not show");
}

std::string no_kernel() {
  const Result<BpfMap> map = BpfMap::create("probe", {.type = BPF_MAP_TYPE_DEVMAP});
  return map ? "" : "kernel halves cannot run here: " + map.error().what;
}

Result<u8*> KernelHalf::Memory::bytes(std::string_view map, std::size_t entry, u32 count) {
  if (const auto at = memories_.find(map); at != memories_.end()) return at->second.data();
  MapShape shape = TRY(object_.shape(map));
  if (shape.value_size != entry) return fail("map {} has entries of {} bytes where the user half expects {}", map, shape.value_size, entry);
  shape.entries = count;
  BpfMap& made = maps_.emplace_back(TRY(BpfMap::create(map, shape)));
  TRY_VOID(object_.use(map, made.fd()));
  return memories_.emplace(map, TRY(made.map_memory())).first->second.data();
}

Result<StageMemory::CommonBytes> KernelHalf::Memory::common_bytes(std::string_view map, std::string_view name, std::size_t entry,
                                                                  u32 count) {
  auto& pieces = (shared_ != nullptr ? *shared_ : own_).pieces;
  const std::string key = fmt::format("{} {}", map, name);
  const MapShape shape{BPF_MAP_TYPE_ARRAY, 4, static_cast<u32>(entry), count, BPF_F_MMAPABLE};
  auto at = pieces.find(key);
  if (at == pieces.end()) {
    BpfMap made = TRY(BpfMap::create(map, shape));
    Mapping memory = TRY(made.map_memory());
    at = pieces.emplace(key, InCommon::Piece{entry, count, std::move(made), std::move(memory), false}).first;
  }
  if (at->second.entry != entry || at->second.count != count || !at->second.map) return fail("{}: has another size", key);
  if (object_.has_map(map)) TRY_VOID(object_.use(map, at->second.map->fd()));
  return CommonBytes{at->second.memory.data(), !std::exchange(at->second.asked, true)};
}

Result<std::unique_ptr<KernelHalf>> KernelHalf::open(const Plugin& plugin, const FakeContext& context, InCommon* shared) {
  BpfObject object = TRY(BpfObject::open(plugin.name, plugin.kernel_half()));
  return std::unique_ptr<KernelHalf>(new KernelHalf(plugin, context, std::move(object), shared));
}

Result<> KernelHalf::create_maps() {
  const MapShape devmap{BPF_MAP_TYPE_DEVMAP, 4, sizeof(bpf_devmap_val), WEIR_MAX_PORTS, 0};
  accounts_ = TRY(AccountsMap::create(possible_cpus(), blocks()));
  accounts_memory_ = TRY(accounts_.map().map_memory());
  entries_ = TRY(BpfMap::create("entries", {BPF_MAP_TYPE_ARRAY, 4, sizeof(port_entries), 1, 0}));
  scratch_ = TRY(BpfMap::create("scratch", {BPF_MAP_TYPE_PERCPU_ARRAY, 4, sizeof(scratch), 1, 0}));
  stages_ = TRY(BpfMap::create("stages", {BPF_MAP_TYPE_PROG_ARRAY, 4, 4, WEIR_MAX_STAGES, 0}));
  ports_ = TRY(BpfMap::create("ports", devmap));
  sockets_ = TRY(BpfMap::create("sockets", {BPF_MAP_TYPE_XSKMAP, 4, 4, 1, 0}));
  groups_ = TRY(BpfMap::create("groups", {BPF_MAP_TYPE_ARRAY_OF_MAPS, 4, 4, WEIR_MAX_GROUPS, 0}, ports_.fd()));
  targets_ = TRY(BpfMap::create("targets", {BPF_MAP_TYPE_ARRAY, 4, sizeof(group_targets), 2 * WEIR_MAX_GROUPS, 0}));
  const std::pair<const char*, const BpfMap*> shared[] = {
      {"accounts", &accounts_.map()}, {"scratch", &scratch_}, {"stages", &stages_},  {"ports", &ports_},
      {"sockets", &sockets_},         {"groups", &groups_},   {"targets", &targets_}};
  for (const auto& [name, map] : shared)
    if (object_.has_map(name)) TRY_VOID(object_.use(name, map->fd()));
  return {};
}

Result<> KernelHalf::set_groups() {
  for (const std::vector<PortSlot>& group : context_.groups()) {
    const u32 slot = static_cast<u32>(members_.size());
    const BpfMap& map = members_.emplace_back(TRY(BpfMap::create("group", ports_.shape())));
    const group_targets targets = targets_of(group, ~0u);
    const bpf_devmap_val entry{.ifindex = ::if_nametoindex("lo"), .bpf_prog = {-1}};
    for (PortSlot member : group) TRY_VOID(map.set(member.value, &entry));
    const int fd = map.fd();
    TRY_VOID(groups_.set(slot, &fd));
    TRY_VOID(targets_.set(slot, &targets));
    group_targets_.push_back(targets);
  }
  return {};
}

Result<> KernelHalf::load() {
  TRY_VOID(create_maps());
  TRY_VOID(set_groups());
  TRY_VOID(only_port(std::nullopt));
  // A map of sockets takes one that is not bound to a device yet (net/xdp/xskmap.c), and nothing is ever delivered.
  socket_ = Fd(::socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0));
  if (!socket_) return fail_errno(errno, "open an AF_XDP socket");
  const int fd = socket_.get();
  TRY_VOID(sockets_.set(0, &fd));
  const stage_link link{.stage = 0, .block = block(), .go = WEIR_GO_STACK, .next = 0, .ports = WEIR_MAX_PORTS, .miss = XDP_DROP};
  TRY_VOID(object_.link(program_link{accounts_.link(), link, {}}, {.accounts = accounts_.memory(), .entries = entries_.fd()}));
  return object_.load(object_.first_program());
}

Result<> KernelHalf::only_port(std::optional<u32> only) {
  const bpf_devmap_val entry{.ifindex = ::if_nametoindex("lo"), .bpf_prog = {-1}};
  for (u32 port = 0; port < context_.names().size(); ++port) {
    if (!only || *only == port) TRY_VOID(ports_.set(port, &entry));
    else ports_.remove(port);
  }
  return {};
}

// A group that takes no frame of any length is the user half's.
Result<> KernelHalf::only_group(std::optional<u32> only) {
  for (u32 group = 0; group < group_targets_.size(); ++group) {
    group_targets targets = group_targets_[group];
    if (only && *only != group) targets.longest = 0;
    TRY_VOID(targets_.set(group, &targets));
  }
  return {};
}

Result<> KernelHalf::enter_by(u32 port) {
  constexpr std::size_t stride = (sizeof(scratch) + 7) / 8 * 8;
  scratch here{};
  here.port = port;
  here.queues = 1;
  std::vector<u8> all(stride * possible_cpus());
  for (u32 cpu = 0; cpu < possible_cpus(); ++cpu) std::memcpy(all.data() + stride * cpu, &here, sizeof here);
  return scratch_.set(0, all.data());
}

account KernelHalf::sum(u32 block) const noexcept {
  account total{};
  for (u32 cpu = 0; cpu < possible_cpus(); ++cpu) {
    const account& row = table()[cpu * blocks() + block];
    for (u32 i = 0; i < WEIR_VERDICTS; ++i) total.verdict[i] += row.verdict[i];
    for (u32 i = 0; i < WEIR_DROPS; ++i) total.drop[i] += row.drop[i];
    for (u32 i = 0; i < WEIR_COUNTERS; ++i) total.counter[i] += row.counter[i];
  }
  return total;
}

Result<Verdict> KernelHalf::run_once(u32 port, const Packet& bytes, Packet& out) {
  const account stage = sum(block()), of_port = sum(port);
  xdp_md context{}, after{};
  context.data_end = static_cast<u32>(bytes.size());
  out.assign(bytes.size() + 512, 0);
  LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = bytes.data(), .data_out = out.data(), .data_size_in = static_cast<u32>(bytes.size()),
              .data_size_out = static_cast<u32>(out.size()), .ctx_in = &context, .ctx_out = &after, .ctx_size_in = sizeof context,
              .ctx_size_out = sizeof after);
  if (const int err = ::bpf_prog_test_run_opts(object_.program_fd(object_.first_program()), &options); err != 0)
    return fail_errno(-err, fmt::format("{}: run its kernel half over a frame of {} bytes", plugin_.name, bytes.size()));
  out.resize(options.data_size_out);
  const account stage_now = sum(block()), port_now = sum(port);
  for (u32 what = 0; what < WEIR_VERDICTS; ++what) {
    if (stage_now.verdict[what] == stage.verdict[what]) continue;
    Verdict verdict{static_cast<weir_verdict>(what), 0};
    if (what == WEIR_PUNT && after.data >= sizeof(punt_meta)) {
      punt_meta meta;
      std::memcpy(&meta, out.data(), sizeof meta);
      if (meta.magic != WEIR_PUNT_MAGIC || meta.port != port) return fail("{}: a punted frame's metadata is wrong", plugin_.name);
      verdict.argument = meta.reason;
    }
    for (u32 reason = 0; what == WEIR_DROP && reason < WEIR_DROPS; ++reason)
      if (stage_now.drop[reason] != stage.drop[reason] || port_now.drop[reason] != of_port.drop[reason]) verdict.argument = reason;
    if (verdict.what == WEIR_DROP && verdict.argument >= WEIR_DROP_OWN + plugin_.drops.size())
      return fail("{}: its kernel half drops a frame under reason {}, and it names {}", plugin_.name, verdict.argument - WEIR_DROP_OWN,
                  plugin_.drops.size());
    out.erase(out.begin(), out.begin() + after.data);
    return verdict;
  }
  return fail("{}: its kernel half ended with action {} and counted no verdict", plugin_.name, options.retval);
}

// Runs the frame with one target after the other, until it does what it did with all of them.
Result<Verdict> KernelHalf::probe(u32 port, const Packet& bytes, weir_verdict what, u32 count, Only only) {
  const std::vector<account> before(table().begin(), table().end());
  std::optional<u32> found;
  for (u32 target = 0; target < count && !found; ++target) {
    Packet out;
    TRY_VOID((this->*only)(target));
    if (TRY(run_once(port, bytes, out)).what == what) found = target;
  }
  TRY_VOID((this->*only)(std::nullopt));
  std::ranges::copy(before, table().begin());
  if (!found) return fail("{}: its kernel half sends a frame to no target that there is", plugin_.name);
  return Verdict{what, *found};
}

Result<Outcome> KernelHalf::run(u32 port, const Packet& bytes) {
  TRY_VOID(enter_by(port));
  const u32 ports = static_cast<u32>(context_.names().size()), groups = static_cast<u32>(group_targets_.size());
  Outcome outcome;
  Verdict& verdict = outcome.verdict = TRY(run_once(port, bytes, outcome.bytes));
  if (verdict.what == WEIR_REDIRECT) verdict = TRY(probe(port, bytes, WEIR_REDIRECT, ports, &KernelHalf::only_port));
  else if (verdict.what == WEIR_FLOOD && groups > 1) verdict = TRY(probe(port, bytes, WEIR_FLOOD, groups, &KernelHalf::only_group));
  return outcome;
}

Result<Verdict> KernelHalf::run_without_entries(u32 port, const Packet& bytes, const port_entries& bits) {
  TRY_VOID(enter_by(port));
  TRY_VOID(only_port(WEIR_MAX_PORTS));
  TRY_VOID(entries_.set(0, &bits));
  Packet out;
  const Result<Verdict> verdict = run_once(port, bytes, out);
  TRY_VOID(only_port(std::nullopt));
  TRY_VOID(entries_.set(0, std::array<port_entries, 1>{}.data()));
  return verdict;
}

Result<> KernelHalf::lead_to(const BpfMap& programs, u32 slot, u32 port) {
  TRY_VOID(enter_by(port));
  const int fd = object_.program_fd(object_.first_program());
  return programs.set(slot, &fd);
}

u64 KernelHalf::counter(std::string_view name) const { return counter_of(plugin_, sum(block()), name); }

}  // namespace weir::kit
