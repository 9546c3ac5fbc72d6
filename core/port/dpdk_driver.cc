// SPDX-License-Identifier: BSD-3-Clause
// dpdk_driver: the driver "dpdk" of ports, as a module. The start of DPDK's environment for them, by the options of [dpdk].
//   [dpdk]    eal = ["--no-huge", "-m", "512"]
//   [[port]]  driver = "dpdk"  device = "0000:3b:00.0"  or  "net_tap0,iface=left"
#include <rte_errno.h>
#include <rte_malloc.h>

#include "core/driver.hh"
#include "core/port/dpdk_port.hh"
#include "core/port/eal.hh"

namespace weir {
namespace {

constexpr std::size_t page = 4096;

// Frames lie in DPDK's own memory, which the devices of all of its drivers reach, and so do other processes that share it.
Result<Mapping> begin(const std::vector<const ConfigNode*>& ports, const ConfigNode* settings, std::size_t frame_bytes) {
  EalNeeds needs{.words = {}, .devices = {}, .bytes = frame_bytes + frame_bytes / 4 + (u64{64} << 20)};  // with mbufs, and rings
  if (settings != nullptr)
    for (const ConfigValue& word : settings->list("eal")) needs.words.push_back(std::get<std::string>(word.value));
  for (const ConfigNode* port : ports) {
    const std::string& device = port->string("device");
    if (!device.starts_with("net_") && !device.starts_with("eth_")) needs.devices.push_back(device);
  }
  TRY_VOID(ensure_eal(needs));
  const EalLines lines;
  void* memory = rte_malloc(nullptr, frame_bytes, page);
  if (memory == nullptr)
    return fail("frames: DPDK has no {} bytes for them; give it more, by -m in [dpdk] eal, or lower [frames] count{}", frame_bytes,
                lines.tail());
  return Mapping::of({static_cast<u8*>(memory), frame_bytes}, rte_free);
}

std::string refuse(const ConfigNode& keys) {
  const std::string& device = keys.string("device");
  return device.empty() || device.front() == ',' ? "device is empty; give a PCI address, or the name of a virtual device" : "";
}

}  // namespace
}  // namespace weir

// clang-format off
WEIR_PORT_DRIVER(
    .name = "dpdk",
    .says = "a device that DPDK has a driver for, by its PCI address or as a virtual one",
    .keys = {weir::Key::string("device").as("a PCI address, or a virtual device with its arguments: \"net_tap0,iface=left\""),
             weir::Key::integer("queues", 1, 64).otherwise("1")
                 .as("to receive and to send by; more than one: frames are spread by RSS where the device can"),
             weir::Key::integer("mtu", 68, 3818).otherwise("1500").as("of the device"),
             weir::Key::integer("rx_ring", 32, 32768).optional().as("frames that a queue holds for receiving; left out, up to 1024"),
             weir::Key::integer("tx_ring", 32, 32768).optional().as("and for sending; left out, 1024"),
             weir::Key::boolean("promiscuous").otherwise("true").as("take frames for all stations, not only for the device's own")},
    .settings = {weir::Key::list("eal", weir::Key::string(""), 0, 64).otherwise("[\"--no-huge\"]")
                     .as("options of DPDK's environment; without \"--no-huge\" its memory is hugepages")},
    .refuse = weir::refuse,
    .begin = weir::begin,
    .queues = [](const weir::ConfigNode& keys) { return static_cast<weir::u32>(keys.integer("queues")); },
    .open = weir::DpdkPort::open)
// clang-format on
