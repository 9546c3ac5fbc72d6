// SPDX-License-Identifier: BSD-3-Clause
// kernel_side: build the kernel half of an instance bottom up, attach it last, and leave nothing behind when a step fails.
#include "core/pipeline/kernel_side.hh"

#include <linux/bpf.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <random>
#include <tuple>

#include "bpf/abi/account.h"
#include "bpf/abi/link.h"
#include "bpf/ingress/foreign.skel.h"
#include "bpf/ingress/ingress.skel.h"
#include "bpf/ingress/trace.skel.h"
#include "core/kernel/join.hh"
#include "core/pipeline/egress_config.hh"

namespace weir {
namespace {

constexpr u32 single_buffer = 3408;  // bytes: a page without headroom and what a driver keeps behind a frame (struct skb_shared_info)
#if defined(__x86_64__)
constexpr u64 weak_order = 0;  // loads are not moved before loads
#else
constexpr u64 weak_order = 1;
#endif
// Odd, so never 0; and nothing that a program's placeholder could be.
u64 draw_mark() {
  for (std::random_device dice;;)
    if (const u64 mark = (u64{dice()} << 32 | dice()) | 1; mark >> 32 != LINK_PLACEHOLDER >> 32 && mark >> 32 != LINK_MEMORY >> 32)
      return mark;
}

constexpr std::array tracing = {"devmap_xmit", "redirect_err", "exception"};

template <typename Skeleton>
std::span<const u8> elf_of() {
  std::size_t size = 0;
  const void* bytes = Skeleton::elf_bytes(&size);
  return {static_cast<const u8*>(bytes), size};
}

// A bpffs takes no dots in names (kernel/bpf/inode.c keeps them for itself).
std::string pin_name(std::string name) {
  std::ranges::replace(name, '.', '_');
  return name;
}

std::string chain_pin(PortSlot slot) { return fmt::format("chain_{}", slot.value); }

// A chain's program by the place where it runs.
std::string name_in(const LoadedChain& chain, const EgressProgram& program) {
  return chain.fused && program.foreign.empty() ? program.name + "_fused" : program.name;
}

// Whether its programs call each other, by an array that must be held.
bool calls(const LoadedChain& chain) { return chain.array.fd() >= 0 && !chain.joined; }

int program_of(const LoadedChain& chain, const EgressProgram& program) { return program.object->program_fd(name_in(chain, program)); }

// What user space knows of a program that is not ours: its name, and those of what became of frames. For good, since counters outlive the
// chain.
const egress_program& foreign_host(const std::string& name) {
  static constexpr const char* drops[] = {"dropped", "aborted", nullptr};  // enum foreign_drop
  static constexpr const char* counters[] = {nullptr};
  static std::map<std::string, egress_program, std::less<>> hosts;
  const auto [at, made] = hosts.try_emplace(name);
  if (made) {
    at->second.name = at->first.c_str();
    at->second.run = [](egress_frame*, const void*, void*) {
      return EGRESS_DROP(FOREIGN_ABORTED);
    };  // no frame comes there: PortEntry::kernel_only
    at->second.drops = drops;
    at->second.counters = counters;
  }
  return at->second;
}

std::string link_pin(const KernelPort& port) { return fmt::format("link_{}", port.ifindex.value); }

}  // namespace

Result<u8*> KernelMemory::make(std::string_view name, std::size_t entry, u32 count, bool adopt) {
  const MapShape shape = TRY(expect(name, entry, count));
  u8* at = TRY(hold(name, shape, adopt));
  TRY_VOID(object_->use(name, fd(name)));
  return at;
}

// The shape of the object's map, with so many entries.
Result<MapShape> KernelMemory::expect(std::string_view name, std::size_t entry, u32 count) const {
  if (object_ == nullptr) broken("a map of an object that is settled");
  MapShape shape = TRY(object_->shape(name));
  if (shape.value_size != entry || (shape.flags & BPF_F_MMAPABLE) == 0)
    return fail("{}: map {} has entries of {} bytes where the user half expects {}, or lacks BPF_F_MMAPABLE", prefix_, name,
                shape.value_size, entry);
  if (count > 1 && (entry % 8) != 0) return fail("{}: map {}: entries of an array must be a multiple of 8 bytes", prefix_, name);
  shape.entries = count;
  return shape;
}

Result<StageMemory::CommonBytes> KernelMemory::common_bytes(std::string_view map, std::string_view name, std::size_t entry, u32 count) {
  if (common_ == nullptr) return StageMemory::common_bytes(map, name, entry, count);
  const bool of_half = object_->has_map(map);
  if (of_half) TRY_VOID(expect(map, entry, count));
  const CommonMemory::Piece piece = TRY(common_->get(common_name(plugin_, map, name), map, entry, count));
  if (of_half) TRY_VOID(object_->use(map, piece.fd));
  return CommonBytes{piece.bytes, piece.first};
}

Result<u8*> KernelMemory::value(std::string_view name, std::size_t size) {
  return hold(name, {BPF_MAP_TYPE_ARRAY, 4, static_cast<u32>(size), 1, BPF_F_MMAPABLE}, adopt_);
}

std::string common_name(std::string_view plugin, std::string_view map, std::string_view name) {
  return pin_name(fmt::format("common_{}_{}_{}", plugin, map, name));
}

std::string KernelMemory::pin_of(std::string_view name) const { return pin_name(fmt::format("{}_{}", prefix_, name)); }

Result<u8*> KernelMemory::hold(std::string_view name, const MapShape& shape, bool adopt) {
  const std::string pin = pin_of(name);
  Result<BpfMap> map = fail("not adopted");
  if (adopt) {
    if (Fd fd = TRY(pins_.get(pin))) map = BpfMap::adopt(std::move(fd), shape);
  }
  if (!map) map = BpfMap::create(name, shape);
  BpfMap made = TRY(std::move(map));
  Mapping memory = TRY(made.map_memory());
  u8* at = memory.data();
  held_.insert_or_assign(pin, Held{std::move(made), std::move(memory)});
  return at;
}

KernelMemory::Shown KernelMemory::show(std::string_view map) const noexcept {
  const auto at = held_.find(pin_of(map));
  if (at == held_.end()) return {nullptr, 0, 0};
  const MapShape& shape = at->second.map.shape();
  return {at->second.memory.data(), shape.value_size, shape.entries};
}

Result<> KernelMemory::commit_pins() const {
  for (const auto& [name, held] : held_) TRY_VOID(pins_.commit(name));
  return {};
}

Result<> KernelMemory::prepare_pins() const {
  for (const auto& [name, held] : held_) TRY_VOID(pins_.prepare(name, held.map.fd()));
  return {};
}

std::vector<std::string> KernelMemory::pin_names() const {
  std::vector<std::string> names;
  for (const auto& [name, held] : held_) names.push_back(name);
  return names;
}

group_targets targets_of(std::span<const PortSlot> reachable, u32 longest) noexcept {
  group_targets targets{};
  targets.longest = longest;
  for (u16 from = 0; from < WEIR_MAX_PORTS; ++from) {
    targets.only[from] = WEIR_NONE;
    for (PortSlot to : reachable)
      if (to.value != from) targets.only[from] = ++targets.fan_out[from] == 1 ? static_cast<u8>(to.value) : WEIR_MANY;
  }
  for (PortSlot to : reachable) targets.members[targets.count++] = static_cast<u8>(to.value);
  return targets;
}

KernelSide::KernelSide(PinFolder pins, const Shape& shape)
    : pins_(std::move(pins)), shape_(shape), mark_(draw_mark()), flow_seed_(draw_mark()), common_(pins_, shape.adopt) {}

Result<std::unique_ptr<KernelSide>> KernelSide::create(PinFolder pins, const Shape& shape) {
  std::unique_ptr<KernelSide> side(new KernelSide(std::move(pins), shape));
  TRY_VOID(side->create_maps());
  return side;
}

KernelSide::~KernelSide() {
  // After a start that failed half-way, the folder of an instance that never ran is not left behind.
  if (!pins_.found() && pin_names_.empty()) pins_.remove_all_but({});
}

Result<> KernelSide::create_maps() {
  Result<AccountsMap> found = fail("not adopted");
  if (shape_.adopt) {
    if (Fd fd = TRY(pins_.get("accounts"))) found = AccountsMap::adopt(std::move(fd), shape_.rows, shape_.blocks);
  }
  accounts_ = found ? std::move(*found) : TRY(AccountsMap::create(shape_.rows, shape_.blocks));
  notes_ = TRY(BpfMap::create("notes", {BPF_MAP_TYPE_RINGBUF, 0, 0, NOTE_RING_BYTES, 0}));
  scratch_ = TRY(BpfMap::create("scratch", {BPF_MAP_TYPE_PERCPU_ARRAY, 4, sizeof(scratch), 1, 0}));
  stages_ = TRY(BpfMap::create("stages", {BPF_MAP_TYPE_PROG_ARRAY, 4, 4, WEIR_MAX_STAGES, 0}));
  fused_ = TRY(BpfMap::create("fused", {BPF_MAP_TYPE_PROG_ARRAY, 4, 4, WEIR_MAX_PORTS, 0}));
  entries_ = TRY(BpfMap::create("entries", {BPF_MAP_TYPE_ARRAY, 4, sizeof(port_entries), 1, BPF_F_MMAPABLE}));
  entries_memory_ = TRY(entries_.map_memory());
  wait_ = TRY(BpfMap::create("wait", {BPF_MAP_TYPE_ARRAY_OF_MAPS, 4, 4, 1, 0}, entries_.fd()));
  keys_ = TRY(BpfMap::create("keys", {BPF_MAP_TYPE_ARRAY, 4, 4, WEIR_MAX_PORTS, 0}));
  // Not an earlier run's: of its flows nobody knows any more what they are of.
  const u32 places = std::max(shape_.flows, 1u);
  flows4_ = TRY(BpfMap::create("flows4", {BPF_MAP_TYPE_ARRAY, 4, sizeof(flow4), places, BPF_F_MMAPABLE}));
  flows6_ = TRY(BpfMap::create("flows6", {BPF_MAP_TYPE_ARRAY, 4, sizeof(flow6), places, BPF_F_MMAPABLE}));
  rewrites_ = TRY(BpfMap::create("rewrites", {BPF_MAP_TYPE_ARRAY, 4, sizeof(flow_rewrite), places, BPF_F_MMAPABLE}));
  flows4_memory_ = TRY(flows4_.map_memory());
  flows6_memory_ = TRY(flows6_.map_memory());
  rewrites_memory_ = TRY(rewrites_.map_memory());
  ports_ = TRY(Devmap::create("ports", shape_.form, WEIR_MAX_PORTS));
  bare_ports_ = TRY(Devmap::create("bare_ports", shape_.form, WEIR_MAX_PORTS));
  sockets_ = TRY(BpfMap::create("sockets", {BPF_MAP_TYPE_XSKMAP, 4, 4, WEIR_MAX_PORTS * max_queues, 0}));
  const Devmap group = TRY(Devmap::create("group", DevmapForm::array, 1));
  groups_ = TRY(BpfMap::create("groups", {BPF_MAP_TYPE_ARRAY_OF_MAPS, 4, 4, 2 * WEIR_MAX_GROUPS, 0}, group.map().fd()));
  targets_ = TRY(BpfMap::create("targets", {BPF_MAP_TYPE_ARRAY, 4, sizeof(group_targets), 2 * WEIR_MAX_GROUPS, 0}));
  versions_ = TRY(BpfMap::create("versions", {BPF_MAP_TYPE_ARRAY, 4, 4, WEIR_MAX_GROUPS, 0}));
  // The tracing programs of an earlier run, if they are adopted, go on looking where they did.
  for (const auto& [map, name, shape] : {std::tuple{&devices_, "devices", MapShape{BPF_MAP_TYPE_ARRAY, 4, 4, WEIR_NEAR_DEVICES, 0}},
                                         {&far_devices_, "far_devices", MapShape{BPF_MAP_TYPE_HASH, 4, 4, WEIR_MAX_PORTS, 0}},
                                         {&slots_, "slots", MapShape{BPF_MAP_TYPE_HASH, 4, 4, WEIR_MAX_PORTS, 0}}}) {
    Result<BpfMap> made = fail("not adopted");
    if (shape_.adopt) {
      if (Fd fd = TRY(pins_.get(name))) made = BpfMap::adopt(std::move(fd), shape);
    }
    *map = made ? std::move(*made) : TRY(BpfMap::create(name, shape));
  }
  return {};
}

// Gives an object the instance's maps in place of the ones that its header declares.
Result<> KernelSide::share(BpfObject& object) const {
  const std::pair<const char*, const BpfMap*> shared[] = {{"accounts", &accounts_.map()},
                                                          {"scratch", &scratch_},
                                                          {"stages", &stages_},
                                                          {"ports", &ports_.map()},
                                                          {"bare_ports", &bare_ports_.map()},
                                                          {"fused", &fused_},
                                                          {"keys", &keys_},
                                                          {"slots", &slots_},
                                                          {"sockets", &sockets_},
                                                          {"groups", &groups_},
                                                          {"targets", &targets_},
                                                          {"versions", &versions_},
                                                          {"flows4", &flows4_},
                                                          {"flows6", &flows6_},
                                                          {"rewrites", &rewrites_},
                                                          {"devices", &devices_},
                                                          {"far_devices", &far_devices_}};
  for (const auto& [name, map] : shared)
    if (object.has_map(name)) TRY_VOID(object.use(name, map->fd()));
  return {};
}

FlowTable::Memory KernelSide::flows() const noexcept {
  const auto span = [&]<typename T>(const Mapping& memory, T*) { return std::span(reinterpret_cast<T*>(memory.data()), shape_.flows); };
  return {span(flows4_memory_, static_cast<flow4*>(nullptr)), span(flows6_memory_, static_cast<flow6*>(nullptr)),
          span(rewrites_memory_, static_cast<flow_rewrite*>(nullptr)), &entries_now()};
}

void KernelSide::set_clock(u32 now_s) noexcept { std::atomic_ref(entries_now().now_s).store(now_s, std::memory_order_relaxed); }

Result<StageHalf> KernelSide::open_half(const KernelStage& stage, bool adopt) {
  StageHalf half;
  half.object = std::make_unique<BpfObject>(TRY(BpfObject::open("stage " + stage.name, stage.plugin->kernel_half())));
  half.memory =
      std::make_unique<KernelMemory>(*half.object, pins_, fmt::format("stage_{}", stage.number), adopt, common_, stage.plugin->name);
  return half;
}

Result<StageMemory*> KernelSide::open_stage(const KernelStage& stage) {
  StageHalf half = TRY(open_half(stage, shape_.adopt));
  StageMemory* memory = half.memory.get();
  halves_.insert_or_assign(stage.number, std::move(half));
  return memory;
}

Result<> KernelSide::load_stage(const KernelStage& stage) {
  StageHalf& half = halves_.at(stage.number);
  TRY_VOID(load_half(half, stage));
  const int program = half.object->program_fd(half.object->first_program());
  return stages_.set(stage.number, &program);
}

Result<> KernelSide::load_half(StageHalf& half, const KernelStage& stage) const {
  half.link = {stage.number, stage.block, stage.go, stage.next, shape_.ports, stage.miss, shape_.keyed, shape_.frags, stage.offloads};
  const std::string name = half.object->first_program();
  TRY_VOID(share(*half.object));
  TRY_VOID(half.object->link(program_link{accounts_.link(), half.link, {}}, memory()));
  half.object->set_frags(shape_.frags);
  return half.object->load(name);
}

Result<> KernelSide::replace_half(u32 stage, StageHalf& half, const std::vector<KernelPort>& ports) {
  StageHalf& now = halves_.at(stage);
  std::swap(now, half);
  std::vector<std::pair<Ingress*, Ingress>> entries;  // of the ports whose program it is part of
  const auto make = [&]() -> Result<> {
    for (const KernelPort& port : ports)
      for (Ingress& made : ingress_)
        if (port.go == WEIR_GO_STAGE && port.next == stage && made.pin == link_pin(port))
          entries.emplace_back(&made, TRY(make_ingress(port, made.native)));
    return {};
  };
  const auto put = [&](const StageHalf& of, bool fresh, std::size_t count) -> Result<> {
    const int program = of.object->program_fd(of.object->first_program());
    TRY_VOID(stages_.set(stage, &program));
    for (std::size_t i = 0; i < count; ++i) {
      const auto& [made, next] = entries[i];
      const Result<> done = made->link.replace(fresh ? next.program : made->program);
      if (!done && done.error().errno_value != ENOLINK) return done;  // the device has gone, and gets the new program when it comes back
    }
    return {};
  };
  Result<> done = make();
  if (done) done = now.memory->prepare_pins();
  if (done) done = common_.prepare_pins();
  if (done) {
    done = put(now, true, entries.size());
    if (done) done = wait_for_programs();
    if (done) done = now.memory->commit_pins();
    if (done) done = common_.commit_pins();
    if (!done) static_cast<void>(put(half, false, entries.size()));
  }
  if (!done) {
    std::swap(now, half);
    pins_.forget_prepared();
    return done;
  }
  for (auto& [made, next] : entries) {
    made->object = std::move(next.object);
    made->program = next.program;
  }
  const std::vector<std::string> kept = now.memory->pin_names();
  for (const std::string& name : half.memory->pin_names())
    if (std::ranges::find(kept, name) == kept.end()) pins_.remove(name);
  return {};
}

Result<> KernelSide::load_egress(const KernelPort& port, LoadedChain& chain, const EgressConfig& config, const EgressModule& module,
                                 bool last) const {
  const u32 place = static_cast<u32>(chain.programs.size());
  const std::string pin =
      fmt::format("egress_{}_{}{}", port.slot.value, place, chain.generation > 0 ? fmt::format("_{}", chain.generation) : "");
  EgressProgram made;
  made.name = config.program;
  made.block = port.egress_block + chain.generation % 2 * static_cast<u32>(max_egress_chain) + place;
  made.object = std::make_unique<BpfObject>(TRY(BpfObject::open("egress " + config.program, module.elf)));
  made.memory = std::make_unique<KernelMemory>(*made.object, pins_, pin, shape_.adopt && chain.generation == 0);
  u8*& settings = made.settings;
  // Not adopted: what an earlier run left still works by its own keys, until attach().
  if (made.object->has_map(".data.config")) settings = TRY(made.memory->fresh(".data.config", module.host->config_size, 1));
  if (settings != nullptr) fill_egress_config(*module.host, config.keys, {port.mac, port.mtu}, settings);
  const std::size_t stride = egress_stride(*module.host);
  u8* state = TRY(made.memory->value("state", stride * (EGRESS_FIRST_ROW + shape_.rows))) + EGRESS_FIRST_ROW * stride;
  u8* shared = nullptr;
  if (module.host->shared_size != nullptr)
    shared = TRY(made.memory->bytes(".data.shared", WEIR_FRAME_NOTES + *module.host->shared_size, 1)) + WEIR_FRAME_NOTES;
  TRY_VOID(made.object->use("accounts", accounts_.fd()));
  TRY_VOID(made.object->use("bare_ports", bare_ports_.map().fd()));
  if (made.object->has_map("notes")) TRY_VOID(made.object->use("notes", notes_.fd()));
  if (made.object->has_map("chain")) TRY_VOID(made.object->use("chain", chain.array.fd()));
  TRY_VOID(made.object->link(
      egress_link{accounts_.link(), made.block, last ? WEIR_NO_NEXT : place + 1, port.slot.value, port.key, shape_.frags, place},
      {.accounts = accounts_.memory(), .state = made.memory->fd("state"), .entries = entries_.fd()}));
  const std::string name = name_in(chain, made);
  made.object->set_frags(shape_.frags);
  TRY_VOID(made.object->load(name));
  const int program = made.object->program_fd(name);
  made.id = program_id(program);
  made.host = {module.host, settings, state, stride, shared, made.block};
  chain.programs.push_back(std::move(made));
  return {};
}

Result<LoadedChain> KernelSide::load_chain(const KernelPort& port, const std::vector<EgressConfig>& configs, const Registry& registry,
                                           u32 generation) const {
  LoadedChain chain;
  chain.fused = port.fused;
  chain.configs = configs;
  chain.generation = generation;
  if (!configs.empty()) chain.array = TRY(BpfMap::create("chain", {BPF_MAP_TYPE_PROG_ARRAY, 4, 4, max_egress_chain, 0}));
  for (const EgressConfig& config : configs) {
    if (!config.object.empty()) TRY_VOID(load_foreign(port, chain, config));
    else TRY_VOID(load_egress(port, chain, config, *registry.egress_module(config.program), &config == &configs.back()));
  }
  TRY_VOID(join(chain));
  for (u32 place = 0; place < chain.programs.size() && !chain.joined; ++place) {
    const bool last = chain.last && place + 1 == chain.programs.size();
    const int program = last ? chain.last.get() : program_of(chain, chain.programs[place]);
    TRY_VOID(chain.array.set(place, &program));
  }
  return chain;
}

// Programs that cannot be one call each other: those with functions, or too much together. A foreign one is always within ours, which
// counts what it drops: without the others then, as the last that they call.
Result<> KernelSide::join(LoadedChain& chain) {
  std::vector<JoinPart> parts;
  for (const EgressProgram& program : chain.programs) {
    const bool foreign = program.around != nullptr;
    parts.push_back({foreign ? *program.around : *program.object, foreign ? "foreign" : name_in(chain, program),
                     static_cast<u32>(parts.size()) + 1,
                     foreign ? program.object->instructions(program.name) : std::span<const bpf_insn>()});
  }
  const bool foreign = !chain.programs.empty() && chain.programs.back().around != nullptr;
  if (parts.size() < 2 && !foreign) return {};
  const auto within = [&](const Error& error) {
    return fail("program {} cannot run within weir's, which counts what it drops: {}", chain.programs.back().name, error.what);
  };
  Result<Fd> joined = join_programs("chain", parts, chain.array);
  if (!joined && joined.error().failure != Failure::unsupported) return foreign ? within(joined.error()) : std::unexpected(joined.error());
  if (!joined && foreign) {
    Result<Fd> alone = join_programs("foreign", std::span(parts).last(1), chain.array);
    if (!alone) return within(alone.error());
    chain.programs.back().id = program_id(alone->get());
    chain.last = std::move(*alone);
  }
  if (!joined) return {};
  chain.joined = std::move(*joined);
  for (EgressProgram& program : chain.programs) {
    program.id = program_id(chain.joined.get());
    if (program.memory) program.memory->settle();
    program.object.reset();
    program.around.reset();
  }
  return {};
}

// Its maps are its own, and go with it; how much support of frags it has its section says, and has been checked.
Result<> KernelSide::load_foreign(const KernelPort& port, LoadedChain& chain, const EgressConfig& config) const {
  const u32 place = static_cast<u32>(chain.programs.size());
  EgressProgram made;
  made.block = port.egress_block + chain.generation % 2 * static_cast<u32>(max_egress_chain) + place;
  made.around = std::make_unique<BpfObject>(TRY(BpfObject::open("foreign", elf_of<::foreign>())));
  TRY_VOID(made.around->use("accounts", accounts_.fd()));
  TRY_VOID(made.around->use("bare_ports", bare_ports_.map().fd()));
  TRY_VOID(made.around->use("chain", chain.array.fd()));
  TRY_VOID(
      made.around->link(egress_link{accounts_.link(), made.block, WEIR_NO_NEXT, port.slot.value, port.key, shape_.frags, place}, memory()));
  made.around->set_frags(shape_.frags);
  TRY_VOID(made.around->load("foreign"));
  made.name = config.program;
  made.foreign = TRY(read_file(config.object));
  made.object = std::make_unique<BpfObject>(TRY(BpfObject::open(config.object, made.foreign)));
  TRY_VOID(made.object->load(config.program));
  const int program = made.object->program_fd(config.program);
  made.id = program_id(program);
  made.host = {&foreign_host(config.program), nullptr, nullptr, 0, nullptr, made.block};
  chain.programs.push_back(std::move(made));
  return {};
}

Result<> KernelSide::add_port(const KernelPort& port, LoadedChain chain) {
  if (chains_.size() <= port.slot.value) chains_.resize(port.slot.value + 1u);
  chains_[port.slot.value] = std::move(chain);
  const u32 slot = port.slot.value;
  TRY_VOID(keys_.set(slot, &port.key));
  TRY_VOID(slots_.set(port.key, &slot));
  TRY_VOID(set_entry(port));
  const u32 block = port.block + 1;
  return (port.ifindex.value < WEIR_NEAR_DEVICES ? devices_ : far_devices_).set(port.ifindex.value, &block);
}

Result<LoadedChain> KernelSide::replace_chain(const KernelPort& port, LoadedChain next, const std::vector<KernelPort>& ports) {
  LoadedChain& now = chains_[port.slot.value];
  std::swap(now, next);
  Result<> done = put_chain_in_place(port, ports);
  // A program array that nobody holds any more is emptied at once (kernel/bpf/arraymap.c, bpf_fd_array_map_clear), under the programs that
  // still jump through it.
  if (done) done = wait_for_programs();
  if (!done) {
    std::swap(now, next);
    static_cast<void>(put_chain_in_place(port, ports));
    return std::unexpected(std::move(done).error());
  }
  return next;
}

// Groups first: whether the kernel may flood at all depends on the chain too. A group and an entry are each replaced in one step, and the
// frames of one flush all take the program of the first of them (kernel/bpf/devmap.c, bq_enqueue), so that none sees two chains.
Result<> KernelSide::put_chain_in_place(const KernelPort& port, const std::vector<KernelPort>& ports) {
  TRY_VOID(set_groups_of(port, ports));
  return set_entry(port);
}

Result<> KernelSide::set_groups_of(const KernelPort& port, const std::vector<KernelPort>& ports) {
  for (u16 group = 0; group < group_members_.size(); ++group) {
    const std::vector<PortSlot> members = group_members_[group];
    if (std::ranges::find(members, port.slot) != members.end()) TRY_VOID(set_group(GroupSlot{group}, members, ports));
  }
  return {};
}

// The kernel waits for programs that may work with the map that is replaced, whichever it is (kernel/bpf/syscall.c,
// maybe_wait_bpf_programs). A device's poll ends with the flush of what it redirected, and the wait covers the whole of it.
Result<> KernelSide::wait_for_programs() const {
  const int inner = entries_.fd();
  return wait_.set(0, &inner);
}

void KernelSide::refill_egress(const KernelPort& port) {
  LoadedChain& chain = chains_[port.slot.value];
  for (std::size_t place = 0; place < chain.programs.size(); ++place)
    if (EgressProgram& program = chain.programs[place]; program.settings != nullptr)
      fill_egress_config(*program.host.program, chain.configs[place].keys, {port.mac, port.mtu}, program.settings);
}

int KernelSide::first_program(const LoadedChain& chain) const noexcept {
  if (chain.joined) return chain.joined.get();
  return chain.last && chain.programs.size() == 1 ? chain.last.get() : program_of(chain, chain.programs.front());
}

// A fused chain's programs do not stand on entries.
int KernelSide::entry_program(PortSlot port) const noexcept {
  const LoadedChain& chain = chains_[port.value];
  return chain.programs.empty() || chain.fused ? -1 : first_program(chain);
}

// The new way is there before the old one goes, and a chain that runs finds its bare entry to the end. A fused port has no entry in
// `ports`: a frame that finds its chain gone while that changes must not leave without it.
Result<> KernelSide::set_entry(const KernelPort& port) {
  const u32 slot = port.slot.value;
  const LoadedChain& chain = chains_[slot];
  const auto without = [&](const Devmap& map) -> Result<> {
    if (Result<> gone = map.remove(port.key); !gone && gone.error().failure != Failure::missing) return gone;
    return {};
  };
  // In this order a program that sees some of it takes the long way.
  const auto state = [&](bool fused, bool deleted, bool present) {
    const u64 bit = u64{1} << slot;
    const auto set = [bit](u64& word, bool to) {
      if (to) std::atomic_ref(word).fetch_or(bit);
      else std::atomic_ref(word).fetch_and(~bit);
    };
    if (!present) set(entries_now().present, false);
    set(entries_now().fused, fused);
    set(entries_now().deleted, deleted);
    if (present) set(entries_now().present, true);
  };
  const auto unfuse = [&]() -> Result<> {
    fused_.remove(slot);
    if (attached_ && bare_ports_.get(port.key)) TRY_VOID(wait_for_programs());
    return without(bare_ports_);
  };
  if (port.deleted || !port.redirectable || !port.takes_redirects) {
    state(false, port.deleted, false);
    TRY_VOID(unfuse());
    return without(ports_);
  }
  if (chain.programs.empty() || !chain.fused) {
    TRY_VOID(ports_.set(port.key, port.ifindex, entry_program(port.slot)));
    state(false, false, true);
    return unfuse();
  }
  const int program = first_program(chain);
  TRY_VOID(bare_ports_.set(port.key, port.ifindex));
  TRY_VOID(fused_.set(slot, &program));
  state(true, false, true);
  return without(ports_);
}

Result<> KernelSide::set_group(GroupSlot group, const std::vector<PortSlot>& members, const std::vector<KernelPort>& ports) {
  if (group_maps_.size() <= group.value) group_maps_.resize(group.value + 1u), group_members_.resize(group.value + 1u);
  if (!attached_) group_members_[group.value] = members;  // also of a try that fails: attach() makes it again
  const bool generic = std::ranges::any_of(ports, [](const KernelPort& port) { return port.mode == Mode::generic; });
  u32 longest = ~0u;
  std::vector<PortSlot> reachable;  // a broadcast would skip a device that is down without a word
  for (PortSlot member : members) {
    auto port = std::ranges::find(ports, member, &KernelPort::slot);
    if (port != ports.end() && port->deleted) continue;
    const bool redirectable = port != ports.end() && port->redirectable && port->takes_redirects;
    if (!redirectable) longest = 0;  // only user space sends there
    if (!redirectable || port->longest == 0) continue;
    // In generic mode the clones of a frame share its bytes (kernel/bpf/devmap.c, dev_map_redirect_clone), and a program may write into
    // them.
    // What runs before a redirect does not run before a flood.
    if (const LoadedChain& chain = chains_[member.value]; !chain.programs.empty() && (generic || chain.fused)) longest = 0;
    // A broadcast leaves out a member that does not take frames of several buffers (kernel/bpf/devmap.c, is_valid_dst).
    longest = std::min(longest, port->scatters ? port->longest : std::min(port->longest, single_buffer));
    reachable.push_back(member);
  }
  // As large as it is full: a broadcast looks at every key of an array, also at those that are empty (bench/README.md).
  Devmap map = TRY(Devmap::create("group", DevmapForm::array, std::max<u32>(1, static_cast<u32>(reachable.size()))));
  for (u32 place = 0; place < reachable.size(); ++place) {
    const auto port = std::ranges::find(ports, reachable[place], &KernelPort::slot);
    TRY_VOID(map.set(place, port->ifindex, entry_program(port->slot)));
  }
  const group_targets targets = targets_of(reachable, longest);
  const int fd = map.map().fd();
  u32 version = 0;
  static_cast<void>(versions_.get(group.value, &version));
  version ^= 1;
  const u32 at = group.value + version * WEIR_MAX_GROUPS;
  TRY_VOID(groups_.set(at, &fd));
  TRY_VOID(targets_.set(at, &targets));
  TRY_VOID(versions_.set(group.value, &version));
  const Group before = std::exchange(group_maps_[group.value], {std::move(map), std::move(reachable)});
  group_members_[group.value] = members;
  return attached_ ? wait_for_programs() : Result<>();
}

Result<> KernelSide::prepare_chain_pins(const LoadedChain& chain, PortSlot slot) const {
  if (calls(chain)) TRY_VOID(pins_.prepare(chain_pin(slot), chain.array.fd()));
  for (const EgressProgram& program : chain.programs)
    if (program.memory) TRY_VOID(program.memory->prepare_pins());
  return {};
}

Result<> KernelSide::commit_chain_pins(const LoadedChain& chain, const LoadedChain& old, PortSlot slot) {
  std::vector<std::string> names, gone;
  if (calls(chain)) names.push_back(chain_pin(slot));
  if (calls(old)) gone.push_back(chain_pin(slot));
  const auto collect = [](const LoadedChain& from, std::vector<std::string>& into) {
    for (const EgressProgram& program : from.programs)
      if (program.memory) std::ranges::copy(program.memory->pin_names(), std::back_inserter(into));
  };
  collect(chain, names);
  collect(old, gone);
  for (const std::string& name : names) TRY_VOID(pins_.commit(name));
  for (const std::string& name : gone)
    if (std::ranges::find(names, name) == names.end()) pins_.remove(name);
  return {};
}

std::vector<std::pair<PortSlot, DeviceEntry>> KernelSide::group(GroupSlot group) const {
  const Group& held = group_maps_.at(group.value);
  std::vector<std::pair<PortSlot, DeviceEntry>> entries;
  for (const auto& [place, entry] : held.map.all()) entries.emplace_back(held.places[place], entry);
  std::ranges::sort(entries, {}, [](const auto& each) { return each.first.value; });
  return entries;
}

bool KernelSide::floods(GroupSlot group) const noexcept {
  group_targets targets{};
  u32 version = 0;
  return versions_.get(group.value, &version) && targets_.get(group.value + version * WEIR_MAX_GROUPS, &targets) && targets.longest > 0;
}

Result<> KernelSide::set_socket(const KernelPort& port, QueueId queue, int socket_fd) {
  return sockets_.set(first_socket(port) + queue.value, &socket_fd);
}

// The program that a port's device gets: the first stage's own, which the ingress program is part of, or the ingress program alone.
Result<KernelSide::Ingress> KernelSide::make_ingress(const KernelPort& port, bool native) const {
  const auto first = port.go == WEIR_GO_STAGE ? halves_.find(port.next) : halves_.end();
  const bool fused = first != halves_.end();
  BpfObject object = fused ? TRY(first->second.object->again()) : TRY(BpfObject::open("ingress", elf_of<ingress>()));
  if (fused) TRY_VOID(object.use_maps_of(*first->second.object));
  else TRY_VOID(share(object));
  const std::string name = fused ? object.first_program() + "_entry" : "ingress";
  stage_link stage{.ports = shape_.ports, .miss = XDP_DROP, .keyed = shape_.keyed, .frags = shape_.frags};
  if (fused) stage = first->second.link;
  const u64 flow_mask = port.flows && shape_.flows > 0 ? shape_.flows - 1 : 0;
  const ingress_link link{native ? 0 : mark_, port.slot.value, first_socket(port), port.queues,   port.go,
                          port.next,          flow_mask,       flow_seed_,         shape_.blocks, weak_order};
  TRY_VOID(object.link(program_link{accounts_.link(), stage, link}, memory()));
  object.set_frags(shape_.frags);
  TRY_VOID(object.load(name));
  const int program = object.program_fd(name);
  return Ingress{std::move(object), program, {}, {}, link_pin(port), false, native};
}

// New devices first: when one refuses, those before it are let go of again and what ran is as it was. Devices that an earlier run left
// under its program are then switched over, each between two frames.
Result<> KernelSide::attach(std::vector<KernelPort>& ports) {
  TRY_VOID(trace());
  for (KernelPort& port : ports) TRY_WITHIN_VOID(fmt::format("port {}, device {}", port.name, port.device), attach_port(port));
  // A driver without native XDP has no ndo_xdp_xmit: a native port's redirect to it would fail, and a flood would leave it out. Whether the
  // driver of one in generic mode has it nobody tells before libbpf 1.2.
  const bool native = std::ranges::any_of(ports, [](const KernelPort& port) { return port.mode == Mode::native; });
  for (KernelPort& port : ports) {
    port.takes_redirects = port.mode == Mode::native || !native;
    TRY_VOID(set_entry(port));
  }
  for (u16 group = 0; group < group_members_.size(); ++group) TRY_VOID(set_group(GroupSlot{group}, group_members_[group], ports));
  attached_ = true;
  for (Ingress& made : ingress_) {
    if (!made.adopted) continue;
    made.previous = TRY(made.link.program());
    TRY_VOID(made.link.replace(made.program));
  }
  return {};
}

Result<> KernelSide::follow(KernelPort& port, const KernelPort& before, Mode mode) {
  port.mode = mode;
  TRY_VOID(attach_port(port));
  const Result<> done = [&]() -> Result<> {
    const auto other_native = [&](const Ingress& made) {
      return made.native && made.pin != link_pin(port) && made.pin != link_pin(before);
    };
    port.takes_redirects = port.mode == Mode::native || std::ranges::none_of(ingress_, other_native);
    const u32 block = port.block + 1;
    TRY_VOID((port.ifindex.value < WEIR_NEAR_DEVICES ? devices_ : far_devices_).set(port.ifindex.value, &block));
    refill_egress(port);
    TRY_VOID(set_entry(port));
    TRY_VOID(pins_.prepare(link_pin(port), ingress_.back().link.fd()));
    return pins_.commit(link_pin(port));
  }();
  if (!done) {
    KernelPort unreached = port;
    unreached.redirectable = false;
    static_cast<void>(set_entry(unreached));
    const u32 none = 0;
    static_cast<void>((port.ifindex.value < WEIR_NEAR_DEVICES ? devices_ : far_devices_).set(port.ifindex.value, &none));
    ingress_.back().link.detach();
    ingress_.pop_back();
    pins_.forget_prepared();
    return done;
  }
  std::erase_if(ingress_, [&](const Ingress& made) { return made.pin == link_pin(before); });
  pins_.remove(link_pin(before));
  const u32 none = 0;
  if (before.ifindex.value >= WEIR_NEAR_DEVICES) far_devices_.remove(before.ifindex.value);
  else static_cast<void>(devices_.set(before.ifindex.value, &none));
  return {};
}

Result<> KernelSide::attach_port(KernelPort& port) {
  Result<XdpLink> link = adopt_link(port);
  if (link) {
    Ingress made = TRY(make_ingress(port, port.mode == Mode::native));
    made.link = std::move(*link);
    made.adopted = true;
    ingress_.push_back(std::move(made));
    return {};
  }
  if (link.error().failure != Failure::missing) return std::unexpected(std::move(link).error());
  TRY_VOID(displace(port));
  Result<> done = unsupported("not tried");
  if (port.mode != Mode::generic) done = attach_new(port, true);
  if (!done && done.error().failure == Failure::unsupported && port.mode != Mode::native) done = attach_new(port, false);
  if (!done && done.error().failure == Failure::unsupported) return fail("{}; set mode = \"auto\" or \"generic\"", done.error().what);
  return done;
}

// A link of an earlier run in a mode that the file no longer allows would keep the device busy. give_back() attaches its program again.
Result<> KernelSide::displace(const KernelPort& port) {
  const std::string pin = link_pin(port);
  for (const bool native : {true, false}) {
    Result<XdpLink> link = XdpLink::adopt(TRY(pins_.get(pin)), port.ifindex, native);
    if (!link && link.error().failure != Failure::missing) return std::unexpected(std::move(link).error());
    if (!link) continue;
    displaced_.push_back({TRY(link->program()), port.ifindex, native, pin});
    link->detach();
  }
  pins_.remove(pin);  // also of another device
  return {};
}

Result<> KernelSide::attach_new(KernelPort& port, bool native) {
  Ingress made = TRY(make_ingress(port, native));
  made.link = TRY(XdpLink::attach(made.program, port.ifindex, native));
  port.mode = native ? Mode::native : Mode::generic;
  ingress_.push_back(std::move(made));
  return {};
}

Result<> KernelSide::expect_free(const KernelPort& port) const {
  for (const bool native : {true, false}) {
    const Result<XdpLink> link = XdpLink::adopt(TRY(pins_.get(link_pin(port))), port.ifindex, native);
    if (link) return {};
    if (link.error().failure != Failure::missing) return std::unexpected(link.error());
  }
  return XdpLink::expect_free(port.ifindex);
}

// The link of an earlier run, in a mode that the port allows.
Result<XdpLink> KernelSide::adopt_link(KernelPort& port) const {
  for (const Mode mode : {Mode::native, Mode::generic}) {
    if (port.mode != Mode::automatic && port.mode != mode) continue;
    Result<XdpLink> link = XdpLink::adopt(TRY(pins_.get(link_pin(port))), port.ifindex, mode == Mode::native);
    if (!link && link.error().failure == Failure::missing) continue;
    if (link) port.mode = mode;
    return link;
  }
  return missing("no link of an earlier run");
}

std::size_t KernelSide::tracing_hash() {
  const std::span<const u8> elf = elf_of<::trace>();
  return std::hash<std::string_view>{}({reinterpret_cast<const char*>(elf.data()), elf.size()});
}

// Tracing programs of an earlier run count into the same accounts when these were adopted; a second set would count twice.
Result<> KernelSide::trace() {
  if (shape_.adopt) {
    for (const char* name : tracing)
      if (Fd link = TRY(pins_.get(std::string("trace_") + name))) trace_links_.emplace_back(std::string("trace_") + name, std::move(link));
    if (trace_links_.size() == tracing.size()) return {};
    trace_links_.clear();
  }
  const trace_link link{accounts_.link(), shape_.netns, shape_.keyed};
  trace_.emplace(TRY(BpfObject::open("tracepoints", elf_of<::trace>())));
  TRY_VOID(share(*trace_));
  TRY_VOID(trace_->link(link, memory()));
  TRY_VOID(trace_->load());
  for (const char* name : tracing) trace_links_.emplace_back(std::string("trace_") + name, TRY(trace_->attach_tracing(name)));
  return {};
}

Result<> KernelSide::prepare_pins(const std::vector<const KernelMemory*>& others) {
  std::vector<std::string>& kept = prepared_;
  const auto put = [&](const std::string& name, int fd) {
    kept.push_back(name);
    return pins_.prepare(name, fd);
  };
  // A program array forgets its programs when the last descriptor closes, unless it is pinned.
  TRY_VOID(put("accounts", accounts_.fd()));
  TRY_VOID(put("stages", stages_.fd()));
  TRY_VOID(put("ports", ports_.map().fd()));
  TRY_VOID(put("bare_ports", bare_ports_.map().fd()));
  TRY_VOID(put("fused", fused_.fd()));
  TRY_VOID(put("devices", devices_.fd()));
  TRY_VOID(put("far_devices", far_devices_.fd()));
  TRY_VOID(put("slots", slots_.fd()));
  for (std::size_t slot = 0; slot < chains_.size(); ++slot)
    if (calls(chains_[slot])) TRY_VOID(put(chain_pin(PortSlot{static_cast<u16>(slot)}), chains_[slot].array.fd()));
  const auto put_memory = [&](const KernelMemory& memory) {
    for (const std::string& name : memory.pin_names()) kept.push_back(name);
    return memory.prepare_pins();
  };
  for (const auto& [number, half] : halves_) TRY_VOID(put_memory(*half.memory));
  std::ranges::copy(common_.pin_names(), std::back_inserter(kept));
  TRY_VOID(common_.prepare_pins());
  for (const LoadedChain& chain : chains_)
    for (const EgressProgram& program : chain.programs)
      if (program.memory) TRY_VOID(put_memory(*program.memory));
  for (const KernelMemory* memory : others) TRY_VOID(put_memory(*memory));
  for (const auto& [name, link] : trace_links_) TRY_VOID(put(name, link.get()));
  for (const Ingress& ingress : ingress_) TRY_VOID(put(ingress.pin, ingress.link.fd()));
  return {};
}

Result<> KernelSide::commit_pins() {
  for (const std::string& name : prepared_) TRY_VOID(pins_.commit(name));
  pins_.remove_all_but(prepared_);
  pin_names_ = std::move(prepared_);
  return {};
}

void KernelSide::give_back() noexcept {
  for (Ingress& ingress : ingress_) {
    if (!ingress.adopted) ingress.link.detach();
    else if (ingress.previous) static_cast<void>(ingress.link.replace(ingress.previous.get()));
  }
  for (const Displaced& old : displaced_)
    if (const Result<XdpLink> again = XdpLink::attach(old.program.get(), old.device, old.native); again)
      if (pins_.prepare(old.pin, again->fd())) static_cast<void>(pins_.commit(old.pin));
  pins_.forget_prepared();
  if (!pins_.found()) pins_.remove_all_but({});
}

void KernelSide::detach() noexcept {
  for (Ingress& ingress : ingress_) ingress.link.detach();
  pins_.remove_all_but({});
  trace_links_.clear();
}

}  // namespace weir
