// SPDX-License-Identifier: BSD-3-Clause
// kernel_side: the kernel half of an instance: its maps, the stages' kernel halves, the egress chains, the ingress programs, their pins.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bpf/abi/link.h"
#include "core/config/config.hh"
#include "core/kernel/accounts_map.hh"
#include "core/kernel/bpffs.hh"
#include "core/kernel/devmap.hh"
#include "core/kernel/object.hh"
#include "core/kernel/xdp_link.hh"
#include "core/pipeline/common_memory.hh"
#include "core/pipeline/egress_chain.hh"
#include "core/pipeline/flow_table.hh"
#include "core/pipeline/registry.hh"
#include "core/pipeline/stage.hh"

namespace weir {

// The maps of one BPF object that its user side works on, memory-mapped. They are created, or adopted from an earlier run, before the
// object is loaded.
class KernelMemory final : public StageMemory {
 public:
  // `pins` gets every map as PREFIX.MAP; an earlier one of the same shape is adopted when `adopt`.
  KernelMemory(BpfObject& object, const PinFolder& pins, std::string prefix, bool adopt)
      : object_(&object), pins_(pins), prefix_(std::move(prefix)), adopt_(adopt) {}
  // For a stage, whose plugin's stages have some in common.
  KernelMemory(BpfObject& object, const PinFolder& pins, std::string prefix, bool adopt, CommonMemory& common, std::string plugin)
      : KernelMemory(object, pins, std::move(prefix), adopt) {
    common_ = &common;
    plugin_ = std::move(plugin);
  }
  // The memory of a map with `count` entries, each at least `entry` bytes.
  Result<u8*> bytes(std::string_view map, std::size_t entry, u32 count) override { return make(map, entry, count, adopt_); }
  // The same, never an earlier run's.
  Result<u8*> fresh(std::string_view map, std::size_t entry, u32 count) { return make(map, entry, count, false); }
  Result<> prepare_pins() const;
  // A map that is the object's by address alone, enum link_memory: one value of so many bytes.
  Result<u8*> value(std::string_view map, std::size_t size);
  // The object may go now: no map of it is asked for any more.
  void settle() noexcept { object_ = nullptr; }
  // Of a map that it has made; null: none.
  struct Shown {
    const u8* bytes;
    std::size_t entry;
    u32 count;
  };
  [[nodiscard]] Shown show(std::string_view map) const noexcept;
  Result<> commit_pins() const;
  [[nodiscard]] int fd(std::string_view map) const { return held_.at(pin_of(map)).map.fd(); }
  [[nodiscard]] std::vector<std::string> pin_names() const;

 private:
  Result<u8*> make(std::string_view map, std::size_t entry, u32 count, bool adopt);
  Result<u8*> hold(std::string_view map, const MapShape& shape, bool adopt);
  Result<CommonBytes> common_bytes(std::string_view map, std::string_view name, std::size_t entry, u32 count) override;
  Result<MapShape> expect(std::string_view map, std::size_t entry, u32 count) const;
  [[nodiscard]] std::string pin_of(std::string_view map) const;
  struct Held {
    BpfMap map;
    Mapping memory;
  };
  BpfObject* object_;  // null: settled
  const PinFolder& pins_;
  std::string prefix_;
  bool adopt_;
  CommonMemory* common_ = nullptr;
  std::string plugin_;
  std::map<std::string, Held> held_;
};

// Under which stages of a plugin have memory in common.
std::string common_name(std::string_view plugin, std::string_view map, std::string_view name);

// One program of a port's egress chain, loaded.
struct EgressProgram {
  std::string name;
  std::vector<u8> foreign;  // the object file of one that is not ours
  u32 id = 0;               // the kernel's; the same for programs that are one there
  u32 block = 0;
  std::unique_ptr<BpfObject> object;  // null: it is part of `joined`
  std::unique_ptr<KernelMemory> memory;
  u8* settings = nullptr;             // the program's configuration; null: it has none
  std::unique_ptr<BpfObject> around;  // of a foreign one: what calls it and counts
  EgressChain::Step host{};           // of a foreign one, which runs in the kernel alone: its names
};

// A port's egress chain, loaded for the one of the two places where it runs.
struct LoadedChain {
  bool fused = false;  // before the redirect, else on the device entry
  std::vector<EgressProgram> programs;
  std::vector<EgressConfig> configs;  // of the same places
  Fd joined;                          // the programs as one, where there are several and they can be; see join_programs()
  Fd last;                            // a foreign program within ours, where the others call it
  BpfMap array;                       // what the programs' tail calls go through
  u32 generation = 0;                 // how many chains the port has had before
};

// What the kernel side must know of a port.
struct KernelPort {
  PortSlot slot;
  std::string name;
  std::string device;
  Ifindex ifindex;
  Mac mac{};
  u32 mtu = 0;
  Mode mode = Mode::automatic;  // settled by attach(): native or generic
  u32 longest = 0;              // bytes of a frame that the device takes; 0: it is down
  bool redirectable = true;     // false: a redirect to it would be lost, so that only user space sends there
  bool takes_redirects = true;  // found out by attach(): false for one in generic mode beside native ones
  u32 queues = 1;
  u32 block = 0;
  u32 go = 0, next = 0;  // where its frames go first: enum weir_go
  bool fused = false;    // where its egress chains run
  u32 egress_block = 0;  // the first of the 2 * max_egress_chain blocks that its chains use in turn
  bool deleted = false;  // its entry was, by command
  u32 key = 0;           // of its device entry
  bool scatters = true;  // the device takes frames of several buffers
  bool flows = false;    // what comes in may be of an offloaded flow
};

// What it must know of a stage.
struct KernelStage {
  std::string name;  // "pipeline.stage"
  const Plugin* plugin;
  u32 number = 0;
  u32 block = 0;
  u32 go = 0, next = 0;  // where its frames go next
  u32 miss = 0;          // XDP action of a redirect to a port without an entry
  bool offloads = false;
};

// What the kernel is told of a group beside its devmap. `longest`: bytes of a frame that every member takes; 0: floods are user space's.
group_targets targets_of(std::span<const PortSlot> reachable, u32 longest) noexcept;

// The kernel half of a stage.
struct StageHalf {
  std::unique_ptr<BpfObject> object;
  std::unique_ptr<KernelMemory> memory;
  stage_link link{};
};

class KernelSide {
 public:
  static constexpr u32 max_queues = 64;  // of a port
  struct Shape {
    u32 rows = 1, blocks = 1;
    u32 ports = WEIR_MAX_PORTS;
    DevmapForm form = DevmapForm::array;
    bool keyed = false;  // the ports' keys are not their slots
    bool frags = false;  // frames may lie in several buffers
    u32 flows = 0;       // places of the flow cache
    u32 netns = 0;       // inode of the network namespace
    bool adopt = false;
  };
  // Maps only; nothing touches a device before attach().
  static Result<std::unique_ptr<KernelSide>> create(PinFolder pins, const Shape& shape);
  ~KernelSide();

  // Of the tracing programs: another one's are not adopted.
  static std::size_t tracing_hash();
  [[nodiscard]] Result<Mapping> accounts() const { return accounts_.map().map_memory(); }
  // The flow cache, empty, and the seed of its hash.
  [[nodiscard]] FlowTable::Memory flows() const noexcept;
  [[nodiscard]] u64 flow_seed() const noexcept { return flow_seed_; }
  // The clock by which the kernel stamps flows: seconds.
  void set_clock(u32 now_s) noexcept;
  // The kernel half of a stage: first its memory, for Stage::bind(), then load.
  Result<StageMemory*> open_stage(const KernelStage& stage);
  Result<> load_stage(const KernelStage& stage);
  // Another half for a stage that runs, with memory of its own; and loaded. Nothing is changed.
  Result<StageHalf> open_half(const KernelStage& stage, bool adopt);
  Result<> load_half(StageHalf& half, const KernelStage& stage) const;
  // Puts it in the place of the stage's present one, which `half` is then. Each frame meets the one or the other; when this returns, none
  // is in the old one any more. After an error the old one is in place.
  Result<> replace_half(u32 stage, StageHalf& half, const std::vector<KernelPort>& ports);
  [[nodiscard]] const KernelMemory& memory_of(u32 stage) const { return *halves_.at(stage).memory; }
  [[nodiscard]] CommonMemory& common() noexcept { return common_; }
  // Fails when the device carries a program that is not an earlier run's of this instance.
  [[nodiscard]] Result<> expect_free(const KernelPort& port) const;
  // Loads a chain, and changes nothing. `generation`: 0 for the port's first, which may adopt what an earlier run left.
  Result<LoadedChain> load_chain(const KernelPort& port, const std::vector<EgressConfig>& configs, const Registry& registry,
                                 u32 generation) const;
  // Makes the device entry, over the port's first chain.
  Result<> add_port(const KernelPort& port, LoadedChain chain);
  // Puts a chain in the place of the port's present one, for redirects and floods alike. Each frame goes through the one or the other; when
  // this returns, none is in the old one any more, which is given back. After an error the old one is in place.
  Result<LoadedChain> replace_chain(const KernelPort& port, LoadedChain next, const std::vector<KernelPort>& ports);
  // Its pins beside the present one's, before it is put in place; and in their place, after.
  [[nodiscard]] Result<> prepare_chain_pins(const LoadedChain& chain, PortSlot slot) const;
  Result<> commit_chain_pins(const LoadedChain& chain, const LoadedChain& old, PortSlot slot);
  // The configuration of the chain again, when the device's MTU has changed. Its programs see the one or the other.
  void refill_egress(const KernelPort& port);
  // The device entry of a port; again when it became redirectable, was deleted, or was made anew.
  Result<> set_entry(const KernelPort& port);
  // The devmap of a group; may be called again when a member joined or left, or its device went up or down or changed its MTU. Each flood
  // sees the members of before or of after; when this returns after attach(), none sees those of before.
  Result<> set_group(GroupSlot group, const std::vector<PortSlot>& members, const std::vector<KernelPort>& ports);
  // The groups that hold a port.
  Result<> set_groups_of(const KernelPort& port, const std::vector<KernelPort>& ports);
  Result<> set_socket(const KernelPort& port, QueueId queue, int socket_fd);
  // When a port's device has come back under another index, which `port` has now: attaches to it, in a mode of `mode`, makes its entry, and
  // lets go of the one `before`. After an error nothing holds the new device.
  Result<> follow(KernelPort& port, const KernelPort& before, Mode mode);
  // The last step: from here on frames arrive. All devices, or none. Ports of mode automatic fall back to generic where the driver
  // has no native XDP.
  Result<> attach(std::vector<KernelPort>& ports);
  // Pins everything, so that it outlives the process, with `others` beside it and beside what an earlier run left.
  Result<> prepare_pins(const std::vector<const KernelMemory*>& others);
  // Puts it in the place of what an earlier run left.
  Result<> commit_pins();
  [[nodiscard]] const PinFolder& pins() const noexcept { return pins_; }
  // After an error behind attach(): devices that an earlier run left get its programs back. The others are let go of with this object.
  void give_back() noexcept;
  // Takes the programs off the devices and removes the pins.
  void detach() noexcept;

  [[nodiscard]] const LoadedChain& chain(PortSlot port) const { return chains_.at(port.value); }
  // The ring of what egress programs note of frames; see bpf/abi/note.h.
  [[nodiscard]] int notes() const noexcept { return notes_.fd(); }
  // By which the ingress program of a port in generic mode knows frames that go up the host stack; see bpf/abi/to_stack.h.
  [[nodiscard]] u64 mark() const noexcept { return mark_; }
  // What the kernel holds for a port or a member of a group: the ids of its device and of its program; none: no entry.
  // Keys of `entries` and `bare_entries` are those of the ports.
  [[nodiscard]] const Devmap& entries() const noexcept { return ports_; }
  [[nodiscard]] const Devmap& bare_entries() const noexcept { return bare_ports_; }  // of ports whose chain is fused
  [[nodiscard]] std::vector<std::pair<PortSlot, DeviceEntry>> group(GroupSlot group) const;
  // Whether it is the kernel that floods to the group; else one of its members takes no broadcast.
  [[nodiscard]] bool floods(GroupSlot group) const noexcept;
  [[nodiscard]] const std::string& pin_path() const noexcept { return pins_.path(); }

 private:
  struct Ingress {
    BpfObject object;
    int program = -1;
    XdpLink link;
    Fd previous;  // program of the earlier run whose link was adopted
    std::string pin;
    bool adopted = false;
    bool native = true;
  };
  // What an earlier run had attached in another mode.
  struct Displaced {
    Fd program;
    Ifindex device;
    bool native;
    std::string pin;
  };
  KernelSide(PinFolder pins, const Shape& shape);
  Result<> create_maps();
  [[nodiscard]] port_entries& entries_now() const noexcept { return *reinterpret_cast<port_entries*>(entries_memory_.data()); }
  Result<> trace();
  Result<> share(BpfObject& object) const;
  [[nodiscard]] LinkMemory memory() const noexcept { return {.accounts = accounts_.memory(), .entries = entries_.fd()}; }
  Result<> load_egress(const KernelPort& port, LoadedChain& chain, const EgressConfig& config, const EgressModule& module, bool last) const;
  Result<> load_foreign(const KernelPort& port, LoadedChain& chain, const EgressConfig& config) const;
  static Result<> join(LoadedChain& chain);
  // Returns when every program that ran at the call has come to its end, and the frames that it redirected are with their devices.
  Result<> wait_for_programs() const;
  Result<Ingress> make_ingress(const KernelPort& port, bool native) const;
  Result<> attach_new(KernelPort& port, bool native);
  Result<> displace(const KernelPort& port);
  Result<> attach_port(KernelPort& port);
  Result<XdpLink> adopt_link(KernelPort& port) const;
  Result<> put_chain_in_place(const KernelPort& port, const std::vector<KernelPort>& ports);
  [[nodiscard]] int first_program(const LoadedChain& chain) const noexcept;
  [[nodiscard]] int entry_program(PortSlot port) const noexcept;
  [[nodiscard]] u32 first_socket(const KernelPort& port) const noexcept { return port.slot.value * max_queues; }

  PinFolder pins_;
  Shape shape_;
  u64 mark_, flow_seed_;
  AccountsMap accounts_;
  Mapping entries_memory_;  // struct port_entries
  BpfMap notes_, scratch_, stages_, fused_, entries_, wait_, keys_, slots_, sockets_, groups_, targets_, versions_;
  BpfMap flows4_, flows6_, rewrites_;
  Mapping flows4_memory_, flows6_memory_, rewrites_memory_;
  Devmap ports_, bare_ports_;
  struct Group {
    Devmap map;
    std::vector<PortSlot> places;  // of its entries: their keys
  };
  std::vector<Group> group_maps_;
  std::vector<std::vector<PortSlot>> group_members_;
  CommonMemory common_;
  std::map<u32, StageHalf> halves_;  // by stage number
  std::vector<LoadedChain> chains_;  // by port slot
  std::vector<Ingress> ingress_;
  std::vector<Displaced> displaced_;
  bool attached_ = false;
  std::optional<BpfObject> trace_;
  std::vector<std::pair<std::string, Fd>> trace_links_;
  BpfMap devices_, far_devices_;
  std::vector<std::string> prepared_, pin_names_;
};

}  // namespace weir
