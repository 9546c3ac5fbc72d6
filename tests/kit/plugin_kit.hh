// SPDX-License-Identifier: BSD-3-Clause
// plugin_kit: run a plugin's user half and its kernel half frame by frame, without devices, and see their verdicts.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "bpf/abi/link.h"
#include "core/base/fd.hh"
#include "core/base/mapping.hh"
#include "core/kernel/accounts_map.hh"
#include "core/kernel/object.hh"
#include "core/plugin.hh"
#include "kit/frames.hh"

// Of the plugin that is linked into the test.
extern "C" const weir::Plugin weir_plugin;

namespace weir::kit {

struct Verdict {
  weir_verdict what = WEIR_NEXT;
  u32 argument = 0;  // redirect: port; flood: group; punt: reason; drop: WEIR_DROP_OWN and the plugin's reason, or the runtime's
  friend bool operator==(const Verdict&, const Verdict&) = default;
};
std::ostream& operator<<(std::ostream& out, const Verdict& verdict);

inline Verdict next() { return {WEIR_NEXT, 0}; }
inline Verdict redirect(u32 port) { return {WEIR_REDIRECT, port}; }
inline Verdict flood(u32 group = 0) { return {WEIR_FLOOD, group}; }
inline Verdict punt(u32 reason) { return {WEIR_PUNT, reason}; }
inline Verdict to_stack() { return {WEIR_TO_STACK, 0}; }
inline Verdict drop(u32 reason) { return {WEIR_DROP, WEIR_DROP_OWN + reason}; }

struct Outcome {
  Verdict verdict;
  Packet bytes;
};

// Flows that a stage has offloaded, in order. Closed, as in a run without kernel halves, until a test opens it; and once UserHalf::make()
// has made a stage of a plugin without .per_flow it stays closed, as it is for that stage and those behind it.
class FakeFlows final : public Flows {
 public:
  struct Offload {
    FlowKey key;
    FlowAction action;
    FlowTimes times;
    u64 cookie;
  };
  void open() noexcept { open_ = !for_good_; }
  void close_for_good() noexcept { open_ = false, for_good_ = true; }
  [[nodiscard]] bool any() const noexcept override { return open_; }
  [[nodiscard]] FlowKey key_of(const Frame& frame) const noexcept override { return open_ ? flow_key_of(frame) : FlowKey{}; }
  bool offload(const FlowKey& key, const FlowAction& action, FlowTimes times, u64 cookie) noexcept override;
  [[nodiscard]] std::optional<u32> idle_s(const FlowKey& key) const noexcept override;
  [[nodiscard]] u32 epoch() const noexcept override { return 0; }
  void take_back(const std::function<bool(const FlowKey&, u64)>& which) noexcept override;
  void visit(const std::function<void(const FlowKey&, u64, u64, u64)>& visitor) const override {
    for (const Offload& offload : offloads_) visitor(offload.key, offload.cookie, 0, 0);
  }
  [[nodiscard]] const std::vector<Offload>& offloads() const noexcept { return offloads_; }  // that hold

 private:
  bool open_ = false, for_good_ = false;
  std::vector<Offload> offloads_;
};

// Flows of other stages, as a test puts them there.
class FakeCache final : public FlowCache {
 public:
  struct Flow {
    FlowKey key;
    u32 idle_s;
  };
  [[nodiscard]] bool any() const noexcept override { return true; }
  void decide_now(Frame& frame) const noexcept override {
    if (frame.kept == 0) frame.kept = FLOW_EPOCH(0);
  }
  [[nodiscard]] std::optional<u32> idle_s(const FlowKey& key) const noexcept override;
  void take_back(const std::function<bool(const FlowKey&)>& which) noexcept override {
    std::erase_if(flows, [&](const Flow& flow) { return which(flow.key); });
  }
  std::vector<Flow> flows;
};

// The surroundings of one stage: the ports of its pipeline, by slot, and behind them ports of no pipeline.
class FakeContext final : public StageContext {
 public:
  explicit FakeContext(std::vector<std::string> ports, std::vector<std::string> elsewhere = {});
  [[nodiscard]] std::vector<PortSlot> ports() const override;
  [[nodiscard]] std::optional<PortSlot> port(std::string_view name) const override;
  [[nodiscard]] std::string_view name(PortSlot port) const override { return names_.at(port.value); }
  [[nodiscard]] std::string_view device(PortSlot port) const override {
    const auto at = devices_.find(port);
    return at == devices_.end() ? std::string_view() : at->second;
  }
  Result<GroupSlot> group(std::span<const PortSlot> ports) override;
  [[nodiscard]] u32 threads() const override { return 1; }
  FakeFlows& flows() override { return flows_; }
  FakeCache* flow_cache() override { return &cache_; }
  [[nodiscard]] std::string_view pipeline() const override { return "main"; }
  u64 first_said(const std::string& what, u64 value) override { return said_.emplace(what, value).first->second; }
  void forget_said() { said_.clear(); }  // as the next file does

  // For a stage that looks at devices: one that is there.
  void set_device(PortSlot port, std::string device) { devices_.insert_or_assign(port, std::move(device)); }
  [[nodiscard]] const std::vector<std::string>& names() const noexcept { return names_; }
  [[nodiscard]] const std::vector<std::vector<PortSlot>>& groups() const noexcept { return groups_; }
  // The keys of a stage as `weir check` reads them. `text`: TOML; its first line is line 6 of "test.toml".
  [[nodiscard]] Result<ConfigNode> keys(const Plugin& plugin, std::string_view text) const;

 private:
  std::vector<std::string> names_;
  std::size_t own_;
  std::map<PortSlot, std::string> devices_;
  std::vector<std::vector<PortSlot>> groups_;
  FakeFlows flows_;
  FakeCache cache_;
  std::map<std::string, u64> said_;
};

// What stages of a plugin have in common: those whose memories are made with it.
class InCommon {
 public:
  struct Piece {
    std::size_t entry;
    u32 count;
    std::optional<BpfMap> map;  // where a kernel half has it too
    Mapping memory;
    bool asked = true;  // for it, by this process
  };
  // The process that comes after one that ended finds all as it was left.
  void restart() {
    for (auto& [name, piece] : pieces) piece.asked = false;
  }
  std::map<std::string, Piece, std::less<>> pieces;  // by map and name
};

// Ordinary memory, zeroed. A map that is asked for again in the same shape is as it was left: a second run that adopts it.
class PlainMemory final : public StageMemory {
 public:
  explicit PlainMemory(InCommon* shared = nullptr) : shared_(shared) {}
  template <typename T>
  T& config() {
    return array<T>(".data.config", 1)->front();
  }

 private:
  struct Held {
    std::size_t entry;
    u32 count;
    Mapping memory;
  };
  Result<u8*> bytes(std::string_view map, std::size_t entry, u32 count) override;
  Result<CommonBytes> common_bytes(std::string_view map, std::string_view name, std::size_t entry, u32 count) override;
  std::map<std::string, Held, std::less<>> held_;
  InCommon own_;
  InCommon* shared_;
};

// A stage, constructed and bound.
class UserHalf {
 public:
  static Result<UserHalf> make(const Plugin& plugin, std::string_view keys, FakeContext& context, StageMemory& memory);

  Outcome run(u32 port, const Packet& bytes) { return std::move(run(std::vector{std::pair(port, bytes)}).front()); }
  // The frames as one burst, at most Burst::capacity.
  std::vector<Outcome> run(const std::vector<std::pair<u32, Packet>>& frames);

  [[nodiscard]] Stage& stage() const noexcept { return *stage_; }
  [[nodiscard]] u64 counter(std::string_view name) const;
  [[nodiscard]] u64 gauge(std::string_view name) const;

 private:
  UserHalf(const Plugin& plugin, std::unique_ptr<Stage> stage) : plugin_(&plugin), stage_(std::move(stage)), account_(new account{}) {}
  const Plugin* plugin_;
  std::unique_ptr<Stage> stage_;
  std::unique_ptr<account> account_;
};

// Why kernel halves cannot be run here; empty when they can.
std::string no_kernel();

// The kernel half of a plugin, run by BPF_PROG_TEST_RUN: nothing leaves, and its verdict is read from the accounts. Every port has a
// device entry (of the loopback device, which sees nothing of it) and a socket, every group its members.
class KernelHalf {
 public:
  // First the memory, for Stage::bind(), then load().
  static Result<std::unique_ptr<KernelHalf>> open(const Plugin& plugin, const FakeContext& context, InCommon* shared = nullptr);
  [[nodiscard]] StageMemory& memory() noexcept { return memory_; }
  Result<> load();

  // A redirect's port, and a flood's group where there are several, is found by running the frame again with one entry at a time: what
  // the kernel half itself keeps sees such a frame more than once, its accounts do not. A flood to a group with a single member beside
  // `port` is a redirect to that one.
  Result<Outcome> run(u32 port, const Packet& bytes);

  [[nodiscard]] u64 counter(std::string_view name) const;
  // All that it has counted as a stage.
  [[nodiscard]] account counted() const noexcept { return sum(block()); }

  // Puts it into a program array, for a program that hands it frames of `port` by tail calls.
  Result<> lead_to(const BpfMap& programs, u32 slot, u32 port);

  // As run(), while no port has a device entry; what is known of the ports is `bits`.
  Result<Verdict> run_without_entries(u32 port, const Packet& bytes, const port_entries& bits);

 private:
  class Memory final : public StageMemory {
   public:
    Memory(BpfObject& object, InCommon* shared) : object_(object), shared_(shared) {}

   private:
    Result<u8*> bytes(std::string_view map, std::size_t entry, u32 count) override;
    Result<CommonBytes> common_bytes(std::string_view map, std::string_view name, std::size_t entry, u32 count) override;
    BpfObject& object_;
    InCommon own_;
    InCommon* shared_;
    std::vector<BpfMap> maps_;
    std::map<std::string, Mapping, std::less<>> memories_;
  };
  KernelHalf(const Plugin& plugin, const FakeContext& context, BpfObject object, InCommon* shared)
      : plugin_(plugin), context_(context), object_(std::move(object)), memory_(object_, shared) {}
  Result<> create_maps();
  Result<> set_groups();
  Result<> enter_by(u32 port);
  Result<> only_port(std::optional<u32> port);
  Result<> only_group(std::optional<u32> group);
  Result<Verdict> run_once(u32 port, const Packet& bytes, Packet& out);
  using Only = Result<> (KernelHalf::*)(std::optional<u32>);
  Result<Verdict> probe(u32 port, const Packet& bytes, weir_verdict what, u32 count, Only only);
  [[nodiscard]] account sum(u32 block) const noexcept;
  [[nodiscard]] std::span<account> table() const noexcept {
    return {reinterpret_cast<account*>(accounts_memory_.data()), possible_cpus() * blocks()};
  }
  [[nodiscard]] u32 blocks() const noexcept { return WEIR_MAX_PORTS + 1; }
  [[nodiscard]] u32 block() const noexcept { return blocks() - 1; }  // of the stage, behind the ports

  const Plugin& plugin_;
  const FakeContext& context_;
  BpfObject object_;
  Memory memory_;
  AccountsMap accounts_;
  BpfMap scratch_, stages_, ports_, entries_, sockets_, groups_, targets_;
  std::vector<BpfMap> members_;
  std::vector<group_targets> group_targets_;
  Mapping accounts_memory_;
  Fd socket_;
};

}  // namespace weir::kit
