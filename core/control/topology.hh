// SPDX-License-Identifier: BSD-3-Clause
// topology: a checked configuration with everything numbered: ports, stages, groups, and their blocks in the accounts. Touches nothing.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/config/config.hh"
#include "core/pipeline/data_path.hh"
#include "core/pipeline/flow_table.hh"
#include "core/pipeline/registry.hh"
#include "core/worker/workers.hh"

namespace weir {

class Topology {
 public:
  // Constructs every stage, so that what only a plugin can check is checked too. Every problem is in the error, one a line.
  // `before`: what runs, whose groups keep their numbers.
  static Result<std::unique_ptr<Topology>> build(Config config, const Registry& registry, const Topology* before = nullptr);
  Topology(const Topology&) = delete;
  ~Topology();

  struct Group {
    std::string name;  // empty: made by a stage
    std::vector<PortSlot> ports;
    bool of_stage = false;  // a stage floods to it
  };
  struct StagePlan {
    const StageConfig* config;
    const PipelineConfig* pipeline;
    const Plugin* plugin;
    std::unique_ptr<Stage> stage;  // moves into the data path
    u32 number;                    // in the instance
    u32 block;
    bool last;          // of its pipeline
    bool offloads;      // its constructor has asked for flows(), and what every stage before it decides holds for a whole flow
    StageFlows* flows;  // its own
    AllFlows* cache;    // as it sees those of all
    bool asks;          // its constructor has asked for flows()
  };

  [[nodiscard]] const Config& config() const noexcept { return config_; }
  [[nodiscard]] const std::vector<Group>& groups() const noexcept { return groups_; }
  [[nodiscard]] std::vector<StagePlan>& stages() noexcept { return stages_; }
  [[nodiscard]] const std::vector<StagePlan>& stages() const noexcept { return stages_; }
  // Whether any stage of the port's pipeline may offload flows.
  [[nodiscard]] bool offloads(const PortConfig& port) const noexcept;
  [[nodiscard]] const StagePlan* first_stage(const PortConfig& port) const noexcept;  // null: the port has no pipeline
  [[nodiscard]] std::vector<PortSlot> ports_of(const PipelineConfig& pipeline) const;
  [[nodiscard]] std::optional<PortSlot> port(std::string_view name) const noexcept;

  // Blocks of the accounts: a port's is its slot; then the stages'; then, for each port, the places of its egress chain,
  // twice: a chain and the one that replaces it use them in turn.
  [[nodiscard]] u32 block(PortSlot port) const noexcept { return port.value; }
  [[nodiscard]] u32 egress_block(PortSlot port) const noexcept { return egress_blocks_[port.value]; }
  [[nodiscard]] u32 blocks() const noexcept { return blocks_; }
  [[nodiscard]] u32 parallel_stages() const noexcept;
  // The threads that run stages, for ports of so many receive queues in all.
  [[nodiscard]] Crew crew(u32 queues) const;
  // Why a chain with a foreign program cannot stand on a port: user space would send there too, without that program. Empty: it can.
  [[nodiscard]] std::string refuse_foreign(const std::vector<EgressConfig>& chain) const;
  // What of another one takes a new start: all but the programs and keys of egress chains, the members of named groups, and what stages do.
  [[nodiscard]] std::vector<std::string> differences(const Topology& other) const;
  // Takes these over from one that does not differ otherwise.
  void take(const Topology& other);
  // Equal for two runs whose counters, tables and settings mean the same things.
  [[nodiscard]] std::string fingerprint() const;

 private:
  class Context;
  explicit Topology(Config config);
  [[nodiscard]] u32 most_threads() const;
  Result<GroupSlot> group(std::span<const PortSlot> ports);
  void note_names_of_egress(const Registry& registry);
  Config config_;
  std::string egress_names_;
  std::map<std::string, u64> said_;  // by stages, of what they have in common
  std::vector<Group> groups_;
  std::vector<std::unique_ptr<Context>> contexts_;
  std::vector<StagePlan> stages_;
  std::vector<u32> egress_blocks_;
  u32 blocks_ = 0;
};

}  // namespace weir
