// SPDX-License-Identifier: BSD-3-Clause
// reload: what a file, and the modules that it names, say now is compared with what runs; the difference is prepared beside it and put in
// place, or nothing is changed.
#include <algorithm>

#include "core/base/guard.hh"
#include "core/control/instance.hh"
#include "core/control/load.hh"

namespace weir {
namespace {

using nlohmann::json;

bool same_chain(const std::vector<EgressConfig>& one, const std::vector<EgressConfig>& other) {
  return std::ranges::equal(one, other, [](const EgressConfig& a, const EgressConfig& b) {
    return a.program == b.program && a.object == b.object && a.keys.text() == b.keys.text();
  });
}

// The maps of a stage's kernel half, or what stands for them.
template <typename Memory>
class Remains final : public StageRemains {
 public:
  explicit Remains(const Memory& memory) : memory_(memory) {}

 private:
  [[nodiscard]] Found find(std::string_view map) const override {
    const auto [bytes, entry, count] = memory_.show(map);
    return {bytes, entry, count};
  }
  const Memory& memory_;
};

}  // namespace

StageEntry& Instance::stage_entry(u32 number) {
  for (const auto& pipeline : path_->pipelines)
    for (StageEntry& stage : pipeline->stages)
      if (stage.number == number) return stage;
  broken("there is no stage of that number");
}

// By number: those with other keys, of a module that was built again, or that do otherwise because of what their keys name.
std::vector<u32> Instance::changed_stages(const Topology& next) {
  std::vector<u32> changed;
  for (const Topology::StagePlan& plan : next.stages()) {
    const Topology::StagePlan& now = topology_->stages()[plan.number];
    if (plan.plugin != now.plugin || plan.config->keys.text() != now.config->keys.text() ||
        !stage_entry(plan.number).stage->does_as(*plan.stage))
      changed.push_back(plan.number);
  }
  return changed;
}

// What of a module that was built again is part of how the instance was started. Empty: nothing.
std::string Instance::refuse_stages(const std::vector<u32>& stages, const Topology& next) const {
  for (const u32 number : stages) {
    const Topology::StagePlan &plan = next.stages()[number], &now = topology_->stages()[number];
    const auto changes = [&](const char* what) {
      return fmt::format("plugin {} of stage {}.{} has other {}", plan.plugin->name, plan.pipeline->name, plan.config->name, what);
    };
    if (plan.plugin->drops != now.plugin->drops) return changes("drop reasons");
    if (plan.plugin->counters != now.plugin->counters) return changes("counters");
    if ((plan.plugin->kernel_half == nullptr) != (now.plugin->kernel_half == nullptr)) return changes("halves");
    if (plan.plugin->per_flow != now.plugin->per_flow) return changes("a promise of flows: per_flow");
    if (plan.offloads != now.offloads)
      return fmt::format("stage {}.{} would {} to offload flows", plan.pipeline->name, plan.config->name,
                         plan.offloads ? "begin" : "cease");
  }
  return "";
}

Result<Instance::NextStage> Instance::prepare_stage(Topology::StagePlan& plan) {
  NextStage next{plan.number, plan.plugin, std::move(plan.stage), {}, {}};
  connect_flows(plan, stage_generations_[plan.number] + 1);
  const Topology::StagePlan& now = topology_->stages()[plan.number];
  KernelStage kernel = kernel_stage(now);
  kernel.plugin = plan.plugin;
  if (in_kernel(now)) next.half = TRY(kernel_->open_half(kernel, false));
  else next.plain = std::make_unique<PlainMemory>(common(), plan.plugin->name);
  StageMemory& memory = next.half.memory ? static_cast<StageMemory&>(*next.half.memory) : *next.plain;
  const auto take_state = [&]() -> Result<> {
    if (next.half.memory) next.stage->take_state(Remains(kernel_->memory_of(plan.number)));
    else next.stage->take_state(Remains(*plain_memories_.at(plan.number)));
    return {};
  };
  TRY_VOID(guarded("bind plugin " + std::string(plan.plugin->name), [&] { return next.stage->bind(memory); }));
  TRY_VOID(guarded("hand the state over to plugin " + std::string(plan.plugin->name), take_state));
  if (next.half.memory) TRY_VOID(kernel_->load_half(next.half, kernel));
  return next;
}

// The user halves at once, then the kernel halves one after the other; what each was is then in `others`, so that a second call goes back.
// Between the two a frame may see the one half of before and the other of after: a kernel half may leave any frame to its user half.
Result<> Instance::exchange_stages(std::vector<NextStage>& others) {
  const auto swap_user = [&] {
    workers_->at_rest([&] {
      for (NextStage& next : others) {
        StageEntry& entry = stage_entry(next.number);
        std::swap(entry.stage, next.stage);
        std::swap(entry.plugin, next.plugin);
      }
    });
    for (NextStage& next : others) std::swap(plain_memories_[next.number], next.plain);
  };
  if (others.empty()) return {};
  swap_user();
  for (std::size_t i = 0; i < others.size(); ++i) {
    if (!others[i].half.memory) continue;
    const Result<> done = kernel_->replace_half(others[i].number, others[i].half, kernel_ports_);
    if (done) continue;
    for (NextStage& next : std::span(others).first(i))
      if (next.half.memory) static_cast<void>(kernel_->replace_half(next.number, next.half, kernel_ports_));
    swap_user();
    take_flows_back(others);  // that user halves of the new ones, or behind them, have offloaded meanwhile
    tell_in_place(others);
    return done;
  }
  take_flows_back(others);
  tell_in_place(others);
  return {};
}

void Instance::tell_in_place(const std::vector<NextStage>& others) {
  for (const NextStage& each : others) stage_entry(each.number).stage->in_place();
}

// Flows of these stages, and of those behind them, which saw what these let go on.
void Instance::take_flows_back(const std::vector<NextStage>& others) {
  if (!flows_) return;
  const auto pipeline_of = [&](u32 number) { return topology_->stages()[number].pipeline; };
  const auto concerns = [&](const FlowTable::Seen& flow) {
    const u32 number = flow.owner.number();
    return std::ranges::any_of(
        others, [&](const NextStage& each) { return each.number <= number && pipeline_of(each.number) == pipeline_of(number); });
  };
  flows_->take_back(concerns, FlowEnd::taken_back);
}

// Whether a program of the chain is not the one that runs: its module was built again, or its file has other bytes.
bool Instance::is_built_anew(PortSlot slot, const Registry& registry) const {
  for (std::size_t place = 0; place < chains_[slot.value].size(); ++place) {
    const auto& [program, file, keys, at] = chains_[slot.value][place];
    if (file.empty()) {
      const EgressModule* module = registry.egress_module(program);
      if (module == nullptr || module->host != path_->ports[slot.value].egress.steps()[place].program) return true;
      continue;
    }
    if (const Result<std::vector<u8>> bytes = read_file(file); bytes && *bytes != kernel_->chain(slot).programs[place].foreign) return true;
  }
  return false;
}

// The difference between two files, not between a file and what runs: what commands have changed stays, where the file did not change.
Result<json> Instance::reload(const json& question) {
  const std::string file = question.contains("file") ? TRY(text(question, "file")) : topology_->config().file;
  // Also where the file is as it was: a module that was built again is a change too.
  std::unique_ptr<Registry> modules;
  if (const auto folders = plugin_dirs_of(file);
      !registry_->changed_since().empty() ||
      (folders && !std::ranges::equal(*folders, topology_->config().plugin_dirs, {}, &PluginDir::folder, &PluginDir::folder)))
    modules = std::make_unique<Registry>(TRY(load_registry(file, registry_)));
  const Registry& registry = modules ? *modules : *registry_;
  std::unique_ptr<Topology> next = TRY(load_topology(file, registry, topology_.get()));
  if (const std::vector<std::string> others = topology_->differences(*next); !others.empty())
    return fail("{}: changes {}, which takes a new start; nothing was changed", file, fmt::join(others, ", "));
  const std::vector<u32> stages = changed_stages(*next);
  if (const std::string why = refuse_stages(stages, *next); !why.empty())
    return fail("{}: {}, which takes a new start; nothing was changed", file, why);
  std::vector<std::pair<PortSlot, std::vector<EgressConfig>>> chains;
  json changed = json::array();
  for (u16 slot = 0; slot < path_->ports.size(); ++slot) {
    const PortConfig& port = next->config().ports[slot];
    const bool same = same_chain(topology_->config().ports[slot].egress, port.egress);
    if (same && !is_built_anew(PortSlot{slot}, registry)) continue;
    const std::vector<EgressConfig>& wanted = same ? chains_[slot] : port.egress;  // an object built anew may be of a command's chain
    TRY_VOID(expect_allowed(PortSlot{slot}, wanted));
    chains.emplace_back(PortSlot{slot}, wanted);
    changed.push_back("egress of port " + port.name);
  }
  std::vector<GroupSlot> groups;
  for (u16 slot = 0; slot < next->config().groups.size(); ++slot) {
    if (next->groups()[slot].ports == topology_->groups()[slot].ports) continue;
    groups.push_back(GroupSlot{slot});
    changed.push_back("group " + next->groups()[slot].name);
  }
  std::vector<NextStage> others;
  for (const u32 number : stages) {
    const Topology::StagePlan& plan = next->stages()[number];
    others.push_back(TRY_WITHIN(fmt::format("stage {}.{}", plan.pipeline->name, plan.config->name), prepare_stage(next->stages()[number])));
    changed.push_back(fmt::format("stage {}.{}", plan.pipeline->name, plan.config->name));
  }
  if (modules) registries_.push_back(std::move(modules));  // also after an error: what runs may have come to be of it
  const std::vector<std::vector<PortSlot>> before = path_->groups;
  Result<> done;
  std::size_t set = 0;
  for (std::size_t slot = before.size(); done && slot < next->groups().size(); ++slot)  // that new stages flood to
    done = set_members(GroupSlot{static_cast<u16>(slot)}, next->groups()[slot].ports);
  for (; done && set < groups.size(); ++set) done = set_members(groups[set], next->groups()[groups[set].value].ports);
  if (done) done = exchange_stages(others);
  const bool exchanged = done.has_value();
  const Registry* old_registry = std::exchange(registry_, &registry);
  if (done) done = change_chains(std::move(chains));
  if (!done) {
    registry_ = old_registry;
    for (const GroupSlot group : std::span(groups).first(set)) static_cast<void>(set_members(group, before[group.value]));
    if (exchanged)
      if (const Result<> back = exchange_stages(others); !back) {
        warn(back.error().what + "; the stages of the file are in place");
        for (const u32 number : stages) ++stage_generations_[number];
        reloaded_.push_back(std::move(next));
      }
    workers_->at_rest([&] { path_->groups.resize(before.size()); });
    return std::unexpected(std::move(done).error());
  }
  for (const u32 number : stages) ++stage_generations_[number];
  topology_->take(*next);
  for (Topology::StagePlan& plan : next->stages()) plan.stage.reset();  // those that were not wanted
  if (!stages.empty()) reloaded_.push_back(std::move(next));            // the others look into it
  note_layout();
  return json{{"file", file}, {"changed", changed}};
}

}  // namespace weir
