// SPDX-License-Identifier: BSD-3-Clause
// netdev: ioctls for what a name suffices for, rtnetlink for the peer of a veth.
#include "core/kernel/netdev.hh"

#include <bpf/libbpf.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/if_link.h>
#include <linux/net_namespace.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <cctype>
#include <cstring>
#include <filesystem>
#include <optional>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "core/base/fd.hh"

namespace weir {
namespace {

// One ioctl on a device by its name.
class Asker {
 public:
  Asker() : fd_(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)), failure_(fd_ ? 0 : errno) {}
  // False: errno says why.
  bool ask(const std::string& device, unsigned long request, ifreq& answer) const {
    errno = failure_;
    if (!fd_) return false;
    device.copy(answer.ifr_name, IFNAMSIZ - 1);
    return ::ioctl(fd_.get(), request, &answer) == 0;
  }
  template <typename T>
  bool ethtool(const std::string& device, T& question) const {
    ifreq request{};
    request.ifr_data = reinterpret_cast<char*>(&question);
    return ask(device, SIOCETHTOOL, request);
  }

 private:
  Fd fd_;
  int failure_;
};

std::string known_devices() {
  std::string names;
  struct if_nameindex* all = ::if_nameindex();
  for (auto* each = all; each != nullptr && each->if_index != 0; ++each) names += (names.empty() ? "" : ", ") + std::string(each->if_name);
  if (all != nullptr) ::if_freenameindex(all);
  return names.empty() ? "none" : names;
}

// What `ethtool -l` shows as combined and rx: each of them is an rx queue. A driver that does not say has one.
void look_at_queues(const Asker& asker, Netdev& found) {
  ethtool_channels channels{};
  channels.cmd = ETHTOOL_GCHANNELS;
  if (!asker.ethtool(found.name, channels)) return;
  found.queues = std::max(1u, channels.combined_count + channels.rx_count);
  // Where a driver has both kinds, they are the same queues in two arrangements.
  found.max_queues = std::max({found.queues, channels.max_combined, channels.max_rx});
}

void look_at_programs(Netdev& found) {
  LIBBPF_OPTS(bpf_xdp_query_opts, attached);
  if (::bpf_xdp_query(static_cast<int>(found.ifindex.value), 0, &attached) != 0) return;
  found.xdp_native_id = attached.drv_prog_id;
}

// A netlink request of one message and at most one attribute, and its first answer.
class Netlink {
 public:
  Netlink() : fd_(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE)) {}

  // The attributes of the answer by their type; empty: the kernel refused.
  template <typename Header>
  std::vector<std::vector<u8>> ask(u16 type, const Header& header, u16 attribute = 0, const void* value = nullptr, u16 size = 0) {
    struct {
      nlmsghdr message;
      Header header;
      alignas(NLMSG_ALIGNTO) rtattr attribute;  // the kernel looks for it there, and rtgenmsg is a single byte
      u8 value[8];
    } request{};
    request.message.nlmsg_type = type;
    request.message.nlmsg_flags = NLM_F_REQUEST;
    request.message.nlmsg_len = NLMSG_LENGTH(sizeof header);
    request.header = header;
    if (value != nullptr) {
      request.attribute = {static_cast<u16>(RTA_LENGTH(size)), attribute};
      std::memcpy(request.value, value, size);
      request.message.nlmsg_len = NLMSG_SPACE(sizeof header) + RTA_SPACE(size);
    }
    if (::send(fd_.get(), &request, request.message.nlmsg_len, 0) < 0) return {};
    std::vector<u8> answer(65536);
    const ssize_t got = ::recv(fd_.get(), answer.data(), answer.size(), 0);
    const auto* message = reinterpret_cast<const nlmsghdr*>(answer.data());
    if (got < static_cast<ssize_t>(sizeof(nlmsghdr)) || !NLMSG_OK(message, static_cast<u32>(got))) return {};
    if (message->nlmsg_type == NLMSG_ERROR) return {};
    return attributes(static_cast<const u8*>(NLMSG_DATA(message)) + NLMSG_ALIGN(sizeof(Header)),
                      message->nlmsg_len - NLMSG_LENGTH(NLMSG_ALIGN(sizeof(Header))));
  }

  static std::vector<std::vector<u8>> attributes(const u8* data, std::size_t size) {
    std::vector<std::vector<u8>> found(1);
    int left = static_cast<int>(size);
    for (auto* each = reinterpret_cast<const rtattr*>(data); RTA_OK(each, left); each = RTA_NEXT(each, left)) {
      const std::size_t type = each->rta_type & NLA_TYPE_MASK;
      if (type >= found.size()) found.resize(type + 1);
      const auto* value = static_cast<const u8*>(RTA_DATA(each));
      found[type].assign(value, value + RTA_PAYLOAD(each));
    }
    return found;
  }

 private:
  Fd fd_;
};

std::optional<u32> number(const std::vector<std::vector<u8>>& attributes, std::size_t type) {
  if (type >= attributes.size() || attributes[type].size() < sizeof(u32)) return std::nullopt;
  u32 value = 0;
  std::memcpy(&value, attributes[type].data(), sizeof value);
  return value;
}

std::vector<std::vector<u8>> link_of(u32 ifindex) {
  ifinfomsg header{};
  header.ifi_family = AF_UNSPEC;
  header.ifi_index = static_cast<int>(ifindex);
  return Netlink().ask(RTM_GETLINK, header);
}

// Of a device of the current namespace: an XDP program in the driver, or GRO; and its checksums.
VethPeer look_at_peer(u32 ifindex) {
  char name[IF_NAMESIZE] = {};
  if (::if_indextoname(ifindex, name) == nullptr) return {};
  Netdev peer{.name = name, .ifindex = Ifindex{ifindex}, .driver = ""};
  look_at_programs(peer);
  ethtool_value gro{.cmd = ETHTOOL_GGRO, .data = 0};
  ethtool_value checksums{.cmd = ETHTOOL_GTXCSUM, .data = 0};
  const Asker asker;
  look_at_queues(asker, peer);
  const bool has_gro = asker.ethtool(peer.name, gro) && gro.data != 0;
  return {.state = has_gro || peer.xdp_native_id != 0 ? VethPeer::State::ready : VethPeer::State::missing,
          .name = name,
          .netns = "",
          .leaves_checksums = asker.ethtool(peer.name, checksums) && checksums.data != 0,
          .queues = peer.queues};
}

// The id by which the current namespace knows another one; none: it does not.
std::optional<u32> id_of_netns(int netns) {
  rtgenmsg header{};
  const auto answer = Netlink().ask(RTM_GETNSID, header, NETNSA_FD, &netns, sizeof netns);
  const auto id = number(answer, NETNSA_NSID);
  return id && static_cast<int>(*id) >= 0 ? id : std::nullopt;
}

// One path to each namespace that can be found: those that have a name, then those of processes.
std::vector<std::filesystem::path> network_namespaces() {
  namespace fs = std::filesystem;
  std::vector<fs::path> paths;
  std::set<std::pair<dev_t, ino_t>> seen;  // a namespace has as many paths as it has processes
  const auto add = [&](const fs::path& path) {
    struct stat info {};
    if (::stat(path.c_str(), &info) == 0 && seen.emplace(info.st_dev, info.st_ino).second) paths.push_back(path);
  };
  std::error_code error;
  for (fs::directory_iterator entry("/run/netns", error), end; !error && entry != end; entry.increment(error)) add(entry->path());
  for (fs::directory_iterator entry("/proc", error), end; !error && entry != end; entry.increment(error))
    if (std::isdigit(static_cast<unsigned char>(entry->path().filename().native().front()))) add(entry->path() / "ns/net");
  return paths;
}

VethPeer look_from_inside(const Fd& netns, u32 ifindex, std::string netns_name) {
  VethPeer found;
  // A thread of its own, since a thread's namespace is what sockets and ioctls go by.
  std::thread([&] {
    if (::setns(netns.get(), CLONE_NEWNET) == 0) found = look_at_peer(ifindex);
  }).join();
  found.netns = std::move(netns_name);
  return found;
}

}  // namespace

Result<Netdev> look_at(const std::string& device) {
  const Asker asker;
  ifreq answer{};
  // A longer name would be cut, and might then be another device's.
  const bool asked = device.size() < IFNAMSIZ && asker.ask(device, SIOCGIFINDEX, answer);
  if (!asked && device.size() < IFNAMSIZ && errno != ENODEV) return fail_errno(errno, fmt::format("look at device {}", device));
  if (!asked) return missing("no device {} in this network namespace; there are: {}", device, known_devices());
  Netdev found;
  found.name = device;
  found.ifindex = Ifindex{static_cast<u32>(answer.ifr_ifindex)};
  if (asker.ask(device, SIOCGIFMTU, answer)) found.mtu = static_cast<u32>(answer.ifr_mtu);
  if (asker.ask(device, SIOCGIFFLAGS, answer)) found.up = (answer.ifr_flags & IFF_UP) != 0;
  if (asker.ask(device, SIOCGIFHWADDR, answer)) std::memcpy(found.mac.data(), answer.ifr_hwaddr.sa_data, found.mac.size());
  ethtool_drvinfo driver{};
  driver.cmd = ETHTOOL_GDRVINFO;
  if (asker.ethtool(device, driver)) found.driver = driver.driver;
  look_at_queues(asker, found);
  look_at_programs(found);
  return found;
}

Result<> set_queues(const std::string& device, u32 queues) {
  const Asker asker;
  const std::string what = fmt::format("give device {} {} queues", device, queues);
  ethtool_channels channels{};
  channels.cmd = ETHTOOL_GCHANNELS;
  if (!asker.ethtool(device, channels)) return fail_errno(errno, what + ": ask for those that it has");
  channels.cmd = ETHTOOL_SCHANNELS;
  if (channels.max_combined > 0) channels.combined_count = queues, channels.rx_count = channels.tx_count = 0;
  else channels.rx_count = queues, channels.tx_count = std::min(queues, channels.max_tx);
  if (!asker.ethtool(device, channels))
    return fail_errno(errno, what + (errno == EINVAL && queues < channels.max_rx
                                         ? " (a veth under XDP has at least as many as its peer has tx queues: ethtool -L PEER tx N)"
                                         : ""));
  return {};
}

VethPeer veth_peer(const Netdev& netdev) {
  if (netdev.driver != "veth") return {.state = VethPeer::State::not_veth};
  const auto link = link_of(netdev.ifindex.value);
  const auto peer = number(link, IFLA_LINK), netns = number(link, IFLA_LINK_NETNSID);
  if (!peer) return {};
  if (!netns) return look_at_peer(*peer);  // in this namespace
  for (const auto& path : network_namespaces()) {
    const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd || id_of_netns(fd.get()) != netns) continue;
    return look_from_inside(fd, *peer, path.parent_path() == "/run/netns" ? path.filename() : "");
  }
  return {};
}

Result<LinkEvents> LinkEvents::open() {
  Fd fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE));
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  address.nl_groups = RTMGRP_LINK;
  if (!fd || ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    return fail_errno(errno, "listen to changes of devices");
  return LinkEvents(std::move(fd));
}

void LinkEvents::forget() const noexcept {
  u8 event[4096];
  // ENOBUFS says that there were too many for the socket, which is one more reason to look.
  while (::recv(fd_.get(), event, sizeof event, 0) >= 0 || errno == ENOBUFS) continue;
}

u32 netns_inode() noexcept {
  struct stat info {};
  return ::stat("/proc/thread-self/ns/net", &info) == 0 ? static_cast<u32>(info.st_ino) : 0;
}

}  // namespace weir
