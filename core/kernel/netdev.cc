// SPDX-License-Identifier: BSD-3-Clause
// netdev: ioctls for what a name suffices for, rtnetlink for the peer of a veth.
#include "core/kernel/netdev.hh"

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
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <optional>
#include <thread>
#include <vector>

#include "core/base/fd.hh"

namespace weir {
namespace {

// One ioctl on a device by its name.
class Asker {
 public:
  Asker() : fd_(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)) {}
  bool ask(const std::string& device, unsigned long request, ifreq& answer) const {
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
};

std::string known_devices() {
  std::string names;
  struct if_nameindex* all = ::if_nameindex();
  for (auto* each = all; each != nullptr && each->if_index != 0; ++each) names += (names.empty() ? "" : ", ") + std::string(each->if_name);
  ::if_freenameindex(all);
  return names.empty() ? "none" : names;
}

// What `ethtool -l` shows as combined and rx: each of them is an rx queue. A driver that does not say has one.
u32 rx_queues(const Asker& asker, const std::string& device) {
  ethtool_channels channels{};
  channels.cmd = ETHTOOL_GCHANNELS;
  if (!asker.ethtool(device, channels)) return 1;
  return std::max(1u, channels.combined_count + channels.rx_count);
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
      rtattr attribute;
      u8 value[8];
    } request{};
    request.message.nlmsg_type = type;
    request.message.nlmsg_flags = NLM_F_REQUEST;
    request.message.nlmsg_len = NLMSG_LENGTH(sizeof header);
    request.header = header;
    if (value != nullptr) {
      request.attribute = {static_cast<u16>(RTA_LENGTH(size)), attribute};
      std::memcpy(request.value, value, size);
      request.message.nlmsg_len += RTA_SPACE(size);
    }
    if (::send(fd_.get(), &request, request.message.nlmsg_len, 0) < 0) return {};
    std::vector<u8> answer(65536);
    const ssize_t got = ::recv(fd_.get(), answer.data(), answer.size(), 0);
    const auto* message = reinterpret_cast<const nlmsghdr*>(answer.data());
    if (got < static_cast<ssize_t>(sizeof(nlmsghdr)) || !NLMSG_OK(message, static_cast<u32>(got)) || message->nlmsg_type == NLMSG_ERROR) return {};
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

// Of a device of the current namespace: an XDP program in the driver, or GRO.
bool has_napi(u32 ifindex, std::string& name) {
  char text[IF_NAMESIZE] = {};
  if (::if_indextoname(ifindex, text) == nullptr) return false;
  name = text;
  ethtool_value gro{.cmd = ETHTOOL_GGRO, .data = 0};
  if (Asker().ethtool(name, gro) && gro.data != 0) return true;
  const auto link = link_of(ifindex);
  if (link.size() <= IFLA_XDP) return false;
  const auto xdp = Netlink::attributes(link[IFLA_XDP].data(), link[IFLA_XDP].size());
  return xdp.size() > IFLA_XDP_ATTACHED && !xdp[IFLA_XDP_ATTACHED].empty() && xdp[IFLA_XDP_ATTACHED][0] == XDP_ATTACHED_DRV;
}

// The id by which the current namespace knows another one; none: it does not.
std::optional<u32> id_of_netns(int netns) {
  rtgenmsg header{};
  const auto answer = Netlink().ask(RTM_GETNSID, header, NETNSA_FD, &netns, sizeof netns);
  const auto id = number(answer, NETNSA_NSID);
  return id && static_cast<int>(*id) >= 0 ? id : std::nullopt;
}

// Namespaces that have a name, then those of processes.
std::vector<std::filesystem::path> network_namespaces() {
  namespace fs = std::filesystem;
  std::vector<fs::path> paths;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator("/run/netns", error)) paths.push_back(entry.path());
  for (const auto& entry : fs::directory_iterator("/proc", error))
    if (std::isdigit(static_cast<unsigned char>(entry.path().filename().string().front()))) paths.push_back(entry.path() / "ns/net");
  return paths;
}

PeerNapi look_from_inside(const Fd& netns, u32 ifindex, std::string netns_name) {
  PeerNapi found{.name = "", .netns = std::move(netns_name)};
  // A thread of its own, since a thread's namespace is what sockets and ioctls go by.
  std::thread([&] {
    if (::setns(netns.get(), CLONE_NEWNET) != 0) return;
    found.state = has_napi(ifindex, found.name) ? PeerNapi::State::ready : PeerNapi::State::missing;
  }).join();
  return found;
}

}  // namespace

Result<Netdev> look_at(const std::string& device) {
  const Asker asker;
  ifreq answer{};
  if (!asker.ask(device, SIOCGIFINDEX, answer))
    return fail("no device {} in this network namespace; there are: {}", device, known_devices());
  Netdev found;
  found.name = device;
  found.ifindex = Ifindex{static_cast<u32>(answer.ifr_ifindex)};
  if (asker.ask(device, SIOCGIFMTU, answer)) found.mtu = static_cast<u32>(answer.ifr_mtu);
  if (asker.ask(device, SIOCGIFFLAGS, answer)) found.up = (answer.ifr_flags & IFF_UP) != 0;
  if (asker.ask(device, SIOCGIFHWADDR, answer)) std::memcpy(found.mac.data(), answer.ifr_hwaddr.sa_data, found.mac.size());
  ethtool_drvinfo driver{};
  driver.cmd = ETHTOOL_GDRVINFO;
  if (asker.ethtool(device, driver)) found.driver = driver.driver;
  found.queues = rx_queues(asker, device);
  return found;
}

PeerNapi peer_napi(const Netdev& netdev) {
  if (netdev.driver != "veth") return {.state = PeerNapi::State::not_veth, .name = "", .netns = ""};
  const auto link = link_of(netdev.ifindex.value);
  const auto peer = number(link, IFLA_LINK), netns = number(link, IFLA_LINK_NETNSID);
  PeerNapi found;
  if (!peer) return found;
  if (!netns) {  // the peer is in this namespace
    found.state = has_napi(*peer, found.name) ? PeerNapi::State::ready : PeerNapi::State::missing;
    return found;
  }
  for (const auto& path : network_namespaces()) {
    const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (fd && id_of_netns(fd.get()) == netns) return look_from_inside(fd, *peer, path.string().starts_with("/run/netns") ? path.filename() : "");
  }
  return found;
}

u32 netns_inode() noexcept {
  struct stat info{};
  return ::stat("/proc/thread-self/ns/net", &info) == 0 ? static_cast<u32>(info.st_ino) : 0;
}

}  // namespace weir
