// SPDX-License-Identifier: BSD-3-Clause
// router: forward IPv4 and IPv6 by the kernel's own routes and neighbours, so that `ip route`, BIRD and FRR are its control.
//   [[pipeline.stage]]
//   plugin = "router"
//   kernel_routes = true         # follow the kernel's tables main and local, its neighbours and devices
//   max_routes = 65536           # of each version; with more, the host routes everything
//   max_next_hops = 4096         # gateways and neighbours
//   kernel_nodes = 16384         # KiB, twice, of the kernel half's table; when it is full, user space routes everything
//   ecmp = "ports"               # or "addresses": what chooses among several paths
//   offload = true               # the first frame of a flow goes through the user half, which hands the others to the kernel's flow cache
//   flow_idle_s = 60             # a flow without a frame for so long ends
//   hash_seed = 1                # left out: made of a MAC address, so that routers in a row do not all choose alike
//   interface = [{ port = "a", mac = "02:00:00:00:00:01", mtu = 1500, address = "192.0.2.1", length = 24 }]
//   route = [{ to = "198.51.100.0/24", via = "192.0.2.2", port = "a", metric = 0, weight = 1, mtu = 0 },
//            { to = "203.0.113.0/24", kind = "blackhole" }]    # or "unreachable", "prohibit"
//   neighbour = [{ address = "192.0.2.2", mac = "02:00:00:00:00:02", port = "a" }]
// The last three stand beside what the kernel says; several routes to one prefix with one metric are paths of it. `interface` is for ports
// without a device.
//
// Routed is what comes for the port's own MAC address. To the host go: everything else at layer 2, so VLAN tags, ARP and other protocols;
// the host's own addresses and those of broadcast, multicast and link-local; IPv4 with options, IPv6 with hop-by-hop options; what leaves
// by a device that is no port of the instance, by a tunnel, or by a route for one TOS or source alone. So directed broadcast is not
// forwarded. A neighbour that is not known is looked for by the kernel. Meanwhile frames for it go to the host, if the host forwards what
// comes in by that port (net.ipv4.conf.DEVICE.forwarding, net.ipv6.conf.all.forwarding), so that none is lost; else they are dropped as
// no_neighbour. In the same way the host fragments IPv4 without DF; else cannot_fragment. Policy rules and other tables are not looked at,
// and main and local are one table.
//
// Drops: truncated; bad_version, bad_length, bad_checksum (RFC 1812, 5.2.2); martian_source, martian_destination (5.3.7; also the host's
// own addresses as a source; IPv6: ::, ::1, multicast); expired, too_big, no_route, unreachable, prohibited, host_unreachable (the
// neighbour did not answer), whose senders are told by ICMP within its limits; blackhole, no_neighbour, cannot_fragment. Counters:
// forwarded_ipv4, forwarded_ipv6, and to the host: own, not_routed, by_host. Gauges: routes, neighbours, refused (for want of room), the
// answers by ICMP, and frames and bytes of each gateway, "via ADDRESS PORT frames", and of neighbours on a port together, "link PORT
// frames". What the flow cache forwards is counted there, by hop, and as a redirect of the stage; forwarded_ipv4 and its like do not have
// it. Counts by hop begin anew when a reload replaces the stage.
#include "core/plugin.hh"

#include <linux/if_ether.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "core/kernel/netdev.hh"
#include "plugins/router/router_netlink.hh"
#include "plugins/router/router_notes.hh"

#include "router.skel.h"

namespace {

using namespace weir;
using namespace weir::routing;

constexpr u32 ipv4_header = 20, ipv6_header = 40;
constexpr long notes_ms = 20;

u64 now_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<u64>(now.tv_sec) * 1'000'000'000 + static_cast<u64>(now.tv_nsec);
}

// A frame with an IP packet in it that may be routed.
struct Packet {
  Frame* frame;
  u8* ip;
  u32 version;
  u32 length;  // of the packet
  [[nodiscard]] const u8* source() const noexcept { return ip + (version == 4 ? 12 : 8); }
  [[nodiscard]] const u8* destination() const noexcept { return ip + (version == 4 ? 16 : 24); }
  [[nodiscard]] router_address address(const u8* at) const noexcept { return version == 4 ? router_address4(at) : router_address6(at); }
  [[nodiscard]] bool may_not_be_fragmented() const noexcept { return version == 6 || (ip[6] & 0x40) != 0; }
  [[nodiscard]] bool expires() const noexcept { return ip[version == 4 ? 8 : 7] <= 1; }
  // What the way through several paths is chosen by.
  [[nodiscard]] u32 flow(const router_config& config) const noexcept {
    const u8* ports = ip + (version == 4 ? ipv4_header : ipv6_header);
    if (ports + 4 > frame->data + frame->length) ports = nullptr;
    return version == 4 ? router_flow4(ip, ports, &config) : router_flow6(ip, ports, &config);
  }
};

// What becomes of a packet, and all that its new header needs.
struct Way {
  enum class Fate { forward, own, host, no_neighbour, drop };
  Fate fate = Fate::host;
  router_drop reason{};
  std::optional<IcmpReason> told;
  u32 hop = 0;
  PortSlot port;
  u64 destination = 0, source = 0;  // MAC addresses
  u32 mtu = 0;
};

class Router final : public Stage {
 public:
  static Result<std::unique_ptr<Stage>> make(const ConfigNode& keys, StageContext& context);
  Result<> bind(StageMemory& memory) override;
  void process(Burst& burst) noexcept override;
  void tick(u32 now_s) noexcept override;
  void flow_ended(const EndedFlow& flow) noexcept override;
  [[nodiscard]] int watched() const override { return netlink_ ? events_.get() : -1; }
  void ready() noexcept override;
  [[nodiscard]] std::vector<std::pair<std::string, u64>> gauges() const override;

 private:
  struct Interface {
    PortSlot port;
    Mac mac;
    u32 mtu;
    std::optional<Prefix> network;
    Address address;
  };
  // All that is wrong with the keys, a line each.
  struct Refusals {
    std::string text;
    void add(const ConfigNode& entry, std::string_view key, std::string_view what) {
      text += (text.empty() ? "" : "\n") + entry.refuse(key, what).error().what;
    }
  };
  void read_interfaces(const ConfigNode& keys, const StageContext& context, Refusals& refusals);
  void read_routes(const ConfigNode& keys, const StageContext& context, Refusals& refusals);
  void read_neighbours(const ConfigNode& keys, const StageContext& context, Refusals& refusals);
  Result<u64> seed() const;
  void put_file();
  Result<> follow_kernel();

  bool look(Burst& burst, Frame& frame, Packet& packet) const noexcept;
  [[nodiscard]] bool is_own(const Packet& packet, const u8* address) const noexcept;
  [[nodiscard]] Way way(const Packet& packet, u64 group) const noexcept;
  [[nodiscard]] Way way_by_hop(const Packet& packet, u64 group, u32 number) const noexcept;
  void go(Burst& burst, const Packet& packet, const Way& way, u32 epoch) noexcept;
  void offload(const Packet& packet, const Way& way, u32 epoch) noexcept;
  void take_flows_back() noexcept;
  [[nodiscard]] bool offloads() const noexcept { return flows_ != nullptr && flows_->any(); }
  void count_flows() const;
  void note(const Packet& packet, const Way& way) noexcept;
  [[nodiscard]] bool host_forwards(const Packet& packet) const noexcept {
    return netlink_ && netlink_->host_forwards(packet.version, packet.frame->port.value);
  }
  void tell(const Untold& note);

  // Of the file.
  bool follows_kernel_ = false, offload_ = false;
  FlowTimes times_;
  u32 max_routes_ = 0;
  Tables::Sizes sizes_{};
  std::optional<u64> seed_;
  std::map<std::string, u32, std::less<>> devices_;
  std::vector<std::string> port_names_;
  std::vector<Interface> interfaces_;
  std::vector<std::pair<Prefix, Route>> file_routes_;
  struct Neighbour {
    u32 port;
    Address address;
    u64 mac;
  };
  std::vector<Neighbour> file_neighbours_;

  Flows* flows_ = nullptr;  // null: it does not offload
  u64 taken_back_ns_ = 0;
  Tables::FlowCounts ended_;  // of flows that have ended
  std::unique_ptr<Tables> tables_;
  std::unique_ptr<Fib> fib_;
  std::unique_ptr<Routes> routes_;
  std::unique_ptr<Netlink> netlink_;
  Fd timer_, events_;
  Notes<Untold, 256> untold_;
  Notes<Wanted, 1024> wanted_;
  IcmpSender icmp_;
  std::array<u64, 3> told_{};  // by IcmpSender::Outcome
  u64 unfit_ = 0;
};

Result<std::unique_ptr<Stage>> Router::make(const ConfigNode& keys, StageContext& context) {
  auto made = std::make_unique<Router>();
  made->follows_kernel_ = keys.boolean("kernel_routes");
  made->offload_ = keys.boolean("offload");
  made->times_.idle_s = static_cast<u32>(keys.integer("flow_idle_s"));
  if (made->offload_) made->flows_ = &context.flows();
  made->max_routes_ = static_cast<u32>(keys.integer("max_routes"));
  made->sizes_ = {.nodes = static_cast<u32>(keys.integer("kernel_nodes")),
                  .hops = static_cast<u32>(keys.integer("max_next_hops")),
                  .seed = 0,
                  .by_ports = keys.string("ecmp") == "ports"};
  if (keys.has("hash_seed")) made->seed_ = static_cast<u64>(keys.integer("hash_seed"));
  for (u16 slot = 0; slot < WEIR_MAX_PORTS; ++slot)
    if (const std::string_view device = context.device(PortSlot{slot}); !device.empty()) made->devices_.emplace(device, slot);
  for (const PortSlot port : context.ports()) {
    made->port_names_.resize(std::max<std::size_t>(made->port_names_.size(), port.value + 1u));
    made->port_names_[port.value] = context.name(port);
  }
  Refusals refusals;
  made->read_interfaces(keys, context, refusals);
  made->read_routes(keys, context, refusals);
  made->read_neighbours(keys, context, refusals);
  if (!refusals.text.empty()) return std::unexpected(Error{Failure::invalid, std::move(refusals.text), 0, true});
  return made;
}

// The first `length` bits of an address.
Prefix network_of(Address address, u32 length) {
  for (u32 bit = length; bit < 128; ++bit) address.bytes[bit / 8] &= static_cast<u8>(~(0x80u >> bit % 8));
  return {address, length};
}

u32 bits_of(const Address& address) { return address.version == 4 ? 32 : 128; }

// Neither of a group, nor of all, nor of none.
bool is_host(const Address& address) {
  const u8 first = address.bytes[0];
  if (address.version == 4) return first != 0 && first < 224;
  return first != 0xff && address.bytes != std::array<u8, 16>{};
}

void Router::read_interfaces(const ConfigNode& keys, const StageContext& context, Refusals& refusals) {
  for (const ConfigNode& entry : keys.tables("interface")) {
    const PortSlot port = *context.port(entry.string("port"));
    // One entry for each of its addresses.
    if (const auto other = std::ranges::find(interfaces_, port, &Interface::port);
        other != interfaces_.end() && (other->mac != entry.mac("mac") || other->mtu != entry.integer("mtu")))
      refusals.add(entry, "port",
                   fmt::format("port \"{}\" has another mac or mtu in an interface before; a port has one of each", entry.string("port")));
    Interface& made = interfaces_.emplace_back(Interface{port, entry.mac("mac"), static_cast<u32>(entry.integer("mtu")), {}, {}});
    if (!context.device(made.port).empty() && follows_kernel_)
      refusals.add(entry, "port", fmt::format("port \"{}\" has a device, whose addresses are the kernel's to tell", entry.string("port")));
    if (!entry.has("address")) {
      if (entry.has("length")) refusals.add(entry, "length", "stands without an address; add it, or leave length out");
      continue;
    }
    made.address = entry.address("address");
    if (!entry.has("length")) {
      refusals.add(entry, "length", "is left out; an address has the length of its network");
      continue;
    }
    const u32 length = static_cast<u32>(entry.integer("length"));
    if (length > bits_of(made.address))
      refusals.add(entry, "length", fmt::format("is {}, more than the {} bits of the address", length, bits_of(made.address)));
    else made.network = network_of(made.address, length);
  }
}

// Of those of one prefix and metric, which routes_ would not keep apart, several lead somewhere and share the flows, or one does not.
void Router::read_routes(const ConfigNode& keys, const StageContext& context, Refusals& refusals) {
  constexpr std::pair<std::string_view, router_kind> kinds[] = {{"unicast", ROUTER_KIND_ONE},
                                                                {"blackhole", ROUTER_KIND_BLACKHOLE},
                                                                {"unreachable", ROUTER_KIND_UNREACHABLE},
                                                                {"prohibit", ROUTER_KIND_PROHIBIT}};
  for (const ConfigNode& entry : keys.tables("route")) {
    Route route{.source = Route::Source::file, .metric = static_cast<u32>(entry.integer("metric")), .paths = {}};
    route.kind = std::ranges::find(kinds, entry.string("kind"), &std::pair<std::string_view, router_kind>::first)->second;
    route.mtu = static_cast<u32>(entry.integer("mtu"));
    const Prefix to = entry.prefix("to");
    if (route.kind == ROUTER_KIND_ONE) {
      if (!entry.has("port")) {
        refusals.add(entry, "port", "is left out; a route leads out of a port");
        continue;
      }
      Path path{.port = context.port(entry.string("port"))->value, .via = {}, .weight = static_cast<u32>(entry.integer("weight"))};
      if (entry.has("via")) path.via = entry.address("via");
      if (entry.has("via") && !is_host(path.via))
        refusals.add(entry, "via", fmt::format("is {}, must be the address of a host", text_of(path.via)));
      else if (path.via.version == 4 && to.address.version == 6)
        refusals.add(entry, "via", fmt::format("is {}, must be an address of IPv6, as the prefix is", text_of(path.via)));
      route.paths.push_back(path);
    } else if (entry.has("port") || entry.has("via")) {
      refusals.add(entry, "kind", fmt::format("is \"{}\", which leads nowhere; leave port and via out", entry.string("kind")));
      continue;
    }
    const auto same =
        std::ranges::find_if(file_routes_, [&](const auto& known) { return known.first == to && known.second.same_key(route); });
    if (same == file_routes_.end()) file_routes_.emplace_back(to, std::move(route));
    else if (route.kind == ROUTER_KIND_ONE && same->second.kind == ROUTER_KIND_ONE) same->second.paths.push_back(route.paths.front());
    else
      refusals.add(entry, "to",
                   fmt::format("{}/{} has a route of the metric already, and one of the two leads nowhere; give them two metrics",
                               text_of(to.address), to.length));
  }
}

void Router::read_neighbours(const ConfigNode& keys, const StageContext& context, Refusals& refusals) {
  for (const ConfigNode& entry : keys.tables("neighbour")) {
    const u32 port = context.port(entry.string("port"))->value;
    const Address address = entry.address("address");
    if (std::ranges::any_of(file_neighbours_, [&](const Neighbour& known) { return known.port == port && known.address == address; }))
      refusals.add(entry, "address", fmt::format("{} at port \"{}\" has a MAC address already", text_of(address), entry.string("port")));
    file_neighbours_.push_back({port, address, router_get_mac(entry.mac("mac").data())});
  }
}

Result<u64> Router::seed() const {
  if (seed_) return *seed_;
  if (!interfaces_.empty()) return router_get_mac(interfaces_.front().mac.data());
  if (devices_.empty()) return 0;
  return router_get_mac(TRY(look_at(devices_.begin()->first)).mac.data());
}

Result<> Router::bind(StageMemory& memory) {
  sizes_.seed = TRY(seed());
  tables_ = TRY(Tables::bind(memory, sizes_));
  store(tables_->config().offload, offloads());
  fib_ = TRY(Fib::create(max_routes_));
  routes_ = std::make_unique<Routes>(*tables_, *fib_);
  put_file();
  if (follows_kernel_ && !devices_.empty()) TRY_VOID(follow_kernel());
  routes_->apply();
  tables_->go_live();
  return {};
}

void Router::put_file() {
  for (const Interface& each : interfaces_) {
    tables_->set_port(each.port.value, router_get_mac(each.mac.data()), each.mtu);
    if (!each.network) continue;
    Route link{.source = Route::Source::file, .kind = ROUTER_KIND_ONE, .paths = {Path{.port = each.port.value, .via = {}}}};
    routes_->add(*each.network, link, Routes::Change::append);
    const Route own{.source = Route::Source::file, .kind = ROUTER_KIND_OWN, .paths = {}};
    routes_->add({each.address, bits_of(each.address)}, own, Routes::Change::append);
    if (each.address.version != 4 || each.network->length >= 31) continue;
    Address broadcast = each.network->address;
    for (u32 bit = each.network->length; bit < 32; ++bit) broadcast.bytes[bit / 8] |= static_cast<u8>(0x80u >> bit % 8);
    const Route all{.source = Route::Source::file, .kind = ROUTER_KIND_HOST, .paths = {}};
    for (const Address& address : {broadcast, each.network->address}) routes_->add({address, 32}, all, Routes::Change::append);
  }
  for (const auto& [prefix, route] : file_routes_) routes_->add(prefix, route, Routes::Change::append);
  for (const Neighbour& each : file_neighbours_) routes_->fix_neighbour(each.port, each.address, each.mac);
}

Result<> Router::follow_kernel() {
  netlink_ = TRY(Netlink::open(*routes_, devices_));
  routes_->ask = [this](u32 device, const Address& address) { netlink_->use(device, address); };
  TRY_VOID(netlink_->fetch());
  timer_ = Fd(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  events_ = Fd(::epoll_create1(EPOLL_CLOEXEC));
  const itimerspec often{{0, notes_ms * 1'000'000}, {0, notes_ms * 1'000'000}};
  bool done = timer_ && events_ && ::timerfd_settime(timer_.get(), 0, &often, nullptr) == 0;
  const auto [monitor, query] = netlink_->descriptors();
  for (const int fd : {timer_.get(), monitor, query}) {
    epoll_event event{.events = EPOLLIN, .data = {}};
    done = done && ::epoll_ctl(events_.get(), EPOLL_CTL_ADD, fd, &event) == 0;
  }
  if (!done) return fail_errno(errno, "wait for changes of the kernel's routes");
  return {};
}

void Router::process(Burst& burst) noexcept {
  const u32 epoch = flows_ != nullptr ? flows_->epoch() : 0;
  std::array<Packet, Burst::capacity> v4, v6;
  std::array<u32, Burst::capacity> to4;
  u8 to6[Burst::capacity][16];
  std::array<u64, Burst::capacity> groups;
  u32 number4 = 0, number6 = 0;
  for (Frame& frame : burst) {
    Packet packet{};
    if (!look(burst, frame, packet)) continue;
    if (packet.version == 4) to4[number4] = router_host32(packet.destination()), v4[number4++] = packet;
    else std::memcpy(to6[number6], packet.destination(), 16), v6[number6++] = packet;
  }
  fib_->find4(to4.data(), groups.data(), number4);
  for (u32 i = 0; i < number4; ++i) go(burst, v4[i], way(v4[i], groups[i]), epoch);
  fib_->find6(to6, groups.data(), number6);
  for (u32 i = 0; i < number6; ++i) go(burst, v6[i], way(v6[i], groups[i]), epoch);
}

// True: it is to be looked up. Else it has a verdict.
bool Router::look(Burst& burst, Frame& frame, Packet& packet) const noexcept {
  const auto drop = [&](router_drop reason) { return burst.drop(frame, reason), false; };
  const auto to_host = [&] { return burst.count(ROUTER_NOT_ROUTED), burst.to_stack(frame), false; };
  if (frame.length < ETH_HLEN) return drop(ROUTER_TRUNCATED);
  const u32 type = router_host16(frame.data + 2 * ETH_ALEN);
  if (!router_is_for(frame.data, load(tables_->config().port[frame.port.value % WEIR_MAX_PORTS]))) return to_host();
  if (type != ETH_P_IP && type != ETH_P_IPV6) return to_host();
  const u32 room = frame.length - ETH_HLEN;
  u8* ip = frame.data + ETH_HLEN;
  u32 reason = 0;
  if (room < (type == ETH_P_IP ? ipv4_header : ipv6_header)) return drop(ROUTER_TRUNCATED);
  const router_fate fate = type == ETH_P_IP ? router_check4(ip, room, &reason) : router_check6(ip, room, &reason);
  if (fate == ROUTER_REFUSE) return drop(static_cast<router_drop>(reason));
  if (fate == ROUTER_TO_HOST) return to_host();
  packet = {&frame, ip, type == ETH_P_IP ? 4u : 6u, type == ETH_P_IP ? router_host16(ip + 2) : ipv6_header + router_host16(ip + 4)};
  return true;
}

bool Router::is_own(const Packet& packet, const u8* address) const noexcept {
  const u32 bit = router_own_bit(packet.address(address));
  if ((load(tables_->config().own[bit / 64]) >> bit % 64 & 1) == 0) return false;
  u64 group = 0;
  if (packet.version == 4) {
    u32 key = router_host32(address);
    fib_->find4(&key, &group, 1);
  } else {
    u8 key[1][16];
    std::memcpy(key[0], address, 16);
    fib_->find6(key, &group, 1);
  }
  return router_group_kind(tables_->group(group)) == ROUTER_KIND_OWN;
}

Way refused(router_drop reason, std::optional<IcmpReason> told = std::nullopt) {
  Way way;
  way.fate = Way::Fate::drop;
  way.reason = reason;
  way.told = told;
  return way;
}

// The whole decision about a packet. Nothing is changed, so that what it says may be given to whoever is to repeat it.
Way Router::way(const Packet& packet, u64 number) const noexcept {
  if (number == 0) number = load(tables_->config().fallback[packet.version == 4 ? 0 : 1]);
  const u64 group = tables_->group(number);
  const u32 kind = number == 0 ? u32{ROUTER_KIND_NONE} : router_group_kind(group);
  Way found;
  if (tables_->overflows()) return found;
  switch (kind) {
    case ROUTER_KIND_OWN:
      found.fate = Way::Fate::own;
      return found;
    case ROUTER_KIND_HOST:
      return found;
    default:
      break;
  }
  if (is_own(packet, packet.source())) return refused(ROUTER_MARTIAN_SOURCE);
  switch (kind) {
    case ROUTER_KIND_BLACKHOLE:
      return refused(ROUTER_BLACKHOLE);
    case ROUTER_KIND_UNREACHABLE:
      return refused(ROUTER_UNREACHABLE, IcmpReason::host_unreachable);
    case ROUTER_KIND_PROHIBIT:
      return refused(ROUTER_PROHIBITED, IcmpReason::prohibited);
    case ROUTER_KIND_ONE:
      return way_by_hop(packet, group, router_group_index(group));
    case ROUTER_KIND_MANY:
      return way_by_hop(packet, group, tables_->member(router_group_index(group), packet.flow(tables_->config())));
    default:
      return refused(ROUTER_NO_ROUTE, IcmpReason::net_unreachable);
  }
}

Way Router::way_by_hop(const Packet& packet, u64 group, u32 number) const noexcept {
  Way found;
  u64 hop = tables_->hop(number);
  if (router_hop_state(hop) == ROUTER_STATE_HOST) return found;
  if (packet.expires()) return refused(ROUTER_EXPIRED, IcmpReason::expired);
  const u32 port = router_hop_port(hop);
  const u64 out = load(tables_->config().port[port]);
  found.port = PortSlot{static_cast<u16>(port)};
  found.mtu = router_mtu(group, out);
  if (out == 0) return refused(ROUTER_NO_NEIGHBOUR);  // its device is gone
  if (packet.length > found.mtu) {
    if (!packet.may_not_be_fragmented()) return host_forwards(packet) ? found : refused(ROUTER_CANNOT_FRAGMENT);
    Way way = refused(ROUTER_TOO_BIG, IcmpReason::too_big);
    way.mtu = found.mtu;
    return way;
  }
  found.hop = number;
  if (router_hop_state(hop) == ROUTER_STATE_LINK) {
    found.hop = tables_->find_neighbour(packet.address(packet.destination()), port);
    hop = found.hop == 0 ? ROUTER_HOP(ROUTER_STATE_UNRESOLVED, port, 0) : tables_->hop(found.hop);
  }
  found.fate = Way::Fate::no_neighbour;
  if (router_hop_state(hop) == ROUTER_STATE_FAILED) found.told = IcmpReason::host_unreachable;
  if (router_hop_state(hop) != ROUTER_STATE_READY) return found;
  found.fate = Way::Fate::forward;
  found.destination = hop & ROUTER_MAC;
  found.source = out & ROUTER_MAC;
  return found;
}

void Router::go(Burst& burst, const Packet& packet, const Way& way, u32 epoch) noexcept {
  Frame& frame = *packet.frame;
  switch (way.fate) {
    case Way::Fate::own:
      return burst.count(ROUTER_OWN), burst.to_stack(frame);
    case Way::Fate::host:
      return burst.count(ROUTER_BY_HOST), burst.to_stack(frame);
    case Way::Fate::no_neighbour:
    case Way::Fate::drop:
      note(packet, way);
      if (way.fate == Way::Fate::drop) return burst.drop(frame, way.reason);
      if (way.told) return burst.drop(frame, ROUTER_HOST_UNREACHABLE);
      if (!host_forwards(packet)) return burst.drop(frame, ROUTER_NO_NEIGHBOUR);
      return burst.count(ROUTER_BY_HOST), burst.to_stack(frame);
    case Way::Fate::forward:
      break;
  }
  if (offloads()) offload(packet, way, epoch);
  tables_->count(way.hop, frame.length);
  router_put_mac(frame.data, way.destination);
  router_put_mac(frame.data + ETH_ALEN, way.source);
  if (packet.version == 4) router_decrement4(packet.ip);
  else router_decrement6(packet.ip);
  burst.count(packet.version == 4 ? ROUTER_FORWARDED4 : ROUTER_FORWARDED6);
  burst.transmit(frame, way.port);
}

// What go() does with the frame, for those behind it.
void Router::offload(const Packet& packet, const Way& way, u32 epoch) noexcept {
  FlowKey key = flows_->key_of(*packet.frame);
  if (!key) return;
  key.epoch = epoch;
  Mac to, from;
  router_put_mac(to.data(), way.destination);
  router_put_mac(from.data(), way.source);
  FlowAction action = FlowAction::transmit(way.port);
  action.ttl().addresses(to, from).longest(way.mtu + ETH_HLEN);
  flows_->offload(key, action, times_, way.hop);
}

// Flows that might go another way now, as often as the clock of ready() goes: changes may come by the thousand.
void Router::take_flows_back() noexcept {
  if (!offloads()) tables_->changes() = {};
  if (!offloads() || !tables_->changes().any() || now_ns() - taken_back_ns_ < notes_ms * 1'000'000) return;
  const Changes changed = std::exchange(tables_->changes(), {});
  flows_->take_back([&](const FlowKey& key, u64 hop) { return changed.concern(key, hop); });
  taken_back_ns_ = now_ns();
}

void Router::flow_ended(const EndedFlow& flow) noexcept {
  router_count& count = ended_[static_cast<u32>(flow.cookie)];
  count.frames += flow.frames;
  count.bytes += flow.bytes;
}

void Router::count_flows() const {
  if (!offloads()) return;
  Tables::FlowCounts counts = ended_;
  flows_->visit([&](const FlowKey&, u64 hop, u64 frames, u64 bytes) {
    router_count& count = counts[static_cast<u32>(hop)];
    count.frames += frames;
    count.bytes += bytes;
  });
  tables_->set_flow_counts(std::move(counts));
}

// For the control thread, which alone may make system calls.
void Router::note(const Packet& packet, const Way& way) noexcept {
  if (!netlink_) return;
  if (way.fate == Way::Fate::no_neighbour)
    wanted_.push([&](Wanted& to) {
      to.port = way.port.value;
      const router_address gateway = way.hop == 0 ? packet.address(packet.destination()) : tables_->hop_address(way.hop);
      // An IPv4 packet may have a gateway of IPv6.
      to.version = gateway.high == 0 && gateway.low >> 32 == 0 ? 4 : 6;
      to.address = {};
      if (to.version == 4) std::memcpy(to.address.data(), &gateway.low, 4);
      else std::memcpy(to.address.data(), &gateway, 16);
    });
  if (!way.told) return;
  untold_.push([&](Untold& to) {
    to.why = *way.told, to.mtu = way.mtu, to.port = packet.frame->port.value;
    to.length = std::min<u32>(packet.frame->length, static_cast<u32>(to.bytes.size()));
    std::copy_n(packet.frame->data, to.length, to.bytes.begin());
  });
}

void Router::tell(const Untold& note) {
  const std::optional<IcmpAnswer> answer = icmp_answer(note.why, std::span(note.bytes).first(note.length), note.mtu);
  if (!answer) return static_cast<void>(++unfit_);
  ++told_[static_cast<std::size_t>(icmp_.send(*answer, routes_->device_of(note.port), now_ns()))];
}

void Router::ready() noexcept {
  u64 ticks = 0;
  static_cast<void>(!::read(timer_.get(), &ticks, sizeof ticks));
  netlink_->take();
  untold_.take([&](const Untold& note) { tell(note); });
  wanted_.take([&](const Wanted& note) {
    routes_->want(note.port, Address{note.version, note.address}, static_cast<u32>(now_ns() / 1'000'000'000));
  });
  take_flows_back();
}

void Router::tick(u32 now_s) noexcept {
  if (netlink_) ready();
  count_flows();
  routes_->tick(now_s);
  take_flows_back();
}

std::vector<std::pair<std::string, u64>> Router::gauges() const {
  count_flows();
  std::vector<std::pair<std::string, u64>> all{{"routes_ipv4", routes_->size(4)},
                                               {"routes_ipv6", routes_->size(6)},
                                               {"routes_refused", routes_->overflow()},
                                               {"neighbours", tables_->neighbours()},
                                               {"refused", tables_->refused()},
                                               {"kernel_nodes", tables_->trie().nodes_used()},
                                               {"kernel_whole", tables_->trie().whole() ? 1 : 0},
                                               {"changes", netlink_ ? netlink_->changes() : 0},
                                               {"fetches", netlink_ ? netlink_->fetches() : 0},
                                               {"icmp_answered", told_[0]},
                                               {"icmp_limited", told_[1]},
                                               {"icmp_unsent", told_[2]},
                                               {"icmp_unfit", unfit_},
                                               {"icmp_lost", untold_.lost()}};
  const auto name = [&](u32 port) {
    return port < port_names_.size() && !port_names_[port].empty() ? port_names_[port] : std::to_string(port);
  };
  for (const auto& [hop, count] : tables_->counts()) {
    if (hop.port == HopKey::no_port) continue;
    const std::string who =
        hop.address.version == 0 ? "link " + name(hop.port) : fmt::format("via {} {}", text_of(hop.address), name(hop.port));
    all.emplace_back(who + " frames", count.frames);
    all.emplace_back(who + " bytes", count.bytes);
  }
  return all;
}

Schema keys() {
  return {
      Key::boolean("kernel_routes").otherwise("true").as("follow the kernel's tables main and local, its neighbours and devices"),
      Key::integer("max_routes", 64, 4000000).otherwise("65536").as("of each version; with more, the host routes everything"),
      Key::integer("max_next_hops", 64, 1000000).otherwise("4096").as("gateways and neighbours"),
      Key::integer("kernel_nodes", 1024, 1000000)
          .otherwise("16384")
          .as("KiB, twice, of the kernel half's table; when it is full, user space routes everything"),
      Key::string("ecmp", {"ports", "addresses"}).otherwise("\"ports\"").as("what chooses among several paths"),
      Key::boolean("offload").otherwise("true").as(
          "the first frame of a flow goes through the user half, which hands the others to the kernel's flow cache"),
      Key::integer("flow_idle_s", 1, 86400).otherwise("60").as("a flow without a frame for so long ends"),
      Key::integer("hash_seed", 0, 0xffffffff)
          .optional()
          .as("of the choice among several paths; left out: made of a MAC address, so that routers in a row differ"),
      Key::list("interface",
                Key::table("interface", {Key::port("port"), Key::station("mac"), Key::integer("mtu", 68, 65535).otherwise("1500"),
                                         Key::address("address").optional(), Key::integer("length", 1, 128).optional()}),
                0, 1024)
          .optional()
          .as("addresses of ports without a device, or that the kernel is not asked for"),
      Key::list("route",
                Key::table("route", {Key::prefix("to"), Key::address("via").optional(), Key::port("port").optional(),
                                     Key::string("kind", {"unicast", "blackhole", "unreachable", "prohibit"}).otherwise("\"unicast\""),
                                     Key::integer("metric", 0, 0xffffffff).otherwise("0"), Key::integer("weight", 1, 256).otherwise("1"),
                                     Key::integer("mtu", 0, 65535).otherwise("0")}),
                0, 65536)
          .optional()
          .as("routes beside the kernel's; several to one prefix are its paths"),
      Key::list("neighbour", Key::table("neighbour", {Key::address("address"), Key::station("mac"), Key::port("port")}), 0, 65536)
          .optional()
          .as("neighbours that do not change"),
  };
}

}  // namespace

WEIR_PLUGIN(.name = "router", .says = "forward IPv4 and IPv6 by the kernel's routes and neighbours", .keys = keys(),
            .drops = {"truncated", "bad_version", "bad_length", "bad_checksum", "martian_source", "martian_destination", "expired",
                      "too_big", "no_route", "blackhole", "unreachable", "prohibited", "no_neighbour", "host_unreachable",
                      "cannot_fragment"},
            .counters = {"forwarded_ipv4", "forwarded_ipv6", "own", "not_routed", "by_host"},
            .punts = {"expired", "too_big", "no_route", "refused", "neighbour", "tables", "port", "flow"}, .make = Router::make,
            .kernel_half = WEIR_KERNEL_HALF(router), .per_flow = true)
