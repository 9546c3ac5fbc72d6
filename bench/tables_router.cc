// SPDX-License-Identifier: BSD-3-Clause
// tables_router: router over the routes of a network namespace of its own, which has as many of one version as are asked for.
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sched.h>
#include <sys/socket.h>

#include <cstdio>
#include <map>
#include <unordered_map>

#include "bench/tables.hh"
#include "plugins/router/router.h"

namespace weir::bench {
namespace {

constexpr u32 hops = 64;
Mac hop_of(u32 number) { return kit::station(1000 + number); }

// Lengths in about the shares that the Internet's tables have of them, in 64ths.
struct Share {
  u32 length, of_64;
};
constexpr std::array<Share, 8> shares4{{{24, 38}, {23, 6}, {22, 7}, {21, 4}, {20, 4}, {19, 2}, {18, 1}, {16, 2}}};
constexpr std::array<Share, 7> shares6{{{48, 34}, {44, 7}, {40, 6}, {36, 3}, {32, 9}, {47, 3}, {46, 2}}};

u32 length_of(std::span<const Share> shares, Dice& dice) {
  u32 left = dice.below(64);
  for (const Share& share : shares) {
    if (left < share.of_64) return share.length;
    left -= share.of_64;
  }
  broken("the shares of lengths are less than 64");
}

// The first 64 bits of an address; of IPv4 the upper half of them.
struct Route {
  u64 prefix;
  u32 length;
  u32 hop;
};
u64 mask(u32 length) { return ~u64{0} << (64 - length); }

// Routes of one version, no two of one prefix, and the longest match of an address by asking for all lengths.
class RouteSet {
 public:
  RouteSet(u32 version, u32 size, Dice& dice) : version_(version) {
    while (routes_.size() < size) {
      const u32 length = version == 4 ? length_of(shares4, dice) : length_of(shares6, dice);
      const Route route{(version == 4 ? prefix4(dice) : prefix6(size, dice)) & mask(length), length, dice.below(hops)};
      if (by_length_[length].emplace(route.prefix, route.hop).second) routes_.push_back(route);
    }
  }
  [[nodiscard]] const std::vector<Route>& routes() const noexcept { return routes_; }
  [[nodiscard]] u32 version() const noexcept { return version_; }
  [[nodiscard]] u32 hop_for(u64 address) const {
    for (auto at = by_length_.rbegin(); at != by_length_.rend(); ++at)
      if (const auto found = at->second.find(address & mask(at->first)); found != at->second.end()) return found->second;
    broken("a frame that was made for a route has none");
  }

 private:
  // Anywhere from 11.0.0.0 to 126.255.255.255.
  static u64 prefix4(Dice& dice) { return u64{(11u << 24) + dice.below(116u << 24)} << 32; }
  // Networks of /32 of a few registries, forty routes in each, which use the first numbers of it.
  static u64 prefix6(u32 size, Dice& dice) {
    static constexpr std::array<u16, 8> registries{0x2001, 0x2400, 0x2404, 0x2600, 0x2800, 0x2a00, 0x2a01, 0x2c0f};
    const u32 network = dice.below(std::max(1u, size / 40));
    return u64{registries[network % 8]} << 48 | u64{0x0db9 + network / 8} << 32 | u64{dice.below(1 << 10)} << 16;
  }
  u32 version_;
  std::vector<Route> routes_;
  std::map<u32, std::unordered_map<u64, u32>> by_length_;
};

void put_attribute(std::vector<u8>& message, u16 type, std::span<const u8> value) {
  const rtattr head{static_cast<u16>(RTA_LENGTH(value.size())), type};
  const auto* bytes = reinterpret_cast<const u8*>(&head);
  message.insert(message.end(), bytes, bytes + sizeof head);
  message.insert(message.end(), value.begin(), value.end());
  message.resize(message.size() + (RTA_ALIGN(head.rta_len) - head.rta_len));
}

// Gives the namespace's kernel the routes, many in one message.
class Rtnetlink {
 public:
  static Result<Rtnetlink> open() {
    Rtnetlink made;
    made.socket_ = Fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
    if (!made.socket_) return fail_errno(errno, "open a netlink socket");
    return made;
  }
  Result<> add(const RouteSet& set, u32 device) {
    std::vector<u8> many;
    for (std::size_t i = 0; i < set.routes().size(); ++i) {
      const bool last = i + 1 == set.routes().size();
      append(many, set.version(), set.routes()[i], device, last);
      if (many.size() < 60000 && !last) continue;
      if (::send(socket_.get(), many.data(), many.size(), 0) < 0) return fail_errno(errno, "send routes to the kernel");
      TRY_VOID(hear(last));
      many.clear();
    }
    return {};
  }

 private:
  static void append(std::vector<u8>& many, u32 version, const Route& route, u32 device, bool last) {
    const std::size_t begin = many.size(), size = version == 4 ? 4 : 16;
    std::array<u8, 16> to{}, via{};
    put<u64>(to, 0, __builtin_bswap64(route.prefix));
    if (version == 4) via = {10, 0, 0, static_cast<u8>(2 + route.hop)};
    else via[0] = 0xfd, via[15] = static_cast<u8>(2 + route.hop);
    nlmsghdr head{0, RTM_NEWROUTE, static_cast<u16>(NLM_F_REQUEST | NLM_F_CREATE | (last ? NLM_F_ACK : 0)), 0, 0};
    rtmsg body{};
    body.rtm_family = version == 4 ? AF_INET : AF_INET6, body.rtm_dst_len = static_cast<u8>(route.length);
    body.rtm_table = RT_TABLE_MAIN, body.rtm_protocol = RTPROT_STATIC, body.rtm_type = RTN_UNICAST;
    many.resize(begin + NLMSG_LENGTH(sizeof body));
    put(std::span(many), begin + NLMSG_HDRLEN, body);
    put_attribute(many, RTA_DST, std::span(to).first(size));
    put_attribute(many, RTA_GATEWAY, std::span(via).first(size));
    std::array<u8, 4> oif{};
    put<u32>(oif, 0, device);
    put_attribute(many, RTA_OIF, oif);
    head.nlmsg_len = static_cast<u32>(many.size() - begin);
    put(std::span(many), begin, head);
  }
  // Without `end` what is there, which are errors alone; with it until the last one is acknowledged.
  Result<> hear(bool end) {
    std::array<u8, 65536> bytes;
    while (true) {
      const ssize_t got = ::recv(socket_.get(), bytes.data(), bytes.size(), end ? 0 : MSG_DONTWAIT);
      if (got < 0 && errno == EAGAIN) return {};
      if (got < 0) return fail_errno(errno, "hear what became of routes");
      for (ssize_t at = 0; at + static_cast<ssize_t>(sizeof(nlmsghdr)) <= got;) {
        const auto* head = reinterpret_cast<const nlmsghdr*>(bytes.data() + at);
        const int error = reinterpret_cast<const nlmsgerr*>(NLMSG_DATA(head))->error;
        if (head->nlmsg_type == NLMSG_ERROR && error != 0) return fail_errno(-error, "add a route to the kernel's");
        if (head->nlmsg_type == NLMSG_ERROR) return {};
        at += NLMSG_ALIGN(head->nlmsg_len);
      }
    }
  }
  Fd socket_;
};

// Two wires, their other ends beside them, and the gateways' addresses for good.
Result<> make_devices() {
  if (::unshare(CLONE_NEWNET) != 0) return fail_errno(errno, "make a network namespace: needs CAP_SYS_ADMIN");
  std::string batch;
  for (const char* name : {"in", "out"})
    batch += fmt::format("link add {0} address 02:00:00:00:00:{1} type veth peer name {0}_peer\nlink set {0}_peer up\nlink set {0} up\n",
                         name, name[0] == 'i' ? "01" : "02");
  batch += "addr add 10.0.0.1/24 dev out\naddr add fd00::1/64 dev out nodad\n";
  for (u32 hop = 0; hop < hops; ++hop) {
    const Mac mac = hop_of(hop);
    for (const std::string& address : {fmt::format("10.0.0.{}", 2 + hop), fmt::format("fd00::{:x}", 2 + hop)})
      batch += fmt::format("neigh replace {} lladdr {:02x} dev out nud permanent\n", address, fmt::join(mac, ":"));
  }
  std::FILE* ip = ::popen("ip -batch -", "w");
  if (ip == nullptr) return fail_errno(errno, "run ip");
  std::fputs(batch.c_str(), ip);
  if (::pclose(ip) != 0) return fail("make devices: ip failed; its own words are above");
  return {};
}

class Router final : public PluginTable {
 public:
  static Result<std::unique_ptr<Table>> make(const Plugin& plugin, u32 version, u32 size, Dice& dice) {
    TRY_VOID(make_devices());
    std::unique_ptr<Router> made(new Router(version, size, dice));
    Rtnetlink kernel = TRY(Rtnetlink::open());
    TRY_VOID(kernel.add(made->routes_, ::if_nametoindex("out")));
    made->context_.set_device(PortSlot{0}, "in");
    made->context_.set_device(PortSlot{1}, "out");
    // DPDK's tables take more than one place of a route, of IPv6 in tables of 8 bits, of which there are as many as half of max_routes.
    const u32 most = std::min(4'000'000u, (version == 4 ? 2 : 6) * size + 1024);
    TRY_VOID(made->make_stage(plugin, fmt::format("offload = false\nmax_routes = {}\nkernel_nodes = {}", most, 16384 + size / 8)));
    TRY_VOID(made->expect_all(size));
    return made;
  }
  [[nodiscard]] std::vector<u32> versions() const override { return {routes_.version()}; }
  [[nodiscard]] FrameBytes frame_for(u32 entry, u32 version, Dice& dice) const override {
    const Route& route = routes_.routes()[entry];
    Ends ends{.source = {192, 0, 2, 1}, .sport = static_cast<u16>(dice()), .dport = 53};
    if (version == 6) ends.source = {0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1};
    put<u64>(ends.destination, 0, __builtin_bswap64(route.prefix | (dice() & ~mask(route.length))));
    put<u64>(ends.destination, 8, dice());
    return ip_frame(version, ends, kit::station(1), kit::station(3));
  }
  [[nodiscard]] FrameBytes after(const FrameBytes& frame) const override {
    const u64 to = routes_.version() == 4 ? u64{__builtin_bswap32(get<u32>(frame, 30))} << 32 : __builtin_bswap64(get<u64>(frame, 38));
    return forwarded(frame, hop_of(routes_.hop_for(to)), kit::station(2));
  }
  [[nodiscard]] u64 found(const account& counted) const override {
    return counted.counter[ROUTER_FORWARDED4] + counted.counter[ROUTER_FORWARDED6];
  }
  [[nodiscard]] std::string says() const override {
    return fmt::format("{} routes with the host's own; {} nodes of 1 KiB of the kernel half", gauge(routes_gauge()), gauge("kernel_nodes"));
  }

 private:
  Router(u32 version, u32 size, Dice& dice) : routes_(version, size, dice) {}
  [[nodiscard]] kit::Verdict verdict(const FrameBytes&) const override { return kit::redirect(1); }
  [[nodiscard]] u64 gauge(std::string_view name) const { return user_->gauge(name); }
  [[nodiscard]] std::string_view routes_gauge() const { return routes_.version() == 4 ? "routes_ipv4" : "routes_ipv6"; }
  Result<> expect_all(u32 size) const {
    if (const u64 refused = gauge("routes_refused"); refused != 0)
      return fail("the user half's table refuses {} of {} routes", refused, size);
    if (gauge(routes_gauge()) < size) return fail("the router has {} of {} routes", gauge(routes_gauge()), size);
    if (gauge("kernel_whole") != 1) return fail("the kernel half's table has no room for {} routes", size);
    return {};
  }
  RouteSet routes_;
};

}  // namespace

Result<std::unique_ptr<Table>> make_router(const Registry& registry, u32 version, u32 size, Dice& dice) {
  const Plugin* plugin = registry.plugin("router");
  if (plugin == nullptr) return fail("the plugin router is not there: build it, which wants DPDK");
  return Router::make(*plugin, version, size, dice);
}

}  // namespace weir::bench
