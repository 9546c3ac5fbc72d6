// SPDX-License-Identifier: BSD-3-Clause
// router_netlink: rtnetlink by libmnl: one socket that hears of changes, one that asks for everything when it must.
#include "plugins/router/router_netlink.hh"

#include <libmnl/libmnl.h>
#include <linux/if.h>
#include <linux/lwtunnel.h>
#include <linux/neighbour.h>
#include <linux/netconf.h>
#include <linux/rtnetlink.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

namespace weir::routing {
namespace {

// What is fetched, in this order: routes name devices.
constexpr struct {
  u16 type;
  u8 family;
} steps[] = {{RTM_GETLINK, AF_UNSPEC},  {RTM_GETNETCONF, AF_INET}, {RTM_GETNETCONF, AF_INET6},
             {RTM_GETNEIGH, AF_UNSPEC}, {RTM_GETROUTE, AF_INET},   {RTM_GETROUTE, AF_INET6}};
constexpr std::chrono::milliseconds between_fetches{200};  // a device that goes with all of its addresses is one change
constexpr int most_at_once = 2000;                         // messages, so that a question to the instance waits some milliseconds at most

class Attributes {
 public:
  Attributes(const nlmsghdr& message, std::size_t header)
      : Attributes(static_cast<const u8*>(mnl_nlmsg_get_payload(&message)) + MNL_ALIGN(header),
                   mnl_nlmsg_get_payload_len(&message) - std::min(mnl_nlmsg_get_payload_len(&message), std::size_t{MNL_ALIGN(header)})) {}
  Attributes(const void* from, std::size_t size) {
    const auto* end = static_cast<const char*>(from) + size;
    for (const auto* each = static_cast<const nlattr*>(from);
         mnl_attr_ok(each, static_cast<int>(end - reinterpret_cast<const char*>(each))); each = mnl_attr_next(each))
      if (mnl_attr_get_type(each) < found_.size()) found_[mnl_attr_get_type(each)] = each;
  }
  [[nodiscard]] const nlattr* operator[](u16 type) const noexcept { return type < found_.size() ? found_[type] : nullptr; }
  [[nodiscard]] u32 number(u16 type, u32 otherwise = 0) const noexcept {
    const nlattr* at = (*this)[type];
    return at != nullptr && mnl_attr_get_payload_len(at) >= sizeof(u32) ? mnl_attr_get_u32(at) : otherwise;
  }

 private:
  std::array<const nlattr*, 64> found_{};
};

std::optional<Address> address_of(u32 family, const void* bytes, std::size_t size) {
  if ((family != AF_INET || size < 4) && (family != AF_INET6 || size < 16)) return std::nullopt;
  Address address;
  address.version = family == AF_INET ? 4 : 6;
  std::memcpy(address.bytes.data(), bytes, family == AF_INET ? 4 : 16);
  return address;
}

std::optional<Address> address_of(u32 family, const nlattr* from) {
  return from != nullptr ? address_of(family, mnl_attr_get_payload(from), mnl_attr_get_payload_len(from)) : std::nullopt;
}

// The gateway of a path, which may be of the other version (RTA_VIA). False: it is of a family that is not routed here.
bool read_gateway(const Attributes& attributes, u32 family, Path& path) {
  if (const nlattr* via = attributes[RTA_VIA]; via != nullptr) {
    const auto* from = static_cast<const u8*>(mnl_attr_get_payload(via));
    const std::size_t size = mnl_attr_get_payload_len(via);
    u16 its_family = 0;
    if (size < sizeof its_family) return false;
    std::memcpy(&its_family, from, sizeof its_family);
    const auto address = address_of(its_family, from + sizeof its_family, size - sizeof its_family);
    if (address) path.via = *address;
    return address.has_value();
  }
  if (const auto gateway = address_of(family, attributes[RTA_GATEWAY])) path.via = *gateway;
  return true;
}

constexpr u32 dead_flags = RTNH_F_DEAD | RTNH_F_LINKDOWN;

// False: only the host knows how to send by one of them.
bool read_paths(const Attributes& attributes, const rtmsg& head, Route& route) {
  if (attributes[RTA_ENCAP] != nullptr || attributes[RTA_ENCAP_TYPE] != nullptr) return false;
  const nlattr* several = attributes[RTA_MULTIPATH];
  if (several == nullptr) {
    Path path{.device = attributes.number(RTA_OIF), .via = {}, .dead = (head.rtm_flags & dead_flags) != 0};
    if (path.device == 0 || !read_gateway(attributes, head.rtm_family, path)) return false;
    route.paths.push_back(path);
    return true;
  }
  auto left = mnl_attr_get_payload_len(several);
  const auto* hop = static_cast<const rtnexthop*>(mnl_attr_get_payload(several));
  while (left >= sizeof *hop && hop->rtnh_len >= sizeof *hop && hop->rtnh_len <= left) {
    const Attributes own(reinterpret_cast<const u8*>(hop) + RTNH_LENGTH(0), hop->rtnh_len - RTNH_LENGTH(0));
    if (own[RTA_ENCAP] != nullptr || own[RTA_ENCAP_TYPE] != nullptr) return false;
    Path path{.device = static_cast<u32>(hop->rtnh_ifindex),
              .via = {},
              .weight = hop->rtnh_hops + 1u,
              .dead = (hop->rtnh_flags & dead_flags) != 0};
    if (!read_gateway(own, head.rtm_family, path)) return false;
    route.paths.push_back(path);
    const u16 step = static_cast<u16>(std::min<std::size_t>(RTNH_ALIGN(hop->rtnh_len), left));
    left = static_cast<u16>(left - step);
    hop = reinterpret_cast<const rtnexthop*>(reinterpret_cast<const u8*>(hop) + step);
  }
  return !route.paths.empty();
}

router_kind kind_of(u8 type) noexcept {
  switch (type) {
    case RTN_UNICAST:
      return ROUTER_KIND_ONE;
    case RTN_LOCAL:
      return ROUTER_KIND_OWN;
    case RTN_BLACKHOLE:
      return ROUTER_KIND_BLACKHOLE;
    case RTN_UNREACHABLE:
    case RTN_THROW:  // there is no other table to look into
      return ROUTER_KIND_UNREACHABLE;
    case RTN_PROHIBIT:
      return ROUTER_KIND_PROHIBIT;
    default:
      return ROUTER_KIND_HOST;  // broadcast, anycast, multicast, and what nobody knows yet
  }
}

}  // namespace

Result<std::unique_ptr<Netlink>> Netlink::open(Routes& routes, std::map<std::string, u32, std::less<>> ports) {
  std::unique_ptr<Netlink> made(new Netlink(routes));
  made->ports_ = std::move(ports);
  made->buffer_.resize(1 << 17);
  made->step_ = std::size(steps);
  TRY_VOID(made->listen());
  return made;
}

Result<> Netlink::listen() {
  const auto open_socket = [] { return Fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE)); };
  monitor_ = open_socket();
  query_ = open_socket();
  sockaddr_nl any{};
  any.nl_family = AF_NETLINK;
  for (const Fd* socket : {&monitor_, &query_})
    if (!*socket || ::bind(socket->get(), reinterpret_cast<const sockaddr*>(&any), sizeof any) != 0)
      return fail_errno(errno, "ask the kernel for its routes: open a netlink socket");
  // For forty thousand changes that come while something else is done; what does not fit has everything fetched.
  const int room = 16 << 20;
  for (const Fd* socket : {&monitor_, &query_})
    if (::setsockopt(socket->get(), SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room) != 0)
      ::setsockopt(socket->get(), SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
  for (const int group : {RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE, RTNLGRP_IPV4_NETCONF,
                          RTNLGRP_IPV6_NETCONF, RTNLGRP_NEXTHOP})
    if (::setsockopt(monitor_.get(), SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) != 0 && group != RTNLGRP_NEXTHOP)
      return fail_errno(errno, "listen to changes of the kernel's routes");
  return {};
}

Result<> Netlink::fetch() {
  begin_fetch();
  while (step_ < std::size(steps)) {
    pollfd wait{query_.get(), POLLIN, 0};
    if (const int ready = ::poll(&wait, 1, 5000); ready == 0 || (ready < 0 && errno != EINTR))
      return fail("ask the kernel for its routes: it does not answer");
    take();
  }
  return {};
}

// What was heard before is part of what will be found.
void Netlink::begin_fetch() {
  while (::recv(monitor_.get(), buffer_.data(), buffer_.size(), 0) >= 0 || errno == ENOBUFS) continue;
  ++fetches_;
  fetch_again_ = broken_off_ = false;
  routes_.begin_sweep();
  step_ = 0;
  ask_next();
}

bool Netlink::ask_next() {
  if (step_ >= std::size(steps)) return false;
  struct {
    nlmsghdr message;
    union {
      rtmsg route;
      ndmsg neighbour;
      ifinfomsg link;
      netconfmsg forwarding;
    };
  } request{};
  const u16 size = static_cast<u16>(steps[step_].type == RTM_GETLINK      ? sizeof request.link
                                    : steps[step_].type == RTM_GETNEIGH   ? sizeof request.neighbour
                                    : steps[step_].type == RTM_GETNETCONF ? sizeof request.forwarding
                                                                          : sizeof request.route);
  request.message.nlmsg_len = static_cast<u32>(NLMSG_LENGTH(size));
  request.message.nlmsg_type = steps[step_].type;
  request.message.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  request.message.nlmsg_seq = ++sequence_;
  request.route.rtm_family = steps[step_].family;  // each begins with its family
  return ::send(query_.get(), &request, request.message.nlmsg_len, 0) >= 0;
}

int Netlink::receive(const Fd& socket) {
  const ssize_t got = ::recv(socket.get(), buffer_.data(), buffer_.size(), 0);
  if (got < 0) {
    if (errno == ENOBUFS) fetch_again_ = true;  // more than the socket held: what is lost can only be fetched
    return errno == EINTR || errno == ENOBUFS ? 0 : -1;
  }
  int left = static_cast<int>(got), number = 0;
  for (auto* message = reinterpret_cast<const nlmsghdr*>(buffer_.data()); mnl_nlmsg_ok(message, left);
       message = mnl_nlmsg_next(message, &left), ++number) {
    const bool found = &socket == &query_;
    if (found && message->nlmsg_seq != sequence_) continue;  // of a request that only names a neighbour
    if (found && (message->nlmsg_flags & NLM_F_DUMP_INTR) != 0) broken_off_ = true;
    if (message->nlmsg_type == NLMSG_DONE || message->nlmsg_type == NLMSG_ERROR) {
      if (!found) continue;
      ++step_;
      if (!ask_next()) step_ = std::size(steps);
      continue;
    }
    hear(*message, found);
  }
  return number;
}

void Netlink::take() {
  for (int taken = 0; taken < most_at_once;) {
    const bool fetching = step_ < std::size(steps);
    const int number = receive(fetching ? query_ : monitor_);
    if (number < 0) break;
    taken += number + 1;
    if (!fetching) continue;
    if (step_ < std::size(steps)) continue;
    if (broken_off_) begin_fetch();  // something changed in the middle of a list, which may lack anything therefore
    else routes_.end_sweep(), settle_forwarding();
  }
  if (step_ < std::size(steps)) return;  // half of what there is is not put into the tables
  while (::recv(query_.get(), buffer_.data(), buffer_.size(), MSG_DONTWAIT) >= 0) continue;  // answers to use()
  routes_.apply();
  const auto now = std::chrono::steady_clock::now();
  if (fetch_again_ && now - fetched_ > between_fetches) fetched_ = now, begin_fetch();
}

void Netlink::hear(const nlmsghdr& message, bool found) {
  changes_ += !found;
  switch (message.nlmsg_type) {
    case RTM_NEWLINK:
    case RTM_DELLINK:
      return hear_link(message);
    case RTM_NEWROUTE:
    case RTM_DELROUTE:
      return hear_route(message, found);
    case RTM_NEWNEIGH:
    case RTM_DELNEIGH:
      return hear_neighbour(message);
    case RTM_NEWNETCONF:
      hear_forwarding(message);
      if (!found) settle_forwarding();
      return;
    case RTM_DELADDR:
    case RTM_DELNEXTHOP:
    case RTM_NEWNEXTHOP:
      fetch_again_ = true;  // IPv4 routes that go with them, or change, go without a word (net/ipv4/fib_trie.c, fib_table_flush)
      return;
    default:
      return;
  }
}

void Netlink::hear_link(const nlmsghdr& message) {
  const auto& head = *static_cast<const ifinfomsg*>(mnl_nlmsg_get_payload(&message));
  if (mnl_nlmsg_get_payload_len(&message) < sizeof head || head.ifi_family != AF_UNSPEC) return;
  const u32 device = static_cast<u32>(head.ifi_index);
  const Attributes attributes(message, sizeof head);
  if (message.nlmsg_type == RTM_DELLINK) {
    port_by_device_.erase(device);
    fetch_again_ |= routes_.remove_link(device);
    return;
  }
  Link link{.mtu = attributes.number(IFLA_MTU), .up = (head.ifi_flags & IFF_UP) != 0, .carrier = (head.ifi_flags & IFF_RUNNING) != 0};
  if (const nlattr* name = attributes[IFLA_IFNAME]; name != nullptr) link.name = mnl_attr_get_str(name);
  if (const nlattr* mac = attributes[IFLA_ADDRESS]; mac != nullptr && mnl_attr_get_payload_len(mac) == 6)
    link.mac = router_get_mac(mnl_attr_get_payload(mac));
  if (const auto at = ports_.find(link.name); at != ports_.end()) link.port = at->second, port_by_device_[device] = at->second;
  else port_by_device_.erase(device);
  const bool ask_anew = routes_.set_link(device, std::move(link));
  fetch_again_ |= ask_anew && step_ >= std::size(steps);
}

void Netlink::hear_route(const nlmsghdr& message, bool found) {
  const auto& head = *static_cast<const rtmsg*>(mnl_nlmsg_get_payload(&message));
  if (mnl_nlmsg_get_payload_len(&message) < sizeof head || (head.rtm_flags & RTM_F_CLONED) != 0) return;
  if (head.rtm_family != AF_INET && head.rtm_family != AF_INET6) return;
  const Attributes attributes(message, sizeof head);
  const u32 table = attributes.number(RTA_TABLE, head.rtm_table);
  if (table != RT_TABLE_LOCAL && table != RT_TABLE_MAIN) return;
  Prefix prefix;
  prefix.address.version = head.rtm_family == AF_INET ? 4 : 6;
  prefix.length = head.rtm_dst_len;
  if (const auto to = address_of(head.rtm_family, attributes[RTA_DST])) prefix.address = *to;
  Route route{.source = table == RT_TABLE_LOCAL ? Route::Source::local : Route::Source::main,
              .metric = attributes.number(RTA_PRIORITY),
              .special = head.rtm_tos | static_cast<u32>(head.rtm_src_len) << 8,
              .kind = kind_of(head.rtm_type),
              .paths = {}};
  if (route.kind == ROUTER_KIND_ONE && !read_paths(attributes, head, route)) route.kind = ROUTER_KIND_HOST, route.paths.clear();
  if (const nlattr* metrics = attributes[RTA_METRICS]; metrics != nullptr)
    route.mtu = Attributes(mnl_attr_get_payload(metrics), mnl_attr_get_payload_len(metrics)).number(RTAX_MTU);
  if (message.nlmsg_type == RTM_DELROUTE) return routes_.remove(prefix, route);
  const Routes::Change change = found                                        ? Routes::Change::found
                                : (message.nlmsg_flags & NLM_F_REPLACE) != 0 ? Routes::Change::replace
                                : (message.nlmsg_flags & NLM_F_APPEND) != 0  ? Routes::Change::append
                                                                             : Routes::Change::add;
  routes_.add(prefix, std::move(route), change);
}

void Netlink::hear_neighbour(const nlmsghdr& message) {
  const auto& head = *static_cast<const ndmsg*>(mnl_nlmsg_get_payload(&message));
  if (mnl_nlmsg_get_payload_len(&message) < sizeof head || (head.ndm_flags & NTF_PROXY) != 0) return;
  const Attributes attributes(message, sizeof head);
  const auto address = address_of(head.ndm_family, attributes[NDA_DST]);
  if (!address || (address->version == 6 && address->bytes[0] == 0xff)) return;
  const u32 device = static_cast<u32>(head.ndm_ifindex);
  if (message.nlmsg_type == RTM_DELNEIGH) return routes_.remove_neighbour(device, *address);
  constexpr u16 usable = NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE | NUD_PERMANENT | NUD_NOARP;
  const nlattr* mac = attributes[NDA_LLADDR];
  const bool known = (head.ndm_state & usable) != 0 && mac != nullptr && mnl_attr_get_payload_len(mac) == 6;
  const router_state state = known                                ? ROUTER_STATE_READY
                             : (head.ndm_state & NUD_FAILED) != 0 ? ROUTER_STATE_FAILED
                                                                  : ROUTER_STATE_UNRESOLVED;
  routes_.set_neighbour(device, *address, state, known ? router_get_mac(mnl_attr_get_payload(mac)) : 0, (head.ndm_state & NUD_STALE) != 0);
}

void Netlink::hear_forwarding(const nlmsghdr& message) {
  const auto& head = *static_cast<const netconfmsg*>(mnl_nlmsg_get_payload(&message));
  if (mnl_nlmsg_get_payload_len(&message) < sizeof head || (head.ncm_family != AF_INET && head.ncm_family != AF_INET6)) return;
  const Attributes attributes(message, NLMSG_ALIGN(sizeof head));
  if (attributes[NETCONFA_IFINDEX] == nullptr || attributes[NETCONFA_FORWARDING] == nullptr) return;
  forwards_[static_cast<int>(attributes.number(NETCONFA_IFINDEX))][head.ncm_family == AF_INET ? 0 : 1] =
      attributes.number(NETCONFA_FORWARDING) != 0;
}

// IPv4 asks the device, IPv6 the host as a whole (net/ipv4/route.c, ip_route_input_slow; net/ipv6/ip6_output.c, ip6_forward).
void Netlink::settle_forwarding() {
  std::array<u64, 2> bits{};
  for (const auto& [device, port] : port_by_device_) {
    bits[0] |= u64{forwards_[static_cast<int>(device)][0]} << port;
    bits[1] |= u64{forwards_[NETCONFA_IFINDEX_ALL][1]} << port;
  }
  for (std::size_t i = 0; i < bits.size(); ++i) forwarding_[i].store(bits[i], std::memory_order_relaxed);
}

void Netlink::use(u32 device, const Address& address) {
  alignas(8) std::array<u8, 128> memory{};
  nlmsghdr* message = mnl_nlmsg_put_header(memory.data());
  message->nlmsg_type = RTM_NEWNEIGH;
  message->nlmsg_flags = NLM_F_REQUEST | NLM_F_CREATE;
  auto* head = static_cast<ndmsg*>(mnl_nlmsg_put_extra_header(message, sizeof(ndmsg)));
  head->ndm_family = address.version == 4 ? AF_INET : AF_INET6;
  head->ndm_ifindex = static_cast<int>(device);
  head->ndm_flags = NTF_USE;
  mnl_attr_put(message, NDA_DST, address.version == 4 ? 4 : 16, address.bytes.data());
  static_cast<void>(!::send(query_.get(), message, message->nlmsg_len, 0));  // a full socket has it asked again by the next frame
}

}  // namespace weir::routing
