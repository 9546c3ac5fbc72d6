// SPDX-License-Identifier: BSD-3-Clause
// flows: the flow cache of an instance: who may use it, its clock, and what commands see and take out of it.
#include <arpa/inet.h>
#include <time.h>

#include <charconv>

#include "core/control/instance.hh"

namespace weir {
namespace {

using nlohmann::json;
using Address = std::array<u8, 16>;

constexpr u64 least_listed = 1, most_listed = 1'000'000;

// An address or a prefix of them.
struct AddressPrefix {
  u8 version = 0;
  u32 length = 0;  // bits
  Address address{};
  [[nodiscard]] bool holds(const FlowKey& key, const Address& other) const noexcept {
    if (key.of.version != version) return false;
    for (u32 bit = 0; bit < length; ++bit)
      if (((address[bit / 8] ^ other[bit / 8]) >> (7 - bit % 8) & 1) != 0) return false;
    return true;
  }
};

Result<AddressPrefix> prefix_of(const std::string& text) {
  AddressPrefix made;
  const std::size_t slash = text.find('/');
  const std::string address = text.substr(0, slash);
  if (::inet_pton(AF_INET, address.c_str(), made.address.data()) == 1) made.version = 4, made.length = 32;
  else if (::inet_pton(AF_INET6, address.c_str(), made.address.data()) == 1) made.version = 6, made.length = 128;
  else return invalid("\"{}\" is no address and no prefix, such as 10.0.0.0/8 or fd00::/64", text);
  if (slash == std::string::npos) return made;
  u32 length = 0;
  const char *from = text.data() + slash + 1, *to = text.data() + text.size();
  if (const auto [end, error] = std::from_chars(from, to, length); error != std::errc() || end != to || length > made.length)
    return invalid("\"{}\": the length of an IPv{} prefix is 0 to {}", text, made.version, made.length);
  made.length = length;
  return made;
}

constexpr std::array<std::pair<const char*, u8>, 5> protocols = {
    {{"icmp", FLOW_ICMP}, {"tcp", FLOW_TCP}, {"udp", FLOW_UDP}, {"icmpv6", FLOW_ICMP6}, {"sctp", FLOW_SCTP}}};

Result<u8> protocol_of(const std::string& text) {
  for (const auto& [name, number] : protocols)
    if (text == name) return number;
  u8 number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (text.empty() || error != std::errc() || end != text.data() + text.size())
    return invalid("\"{}\" is no protocol: icmp, tcp, udp, icmpv6, sctp, or a number of 0 to 255", text);
  return number;
}

std::string protocol_name(u8 number) {
  for (const auto& [name, of] : protocols)
    if (number == of) return name;
  return std::to_string(number);
}

std::string address_text(u8 version, const void* address) {
  std::array<char, INET6_ADDRSTRLEN> text{};
  return ::inet_ntop(version == 4 ? AF_INET : AF_INET6, address, text.data(), text.size()) != nullptr ? text.data() : "";
}

std::string mac_text(const u8* mac) { return fmt::format("{:02x}", fmt::join(mac, mac + ETH_ALEN, ":")); }

u32 now_s() noexcept {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<u32>(now.tv_sec);
}

// The changes of a flow by name.
json changes_of(const FlowTable::Seen& flow) {
  json given = json::object();
  const flow_rewrite& rewrite = flow.rewrite;
  if ((rewrite.changes & FLOW_ADDRESSES) != 0) given["mac"] = {{"to", mac_text(rewrite.to)}, {"from", mac_text(rewrite.from)}};
  if ((rewrite.changes & FLOW_TTL) != 0) given["ttl"] = -1;
  if ((rewrite.changes & FLOW_DSCP) != 0) given["dscp"] = rewrite.dscp;
  const u16 vlan = FLOW_NET16(rewrite.tci) & 0xfff;
  if ((rewrite.changes & FLOW_VLAN_SET) != 0) given["vlan"] = vlan;
  if ((rewrite.changes & FLOW_VLAN_PUSH) != 0) given["push"] = vlan;
  if ((rewrite.changes & FLOW_VLAN_POP) != 0) given["pop"] = true;
  if ((rewrite.changes & FLOW_NAT) != 0) {
    const u8 version = flow.key.of.version;
    // Copied out: the members of a packed union are not aligned.
    Address from{}, to{};
    std::memcpy(from.data(), version == 4 ? static_cast<const void*>(&rewrite.ipv4.source) : &rewrite.ipv6[0], version == 4 ? 4 : 16);
    std::memcpy(to.data(), version == 4 ? static_cast<const void*>(&rewrite.ipv4.destination) : &rewrite.ipv6[2], version == 4 ? 4 : 16);
    given["nat"] = {{"from", address_text(version, from.data())},
                    {"to", address_text(version, to.data())},
                    {"from_port", FLOW_NET16(rewrite.source_port)},
                    {"to_port", FLOW_NET16(rewrite.destination_port)}};
  }
  return given;
}

}  // namespace

bool Instance::offloading() const {
  return !options_.user_only && topology_->config().flows > 0 && std::ranges::any_of(devices_, [&](const Device& device) {
    return topology_->offloads(topology_->config().ports[device.slot.value]);
  });
}

// A stage that could offload, behind one that is to see every frame.
void Instance::warn_of_kept_flows() {
  const Topology::StagePlan* before = nullptr;
  for (const Topology::StagePlan& stage : topology_->stages()) {
    if (before != nullptr && before->pipeline != stage.pipeline) before = nullptr;
    if (before != nullptr && stage.plugin->per_flow)
      warn(fmt::format("stage {}: its flows stay in user space, since stage {} in front of it is to see every frame",
                       name_of(static_cast<u16>(stage.number)), name_of(static_cast<u16>(before->number))));
    if (before == nullptr && !stage.plugin->per_flow) before = &stage;
    if (before == &stage && stage.asks)
      warn(fmt::format("stage {}: plugin {} would offload flows, and does not say per_flow, without which it cannot; tell its author",
                       name_of(static_cast<u16>(stage.number)), stage.plugin->name));
  }
}

// A stage is not told of flows of the one whose place it took.
FlowTable::Owner Instance::owner_of(u32 stage, u32 generation) const noexcept {
  return {static_cast<u16>(stage | generation * FlowTable::Owner::stages), static_cast<u16>(topology_->stages()[stage].block)};
}

Result<> Instance::make_flows() {
  if (kernel_ && !options_.user_only && topology_->config().flows > 0) warn_of_kept_flows();
  if (!kernel_ || !offloading()) return {};
  flows_ = std::make_unique<FlowTable>(kernel_->flows(), kernel_->flow_seed());
  for (const Topology::StagePlan& stage : topology_->stages()) connect_flows(stage, 0);
  tick_flows(now_s());
  return {};
}

void Instance::connect_flows(const Topology::StagePlan& stage, u32 generation) {
  if (!flows_) return;
  stage.cache->connect(*flows_);
  if (stage.offloads) stage.flows->connect(*flows_, owner_of(stage.number, generation));
}

void Instance::tick_flows(u32 now_s) {
  if (!flows_) return;
  kernel_->set_clock(now_s);
  flows_->tick(now_s, [&](FlowTable::Owner owner, const EndedFlow& flow) {
    for (const auto& pipeline : path_->pipelines)
      for (const StageEntry& stage : pipeline->stages)
        if (owner.stage == owner_of(stage.number, stage_generations_[stage.number]).stage) stage.stage->flow_ended(flow);
  });
}

std::string Instance::name_of(u16 stage) const {
  for (const Topology::StagePlan& plan : topology_->stages())
    if (plan.number == stage) return plan.pipeline->name + "." + plan.config->name;
  return "";
}

// What of a question chooses flows: "port", "stage", "from", "to", "protocol".
Result<FlowTable::Which> Instance::flow_filter(const json& question) const {
  std::optional<PortSlot> port;
  std::optional<u16> stage;
  std::optional<AddressPrefix> from, to;
  std::optional<u8> protocol;
  if (const std::string name = question.value("port", ""); !name.empty()) port = TRY(port_named(name));
  if (const std::string name = question.value("stage", ""); !name.empty()) {
    for (const Topology::StagePlan& plan : topology_->stages())
      if (name_of(static_cast<u16>(plan.number)) == name) stage = static_cast<u16>(plan.number);
    std::vector<std::string> known;
    for (const Topology::StagePlan& plan : topology_->stages()) known.push_back(name_of(static_cast<u16>(plan.number)));
    if (!stage) return invalid("there is no stage {}; there are: {}", name, fmt::join(known, ", "));
  }
  if (const std::string text = question.value("from", ""); !text.empty()) from = TRY(prefix_of(text));
  if (const std::string text = question.value("to", ""); !text.empty()) to = TRY(prefix_of(text));
  if (const std::string text = question.value("protocol", ""); !text.empty()) protocol = TRY(protocol_of(text));
  return FlowTable::Which([=](const FlowTable::Seen& flow) {
    return (!port || flow.key.port() == *port) && (!stage || flow.owner.number() == *stage) &&
           (!protocol || flow.key.protocol() == *protocol) && (!from || from->holds(flow.key, flow.key.source())) &&
           (!to || to->holds(flow.key, flow.key.destination()));
  });
}

json Instance::flow_report(const FlowTable::Seen& flow) const {
  const u8 version = flow.key.of.version, protocol = flow.key.protocol();
  json report{{"port", path_->ports[flow.key.port().value].name},
              {"from", address_text(version, flow.key.source().data())},
              {"to", address_text(version, flow.key.destination().data())},
              {"protocol", protocol_name(protocol)},
              {"stage", name_of(static_cast<u16>(flow.owner.number()))},
              {"hits", flow.frames},
              {"bytes", flow.bytes},
              {"age_s", flow.age_s},
              {"idle_s", flow.idle_s},
              {"cookie", flow.cookie},
              {"changes", changes_of(flow)}};
  if (flow.key.tagged()) report["vlan"] = flow.key.vlan();
  if (protocol == FLOW_ICMP || protocol == FLOW_ICMP6) report["identifier"] = flow.key.source_port();
  else if (flow_has_ports(protocol) || protocol == FLOW_SCTP || protocol == FLOW_DCCP)
    report["from_port"] = flow.key.source_port(), report["to_port"] = flow.key.destination_port();
  constexpr std::array fates = {"redirect", "flood", "to_stack", "drop"};
  report["action"] = fates.at(flow.fate);
  if (flow.fate == FLOW_REDIRECT)
    report["out"] = flow.argument < path_->ports.size() ? path_->ports[flow.argument].name : std::to_string(flow.argument);
  if (flow.fate == FLOW_FLOOD) report["group"] = flow.argument;
  for (const Topology::StagePlan& plan : topology_->stages())
    if (plan.number == flow.owner.number() && flow.fate == FLOW_DROP)
      report["reason"] = flow.argument < plan.plugin->drops.size() ? plan.plugin->drops[flow.argument] : "unnamed";
  return report;
}

// At most "limit" of them; "more": how many others there are.
Result<json> Instance::list_flows(const json& question) const {
  const FlowTable::Which which = TRY(flow_filter(question));
  const u64 limit = std::clamp(question.value("limit", u64{1000}), least_listed, most_listed);
  json report{{"instance", name()}, {"cache", flows_ != nullptr}, {"flows", json::array()}, {"more", u64{0}}};
  u64 more = 0;
  if (flows_)
    flows_->visit([&](const FlowTable::Seen& flow) {
      if (!which(flow)) return true;
      if (report["flows"].size() < limit) report["flows"].push_back(flow_report(flow));
      else ++more;
      return true;
    });
  report["more"] = more;
  return report;
}

Result<json> Instance::flush_flows(const json& question) {
  const FlowTable::Which which = TRY(flow_filter(question));
  return json{{"instance", name()}, {"cache", flows_ != nullptr}, {"flushed", flows_ ? flows_->take_back(which, FlowEnd::flushed) : 0}};
}

json Instance::flows_report() const {
  const FlowTable::Counts now = flows_ ? flows_->counts() : FlowTable::Counts{};
  return {{"places", flows_ ? topology_->config().flows : 0},
          {"count", now.count},
          {"hits", flows_ ? flows_->hits() : 0},
          {"added", now.added},
          {"updated", now.updated},
          {"expired", now.expired},
          {"ended", now.ended},
          {"evicted", now.evicted},
          {"taken_back", now.taken_back},
          {"flushed", now.flushed},
          {"refused", now.refused}};
}

}  // namespace weir
