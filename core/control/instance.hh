// SPDX-License-Identifier: BSD-3-Clause
// instance: a running weir: what a topology becomes when it meets devices, kernel and workers.
#pragma once

#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "core/control/borrowed.hh"
#include "core/control/devices.hh"
#include "core/control/run_folder.hh"
#include "core/control/topology.hh"
#include "core/pipeline/host_stack.hh"
#include "core/pipeline/icmp_answer.hh"
#include "core/pipeline/notes.hh"
#include "core/worker/workers.hh"

namespace weir {

class Umem;
class XdpPort;
struct XskOptions;

// The tables of a user half whose kernel half does not run.
class PlainMemory final : public StageMemory {
 public:
  PlainMemory(CommonMemory& common, std::string plugin) : common_(common), plugin_(std::move(plugin)) {}
  [[nodiscard]] KernelMemory::Shown show(std::string_view map) const noexcept;

 private:
  struct Piece {
    Mapping memory;
    std::size_t entry;
    u32 count;
  };
  Result<u8*> bytes(std::string_view map, std::size_t entry, u32 count) override;
  Result<CommonBytes> common_bytes(std::string_view map, std::string_view name, std::size_t entry, u32 count) override;
  CommonMemory& common_;
  std::string plugin_;
  std::map<std::string, Piece, std::less<>> pieces_;
};

class Instance {
 public:
  struct Options {
    bool user_only = false;  // kernel halves off: every frame goes to user space
    bool keep = false;       // at the end, leave the kernel path forwarding
  };
  // Checks, opens and loads everything, and touches no device.
  static Result<std::unique_ptr<Instance>> prepare(std::unique_ptr<Topology> topology, const Registry& registry, const Options& options);
  Instance(const Instance&) = delete;
  // Workers stop, programs leave the devices, then sockets close, then memory goes.
  ~Instance();

  // Attaches the devices: from here on frames travel. After an error nothing is left behind once the instance is destroyed, and an earlier
  // run's kernel path goes on.
  Result<> go();
  // Once a second.
  void tick();
  // When devices changed, or may have.
  void watch_devices() { watch(false); }
  // Takes in what egress programs have noted of frames: to be called every NOTE_INTERVAL_MS while any of them may do so.
  void listen();
  [[nodiscard]] bool listens() const noexcept;
  // The stages that have a descriptor to be waited for; Stage::ready() is to be called when it is readable.
  [[nodiscard]] std::vector<std::pair<int, Stage*>> watched() const;
  // The answer to a question of the control socket.
  Result<nlohmann::json> answer(const nlohmann::json& question);
  // What comes in has an end: see Port::finite().
  [[nodiscard]] bool finite() const;
  // All of it has come in and has gone on, as far as the workers go.
  bool done();
  // Behind done(), or when the run is to end: workers stop, and ports write what they have not written yet.
  Result<> finish();
  // What became of all frames, in one line.
  Result<std::string> summary();
  // What holds now, each with its remedy.
  [[nodiscard]] std::vector<std::string> warnings() const;
  // What has come to pass since the last call, to be said once.
  [[nodiscard]] std::vector<std::string> take_news() { return std::exchange(news_, {}); }
  [[nodiscard]] const std::string& name() const noexcept { return topology_->config().name; }

 private:
  Instance(std::unique_ptr<Topology> topology, const Registry& registry, const Options& options, InstanceLock lock);
  // The steps of prepare(), in this order.
  Result<> inspect();
  Result<> make_frames();
  Result<> make_kernel();
  Result<> make_flows();
  Result<> make_stages();
  Result<> make_ports();
  Result<> make_groups();
  Result<> open_sockets();

  Lanes* make_lanes(const Pipeline& pipeline);
  Result<> make_kernel_port(const Device& device);
  // The egress chain of a port without a device, and the memory of its programs.
  struct PlainChain {
    EgressChain steps;
    std::vector<std::vector<u8>> pieces;  // configuration, state and what is shared
  };
  PlainChain make_plain_chain(const std::vector<EgressConfig>& configs, const Port& port, u32 block) const;
  [[nodiscard]] bool is_fused(PortSlot slot) const;
  void add_pumps(const KernelPort& port, XdpPort& sockets);
  void open_pumps(const KernelPort& port);
  static bool is_foreign(const std::vector<EgressConfig>& chain);
  void count_process_died();
  void watch(bool peers);
  bool look_again(KernelPort& port, bool peers);
  Result<> follow(KernelPort& port, const Netdev& netdev);
  void warn(std::string text);
  void finish_pumps();
  [[nodiscard]] std::vector<std::string> group_warnings() const;
  [[nodiscard]] bool in_kernel(const Topology::StagePlan& stage) const;
  [[nodiscard]] KernelStage kernel_stage(const Topology::StagePlan& plan) const;
  [[nodiscard]] std::pair<u32, u32> way_to(const Topology::StagePlan* stage) const;  // enum weir_go and its argument
  [[nodiscard]] u32 receive_queues() const;
  [[nodiscard]] u32 fill_per_queue() const;
  Result<Mapping> begin_drivers() const;
  [[nodiscard]] Result<std::unique_ptr<Port>> open_port(PortSlot slot) const;
  void charge(PortSlot slot, const Port::Lost& lost) noexcept;
  [[nodiscard]] std::string layout() const;
  [[nodiscard]] XskOptions xsk_options(const PortConfig& port) const;
  Result<> borrow(const KernelPort& port, const PortConfig& config);
  std::vector<std::unique_ptr<Runner>> make_runners();

  // change.cc
  struct NextChain;
  // What programs that have left a port's chain had counted.
  struct Retired {
    const egress_program* program = nullptr;
    account kernel{}, user{};
    std::map<std::string, u64> counters;
  };
  static Result<std::string> text(const nlohmann::json& question, const char* key);
  [[nodiscard]] Result<PortSlot> port_named(const std::string& name) const;
  [[nodiscard]] Result<GroupSlot> group_named(const std::string& name) const;
  KernelPort* kernel_port(PortSlot slot) noexcept;
  Result<NextChain> prepare_chain(PortSlot slot, std::vector<EgressConfig> configs);
  Result<> put_in_place(NextChain next);
  void retire(PortSlot slot, const EgressChain& chain);
  [[nodiscard]] Result<> expect_allowed(PortSlot slot, const std::vector<EgressConfig>& chain) const;
  Result<> change_chains(std::vector<std::pair<PortSlot, std::vector<EgressConfig>>> wanted);
  void note_layout();
  Result<nlohmann::json> set_egress(const nlohmann::json& question);
  Result<nlohmann::json> set_entry(const nlohmann::json& question);
  Result<nlohmann::json> remove_entry(const nlohmann::json& question);
  Result<> delete_entry(PortSlot slot, bool deleted);
  Result<> set_members(GroupSlot group, std::vector<PortSlot> members);
  Result<nlohmann::json> change_group(const nlohmann::json& question, bool join);

  // What the workers' counters and rings held while they stood still. Taken in a hurry: frames wait meanwhile.
  struct Moment {
    Accounts accounts;
    std::vector<u64> stack_lost;                                  // frames, by port slot
    u64 free = 0, rings = 0, bursts = 0, lanes = 0, waiting = 0;  // frames; `waiting` are those in the rings that are on their way in
    std::vector<Runner::Numbers> threads;
    std::vector<std::vector<u32>> depths;  // of lanes, by parallel stage
    struct Rings {
      u32 held, waiting;  // frames in them; those of them that would come in
    };
    std::vector<std::vector<Rings>> queues;  // by port slot
    std::vector<account> pumped;             // by port slot: of the kernel's counters those of enum weir_port_counter for pumps
  };

  // Where a thread was when the clock last ticked.
  struct Kept {
    Runner::Place place;
    u32 seconds;  // that it has been there
  };
  void watch_threads();
  [[nodiscard]] std::vector<std::string> kept_warnings() const;

  // reload.cc
  // A stage that is ready to take the place of one that runs; and that one, once it has.
  struct NextStage {
    u32 number;
    const Plugin* plugin;
    std::unique_ptr<Stage> stage;
    StageHalf half;                      // where its kernel half runs,
    std::unique_ptr<PlainMemory> plain;  // and where not
  };
  StageEntry& stage_entry(u32 number);
  std::vector<u32> changed_stages(const Topology& next);
  [[nodiscard]] std::string refuse_stages(const std::vector<u32>& stages, const Topology& next) const;
  Result<NextStage> prepare_stage(Topology::StagePlan& plan);
  Result<> exchange_stages(std::vector<NextStage>& others);
  void take_flows_back(const std::vector<NextStage>& others);
  void tell_in_place(const std::vector<NextStage>& others);
  // Of stages, whether their kernel halves run or not.
  [[nodiscard]] CommonMemory& common() noexcept { return kernel_ && !options_.user_only ? kernel_->common() : plain_common_; }
  [[nodiscard]] bool is_built_anew(PortSlot slot, const Registry& registry) const;
  Result<nlohmann::json> reload(const nlohmann::json& question);

  // flows.cc
  [[nodiscard]] FlowTable::Owner owner_of(u32 stage, u32 generation) const noexcept;
  [[nodiscard]] bool offloading() const;
  void warn_of_kept_flows();
  void connect_flows(const Topology::StagePlan& stage, u32 generation);
  void tick_flows(u32 now_s);
  [[nodiscard]] std::string name_of(u16 stage) const;
  Result<FlowTable::Which> flow_filter(const nlohmann::json& question) const;
  [[nodiscard]] nlohmann::json flow_report(const FlowTable::Seen& flow) const;
  Result<nlohmann::json> list_flows(const nlohmann::json& question) const;
  Result<nlohmann::json> flush_flows(const nlohmann::json& question);
  [[nodiscard]] nlohmann::json flows_report() const;

  // listen.cc
  struct NotedDevice {
    std::string port;  // empty: none has this device
    u32 ifindex;       // 0: the port has no device
  };
  struct Sample {
    u64 number;  // from 1 on
    u64 time;    // CLOCK_REALTIME, nanoseconds
    note head;
    NotedDevice in;
    std::vector<u8> bytes;
  };
  [[nodiscard]] NotedDevice device_of(const note& head) const;
  void answer_sender(const note& head, std::span<const u8> bytes);
  [[nodiscard]] nlohmann::json samples() const;
  Result<nlohmann::json> ask_stage(const nlohmann::json& question);

  // report.cc
  // The programs of a chain, each with its name and which one of that name it is.
  using ProgramKey = std::pair<std::string, u32>;
  static std::vector<std::pair<const EgressChain::Step*, ProgramKey>> keyed(const EgressChain& chain);
  static std::map<std::string, u64> counters_of(const EgressChain::Step& step, u32 rows);
  [[nodiscard]] std::vector<std::pair<ProgramKey, Retired>> programs_of(const Moment& at, PortSlot slot) const;
  Result<nlohmann::json> egress(std::optional<PortSlot> only);
  Result<Moment> moment();
  Result<nlohmann::json> stats();
  Result<nlohmann::json> devmap();
  [[nodiscard]] nlohmann::json entry_report(u32 slot, const DeviceEntry& entry) const;
  void add_counters(nlohmann::json& row, const Moment& at, const nlohmann::json& drops) const;
  [[nodiscard]] nlohmann::json tx_report(const KernelPort& port) const;
  nlohmann::json port_report(const Moment& at, PortSlot slot) const;
  nlohmann::json stage_report(const Moment& at, const StageEntry& stage, const std::string& pipeline) const;
  nlohmann::json egress_report(const Moment& at, PortSlot slot) const;
  nlohmann::json frames_report(const Moment& at) const;
  nlohmann::json threads_report(const Moment& at) const;
  nlohmann::json lanes_report(const Moment& at) const;
  nlohmann::json drops_report(const Moment& at) const;
  nlohmann::json account_report(const Moment& at, const nlohmann::json& drops) const;
  [[nodiscard]] account kernel_account(const Moment& at, PortSlot slot) const;
  [[nodiscard]] account user_account(const Moment& at, PortSlot slot) const;

  // In the order of their lifetime.
  std::unique_ptr<Topology> topology_;
  const Registry* registry_;
  std::vector<std::unique_ptr<Registry>> registries_;  // of reloads: what they have loaded may be at work
  std::vector<std::unique_ptr<Topology>> reloaded_;    // whose stages run
  Options options_;
  InstanceLock lock_;
  std::optional<Borrowed> borrowed_;                     // of the devices
  std::vector<std::string> warnings_;                    // of the instance
  std::vector<std::vector<std::string>> port_warnings_;  // by slot; they come and go with the state of the device
  std::vector<Device> devices_;
  BpfMap frames_map_;          // the pool's memory, where a port is to have a pump
  std::string no_frames_map_;  // why it has none all the same
  std::unique_ptr<FramePool> pool_;
  std::unique_ptr<Umem> umem_;
  std::map<u16, std::unique_ptr<Umem>> later_umems_;  // by slot, of ports whose device came back; over the same frames
  std::unique_ptr<KernelSide> kernel_;                // none without an XDP port
  std::unique_ptr<FlowTable> flows_;                  // none where no stage may offload
  std::vector<KernelPort> kernel_ports_;
  CommonMemory plain_common_;                                   // where there are no kernel halves
  std::map<u32, std::unique_ptr<PlainMemory>> plain_memories_;  // by stage number; null: its kernel half runs
  std::map<u32, u32> stage_generations_;                        // how many stages have had this number before
  // By port slot.
  std::vector<PlainChain> plain_chains_;
  std::vector<std::vector<EgressConfig>> chains_;  // that run: the file's, until a command says otherwise
  std::vector<u32> generations_;                   // how many chains the port has had before
  std::vector<std::map<ProgramKey, Retired>> retired_;
  std::vector<std::string> no_pump_;  // why the port has none
  std::unique_ptr<HostStack> stack_;
  std::optional<DataPath> path_;
  std::unique_ptr<Notes> notes_;
  IcmpSender icmp_;
  std::deque<Sample> samples_;  // the last ones
  u64 samples_read_ = 0;
  std::vector<std::unique_ptr<Lanes>> lanes_;  // of the parallel stages
  std::unique_ptr<Workers> workers_;
  Crew crew_;
  std::vector<Kept> kept_;  // by thread
  std::vector<std::string> news_;
  std::vector<Port::Lost> lost_;  // by port slot; see moment()
  u64 gone_ = 0;                  // frames that drivers without copies took with their devices
  bool adopted_ = false;
  bool ran_ = false;  // go() came to its end
  std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
};

}  // namespace weir
