// SPDX-License-Identifier: BSD-3-Clause
// change: what commands and a file read again change while frames flow. A change is prepared beside what runs, and takes its place in one
// step; one that cannot be prepared has changed nothing.
#include <algorithm>

#include "core/control/instance.hh"

namespace weir {
namespace {

using nlohmann::json;

Result<DevmapUpdate> update_of(const std::string& how) {
  if (how == "any") return DevmapUpdate::any;
  if (how == "noexist") return DevmapUpdate::noexist;
  if (how == "exist") return DevmapUpdate::exist;
  return invalid("there is no update \"{}\"; allowed: any, noexist, exist", how);
}

std::string lines(const Problems& problems) {
  std::string all;
  for (const Problem& problem : problems) all += (all.empty() ? "" : "\n") + problem.text();
  return all;
}

}  // namespace

// A key of a question, which comes over a socket and may be anything.
Result<std::string> Instance::text(const json& question, const char* key) {
  const auto at = question.find(key);
  if (at == question.end() || !at->is_string()) return invalid("the question has no {}", key);
  return at->get<std::string>();
}

Result<PortSlot> Instance::port_named(const std::string& name) const {
  for (u16 slot = 0; slot < path_->ports.size(); ++slot)
    if (path_->ports[slot].name == name) return PortSlot{slot};
  std::vector<std::string> names;
  for (const PortEntry& port : path_->ports) names.push_back(port.name);
  return invalid("there is no port {}; there are: {}", name, fmt::join(names, ", "));
}

// By name, or by number, since those that stages make have no name.
Result<GroupSlot> Instance::group_named(const std::string& name) const {
  std::vector<std::string> names;
  for (u16 slot = 0; slot < path_->groups.size(); ++slot) {
    const std::string& own = topology_->groups()[slot].name;
    if (name == own || name == std::to_string(slot)) return GroupSlot{slot};
    names.push_back(own.empty() ? std::to_string(slot) : fmt::format("{} ({})", slot, own));
  }
  return invalid("there is no group {}; there are: {}", name, names.empty() ? "none" : fmt::format("{}", fmt::join(names, ", ")));
}

KernelPort* Instance::kernel_port(PortSlot slot) noexcept {
  const auto at = std::ranges::find(kernel_ports_, slot, &KernelPort::slot);
  return at == kernel_ports_.end() ? nullptr : &*at;
}

// A chain that is ready beside the one that runs.
struct Instance::NextChain {
  PortSlot slot;
  std::vector<EgressConfig> configs;
  u32 generation;
  LoadedChain kernel;  // of a port with a device
  PlainChain plain;    // of another
};

Result<Instance::NextChain> Instance::prepare_chain(PortSlot slot, std::vector<EgressConfig> configs) {
  NextChain next{slot, std::move(configs), generations_[slot.value] + 1, {}, {}};
  const u32 first = topology_->egress_block(slot) + next.generation % 2 * static_cast<u32>(max_egress_chain);
  // Of the chain before the present one, whose counters are among the retired.
  for (u32 row = 0; row < path_->accounts.rows(); ++row)
    for (u32 place = 0; place < max_egress_chain; ++place) path_->accounts.at(row, first + place) = account{};
  KernelPort* port = kernel_port(slot);
  if (port == nullptr) {
    next.plain = make_plain_chain(next.configs, *path_->ports[slot.value].port, first);
    return next;
  }
  next.kernel = TRY_WITHIN("port " + port->name, kernel_->load_chain(*port, next.configs, *registry_, next.generation));
  TRY_VOID(kernel_->prepare_chain_pins(next.kernel, slot));
  return next;
}

// The kernel's half first, then the user's: a frame sees one whole chain, whichever way it takes.
Result<> Instance::put_in_place(NextChain next) {
  PortEntry& entry = path_->ports[next.slot.value];
  const EgressChain before = entry.egress;
  KernelPort* port = kernel_port(next.slot);
  LoadedChain old;
  if (port != nullptr) old = TRY_WITHIN("port " + port->name, kernel_->replace_chain(*port, std::move(next.kernel), kernel_ports_));
  EgressChain steps = next.plain.steps;
  if (port != nullptr)
    for (const EgressProgram& program : kernel_->chain(next.slot).programs) steps.append(program.host);
  steps.tell(notes_->way(next.slot));
  listen();  // what the programs of before have noted
  const bool kernel_only = is_foreign(next.configs);
  workers_->at_rest([&] {
    entry.egress = std::move(steps);
    entry.kernel_only = kernel_only;
  });
  retire(next.slot, before);
  generations_[next.slot.value] = next.generation;
  chains_[next.slot.value] = std::move(next.configs);
  plain_chains_[next.slot.value] = std::move(next.plain);
  if (port != nullptr) {
    if (Result<> pinned = kernel_->commit_chain_pins(kernel_->chain(next.slot), old, next.slot); !pinned)
      warn(fmt::format("port {}: {}; the kernel path does not outlive this process", port->name, pinned.error().what));
  }
  return {};
}

// Counters only grow: what a chain has counted stays, by the name of the program and which of that name it was.
void Instance::retire(PortSlot slot, const EgressChain& chain) {
  for (const auto& [step, key] : keyed(chain)) {
    Retired& sum = retired_[slot.value][key];
    add_up(sum.kernel, path_->accounts.kernel(step->block));
    add_up(sum.user, path_->accounts.user(step->block));
    sum.program = step->program;
    for (const auto& [name, value] : counters_of(*step, path_->accounts.rows())) sum.counters[name] += value;
  }
}

// What a file is refused for, of a chain that a command gives.
Result<> Instance::expect_allowed(PortSlot slot, const std::vector<EgressConfig>& chain) const {
  if (!is_foreign(chain)) return {};
  const PortEntry& port = path_->ports[slot.value];
  if (!topology_->config().ports[slot.value].is_xdp()) return invalid("port {} has no device entry for a foreign program", port.name);
  if (port.fused)
    return invalid(
        "port {}: a foreign program runs on the device entry alone, and the port's chain is fused; start with placement = \"entry\"",
        port.name);
  if (!std::ranges::find(kernel_ports_, slot, &KernelPort::slot)->redirectable)
    return fail("port {}: a foreign program runs in the kernel alone, and nothing can be redirected to it: {}", port.name,
                fmt::join(port_warnings_[slot.value], "; "));
  if (options_.user_only) return invalid("a foreign program runs in the kernel alone, and kernel halves are off (--user-only)");
  if (const std::string why = topology_->refuse_foreign(chain); !why.empty()) return invalid("port {}: {}", port.name, why);
  return {};
}

// All of them, or none: those that are in place when another one fails give way to what was there.
Result<> Instance::change_chains(std::vector<std::pair<PortSlot, std::vector<EgressConfig>>> wanted) {
  std::vector<NextChain> ready;
  const auto prepare = [&]() -> Result<> {
    for (auto& [slot, configs] : wanted) ready.push_back(TRY(prepare_chain(slot, std::move(configs))));
    return {};
  };
  Result<> done = prepare();
  std::vector<std::pair<PortSlot, std::vector<EgressConfig>>> replaced;
  for (NextChain& next : ready) {
    if (!done) break;
    const PortSlot slot = next.slot;
    std::vector<EgressConfig> before = chains_[slot.value];
    done = put_in_place(std::move(next));
    if (done) replaced.emplace_back(slot, std::move(before));
  }
  if (!done) {
    if (kernel_) kernel_->pins().forget_prepared();
    for (auto& [slot, before] : replaced) {
      Result<NextChain> back = prepare_chain(slot, std::move(before));
      const Result<> restored = back ? put_in_place(std::move(*back)) : Result<>(std::unexpected(std::move(back).error()));
      if (!restored) warn(fmt::format("port {}: {}; it keeps its new egress chain", path_->ports[slot.value].name, restored.error().what));
    }
  }
  note_layout();
  return done;
}

// What runs differs from the file now: the next start must not take its counters for those of the file's chains.
void Instance::note_layout() {
  if (!kernel_) return;
  const std::string text = layout();
  Result<> noted = prepare_layout(name(), text);
  if (noted) noted = commit_layout(name());
  if (!noted) warn(noted.error().what);
}

Result<json> Instance::set_egress(const json& question) {
  const std::string named = TRY(text(question, "port"));
  const PortSlot slot = TRY(port_named(named));
  const auto chain = question.find("chain");
  if (chain == question.end() || !chain->is_array() || !std::ranges::all_of(*chain, [](const json& word) { return word.is_string(); }))
    return invalid("the question has no chain");
  const std::string folder = question.contains("folder") ? TRY(text(question, "folder")) : "";
  auto configs = parse_egress(chain->get<std::vector<std::string>>(), folder, topology_->config().frags, *registry_);
  if (!configs) return std::unexpected(Error{Failure::invalid, lines(configs.error())});
  TRY_VOID(expect_allowed(slot, *configs));
  TRY_VOID(change_chains({{slot, std::move(*configs)}}));
  return egress(slot);
}

// An entry that user space alone serves has nothing to set: why it has none is what the warnings say.
Result<json> Instance::set_entry(const json& question) {
  const std::string named = TRY(text(question, "port"));
  const PortSlot slot = TRY(port_named(named));
  const std::string asked = question.contains("how") ? TRY(text(question, "how")) : "any";
  const DevmapUpdate how = TRY(update_of(asked));
  PortEntry& entry = path_->ports[slot.value];
  if (how == DevmapUpdate::noexist && !entry.deleted) return invalid("port {} has an entry already", named);
  if (how == DevmapUpdate::exist && entry.deleted) return missing("port {} has no entry to replace", named);
  TRY_VOID(delete_entry(slot, false));
  return devmap();
}

Result<json> Instance::remove_entry(const json& question) {
  const std::string named = TRY(text(question, "port"));
  const PortSlot slot = TRY(port_named(named));
  if (path_->ports[slot.value].deleted) return missing("port {} has no entry", named);
  TRY_VOID(delete_entry(slot, true));
  return devmap();
}

// In both halves: where a port has no entry, a frame for it is a miss whichever way it takes.
Result<> Instance::delete_entry(PortSlot slot, bool deleted) {
  if (KernelPort* port = kernel_port(slot)) {
    const bool before = std::exchange(port->deleted, deleted);
    Result<> done = kernel_->set_entry(*port);
    if (done) done = kernel_->set_groups_of(*port, kernel_ports_);
    if (!done) {
      port->deleted = before;
      static_cast<void>(kernel_->set_entry(*port));
      static_cast<void>(kernel_->set_groups_of(*port, kernel_ports_));
      return done;
    }
  }
  workers_->at_rest([&] { path_->ports[slot.value].deleted = deleted; });
  return {};
}

Result<> Instance::set_members(GroupSlot group, std::vector<PortSlot> members) {
  if (kernel_) TRY_VOID(kernel_->set_group(group, members, kernel_ports_));
  workers_->at_rest([&] {
    if (path_->groups.size() <= group.value) path_->groups.resize(group.value + 1u);
    path_->groups[group.value] = std::move(members);
  });
  return {};
}

Result<json> Instance::change_group(const json& question, bool join) {
  const std::string port = TRY(text(question, "port")), named = TRY(text(question, "group"));
  const GroupSlot group = TRY(group_named(named));
  const PortSlot slot = TRY(port_named(port));
  std::vector<PortSlot> members = path_->groups[group.value];
  const auto at = std::ranges::find(members, slot);
  if (join && at != members.end()) return invalid("port {} is in group {} already", port, named);
  if (!join && at == members.end()) return invalid("port {} is not in group {}", port, named);
  if (join) members.push_back(slot);
  else members.erase(at);
  TRY_VOID(set_members(group, std::move(members)));
  return devmap();
}

}  // namespace weir
