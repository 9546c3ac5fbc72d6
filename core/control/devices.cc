// SPDX-License-Identifier: BSD-3-Clause
// devices: what stands in the way of a port, said before it is tried.
#include "core/control/devices.hh"

#include <linux/if_ether.h>

#include <algorithm>
#include <map>

#include "core/port/xsk.hh"

namespace weir {
namespace {

constexpr u32 vlan_tag = 4;

void report(std::string& problems, const std::string& line) { problems += (problems.empty() ? "" : "\n") + line; }

// What of a frame's memory is left for bytes: the kernel keeps its headroom in front (XDP_PACKET_HEADROOM, linux/bpf.h), and a driver
// without multi-buffer frames keeps 320 bytes of a page of its own behind (struct skb_shared_info).
constexpr u32 payload(u32 frame_size) { return std::min(frame_size - 256u, 4096u - 256u - 320u); }

std::string mtu_problem(const PortConfig& port, const Netdev& netdev, u32 frame_size) {
  const u32 room = payload(frame_size) - ETH_HLEN - vlan_tag;
  if (netdev.mtu <= room) return "";
  const bool larger_helps = frame_size < 4096 && netdev.mtu <= payload(4096) - ETH_HLEN - vlan_tag;
  return fmt::format(
      "port {}: device {} has MTU {}, but a frame of {} bytes has room for {}: {}set [weir] frags = true, with which longer frames pass "
      "through "
      "the kernel alone, or: ip link set dev {} mtu {}",
      port.name, netdev.name, netdev.mtu, frame_size, room, larger_helps ? "set [frames] size = 4096, or " : "", netdev.name, room);
}

std::string queue_problem(const PortConfig& port, const Netdev& netdev) {
  const u32 wanted = port.queues == 0 ? netdev.queues : port.queues;
  if (wanted > KernelSide::max_queues)
    return fmt::format("port {}: device {} has {} queues, weir serves at most {}: ethtool -L {} combined {}", port.name, netdev.name,
                       netdev.queues, KernelSide::max_queues, netdev.name, KernelSide::max_queues);
  if (wanted <= netdev.max_queues) return "";
  return fmt::format("port {}: queues = {}, but device {} can have {} at most; set queues = {}, or \"all\"", port.name, wanted, netdev.name,
                     netdev.max_queues, netdev.max_queues);
}

std::string in_netns(const VethPeer& peer) { return peer.netns.empty() ? "" : fmt::format("ip netns exec {} ", peer.netns); }

// The kernel loses what is redirected to a veth whose peer polls no NAPI; what user space sends there arrives.
std::string napi_warning(const PortConfig& port, const VethPeer& peer) {
  return fmt::format(
      "port {}: the veth peer of {} has neither GRO nor an XDP program, so frames for it go through user space, which is slower, "
      "until: {}ethtool -K {} gro on",
      port.name, port.device, in_netns(peer), peer.name);
}

std::string unknown_warning(const PortConfig& port) {
  return fmt::format(
      "port {}: the veth peer of {} cannot be seen without CAP_SYS_ADMIN: if it has neither GRO nor an XDP program, what is "
      "redirected to it is lost as peer_no_napi; to be sure, in its namespace: ethtool -K PEER gro on tx off",
      port.name, port.device);
}

std::string checksum_warning(const PortConfig& port, const VethPeer& peer) {
  return fmt::format(
      "port {}: the veth peer of {} leaves TCP and UDP checksums to the receiver, which finds them wrong, since XDP carries no "
      "word of it, until: {}ethtool -K {} tx off",
      port.name, port.device, in_netns(peer), peer.name);
}

}  // namespace

u32 longest_frame(const Netdev& netdev) noexcept { return netdev.up ? netdev.mtu + ETH_HLEN + vlan_tag : 0; }

Result<std::vector<Device>> look_at_devices(const Config& config) {
  std::vector<Device> devices;
  std::map<u32, std::string> owners;  // by ifindex: two names may be one device
  std::string problems;
  bool invalid_file = false;
  for (u16 slot = 0; slot < config.ports.size(); ++slot) {
    const PortConfig& port = config.ports[slot];
    if (!port.is_xdp()) continue;
    Result<Netdev> netdev = look_at(port.device);
    if (!netdev) {
      report(problems, fmt::format("port {}: {}", port.name, netdev.error().what));
      continue;
    }
    if (auto [owner, fresh] = owners.emplace(netdev->ifindex.value, port.name); !fresh) {
      report(problems, fmt::format("port {}: {} is the device of port {} under another name; a device is one port", port.name, port.device,
                                   owner->second));
      invalid_file = true;
    }
    for (const std::string& problem : {config.frags ? "" : mtu_problem(port, *netdev, config.frame_size), queue_problem(port, *netdev)})
      if (!problem.empty()) report(problems, problem);
    const VethPeer peer = veth_peer(*netdev);
    devices.push_back({PortSlot{slot}, *netdev, port.queues == 0 ? netdev->queues : port.queues, peer.state != VethPeer::State::missing,
                       warnings_of(port, *netdev, peer)});
  }
  if (!problems.empty()) return std::unexpected(Error{invalid_file ? Failure::invalid : Failure::failed, std::move(problems)});
  return devices;
}

std::vector<std::string> warnings_of(const PortConfig& port, const Netdev& netdev, const VethPeer& peer) {
  std::vector<std::string> warnings;
  if (!netdev.up)
    warnings.push_back(fmt::format("port {}: device {} is down; nothing is received or sent until: ip link set dev {} up", port.name,
                                   port.device, port.device));
  if (peer.state == VethPeer::State::unknown) warnings.push_back(unknown_warning(port));
  if (peer.state == VethPeer::State::missing) warnings.push_back(napi_warning(port, peer));
  if (peer.leaves_checksums && !port.pipeline.empty()) warnings.push_back(checksum_warning(port, peer));
  return warnings;
}

}  // namespace weir
