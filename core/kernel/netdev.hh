// SPDX-License-Identifier: BSD-3-Clause
// netdev: what the kernel says of a network device. Looks, and changes only where noted; needs neither sysfs nor privileges but where
// noted.
#pragma once

#include <string>

#include "core/base/fd.hh"
#include "core/base/result.hh"
#include "core/base/types.hh"
#include "core/config/node.hh"

namespace weir {

struct Netdev {
  std::string name;
  Ifindex ifindex;
  Mac mac{};
  u32 mtu = 0;  // bytes, without the link-layer header
  bool up = false;
  std::string driver;     // "veth", "ixgbe"; empty: it does not say
  u32 queues = 1;         // rx queues: each needs an AF_XDP socket
  u32 max_queues = 1;     // that `ethtool -L` can make of them
  u32 xdp_native_id = 0;  // of the program attached in the driver; 0: none
};

// A device of the current network namespace. missing: it is not there; the error names those that are.
Result<Netdev> look_at(const std::string& device);

// Gives a device so many rx queues, and as many tx queues, as `ethtool -L` does; needs CAP_NET_ADMIN. Drivers take their rings down
// meanwhile.
Result<> set_queues(const std::string& device, u32 queues);

// The other end of a veth. Whether frames that are redirected to it will be taken by its peer: ndo_xdp_xmit of drivers/net/veth.c needs
// NAPI there, which comes with an XDP program or with GRO. Looks into other network namespaces, for which it needs CAP_SYS_ADMIN.
struct VethPeer {
  enum class State { not_veth, ready, missing, unknown };
  State state = State::unknown;
  std::string name;   // of the peer
  std::string netns;  // of the peer, as under /run/netns; empty: this one, or one without a name
  // It leaves the checksums of what its host sends to the receiver (ethtool: tx-checksumming), and the note of this is lost with the skb
  // when XDP redirects the frame or hands it to a socket: its receiver finds a wrong checksum.
  bool leaves_checksums = false;
  u32 queues = 0;  // rx queues of the peer; 0: unknown
};
VethPeer veth_peer(const Netdev& netdev);

// Readable when a device of the current network namespace came, went or changed. Several events may be one; forget them before looking.
class LinkEvents {
 public:
  static Result<LinkEvents> open();
  [[nodiscard]] int descriptor() const noexcept { return fd_.get(); }
  void forget() const noexcept;

 private:
  explicit LinkEvents(Fd fd) noexcept : fd_(std::move(fd)) {}
  Fd fd_;
};

// Inode of the current network namespace.
u32 netns_inode() noexcept;

}  // namespace weir
