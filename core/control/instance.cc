// SPDX-License-Identifier: BSD-3-Clause
// instance: start in order, stop in the opposite one.
#include "core/control/instance.hh"

#include <linux/bpf.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <random>

#include "bpf/abi/link.h"
#include "core/base/guard.hh"
#include "core/pipeline/egress_config.hh"
#include "core/port/driver.hh"
#include "core/port/xdp_port.hh"

namespace weir {
namespace {

constexpr u32 least_fill = 64;  // frames per queue for receiving: one burst

bool is_silent(Port& port) {
  for (u32 queue = 0; queue < port.queues(); ++queue)
    if (!port.queue(queue).silent()) return false;
  return true;
}

u32 action_of(Miss miss) noexcept { return miss == Miss::to_stack ? XDP_PASS : miss == Miss::aborted ? XDP_ABORTED : XDP_DROP; }

}  // namespace

Result<u8*> PlainMemory::bytes(std::string_view map, std::size_t entry, u32 count) {
  Piece piece{TRY(Mapping::anonymous(entry * count)), entry, count};
  return pieces_.insert_or_assign(std::string(map), std::move(piece)).first->second.memory.data();
}

Result<StageMemory::CommonBytes> PlainMemory::common_bytes(std::string_view map, std::string_view name, std::size_t entry, u32 count) {
  const CommonMemory::Piece piece = TRY(common_.get(common_name(plugin_, map, name), map, entry, count));
  return CommonBytes{piece.bytes, piece.first};
}

KernelMemory::Shown PlainMemory::show(std::string_view map) const noexcept {
  const auto at = pieces_.find(map);
  if (at == pieces_.end()) return {nullptr, 0, 0};
  return {at->second.memory.data(), at->second.entry, at->second.count};
}

Result<std::unique_ptr<Instance>> Instance::prepare(std::unique_ptr<Topology> topology, const Registry& registry, const Options& options) {
  InstanceLock lock = TRY(InstanceLock::take(topology->config().name));
  std::unique_ptr<Instance> made(new Instance(std::move(topology), registry, options, std::move(lock)));
  for (auto step : {&Instance::inspect, &Instance::make_frames, &Instance::make_kernel, &Instance::make_flows, &Instance::make_stages,
                    &Instance::make_ports, &Instance::make_groups, &Instance::open_sockets})
    TRY_VOID((made.get()->*step)());
  return made;
}

Instance::Instance(std::unique_ptr<Topology> topology, const Registry& registry, const Options& options, InstanceLock lock)
    : topology_(std::move(topology)), registry_(&registry), options_(options), lock_(std::move(lock)) {}

Instance::~Instance() {
  if (kernel_ && !ran_) {
    kernel_->give_back();
    forget_prepared_layout(name());
  }
  workers_.reset();
  finish_pumps();
  if (kernel_ && ran_ && !options_.keep) {
    kernel_->detach();
    forget_layout(name());
  }
  if (kernel_ && ran_ && options_.keep && borrowed_) borrowed_->leave();
  stack_.reset();
  path_.reset();  // the sockets close behind the programs that would send to them
}

Result<> Instance::inspect() {
  borrowed_.emplace(TRY(Borrowed::open(name())));
  // Each queue that a device has now gets a socket: it must not have others later, nor must one with a socket go.
  for (const PortConfig& port : topology_->config().ports)
    if (port.is_xdp()) borrowed_->hold(port.device, Borrowed::What::queues);
  devices_ = TRY(look_at_devices(topology_->config()));
  port_warnings_.resize(topology_->config().ports.size());
  for (const Device& device : devices_) port_warnings_[device.slot.value] = device.warnings;
  const u32 queues = receive_queues();
  crew_ = topology_->crew(queues);
  if (queues > 0 && fill_per_queue() < least_fill)
    return invalid("[frames] count = {}: {} queues and {} threads need at least {}", topology_->config().frame_count, queues,
                   crew_.threads(), 2 * least_fill * queues + FrameCache::capacity * crew_.threads());
  return {};
}

// Of all ports.
u32 Instance::receive_queues() const {
  u32 queues = 0;
  for (const Device& device : devices_) queues += device.queues;
  for (const PortConfig& port : topology_->config().ports)
    if (const PortDriver* driver = registry_->port_driver(port.driver)) queues += driver->queues(port.keys);
  return queues;
}

// Half of the frames wait for receiving; the others travel.
u32 Instance::fill_per_queue() const {
  const u32 queues = receive_queues();
  const u32 cached = std::min(topology_->config().frame_count, FrameCache::capacity * crew_.threads());
  return std::min((topology_->config().frame_count - cached) / 2 / std::max(queues, 1u), XskSocket::ring_size);
}

// What the drivers of its ports stand on. The memory of frames, where one of them has to say where that is.
Result<Mapping> Instance::begin_drivers() const {
  const Config& config = topology_->config();
  Mapping memory;
  for (const std::string& name : registry_->drivers()) {
    const PortDriver& driver = *registry_->port_driver(name);
    std::vector<const ConfigNode*> ports;
    for (const PortConfig& port : config.ports)
      if (port.driver == name) ports.push_back(&port.keys);
    if (ports.empty() || driver.begin == nullptr) continue;
    const auto settings = config.settings.find(name);
    Mapping its = TRY(guarded("begin with driver " + name, [&] {
      return driver.begin(ports, settings == config.settings.end() ? nullptr : &settings->second,
                          u64{config.frame_count} * config.frame_size);
    }));
    if (memory.size() == 0) memory = std::move(its);
  }
  return memory;
}

Result<> Instance::make_frames() {
  const Config& config = topology_->config();
  Mapping memory = TRY(begin_drivers());
  const auto in_a_map = [&]() -> Result<Mapping> {
    frames_map_ = TRY(BpfMap::create("frames", {BPF_MAP_TYPE_ARRAY, sizeof(u32), config.frame_size, config.frame_count, BPF_F_MMAPABLE}));
    return frames_map_.map_memory();
  };
  if (std::ranges::any_of(config.ports, [](const PortConfig& port) { return port.tx != Tx::af_xdp; })) {
    Result<Mapping> mapped =
        memory.size() > 0 ? Result<Mapping>(fail("the frames lie where the driver of another port wants them")) : in_a_map();
    if (mapped) memory = std::move(*mapped);
    else no_frames_map_ = mapped.error().what;
  }
  pool_ = TRY(FramePool::create(config.frame_count, config.frame_size, std::move(memory)));
  if (!devices_.empty()) umem_ = TRY(Umem::create(*pool_));
  return {};
}

// Two runs with the same layout may share counters and tables.
std::string Instance::layout() const {
  std::string text =
      fmt::format("{}cpus {} threads {} netns {} user_only {} account {} tracing {:x}\nifindex", topology_->fingerprint(), possible_cpus(),
                  crew_.threads(), netns_inode(), options_.user_only, WEIR_ACCOUNT_VERSION, KernelSide::tracing_hash());
  for (const Device& device : devices_) text += fmt::format(" {}", device.netdev.ifindex.value);
  for (std::size_t slot = 0; slot < generations_.size(); ++slot)
    if (generations_[slot] > 0) text += fmt::format("\nchain {} of port {}", generations_[slot], slot);
  return text + "\n";
}

Result<> Instance::make_kernel() {
  const u32 cpus = possible_cpus(), rows = cpus + crew_.threads() + 1, blocks = std::max<u32>(topology_->blocks(), WEIR_MAX_PORTS);
  if (devices_.empty()) {
    path_.emplace(Accounts(TRY(Mapping::anonymous(sizeof(account) * rows * blocks)), cpus, rows, blocks));
    return {};
  }
  PinFolder pins = TRY(PinFolder::open(name()));
  adopted_ = pins.found() && noted_layout(name()) == layout();
  const Config& config = topology_->config();
  const u32 ports = static_cast<u32>(config.ports.size());
  const bool keyed = std::ranges::any_of(config.ports, [](const PortConfig& port) { return port.key.has_value(); });
  const bool beyond = std::ranges::any_of(config.ports, [](const PortConfig& port) { return port.key.value_or(0) >= WEIR_MAX_PORTS; });
  const DevmapForm form =
      config.devmap == DevmapKind::hash || (config.devmap == DevmapKind::automatic && beyond) ? DevmapForm::hash : DevmapForm::array;
  kernel_ = TRY(KernelSide::create(std::move(pins), {.rows = rows,
                                                     .blocks = blocks,
                                                     .ports = ports,
                                                     .form = form,
                                                     .keyed = keyed,
                                                     .frags = config.frags,
                                                     .flows = offloading() ? config.flows : 0,
                                                     .netns = netns_inode(),
                                                     .adopt = adopted_}));
  path_.emplace(Accounts(TRY(kernel_->accounts()), cpus, rows, blocks));
  if (adopted_) count_process_died();
  return {};
}

// A process that was killed took frames with it: those in its rings and bursts, at most as many as its umem held. No counter of theirs
// moves any more, since their sockets are gone, so that what is missing in user space's sums is their number.
void Instance::count_process_died() {
  u64 collected = 0, sent = 0;
  account* own = nullptr;
  for (u16 slot = 0; slot < topology_->config().ports.size(); ++slot) {
    const u32 block = topology_->block(PortSlot{slot});
    const account kernel = path_->accounts.kernel(block), user = path_->accounts.user(block);
    own = &path_->accounts.at(path_->accounts.worker_row(0), block);
    const u64 arrived = std::max<u64>(
        kernel.verdict[WEIR_PUNT] - std::min<u64>(kernel.verdict[WEIR_PUNT], kernel.drop[WEIR_DROP_PUNT_FAILED]), user.frames);
    const u64 decided = user.verdict[WEIR_REDIRECT] + user.verdict[WEIR_FLOOD] + user.verdict[WEIR_TO_STACK] + user.verdict[WEIR_DROP];
    own->frames += arrived - user.frames;
    own->verdict[WEIR_DROP] += arrived - std::min(arrived, decided);
    own->drop[WEIR_DROP_PROCESS_DIED] += arrived - std::min(arrived, decided);
    collected += user.verdict[WEIR_REDIRECT] + user.verdict[WEIR_FLOOD] + user.counter[WEIR_PORT_COPIES];
    sent += user.tx;
    for (u32 reason : {WEIR_DROP_RING_FULL, WEIR_DROP_NO_FRAME, WEIR_DROP_TOO_LONG, WEIR_DROP_DEVICE_DOWN}) sent += user.drop[reason];
    const u32 chain = static_cast<u32>(topology_->config().ports[slot].egress.size());
    for (u32 place = 0; place < chain; ++place)
      sent += path_->accounts.user(topology_->egress_block(PortSlot{slot}) + place).verdict[WEIR_DROP];
  }
  // Of a frame between its verdict and a ring nobody knows the port any more. An earlier death's are among the drops already.
  for (u16 slot = 0; slot < topology_->config().ports.size(); ++slot)
    sent += path_->accounts.user(topology_->block(PortSlot{slot})).counter[WEIR_PORT_DIED_UNSENT];
  const u64 unsent = collected - std::min(collected, sent);
  own->drop[WEIR_DROP_PROCESS_DIED] += unsent;
  own->counter[WEIR_PORT_DIED_UNSENT] += unsent;
}

bool Instance::in_kernel(const Topology::StagePlan& stage) const {
  if (options_.user_only || stage.plugin->kernel_half == nullptr || stage.plugin->kernel_half().empty()) return false;
  return std::ranges::any_of(
      devices_, [&](const Device& device) { return topology_->config().ports[device.slot.value].pipeline == stage.pipeline->name; });
}

std::pair<u32, u32> Instance::way_to(const Topology::StagePlan* stage) const {
  if (stage == nullptr) return {WEIR_GO_STACK, 0};
  return {in_kernel(*stage) ? WEIR_GO_STAGE : WEIR_GO_PUNT, stage->number};
}

KernelStage Instance::kernel_stage(const Topology::StagePlan& plan) const {
  const auto [go, next] = way_to(plan.last ? nullptr : &plan + 1);
  return {plan.pipeline->name + "." + plan.config->name,
          plan.plugin,
          plan.number,
          plan.block,
          go,
          next,
          action_of(plan.pipeline->miss),
          flows_ != nullptr && plan.offloads};
}

// Of the next stage of the pipeline.
Lanes* Instance::make_lanes(const Pipeline& pipeline) {
  std::random_device dice;
  const Lanes::Shape shape = Lanes::shape_for(crew_.drainers(), topology_->config().frame_count, topology_->parallel_stages());
  return lanes_
      .emplace_back(std::make_unique<Lanes>(pipeline, static_cast<u32>(pipeline.stages.size()), static_cast<u32>(lanes_.size()), shape,
                                            u64{dice()} << 32 | dice()))
      .get();
}

Result<> Instance::make_stages() {
  std::vector<Topology::StagePlan>& plans = topology_->stages();
  for (const PipelineConfig& config : topology_->config().pipelines)
    path_->pipelines.push_back(std::make_unique<Pipeline>(Pipeline{config.name, config.miss, {}}));
  for (Topology::StagePlan& plan : plans) {
    const std::string name = plan.pipeline->name + "." + plan.config->name;
    const KernelStage kernel = kernel_stage(plan);
    StageMemory* memory = nullptr;
    if (in_kernel(plan)) memory = TRY(kernel_->open_stage(kernel));
    else memory = (plain_memories_[plan.number] = std::make_unique<PlainMemory>(common(), plan.plugin->name)).get();
    TRY_WITHIN_VOID("stage " + name, guarded("bind plugin " + std::string(plan.plugin->name), [&] { return plan.stage->bind(*memory); }));
    if (in_kernel(plan)) TRY_VOID(kernel_->load_stage(kernel));
    auto pipeline = std::ranges::find(path_->pipelines, plan.pipeline->name, [](const auto& each) { return each->name; });
    Lanes* lanes = nullptr;
    if (plan.config->parallel) lanes = make_lanes(**pipeline);
    (*pipeline)->stages.push_back({plan.config->name, plan.plugin, std::move(plan.stage), plan.number, plan.block, lanes});
  }
  return {};
}

Result<> Instance::make_ports() {
  const Config& config = topology_->config();
  plain_chains_.resize(config.ports.size());
  generations_.resize(config.ports.size());
  retired_.resize(config.ports.size());
  no_pump_.resize(config.ports.size());
  for (const PortConfig& port : config.ports) chains_.push_back(port.egress);
  notes_ = TRY(Notes::create(kernel_ ? kernel_->notes() : -1));
  for (u16 slot = 0; slot < config.ports.size(); ++slot) {
    PortEntry entry;
    entry.name = config.ports[slot].name;
    entry.block = topology_->block(PortSlot{slot});
    for (const auto& pipeline : path_->pipelines)
      if (pipeline->name == config.ports[slot].pipeline) entry.pipeline = pipeline.get();
    auto device = std::ranges::find(devices_, PortSlot{slot}, &Device::slot);
    if (device == devices_.end()) {
      entry.port = TRY_WITHIN(fmt::format("port {}", entry.name), open_port(PortSlot{slot}));
      entry.longest = entry.port->longest();
      plain_chains_[slot] = make_plain_chain(config.ports[slot].egress, *entry.port, topology_->egress_block(PortSlot{slot}));
      entry.egress = plain_chains_[slot].steps;
    } else {
      TRY_WITHIN_VOID(fmt::format("port {}, device {}", entry.name, device->netdev.name), make_kernel_port(*device));
      for (const EgressProgram& program : kernel_->chain(PortSlot{slot}).programs) entry.egress.append(program.host);
      entry.kernel_only = is_foreign(config.ports[slot].egress);
      entry.fused = kernel_ports_.back().fused;
      entry.longest = longest_frame(device->netdev);
    }
    entry.egress.tell(notes_->way(PortSlot{slot}));
    path_->ports.push_back(std::move(entry));
  }
  return {};
}

Result<std::unique_ptr<Port>> Instance::open_port(PortSlot slot) const {
  const Config& config = topology_->config();
  const PortConfig& port = config.ports[slot.value];
  const auto settings = config.settings.find(port.driver);
  return guarded("open the port by driver " + port.driver, [&] {
    return registry_->port_driver(port.driver)
        ->open(port.keys, {.slot = slot,
                           .name = port.name,
                           .pool = *pool_,
                           .fill = fill_per_queue(),
                           .files_only = std::ranges::all_of(
                               config.ports, [](const PortConfig& each) { return each.driver == "pcap" || each.driver == "null"; }),
                           .receives = !port.pipeline.empty(),
                           .settings = settings == config.settings.end() ? nullptr : &settings->second});
  });
}

// At rest.
void Instance::charge(PortSlot slot, const Port::Lost& lost) noexcept {
  account& own = path_->accounts.at(path_->accounts.worker_row(0), path_->ports[slot.value].block);
  own.frames += lost.unread;
  own.verdict[WEIR_DROP] += lost.unread;
  own.drop[WEIR_DROP_PUNT_FAILED] += lost.unread;
  own.drop[WEIR_DROP_DEVICE_REFUSED] += lost.refused;
}

Result<> Instance::make_kernel_port(const Device& device) {
  const PortConfig& config = topology_->config().ports[device.slot.value];
  const Topology::StagePlan* first = topology_->first_stage(config);
  const auto [go, next] = way_to(first);
  kernel_ports_.push_back({.slot = device.slot,
                           .name = config.name,
                           .device = config.device,
                           .ifindex = device.netdev.ifindex,
                           .mac = device.netdev.mac,
                           .mtu = device.netdev.mtu,
                           .mode = config.mode,
                           .longest = longest_frame(device.netdev),
                           .redirectable = device.redirectable,
                           .queues = device.queues,
                           .block = topology_->block(device.slot),
                           .go = go,
                           .next = next,
                           .fused = is_fused(device.slot),
                           .egress_block = topology_->egress_block(device.slot),
                           .flows = flows_ != nullptr && topology_->offloads(config)});
  TRY_VOID(kernel_->expect_free(kernel_ports_.back()));
  KernelPort& port = kernel_ports_.back();
  port.key = config.key.value_or(device.slot.value);
  port.scatters = device.netdev.driver == "veth";
  if (is_foreign(config.egress) && options_.user_only)
    return invalid("its chain has a foreign program, which runs in the kernel alone, and kernel halves are off (--user-only)");
  if (is_foreign(config.egress) && !port.redirectable)
    return fail("its chain has a foreign program, which runs in the kernel alone, and nothing can be redirected to it: {}",
                fmt::join(device.warnings, "; "));
  return kernel_->add_port(port, TRY(kernel_->load_chain(port, config.egress, *registry_, 0)));
}

// Without a device entry there is no kernel build to share memory with.
Instance::PlainChain Instance::make_plain_chain(const std::vector<EgressConfig>& configs, const Port& port, u32 block) const {
  PlainChain chain;
  const u32 rows = path_->accounts.rows();
  for (const EgressConfig& config : configs) {
    const egress_program& program = *registry_->egress_module(config.program)->host;
    const std::size_t stride = egress_stride(program);
    const auto piece = [&](std::size_t size) { return chain.pieces.emplace_back(size).data(); };
    u8* settings = piece(program.config_size);
    fill_egress_config(program, config.keys, {port.mac(), port.mtu()}, settings);
    u8* shared = program.shared_size != nullptr ? piece(*program.shared_size) : nullptr;
    chain.steps.append({&program, settings, piece(stride * rows), stride, shared, block++});
  }
  return chain;
}

bool Instance::is_foreign(const std::vector<EgressConfig>& chain) {
  return std::ranges::any_of(chain, [](const EgressConfig& step) { return !step.object.empty(); });
}

// In front of the redirect, where that costs less, unless a group floods to the port: a flood runs what stands on the entry.
bool Instance::is_fused(PortSlot slot) const {
  const Placement placement = topology_->config().ports[slot.value].placement;
  const auto holds = [&](const Topology::Group& group) { return std::ranges::find(group.ports, slot) != group.ports.end(); };
  if (is_foreign(topology_->config().ports[slot.value].egress)) return false;
  return placement == Placement::fused || (placement == Placement::automatic && std::ranges::none_of(topology_->groups(), holds));
}

Result<> Instance::make_groups() {
  for (const Topology::Group& group : topology_->groups()) path_->groups.push_back(group.ports);
  if (!kernel_) return {};
  for (u16 slot = 0; slot < path_->groups.size(); ++slot) TRY_VOID(kernel_->set_group(GroupSlot{slot}, path_->groups[slot], kernel_ports_));
  return {};
}

XskOptions Instance::xsk_options(const PortConfig& port) const {
  return {.zero_copy = port.mode == Mode::generic ? ZeroCopy::off : port.zero_copy, .fill = fill_per_queue(), .busy_poll = port.busy_poll};
}

// What a port wants of its device beyond what it has.
Result<> Instance::borrow(const KernelPort& port, const PortConfig& config) {
  if (config.queues != 0) TRY_VOID(borrowed_->set(port.device, Borrowed::What::queues, config.queues));
  if (config.busy_poll == 0) return {};
  // Interrupts stay away while someone polls, and come back when nobody has for that long (Documentation/networking/napi.rst).
  constexpr u64 turns = 2, until_ns = 200'000;
  for (const auto& [what, value] : {std::pair(Borrowed::What::defer_hard_irqs, turns), {Borrowed::What::gro_flush_timeout, until_ns}})
    if (const Result<> set = borrowed_->set(port.device, what, value); !set)
      warn(fmt::format("port {}: {}; interrupts go on beside busy polling", port.name, set.error().what));
  return {};
}

Result<> Instance::open_sockets() {
  for (const KernelPort& port : kernel_ports_) {
    const PortConfig& config = topology_->config().ports[port.slot.value];
    TRY_WITHIN_VOID(fmt::format("port {}", port.name), borrow(port, config));
    auto made = TRY_WITHIN(fmt::format("port {}, device {}", port.name, port.device),
                           XdpPort::open(*umem_, port.device, port.queues, port.slot, xsk_options(config)));
    for (u32 queue = 0; queue < port.queues; ++queue) TRY_VOID(kernel_->set_socket(port, QueueId{queue}, made->descriptor(queue)));
    add_pumps(port, *made);
    path_->ports[port.slot.value].port = std::move(made);
  }
  return {};
}

// What stands in the way of a pump is no error: frames leave by the sockets.
void Instance::add_pumps(const KernelPort& port, XdpPort& sockets) {
  const Tx wanted = topology_->config().ports[port.slot.value].tx;
  std::string& why = no_pump_[port.slot.value];
  if (why.clear(); wanted == Tx::af_xdp) return;
  if (!no_frames_map_.empty()) why = no_frames_map_;
  else if (sockets.zero_copy()) why = "its device sends without copies, which costs less";
  else {
    const Result<Netdev> netdev = look_at(port.device);
    const bool one_queue = netdev && veth_peer(*netdev).queues == 1;
    if (const Result<> made = sockets.add_pumps(*pool_, frames_map_, port.ifindex, port.key, wanted, one_queue); !made)
      why = made.error().what;
  }
  if (!why.empty() && wanted == Tx::pump) warn(fmt::format("port {}: frames leave by AF_XDP, and not by a pump: {}", port.name, why));
}

// Whether what is redirected to the device gets out.
void Instance::open_pumps(const KernelPort& port) {
  for (const auto& queue : static_cast<XdpPort&>(*path_->ports[port.slot.value].port).pumped())
    queue->open(port.mode == Mode::native && port.redirectable);
}

Result<> Instance::go() {
  // All that may fail comes before a device is touched, but for the pins, and these can be undone.
  if (kernel_) {
    std::vector<HostStack::Entry> ports;
    for (const KernelPort& port : kernel_ports_) ports.push_back({port.slot, port.ifindex});
    stack_ = TRY(HostStack::create(ports, kernel_->pins(), adopted_));
    path_->stack = stack_.get();
    TRY_VOID(prepare_layout(name(), layout()));
  }
  std::vector<Lanes*> lanes;
  for (const auto& each : lanes_) lanes.push_back(each.get());
  workers_ = TRY(Workers::start(make_runners(), allowed_cpus(), crew_, std::move(lanes)));
  if (kernel_) {
    TRY_VOID(kernel_->attach(kernel_ports_));
    for (const KernelPort& port : kernel_ports_) open_pumps(port);
    TRY_VOID(kernel_->prepare_pins(stack_->memories()));
    forget_layout(name());  // between the two the pins are of neither layout
    TRY_VOID(kernel_->commit_pins());
    // Too late to go back: what an earlier run had pinned is gone.
    if (Result<> noted = commit_layout(name()); !noted) warn(noted.error().what + "; the next start begins its counters and tables anew");
    std::vector<u64> marks(path_->ports.size());
    for (const KernelPort& port : kernel_ports_) marks[port.slot.value] = port.mode == Mode::generic ? kernel_->mark() : 0;
    stack_->start(marks);
  }
  if (Result<> settled = borrowed_->settle(); !settled) warn(settled.error().what);
  ran_ = true;
  for (const KernelPort& port : kernel_ports_)
    if (port.mode == Mode::generic && (!port.takes_redirects || topology_->config().ports[port.slot.value].mode == Mode::automatic))
      warn(fmt::format("port {}: {} runs in generic mode, which is slower{}{}", port.name, port.device,
                       topology_->config().ports[port.slot.value].mode == Mode::automatic ? ", since its driver has no native XDP" : "",
                       port.takes_redirects ? "" : "; what goes to it from native ports goes through user space"));
  return {};
}

std::vector<std::unique_ptr<Runner>> Instance::make_runners() {
  std::vector<std::vector<Runner::RxQueue>> queues(crew_.threads());
  u32 next = 0;
  for (u16 slot = 0; slot < path_->ports.size(); ++slot) {
    Port& port = *path_->ports[slot].port;
    for (u32 queue = 0; queue < port.queues(); ++queue)
      if (!port.queue(queue).silent()) queues[next++ % crew_.workers].push_back({PortSlot{slot}, &port.queue(queue)});
  }
  std::vector<std::unique_ptr<Runner>> runners;
  for (u32 thread = 0; thread < crew_.threads(); ++thread)
    runners.push_back(std::make_unique<Runner>(*path_, *pool_, thread, path_->accounts.worker_row(thread), std::move(queues[thread])));
  return runners;
}

// What a port without a pipeline brings in goes to the host's stack without a worker.
bool Instance::finite() const {
  bool any = false;
  for (const PortEntry& entry : path_->ports) {
    if (entry.pipeline == nullptr) continue;
    if (!entry.port->finite() && !is_silent(*entry.port)) return false;
    any |= entry.port->finite();
  }
  return any;
}

// While a device that takes redirects only under a program still has its own.
void Instance::finish_pumps() {
  if (!ran_) return;
  for (const KernelPort& port : kernel_ports_)
    for (const auto& queue : static_cast<XdpPort&>(*path_->ports[port.slot.value].port).pumped()) queue->finish();
}

bool Instance::done() {
  for (const PortEntry& entry : path_->ports)
    if (entry.pipeline != nullptr && !is_silent(*entry.port)) return false;
  bool held = false;
  workers_->at_rest([&] {
    for (const auto& runner : workers_->runners()) held |= runner->held() > 0 || runner->unsent();
    for (const auto& lanes : lanes_) held |= lanes->pending() > 0;
  });
  return !held;
}

Result<> Instance::finish() {
  workers_.reset();
  kept_.clear();
  finish_pumps();
  Result<> first;
  for (const PortEntry& entry : path_->ports) {
    if (Result<> finished = entry.port->finish(); !finished && first)
      first = std::unexpected(std::move(finished).error().within("port " + entry.name));
    account& own = path_->accounts.at(path_->accounts.worker_row(0), entry.block);
    for (u32 queue = 0; queue < entry.port->queues(); ++queue)
      own.drop[WEIR_DROP_DEVICE_REFUSED] += entry.port->queue(queue).take_refused();
  }
  return first;
}

void Instance::tick() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  tick_flows(static_cast<u32>(now.tv_sec));
  for (const auto& pipeline : path_->pipelines)
    for (const StageEntry& stage : pipeline->stages) stage.stage->tick(static_cast<u32>(now.tv_sec));
  watch_threads();
  watch(true);
}

// A thread that is in the same call of a stage as a second ago has been kept there for a second, at least.
void Instance::watch_threads() {
  const auto& runners = workers_->runners();
  for (std::size_t i = 0; i < runners.size(); ++i) {
    const Runner::Place now = runners[i]->place();
    if (kept_.size() == i) kept_.push_back({now, 0});
    auto& [place, seconds] = kept_[i];
    if (now == place && now.inside()) {
      ++seconds;
      continue;
    }
    if (seconds > 0)
      news_.push_back(fmt::format("stage {}: it has gone on, having kept thread {} for about {} s",
                                  name_of(static_cast<u16>(place.stage())), i, seconds));
    kept_[i] = {now, 0};
  }
}

std::vector<std::string> Instance::kept_warnings() const {
  std::vector<std::string> all;
  for (std::size_t i = 0; i < kept_.size(); ++i)
    if (kept_[i].seconds > 0)
      all.push_back(fmt::format("stage {}: it has not returned for more than a second, and keeps thread {}, on CPU {}",
                                name_of(static_cast<u16>(kept_[i].place.stage())), i, workers_->cpu(static_cast<u32>(i))));
  return all;
}

std::vector<std::pair<int, Stage*>> Instance::watched() const {
  std::vector<std::pair<int, Stage*>> all;
  for (const auto& pipeline : path_->pipelines)
    for (const StageEntry& stage : pipeline->stages)
      if (const int fd = stage.stage->watched(); fd >= 0) all.emplace_back(fd, stage.stage.get());
  return all;
}

// A device that goes down, away, or changes its MTU changes the groups that it is in; a veth whose peer got NAPI gets its entry.
void Instance::watch(bool peers) {
  bool changed = false;
  for (KernelPort& port : kernel_ports_) changed |= look_again(port, peers);
  if (!changed) return;
  for (u16 slot = 0; slot < path_->groups.size(); ++slot)
    if (Result<> set = kernel_->set_group(GroupSlot{slot}, path_->groups[slot], kernel_ports_); !set)
      warn(fmt::format("group {}: {}; its floods go as before or through user space", topology_->groups()[slot].name, set.error().what));
}

bool Instance::look_again(KernelPort& port, bool peers) {
  const Result<Netdev> netdev = look_at(port.device);
  if (!netdev && netdev.error().failure != Failure::missing) return false;  // nobody knows; the next second tells
  bool there = netdev && netdev->ifindex == port.ifindex, followed = false;
  std::string trouble;
  if (netdev && !there) {
    if (const Result<> done = follow(port, *netdev); done) there = followed = true;
    else trouble = done.error().what;
  }
  const u32 longest = there ? longest_frame(*netdev) : 0;
  bool changed = followed;
  changed |= std::exchange(port.longest, longest) != longest;
  std::atomic_ref(path_->ports[port.slot.value].longest).store(longest, std::memory_order_relaxed);
  std::vector<std::string>& warnings = port_warnings_[port.slot.value];
  if (!there) {
    warnings = {trouble.empty()
                    ? fmt::format("port {}: device {} is gone; nothing is received or sent until it comes back", port.name, port.device)
                    : fmt::format("port {}: device {} has come back, and cannot be taken: {}", port.name, port.device, trouble)};
    return changed;
  }
  if (std::exchange(port.mtu, netdev->mtu) != netdev->mtu) kernel_->refill_egress(port);
  // Nothing tells when a veth's peer in another namespace loses its NAPI, or changes its checksums.
  if (!changed && !(peers && netdev->driver == "veth")) return false;
  const VethPeer peer = veth_peer(*netdev);
  warnings = warnings_of(topology_->config().ports[port.slot.value], *netdev, peer);
  const bool redirectable = peer.state != VethPeer::State::missing;
  if (std::exchange(port.redirectable, redirectable) == redirectable) return changed;
  open_pumps(port);
  if (Result<> set = kernel_->set_entry(port); !set) warn(fmt::format("port {}: {}", port.name, set.error().what));
  return true;
}

// The device of the port's name is another one than before. An AF_XDP socket stays with the device that it was bound to, and what shares a
// umem is bound by the socket that was first there, which may be one of those (net/xdp/xsk.c, xsk_bind): so there are a umem and sockets
// anew, over the same frames.
Result<> Instance::follow(KernelPort& port, const Netdev& netdev) {
  const PortConfig& config = topology_->config().ports[port.slot.value];
  if (netdev.queues > KernelSide::max_queues)
    return fail("it has {} queues, weir serves at most {}", netdev.queues, KernelSide::max_queues);
  TRY_VOID(XdpLink::expect_free(netdev.ifindex));
  TRY_VOID(borrow(port, config));
  const u32 number = config.queues != 0 ? config.queues : netdev.queues;
  auto umem = TRY(Umem::create(*pool_));
  auto made = TRY(XdpPort::open(*umem, port.device, number, port.slot, xsk_options(config)));
  const KernelPort before = port;
  port.ifindex = netdev.ifindex;
  port.queues = number;
  port.mac = netdev.mac;
  port.mtu = netdev.mtu;
  port.scatters = netdev.driver == "veth";
  port.redirectable = veth_peer(netdev).state != VethPeer::State::missing;
  const Result<> done = [&]() -> Result<> {
    for (u32 queue = 0; queue < port.queues; ++queue) TRY_VOID(kernel_->set_socket(port, QueueId{queue}, made->descriptor(queue)));
    return kernel_->follow(port, before, config.mode);
  }();
  if (!done) {
    made->take_back();
    port = before;
    return done;
  }
  PortEntry& entry = path_->ports[port.slot.value];
  add_pumps(port, *made);
  std::unique_ptr<Port> old = std::move(made);
  std::vector<Queue*> queues;
  for (u32 queue = 0; queue < old->queues(); ++queue) queues.push_back(&old->queue(queue));
  workers_->at_rest([&] {
    std::swap(entry.port, old);
    workers_->serve(port.slot, queues);
    const XskSocket::Remains remains = static_cast<XdpPort&>(*old).take_back();
    account& own = path_->accounts.at(path_->accounts.worker_row(0), entry.block);
    own.frames += remains.unread;
    own.bytes += remains.unread_bytes;
    own.verdict[WEIR_DROP] += remains.unread;
    own.drop[WEIR_DROP_DEVICE_GONE] += remains.unread;
    own.drop[WEIR_DROP_DEVICE_REFUSED] += remains.unsent;
    for (u32 queue = 0; queue < old->queues(); ++queue) gone_ += old->queue(queue).held();
  });
  old.reset();
  open_pumps(port);
  later_umems_[port.slot.value] = std::move(umem);
  stack_->follow(port.slot, port.ifindex, port.mode == Mode::generic ? kernel_->mark() : 0);
  std::ranges::find(devices_, port.slot, &Device::slot)->netdev = netdev;
  note_layout();
  return {};
}

void Instance::warn(std::string text) {
  if (std::ranges::find(warnings_, text) == warnings_.end()) warnings_.push_back(std::move(text));
}

std::vector<std::string> Instance::warnings() const {
  std::vector<std::string> all;
  for (const auto& of_port : port_warnings_) all.insert(all.end(), of_port.begin(), of_port.end());
  for (const PortEntry& entry : path_->ports)
    for (const std::string& warning : entry.port->warnings()) all.push_back(fmt::format("port {}: {}", entry.name, warning));
  for (std::string& of_group : group_warnings()) all.push_back(std::move(of_group));
  for (std::string& of_thread : kept_warnings()) all.push_back(std::move(of_thread));
  all.insert(all.end(), warnings_.begin(), warnings_.end());
  return all;
}

// A group that no stage floods to, and what keeps floods out of the kernel, or from some members, while every member is fit for redirects.
// One that is down has a warning already.
std::vector<std::string> Instance::group_warnings() const {
  std::vector<std::string> all;
  for (u16 slot = 0; slot < path_->groups.size(); ++slot) {
    const std::string& own = topology_->groups()[slot].name;
    const std::string who = own.empty() ? fmt::format("group {}", slot) : "group " + own;
    if (!own.empty() && !topology_->groups()[slot].of_stage)
      all.push_back(
          fmt::format("{}: no stage floods to a group of just these ports; `weir devmap group list` has the groups of stages", who));
    const KernelPort *least = nullptr, *most = nullptr;
    for (PortSlot member : path_->groups[slot]) {
      const auto port = std::ranges::find(kernel_ports_, member, &KernelPort::slot);
      if (port == kernel_ports_.end() || port->longest == 0) continue;
      if (least == nullptr || port->longest < least->longest) least = &*port;
      if (most == nullptr || port->longest > most->longest) most = &*port;
      if (!options_.user_only && port->fused && !kernel_->chain(member).programs.empty())
        all.push_back(
            fmt::format("{}: the egress chain of port {} is fused, so that floods go through user space, which is slower, until: "
                        "placement = \"auto\" or \"entry\"",
                        who, port->name));
    }
    if (least != nullptr && least->longest != most->longest)
      all.push_back(
          fmt::format("{}: port {} has MTU {} and port {} {}: a longer frame that is flooded is dropped at {} as too_long, until: ip link "
                      "set dev {} mtu {}",
                      who, least->name, least->mtu, most->name, most->mtu, least->name, least->device, most->mtu));
  }
  return all;
}

Result<nlohmann::json> Instance::ask_stage(const nlohmann::json& question) {
  const std::string named = TRY(text(question, "stage"));
  std::vector<std::string> words, names;
  if (const auto given = question.find("words"); given != question.end() && given->is_array())
    for (const nlohmann::json& word : *given)
      if (word.is_string()) words.push_back(word.get<std::string>());
  for (const auto& pipeline : path_->pipelines)
    for (StageEntry& stage : pipeline->stages) {
      names.push_back(fmt::format("{}.{}", pipeline->name, stage.name));
      if (names.back() != named) continue;
      const std::string who = "stage " + named;
      Result<std::string> said = guarded("ask plugin " + std::string(stage.plugin->name), [&] { return stage.stage->answer(words); });
      // Without a word, that is what was asked for: which there are.
      if (!said && words.empty() && said.error().failure == Failure::invalid)
        return nlohmann::json{{"stage", named}, {"answer", said.error().what}};
      const std::string given = TRY_WITHIN(who, std::move(said));
      nlohmann::json answer = nlohmann::json::parse(given, nullptr, false);
      if (answer.is_discarded()) return fail("{}: its answer is no JSON", who);
      return nlohmann::json{{"stage", named}, {"answer", std::move(answer)}};
    }
  return invalid("there is no stage {}; there are: {}", named, fmt::join(names, ", "));
}

Result<nlohmann::json> Instance::answer(const nlohmann::json& question) {
  const auto asked = question.find("ask");
  const std::string what = asked != question.end() && asked->is_string() ? asked->get<std::string>() : "";
  listen();  // so that every answer is of now
  if (what == "stats") return stats();
  if (what == "devmap") return devmap();
  if (what == "devmap set") return set_entry(question);
  if (what == "devmap delete") return remove_entry(question);
  if (what == "group join") return change_group(question, true);
  if (what == "group leave") return change_group(question, false);
  if (what == "flows") return list_flows(question);
  if (what == "flows flush") return flush_flows(question);
  if (what == "egress") return egress({});
  if (what == "samples") return samples();
  if (what == "egress set") return set_egress(question);
  if (what == "stage") return ask_stage(question);
  if (what == "reload") return reload(question);
  return fail("it does not know the question \"{}\"", what);
}

}  // namespace weir
