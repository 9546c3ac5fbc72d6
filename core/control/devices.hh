// SPDX-License-Identifier: BSD-3-Clause
// devices: the netdevs that a configuration names, looked at and found fit before anything is touched.
#pragma once

#include <string>
#include <vector>

#include "core/config/config.hh"
#include "core/kernel/netdev.hh"
#include "core/pipeline/kernel_side.hh"

namespace weir {

struct Device {
  PortSlot slot;
  Netdev netdev;
  u32 queues;                         // sockets to bind: those that it has, or is to have
  bool redirectable;                  // false: it would lose what is redirected to it
  std::vector<std::string> warnings;  // see warnings_of()
};

// Looks at the device of every XDP port. Every obstacle is in the error, one a line.
Result<std::vector<Device>> look_at_devices(const Config& config);

// What costs frames or speed and hinders nothing (a device that is down, a veth whose peer has no NAPI), each with its remedy.
std::vector<std::string> warnings_of(const PortConfig& port, const Netdev& netdev, const VethPeer& peer);

// Bytes of a frame that the device takes, as a redirect in the kernel counts (include/linux/filter.h, xdp_ok_fwd_dev); 0: it is down.
u32 longest_frame(const Netdev& netdev) noexcept;

}  // namespace weir
