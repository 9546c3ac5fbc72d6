// SPDX-License-Identifier: BSD-3-Clause
// topology: number the parts of a configuration, and construct its stages.
#include "core/control/topology.hh"

#include <algorithm>

#include "bpf/abi/link.h"
#include "core/base/guard.hh"

namespace weir {
namespace {

// Of all but its egress chain.
std::vector<const char*> different_keys(const PortConfig& one, const PortConfig& two) {
  std::vector<const char*> keys;
  const auto compare = [&](const char* key, bool same) {
    if (!same) keys.push_back(key);
  };
  compare("name", one.name == two.name);
  compare("device", one.device == two.device);
  compare("driver", one.driver == two.driver);
  compare("mode", one.mode == two.mode);
  compare("zero_copy", one.zero_copy == two.zero_copy);
  compare("tx", one.tx == two.tx);
  compare("queues", one.queues == two.queues);
  compare("busy_poll", one.busy_poll == two.busy_poll);
  compare("keys of the driver", one.driver != two.driver || one.keys.text() == two.keys.text());
  compare("pipeline", one.pipeline == two.pipeline);
  compare("placement", one.placement == two.placement);
  compare("key", one.key == two.key);
  return keys;
}

}  // namespace

// What a stage sees of the topology.
class Topology::Context final : public StageContext {
 public:
  Context(Topology& topology, const PipelineConfig& pipeline) : topology_(topology), pipeline_(pipeline) {}
  [[nodiscard]] std::vector<PortSlot> ports() const override { return topology_.ports_of(pipeline_); }
  [[nodiscard]] std::optional<PortSlot> port(std::string_view name) const override { return topology_.port(name); }
  [[nodiscard]] std::string_view name(PortSlot port) const override { return topology_.config_.ports[port.value].name; }
  [[nodiscard]] std::string_view device(PortSlot port) const override {
    const std::vector<PortConfig>& all = topology_.config_.ports;
    return port.value < all.size() ? std::string_view(all[port.value].device) : std::string_view();
  }
  // As many as crew() may say, whatever queues there will be.
  [[nodiscard]] u32 threads() const override { return topology_.most_threads(); }
  Result<GroupSlot> group(std::span<const PortSlot> ports) override { return topology_.group(ports); }
  StageFlows& flows() override {
    asked_for_flows_ = true;
    return flows_;
  }
  AllFlows* flow_cache() override { return &cache_; }
  [[nodiscard]] std::string_view pipeline() const override { return pipeline_.name; }
  u64 first_said(const std::string& what, u64 value) override { return topology_.said_.emplace(what, value).first->second; }
  // Of the stage's own, which has not asked for it.
  [[nodiscard]] StageFlows& own_flows() noexcept { return flows_; }
  [[nodiscard]] bool asked_for_flows() const noexcept { return asked_for_flows_; }

 private:
  Topology& topology_;
  const PipelineConfig& pipeline_;
  StageFlows flows_;
  AllFlows cache_;
  bool asked_for_flows_ = false;
};

Topology::Topology(Config config) : config_(std::move(config)) {}
Topology::~Topology() = default;

Result<std::unique_ptr<Topology>> Topology::build(Config config, const Registry& registry, const Topology* before) {
  std::unique_ptr<Topology> made(new Topology(std::move(config)));
  const Config& all = made->config_;
  std::string problems;
  u32 block = static_cast<u32>(all.ports.size());
  for (const GroupConfig& group : all.groups) {
    Group numbered{group.name, {}, false};
    for (const std::string& port : group.ports) numbered.ports.push_back(*made->port(port));
    made->groups_.push_back(std::move(numbered));
  }
  if (before != nullptr && before->config_.groups.size() == all.groups.size())
    for (std::size_t i = all.groups.size(); i < before->groups_.size(); ++i) made->groups_.push_back({"", before->groups_[i].ports, true});
  for (const PipelineConfig& pipeline : all.pipelines) {
    bool per_flow = true;
    for (const StageConfig& stage : pipeline.stages) {
      Context& context = *made->contexts_.emplace_back(std::make_unique<Context>(*made, pipeline));
      const Plugin* plugin = registry.plugin(stage.plugin);
      const std::string who = fmt::format("construct plugin {} of {}", plugin->name, registry.file_of(*plugin));
      std::string refused;
      Result<std::unique_ptr<Stage>> half = guarded(who, [&] {
        Result<std::unique_ptr<Stage>> tried = plugin->make(stage.keys, context);
        if (!tried) refused = tried.error().what;
        return tried;
      });
      if (!half) {
        const std::string path = fmt::format("pipeline[{}].stage[{}]", &pipeline - all.pipelines.data(), &stage - pipeline.stages.data());
        if (refused.empty()) refused = Problem{all.file, stage.at, path, half.error().what}.text();
        problems += (problems.empty() ? "" : "\n") + refused;
        continue;
      }
      per_flow &= plugin->per_flow;
      const bool offloads = per_flow && context.asked_for_flows();
      made->stages_.push_back({&stage, &pipeline, plugin, std::move(*half), static_cast<u32>(made->stages_.size()), block++,
                               &stage == &pipeline.stages.back(), offloads, &context.own_flows(), context.flow_cache(),
                               context.asked_for_flows()});
    }
  }
  for (std::size_t slot = 0; slot < all.ports.size(); ++slot)
    if (const std::string what = made->refuse_foreign(all.ports[slot].egress); !what.empty())
      problems += (problems.empty() ? "" : "\n") + Problem{all.file, all.ports[slot].at, fmt::format("port[{}].egress", slot), what}.text();
  if (!problems.empty()) return std::unexpected(Error{Failure::invalid, std::move(problems), 0, true});
  for (std::size_t slot = 0; slot < all.ports.size(); ++slot) {
    made->egress_blocks_.push_back(block);
    block += 2 * static_cast<u32>(max_egress_chain);
  }
  made->blocks_ = block;
  made->note_names_of_egress(registry);
  return made;
}

u32 Topology::parallel_stages() const noexcept {
  u32 number = 0;
  for (const PipelineConfig& pipeline : config_.pipelines)
    number += static_cast<u32>(std::ranges::count(pipeline.stages, true, &StageConfig::parallel));
  return number;
}

// A worker without a queue would only hold free frames; where a stage is parallel, a CPU without a worker has a helper, as far as there are
// frames for it to hold.
Crew Topology::crew(u32 queues) const {
  const u32 cpus = static_cast<u32>(allowed_cpus().size());
  Crew crew{.workers = config_.workers != 0 ? config_.workers : std::min(cpus, std::max(queues, 1u)), .spin = config_.spin};
  if (parallel_stages() == 0) return crew;
  const u32 affordable = std::max(config_.frame_count / (4 * FrameCache::capacity), 1u);
  crew.helpers = std::min({cpus - std::min(cpus, crew.workers), affordable, Crew::most_helpers});
  crew.guard = true;
  return crew;
}

u32 Topology::most_threads() const { return std::max(config_.workers, static_cast<u32>(allowed_cpus().size())) + 1; }

const Topology::StagePlan* Topology::first_stage(const PortConfig& port) const noexcept {
  auto at = std::ranges::find_if(stages_, [&](const StagePlan& stage) { return stage.pipeline->name == port.pipeline; });
  return at == stages_.end() ? nullptr : &*at;
}

bool Topology::offloads(const PortConfig& port) const noexcept {
  return std::ranges::any_of(stages_, [&](const StagePlan& stage) { return stage.offloads && stage.pipeline->name == port.pipeline; });
}

std::vector<PortSlot> Topology::ports_of(const PipelineConfig& pipeline) const {
  std::vector<PortSlot> ports;
  for (u16 slot = 0; slot < config_.ports.size(); ++slot)
    if (config_.ports[slot].pipeline == pipeline.name) ports.push_back(PortSlot{slot});
  return ports;
}

std::optional<PortSlot> Topology::port(std::string_view name) const noexcept {
  for (u16 slot = 0; slot < config_.ports.size(); ++slot)
    if (config_.ports[slot].name == name) return PortSlot{slot};
  return std::nullopt;
}

Result<GroupSlot> Topology::group(std::span<const PortSlot> ports) {
  std::vector<PortSlot> members(ports.begin(), ports.end());
  std::ranges::sort(members);
  for (u16 slot = 0; slot < groups_.size(); ++slot) {
    std::vector<PortSlot> known = groups_[slot].ports;
    std::ranges::sort(known);
    if (known != members) continue;
    groups_[slot].of_stage = true;
    return GroupSlot{slot};
  }
  if (groups_.size() == WEIR_MAX_GROUPS) return invalid("more than {} groups in one instance", WEIR_MAX_GROUPS);
  groups_.push_back({"", std::move(members), true});
  return GroupSlot{static_cast<u16>(groups_.size() - 1)};
}

// A program's counters and reasons are known by their place.
void Topology::note_names_of_egress(const Registry& registry) {
  for (const PortConfig& port : config_.ports)
    for (const EgressConfig& egress : port.egress) {
      if (!egress.object.empty()) {
        egress_names_ += "foreign " + egress.object + " " + egress.program + "\n";
        continue;
      }
      const egress_program& program = *registry.egress_module(egress.program)->host;
      egress_names_ += "egress " + egress.program + ":";
      for (const char* const* names : {program.drops, program.counters}) {
        for (; *names != nullptr; ++names) egress_names_ += fmt::format(" {}", *names);
        egress_names_ += ";";
      }
      egress_names_ += "\n";
    }
}

std::string Topology::refuse_foreign(const std::vector<EgressConfig>& chain) const {
  if (std::ranges::none_of(chain, [](const EgressConfig& step) { return !step.object.empty(); })) return "";
  for (const StagePlan& stage : stages_) {
    const std::string who = fmt::format("stage {}.{}", stage.pipeline->name, stage.config->name);
    if (stage.plugin->kernel_half == nullptr || stage.plugin->kernel_half().empty())
      return fmt::format("a foreign program runs in the kernel alone, and {} has no kernel half: what it sends would leave without it",
                         who);
    if (!stage.plugin->punts.empty())
      return fmt::format(
          "a foreign program runs in the kernel alone, and {} has user space send what it punts ({}), which would leave without it", who,
          fmt::join(stage.plugin->punts, ", "));
  }
  return "";
}

std::vector<std::string> Topology::differences(const Topology& other) const {
  std::vector<std::string> found;
  const auto compare = [&](bool same, std::string what) {
    if (!same) found.push_back(std::move(what));
  };
  const Config &one = config_, &two = other.config_;
  compare(one.name == two.name, "weir.name");
  compare(one.workers == two.workers, "weir.workers");
  compare(one.spin == two.spin, "weir.idle");
  compare(one.devmap == two.devmap, "weir.devmap");
  compare(one.frags == two.frags, "weir.frags");
  compare(one.flows == two.flows, "weir.flows");
  compare(one.frame_size == two.frame_size && one.frame_count == two.frame_count, "frames");
  for (const auto& [driver, keys] : one.settings)
    compare(two.settings.contains(driver) && keys.text() == two.settings.at(driver).text(), driver);
  compare(one.ports.size() == two.ports.size(), "the number of ports");
  for (std::size_t i = 0; i < std::min(one.ports.size(), two.ports.size()); ++i)
    for (const char* key : different_keys(one.ports[i], two.ports[i])) compare(false, fmt::format("{} of port {}", key, one.ports[i].name));
  compare(std::ranges::equal(one.groups, two.groups, {}, &GroupConfig::name, &GroupConfig::name), "the names of groups");
  // A stage's own group is the named one of the same ports, if there is one: with other members it would be another.
  for (std::size_t i = 0; i < std::min(one.groups.size(), two.groups.size()); ++i)
    compare(groups_[i].ports == other.groups_[i].ports || (!groups_[i].of_stage && !other.groups_[i].of_stage),
            fmt::format("group {}, which a stage {}", groups_[i].name,
                        groups_[i].of_stage ? "floods to (for its members alone: weir devmap group join or leave)" : "would flood to"));
  const auto stages_of = [](const PipelineConfig& pipeline) {
    std::string text = fmt::format("{} {}", pipeline.name, static_cast<int>(pipeline.miss));
    for (const StageConfig& stage : pipeline.stages) text += fmt::format("\n{} {} {}", stage.plugin, stage.name, stage.parallel);
    return text;
  };
  compare(one.pipelines.size() == two.pipelines.size(), "the number of pipelines");
  for (std::size_t i = 0; i < std::min(one.pipelines.size(), two.pipelines.size()); ++i)
    compare(stages_of(one.pipelines[i]) == stages_of(two.pipelines[i]), "pipeline " + one.pipelines[i].name);
  return found;
}

void Topology::take(const Topology& other) {
  for (std::size_t i = 0; i < config_.ports.size(); ++i) config_.ports[i].egress = other.config_.ports[i].egress;
  for (std::size_t i = 0; i < config_.groups.size(); ++i) {
    config_.groups[i].ports = other.config_.groups[i].ports;
    groups_[i].ports = other.groups_[i].ports;
    groups_[i].of_stage |= other.groups_[i].of_stage;
  }
  for (std::size_t i = groups_.size(); i < other.groups_.size(); ++i) groups_.push_back(other.groups_[i]);
  for (std::size_t i = 0; i < config_.pipelines.size(); ++i)
    for (std::size_t j = 0; j < config_.pipelines[i].stages.size(); ++j)
      config_.pipelines[i].stages[j].keys = other.config_.pipelines[i].stages[j].keys;
  for (std::size_t i = 0; i < stages_.size(); ++i) stages_[i].plugin = other.stages_[i].plugin;
  config_.plugin_dirs = other.config_.plugin_dirs;
  config_.file = other.config_.file;
}

std::string Topology::fingerprint() const {
  std::string text = fmt::format("frames {}x{} frags {} devmap {}\n", config_.frame_count, config_.frame_size, config_.frags,
                                 static_cast<int>(config_.devmap));
  for (const PortConfig& port : config_.ports) {
    text += fmt::format("port {} {} {} {} {}", port.name, port.device, port.pipeline, static_cast<int>(port.placement),
                        port.key ? std::to_string(*port.key) : "-");
    for (const EgressConfig& egress : port.egress) text += " " + egress.program;
    text += "\n";
  }
  for (const StagePlan& stage : stages_)
    text += fmt::format("stage {} {} {}: {}; {}\n", stage.pipeline->name, stage.config->name, stage.config->keys.text(),
                        fmt::join(stage.plugin->drops, " "), fmt::join(stage.plugin->counters, " "));
  for (const Group& group : groups_) {
    text += "group " + group.name;
    for (PortSlot port : group.ports) text += fmt::format(" {}", port.value);
    text += "\n";
  }
  return text + egress_names_;
}

}  // namespace weir
