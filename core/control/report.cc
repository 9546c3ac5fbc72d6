// SPDX-License-Identifier: BSD-3-Clause
// report: what an instance tells of itself, as JSON. Where two tables count one event, the rule that makes them add up stands here.
#include <array>
#include <cstring>
#include <filesystem>

#include "core/control/instance.hh"
#include "core/port/xdp_port.hh"

namespace weir {
namespace {

using nlohmann::json;

// Of enum weir_drop, without the stages' own.
constexpr std::array drop_names = {"runt",         "no_entry",    "no_group",       "no_socket",    "no_stage",    "redirect_failed",
                                   "flood_failed", "punt_failed", "device_refused", "peer_no_napi", "exception",   "ring_full",
                                   "no_frame",     "stack_full",  "stack_failed",   "too_long",     "device_down", "process_died",
                                   "device_gone",  "lane_full"};
static_assert(drop_names.size() == WEIR_DROP_OWN);

const char* mode_name(Mode mode) { return mode == Mode::native ? "native" : mode == Mode::generic ? "generic" : "auto"; }

json verdicts(const account& of, bool kernel) {
  json given{{"in", 0}};
  u64 in = 0;
  constexpr std::array names = {"next", "redirect", "flood", "punt", "to_stack", "drop"};
  for (u32 i = 0; i < WEIR_VERDICTS; ++i) {
    if (i == WEIR_PUNT && !kernel) continue;
    given[names[i]] = of.verdict[i];
    in += of.verdict[i];
  }
  given["in"] = in;
  return given;
}

// How long a question waits for threads to come to rest.
constexpr u32 patience_ms = 8000;

u64 traced_drops(const account& port) { return port.drop[WEIR_DROP_DEVICE_REFUSED] + port.drop[WEIR_DROP_PEER_NO_NAPI]; }

// The tracepoint xdp_devmap_xmit counts what a program on the entry dropped among the drops of the device (kernel/bpf/devmap.c,
// bq_xmit_all: cnt - sent).
void take_out_egress_drops(account& port, u64 dropped) {
  const u64 refused = std::min<u64>(dropped, port.drop[WEIR_DROP_DEVICE_REFUSED]);
  port.drop[WEIR_DROP_DEVICE_REFUSED] -= refused;
  port.drop[WEIR_DROP_PEER_NO_NAPI] -= std::min<u64>(dropped - refused, port.drop[WEIR_DROP_PEER_NO_NAPI]);
}

void add_drop(json& into, const std::string& where, const std::string& reason, u64 frames) {
  into.push_back({{"where", where}, {"reason", reason}, {"frames", frames}});
}

// A stage's or a program's own, and what it dropped under a reason beyond its names.
void add_own_drops(json& into, const std::string& where, const std::vector<std::string>& names, const account& kernel,
                   const account& user) {
  u64 unnamed = 0;
  for (u32 reason = WEIR_DROP_OWN; reason < WEIR_DROPS; ++reason) {
    const u64 frames = kernel.drop[reason] + user.drop[reason];
    if (const u32 own = reason - WEIR_DROP_OWN; own < names.size()) add_drop(into, where, names[own], frames);
    else unnamed += frames;
  }
  if (unnamed > 0) add_drop(into, where, "unnamed", unnamed);
}

}  // namespace

// A port's counters in the kernel, put right: sent is what was let go to the device, less what the device then did not take.
account Instance::kernel_account(const Moment& now, PortSlot slot) const {
  account port = now.accounts.kernel(path_->ports[slot.value].block);
  if (!kernel_) return port;
  const u64 dropped = port.counter[WEIR_PORT_ENTRY_DROPS], lost = dropped + port.drop[WEIR_DROP_REDIRECT_FAILED];
  take_out_egress_drops(port, dropped);
  port.drop[WEIR_DROP_EXCEPTION] -= std::min<u64>(port.drop[WEIR_DROP_EXCEPTION], port.counter[WEIR_PORT_MISS_ABORTED]);
  const u64 let_go = port.counter[WEIR_PORT_QUEUED] - std::min<u64>(port.counter[WEIR_PORT_QUEUED], lost);
  // What a device does not take in generic mode is an exception of that device (net/core/dev.c, generic_xdp_tx).
  const bool generic = std::ranges::any_of(kernel_ports_, [](const KernelPort& each) { return each.mode == Mode::generic; });
  const u64 refused = traced_drops(port) + (generic ? port.drop[WEIR_DROP_EXCEPTION] : 0);
  port.tx = let_go - std::min<u64>(let_go, refused);
  return port;
}

// And in user space: a frame that the device did not take from its ring was not sent after all, and one that the kernel did not take from
// the ring to the host stack was a drop.
account Instance::user_account(const Moment& now, PortSlot slot) const {
  account port = now.accounts.user(path_->ports[slot.value].block);
  const u64 lost = std::min<u64>(now.stack_lost[slot.value], port.verdict[WEIR_TO_STACK]);
  const account& pumped = now.pumped[slot.value];
  port.drop[WEIR_DROP_DEVICE_REFUSED] += pumped.counter[WEIR_PORT_PUMP_REFUSED];
  port.drop[WEIR_DROP_PEER_NO_NAPI] += pumped.counter[WEIR_PORT_PUMP_NO_NAPI];
  port.drop[WEIR_DROP_REDIRECT_FAILED] += pumped.counter[WEIR_PORT_PUMP_FAILED];
  port.tx -= std::min<u64>(port.tx, traced_drops(port) + port.drop[WEIR_DROP_REDIRECT_FAILED]);
  port.verdict[WEIR_TO_STACK] -= lost;
  port.verdict[WEIR_DROP] += lost;
  port.drop[WEIR_DROP_STACK_FAILED] += lost;
  return port;
}

// Which way frames of user space leave, and why.
json Instance::tx_report(const KernelPort& port) const {
  const Tx asked = topology_->config().ports[port.slot.value].tx;
  const auto& queues = static_cast<const XdpPort&>(*path_->ports[port.slot.value].port).pumped();
  json tx{{"asked", asked == Tx::pump ? "pump" : asked == Tx::automatic ? "auto" : "af_xdp"}, {"by", "af_xdp"}};
  if (asked == Tx::af_xdp) return tx;
  PumpedQueue::Seen sum{};
  u64 call_ns = 0, pump_ns = 0, socket_ns = 0;
  for (const auto& queue : queues) {
    const PumpedQueue::Seen seen = queue->seen();
    sum.pumped += seen.pumped;
    sum.by_socket += seen.by_socket;
    if (sum.refused == 0) sum.refused = seen.refused;
    call_ns = std::max(call_ns, seen.call_ns);
    pump_ns = std::max(pump_ns, seen.pump_frame_ns);
    socket_ns = std::max(socket_ns, seen.socket_frame_ns);
  }
  if (!no_pump_[port.slot.value].empty()) tx["why"] = no_pump_[port.slot.value];
  else if (port.mode == Mode::generic) tx["why"] = "nothing is redirected to a device in generic mode";
  else if (!port.redirectable) tx["why"] = "its veth peer has neither GRO nor an XDP program, and loses what is redirected to it";
  else if (sum.refused != 0) tx["why"] = fmt::format("the kernel refused a run: {}", std::strerror(sum.refused));
  else if (asked == Tx::pump) tx["by"] = "pump", tx["why"] = "asked for";
  else if (pump_ns == 0 || socket_ns == 0) tx["by"] = "auto", tx["why"] = "not measured yet";
  else if (socket_ns <= pump_ns) tx["why"] = "a frame costs no less by the pump";
  else {
    tx["by"] = "auto";
    tx["burst"] = call_ns / (socket_ns - pump_ns) + 1;
    tx["why"] = fmt::format("from {} frames on the pump costs less", tx["burst"].get<u64>());
  }
  if (queues.empty()) return tx;
  tx["frames"] = {{"pump", sum.pumped}, {"af_xdp", sum.by_socket}};
  tx["ns"] = {{"run", call_ns}, {"pump_frame", pump_ns}, {"af_xdp_frame", socket_ns}};
  return tx;
}

json Instance::port_report(const Moment& now, PortSlot slot) const {
  const PortConfig& config = topology_->config().ports[slot.value];
  const account kernel = kernel_account(now, slot), user = user_account(now, slot);
  const bool xdp = config.is_xdp();
  json port{{"name", config.name}, {"driver", config.driver}, {"pipeline", config.pipeline}};
  for (const auto& [fact, value] : path_->ports[slot.value].port->facts()) port[fact] = value;
  if (auto at = std::ranges::find(kernel_ports_, slot, &KernelPort::slot); at != kernel_ports_.end()) {
    port["device"] = at->device;
    port["ifindex"] = at->ifindex.value;
    port["mode"] = mode_name(at->mode);
    port["queues"] = at->queues;
    port["up"] = at->longest > 0;
    port["redirectable"] = at->redirectable;
    port["tx"] = tx_report(*at);
    port["zero_copy"] = static_cast<const XdpPort&>(*path_->ports[slot.value].port).zero_copy();
  }
  port["rings"] = json::array();
  for (const auto& [held, waiting] : now.queues[slot.value]) port["rings"].push_back({{"held", held}, {"waiting", waiting}});
  port["rx"] = xdp ? kernel.frames : user.frames;
  port["rx_bytes"] = xdp ? kernel.bytes : user.bytes;
  port["redirect"] = kernel.verdict[WEIR_REDIRECT];
  port["flood"] = kernel.verdict[WEIR_FLOOD];
  port["punt"] = xdp ? kernel.verdict[WEIR_PUNT] : user.frames;  // another driver has nothing but user space
  port["to_stack"] = kernel.verdict[WEIR_TO_STACK];
  port["drop"] = kernel.verdict[WEIR_DROP];
  port["miss"] = json::object();
  for (const auto& [name, counter] :
       {std::pair{"to_stack", WEIR_PORT_MISS_STACK}, {"drop", WEIR_PORT_MISS_DROP}, {"aborted", WEIR_PORT_MISS_ABORTED}})
    port["miss"][name] = kernel.counter[counter] + user.counter[counter];
  port["copies"] = kernel.counter[WEIR_PORT_COPIES] + user.counter[WEIR_PORT_COPIES];
  port["tx_kernel"] = kernel.tx;
  port["tx_user"] = user.tx;
  port["tx_user_bytes"] = user.tx_bytes;
  port["user"] = {{"rx", user.frames},
                  {"redirect", user.verdict[WEIR_REDIRECT]},
                  {"flood", user.verdict[WEIR_FLOOD]},
                  {"to_stack", user.verdict[WEIR_TO_STACK]},
                  {"drop", user.verdict[WEIR_DROP]}};
  return port;
}

json Instance::stage_report(const Moment& now, const StageEntry& stage, const std::string& pipeline) const {
  const account kernel = now.accounts.kernel(stage.block), user = now.accounts.user(stage.block);
  json report{
      {"pipeline", pipeline},          {"stage", stage.name},        {"plugin", stage.plugin->name}, {"kernel", verdicts(kernel, true)},
      {"user", verdicts(user, false)}, {"counters", json::object()}, {"gauges", json::object()}};
  for (std::size_t i = 0; i < stage.plugin->counters.size(); ++i)
    report["counters"][stage.plugin->counters[i]] = kernel.counter[i] + user.counter[i];
  for (const auto& [name, value] : stage.stage->gauges()) report["gauges"][name] = value;
  Runner::StageTime time;
  for (const Runner::Numbers& thread : now.threads) {
    time.frames += thread.stages[stage.number].frames;
    time.ns += thread.stages[stage.number].ns;
  }
  report["timed"] = {{"frames", time.frames}, {"ns", time.ns}};
  return report;
}

json Instance::egress_report(const Moment& now, PortSlot slot) const {
  json programs = json::array();
  const PortConfig& config = topology_->config().ports[slot.value];
  const std::vector<std::pair<ProgramKey, Retired>> sums = programs_of(now, slot);
  for (std::size_t place = 0; place < path_->ports[slot.value].egress.steps().size(); ++place) {
    const auto& [key, sum] = sums[place];
    const u64 in_kernel = sum.kernel.verdict[WEIR_NEXT] + sum.kernel.verdict[WEIR_DROP],
              in_user = sum.user.verdict[WEIR_NEXT] + sum.user.verdict[WEIR_DROP];
    json program{{"port", config.name},           {"program", key.first},
                 {"frames", in_kernel + in_user}, {"drop", sum.kernel.verdict[WEIR_DROP] + sum.user.verdict[WEIR_DROP]},
                 {"kernel", in_kernel},           {"user", in_user},
                 {"counters", sum.counters}};
    if (config.is_xdp()) program["prog_id"] = kernel_->chain(slot).programs[place].id;
    if (path_->ports[slot.value].kernel_only && place + 1 == path_->ports[slot.value].egress.steps().size()) program["foreign"] = true;
    programs.push_back(std::move(program));
  }
  return programs;
}

std::vector<std::pair<const EgressChain::Step*, Instance::ProgramKey>> Instance::keyed(const EgressChain& chain) {
  std::vector<std::pair<const EgressChain::Step*, ProgramKey>> all;
  for (const EgressChain::Step& step : chain.steps()) {
    const std::string program = step.program->name;
    const auto before = std::ranges::count_if(all, [&](const auto& each) { return each.second.first == program; });
    all.emplace_back(&step, ProgramKey{program, static_cast<u32>(before)});
  }
  return all;
}

std::map<std::string, u64> Instance::counters_of(const EgressChain::Step& step, u32 rows) {
  std::map<std::string, u64> counters;
  for (std::size_t i = 0; step.program->counters[i] != nullptr; ++i)
    for (u32 row = 0; row < rows; ++row)
      counters[step.program->counters[i]] += reinterpret_cast<const volatile u64*>(step.state + row * step.stride)[i];
  return counters;
}

// What the programs of a port have counted in all: first those of its chain, in its order, then those that left it.
std::vector<std::pair<Instance::ProgramKey, Instance::Retired>> Instance::programs_of(const Moment& now, PortSlot slot) const {
  std::vector<std::pair<ProgramKey, Retired>> all;
  std::map<ProgramKey, Retired> retired = retired_[slot.value];
  for (const auto& [step, key] : keyed(path_->ports[slot.value].egress)) {
    Retired sum = retired[key];
    retired.erase(key);
    sum.program = step->program;
    add_up(sum.kernel, now.accounts.kernel(step->block));
    add_up(sum.user, now.accounts.user(step->block));
    for (const auto& [name, value] : counters_of(*step, now.accounts.rows())) sum.counters[name] += value;
    all.emplace_back(key, std::move(sum));
  }
  std::ranges::move(retired, std::back_inserter(all));
  return all;
}

Result<json> Instance::egress(std::optional<PortSlot> only) {
  const Moment now = TRY(moment());
  json report{{"instance", name()}, {"egress", json::array()}};
  for (u16 slot = 0; slot < path_->ports.size(); ++slot) {
    if (only && only->value != slot) continue;
    json programs = egress_report(now, PortSlot{slot});
    for (std::size_t place = 0; place < programs.size(); ++place) {
      json& program = programs[place];
      program["place"] = place;
      EgressConfig step = chains_[slot][place];
      if (!step.object.empty()) step.object = std::filesystem::absolute(step.object);  // a command may run in another folder
      program["keys"] = keys_given(step);
      program["placement"] = !topology_->config().ports[slot].is_xdp() ? "user" : path_->ports[slot].fused ? "fused" : "entry";
      report["egress"].push_back(std::move(program));
    }
  }
  return report;
}

// Every drop by its name. A stage's and a program's own reasons always, the runtime's when there were any.
json Instance::drops_report(const Moment& now) const {
  json drops = json::array();
  for (u16 slot = 0; slot < path_->ports.size(); ++slot) {
    const PortEntry& port = path_->ports[slot];
    const account kernel = kernel_account(now, PortSlot{slot}), user = user_account(now, PortSlot{slot});
    for (u32 reason = 0; reason < WEIR_DROP_OWN; ++reason)
      if (const u64 frames = kernel.drop[reason] + user.drop[reason]; frames > 0)
        add_drop(drops, "port " + port.name, drop_names[reason], frames);
  }
  for (const auto& pipeline : path_->pipelines)
    for (const StageEntry& stage : pipeline->stages)
      add_own_drops(drops, fmt::format("stage {}.{}", pipeline->name, stage.name), stage.plugin->drops, now.accounts.kernel(stage.block),
                    now.accounts.user(stage.block));
  for (u16 slot = 0; slot < path_->ports.size(); ++slot)
    for (const auto& [key, sum] : programs_of(now, PortSlot{slot})) {
      std::vector<std::string> names;
      for (std::size_t i = 0; sum.program->drops[i] != nullptr; ++i) names.emplace_back(sum.program->drops[i]);
      add_own_drops(drops, fmt::format("egress {} {}", path_->ports[slot].name, key.first), names, sum.kernel, sum.user);
    }
  return drops;
}

json Instance::frames_report(const Moment& now) const {
  return {{"total", pool_->count()}, {"free", now.free}, {"rings", now.rings + gone_}, {"bursts", now.bursts}, {"lanes", now.lanes}};
}

// Each thread that runs stages: how often it has asked queues for frames, how often it got some, how many, and how many it has taken from
// lanes; and of each stage what the bursts have cost that were timed.
json Instance::threads_report(const Moment& now) const {
  json all = json::array();
  for (u32 i = 0; i < now.threads.size(); ++i) {
    const Runner::Numbers& thread = now.threads[i];
    const char* kind = i < crew_.workers ? "worker" : i < crew_.drainers() ? "helper" : "guard";
    json row{{"thread", i},
             {"kind", kind},
             {"cpu", workers_->cpu(i)},
             {"polls", thread.polls},
             {"found", thread.found},
             {"frames", thread.frames},
             {"drained", thread.drained},
             {"drains", thread.drains},
             {"stages", json::array()}};
    for (const auto& pipeline : path_->pipelines)
      for (const StageEntry& stage : pipeline->stages)
        if (const Runner::StageTime& time = thread.stages[stage.number]; time.bursts > 0)
          row["stages"].push_back({{"pipeline", pipeline->name},
                                   {"stage", stage.name},
                                   {"timed_bursts", time.bursts},
                                   {"timed_frames", time.frames},
                                   {"timed_ns", time.ns}});
    all.push_back(std::move(row));
  }
  return all;
}

json Instance::lanes_report(const Moment& now) const {
  json all = json::array();
  for (u32 i = 0; i < lanes_.size(); ++i) {
    const Lanes& lanes = *lanes_[i];
    const Lanes::Shape& shape = lanes.shape();
    u64 frames = 0;
    for (const u32 depth : now.depths[i]) frames += depth;
    all.push_back({{"pipeline", lanes.pipeline().name},
                   {"stage", lanes.pipeline().stages[lanes.stage()].name},
                   {"lanes", shape.lanes},
                   {"room", shape.room},
                   {"limit", shape.limit},
                   {"spread", lanes.spreads()},
                   {"frames", frames},
                   {"deepest", std::ranges::max(now.depths[i])},
                   {"depths", now.depths[i]},
                   {"overflow", lanes.overflow()}});
  }
  return all;
}

// The sum of design rule "rx = tx + to_stack + drops + held" over the instance. Not zero while frames are between two counters, which is
// for the length of one poll of the device; not zero for long: a frame was lost without a name.
json Instance::account_report(const Moment& now, const json& drops) const {
  u64 in = 0, copies = 0, tx = 0, to_stack = 0, drop = 0;
  const u64 held = now.waiting + now.bursts + now.lanes;
  for (u16 slot = 0; slot < path_->ports.size(); ++slot) {
    const account kernel = kernel_account(now, PortSlot{slot}), user = user_account(now, PortSlot{slot});
    in += topology_->config().ports[slot].is_xdp() ? kernel.frames : user.frames;
    copies += kernel.counter[WEIR_PORT_COPIES] + user.counter[WEIR_PORT_COPIES];
    tx += kernel.tx + user.tx;
    to_stack += kernel.verdict[WEIR_TO_STACK] + user.verdict[WEIR_TO_STACK];
  }
  for (const json& each : drops) drop += each["frames"].get<u64>();
  const i64 difference = static_cast<i64>(in + copies) - static_cast<i64>(tx + to_stack + drop + held);
  return {{"rx", in}, {"copies", copies}, {"tx", tx}, {"to_stack", to_stack}, {"drop", drop}, {"held", held}, {"difference", difference}};
}

Result<Instance::Moment> Instance::moment() {
  const Accounts& live = path_->accounts;
  Moment now{.accounts = TRY(live.blank()),
             .stack_lost = std::vector<u64>(path_->ports.size()),
             .pumped = std::vector<account>(path_->ports.size())};
  now.accounts.take(live, 0, live.rows());  // what takes its time: the copy's memory comes page by page
  lost_.resize(path_->ports.size());        // not charged yet, where an earlier call came to nothing
  for (u16 slot = 0; slot < path_->ports.size(); ++slot) {
    const Port::Lost fresh = path_->ports[slot].port->take_lost();
    lost_[slot].unread += fresh.unread;
    lost_[slot].refused += fresh.refused;
  }
  const auto take = [&](u32 kept) {
    for (u16 slot = 0; slot < path_->ports.size(); ++slot) charge(PortSlot{slot}, std::exchange(lost_[slot], {}));
    now.accounts.take(live, live.worker_row(0), live.rows());
    now.free = pool_->free();
    for (u32 worker = 0; workers_ && worker < workers_->runners().size(); ++worker) {
      const Runner& runner = *workers_->runners()[worker];
      now.free += runner.free();
      now.bursts += runner.held();
      now.threads.push_back(runner.numbers());
    }
    for (const auto& lanes : lanes_) {
      auto& depths = now.depths.emplace_back();
      for (u32 lane = 0; lane < lanes->shape().lanes; ++lane) now.lanes += depths.emplace_back(lanes->depth(lane));
    }
    for (u16 slot = 0; slot < path_->ports.size(); ++slot) {
      Port& port = *path_->ports[slot].port;
      auto& rings = now.queues.emplace_back();
      for (u32 queue = 0; queue < port.queues(); ++queue) {
        const auto& [held, waiting] = rings.emplace_back(port.queue(queue).held(), port.queue(queue).waiting());
        now.rings += held;
        now.waiting += waiting;
      }
      // A run ends before its worker rests, so that these belong to what workers have counted as sent.
      if (topology_->config().ports[slot].tx != Tx::af_xdp) now.pumped[slot] = live.kernel(path_->ports[slot].block);
      if (stack_) now.stack_lost[slot] = stack_->lost(PortSlot{slot});
    }
    // A burst that a stage keeps is that stage's: how large it is follows from the others.
    if (kept > 0) now.bursts = pool_->count() - std::min<u64>(pool_->count(), now.free + now.rings + gone_ + now.lanes);
  };
  if (!workers_) {  // behind the end of a run
    take(0);
  } else if (!workers_->look(take, patience_ms)) {
    const std::vector<std::string> why = kept_warnings();
    return fail("the counters cannot be read: {}", why.empty() ? "a thread does not come to rest" : why.front());
  }
  now.accounts.take(live, 0, live.worker_row(0));
  return now;
}

Result<json> Instance::stats() {
  const Moment now = TRY(moment());
  json report{{"instance", name()}, {"user_only", options_.user_only}};
  report["uptime_s"] = std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count();
  report["ports"] = json::array();
  report["egress"] = json::array();
  report["stages"] = json::array();
  for (u16 slot = 0; slot < path_->ports.size(); ++slot) {
    report["ports"].push_back(port_report(now, PortSlot{slot}));
    for (json& program : egress_report(now, PortSlot{slot})) report["egress"].push_back(std::move(program));
  }
  for (const auto& pipeline : path_->pipelines)
    for (const StageEntry& stage : pipeline->stages) report["stages"].push_back(stage_report(now, stage, pipeline->name));
  report["workers"] = threads_report(now);
  report["lanes"] = lanes_report(now);
  report["drops"] = drops_report(now);
  report["flows"] = flows_report();
  report["frames"] = frames_report(now);
  report["account"] = account_report(now, report["drops"]);
  report["warnings"] = warnings();
  return report;
}

Result<std::string> Instance::summary() {
  const Moment now = TRY(moment());
  const json drops = drops_report(now), sum = account_report(now, drops);
  std::vector<std::string> reasons;
  for (const json& drop : drops)
    if (drop["frames"] != 0)
      reasons.push_back(
          fmt::format("{} {} {}", drop["where"].get<std::string>(), drop["reason"].get<std::string>(), drop["frames"].get<u64>()));
  const u64 copies = sum["copies"], held = sum["held"];
  return fmt::format("{} frames in{}, {} out, {} to_stack, {} dropped{}{}", sum["rx"].get<u64>(),
                     copies > 0 ? fmt::format(" and {} copies", copies) : "", sum["tx"].get<u64>(), sum["to_stack"].get<u64>(),
                     sum["drop"].get<u64>(), reasons.empty() ? "" : fmt::format(" ({})", fmt::join(reasons, ", ")),
                     held > 0 ? fmt::format(", {} left unread", held) : "");
}

// One entry of a map. Its program is what the kernel holds; the chain is what weir has put there, or in front of the redirect.
json Instance::entry_report(u32 slot, const DeviceEntry& entry) const {
  const LoadedChain& loaded = kernel_->chain(PortSlot{static_cast<u16>(slot)});
  const auto at = std::ranges::find(kernel_ports_, slot, [](const KernelPort& each) { return u32{each.slot.value}; });
  json given{{"key", at->key}, {"port", at->name}, {"device", at->device}, {"ifindex", entry.device.value}, {"chain", json::array()}};
  for (const EgressProgram& program : loaded.programs) given["chain"].push_back({{"program", program.name}, {"id", program.id}});
  if (!loaded.programs.empty()) given["placement"] = loaded.fused ? "fused" : "entry";
  if (entry.program != 0) given["program"] = {{"id", entry.program}, {"name", program_name(entry.program)}};
  return given;
}

// What is sent by an entry, and what the port and its programs dropped, by reason: "PROGRAM.REASON" of a program.
void Instance::add_counters(json& row, const Moment& now, const json& drops) const {
  const std::string port = row["port"], of_port = "port " + port, of_program = "egress " + port + " ";
  const auto at = std::ranges::find(kernel_ports_, port, &KernelPort::name);
  row["frames"] = now.accounts.kernel(at->block).counter[WEIR_PORT_QUEUED];
  row["drops"] = json::object();
  for (const json& drop : drops) {
    const std::string where = drop["where"], reason = drop["reason"];
    if (where == of_port) row["drops"][reason] = drop["frames"];
    if (where.starts_with(of_program)) row["drops"][where.substr(of_program.size()) + "." + reason] = drop["frames"];
  }
}

Result<json> Instance::devmap() {
  json report{{"instance", name()}, {"ports", json::array()}, {"groups", json::array()}};
  if (!kernel_) return report;
  report["form"] = kernel_->entries().form() == DevmapForm::hash ? "hash" : "array";
  const Moment now = TRY(moment());
  const json drops = drops_report(now);
  for (const Devmap* map : {&kernel_->entries(), &kernel_->bare_entries()})
    for (const auto& [key, entry] : map->all()) {
      const auto at = std::ranges::find(kernel_ports_, key, &KernelPort::key);
      add_counters(report["ports"].emplace_back(entry_report(at->slot.value, entry)), now, drops);
    }
  std::sort(report["ports"].begin(), report["ports"].end(), [](const json& one, const json& other) { return one["key"] < other["key"]; });
  for (u16 slot = 0; slot < path_->groups.size(); ++slot) {
    json group{{"group", slot}, {"name", topology_->groups()[slot].name}, {"members", json::array()}, {"entries", json::array()}};
    for (PortSlot member : path_->groups[slot]) group["members"].push_back(path_->ports[member.value].name);
    for (const auto& [member, entry] : kernel_->group(GroupSlot{slot})) group["entries"].push_back(entry_report(member.value, entry));
    group["flooded_by"] = kernel_->floods(GroupSlot{slot}) ? "kernel" : "user space";
    report["groups"].push_back(std::move(group));
  }
  return report;
}

}  // namespace weir
