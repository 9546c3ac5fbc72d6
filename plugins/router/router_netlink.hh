// SPDX-License-Identifier: BSD-3-Clause
// router_netlink: follow the kernel's routes, neighbours and devices, in the network namespace of the process.
#pragma once

#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <string>

#include "core/base/fd.hh"
#include "plugins/router/router_routes.hh"

struct nlmsghdr;

namespace weir::routing {

class Netlink {
 public:
  // `ports`: slots by the names of their devices.
  static Result<std::unique_ptr<Netlink>> open(Routes& routes, std::map<std::string, u32, std::less<>> ports);
  // Asks for all there is, and waits until it has it.
  Result<> fetch();
  // Readable when there is something to take.
  [[nodiscard]] std::array<int, 2> descriptors() const noexcept { return {monitor_.get(), query_.get()}; }
  // Takes some of it: not so much that others wait long. To be called now and then without cause, too.
  void take();
  // Has the kernel look for a neighbour, or see whether it is still there.
  void use(u32 device, const Address& address);
  // Whether the host would forward what comes in by the port. For workers too.
  [[nodiscard]] bool host_forwards(u32 version, u32 port) const noexcept {
    return (forwarding_[version == 4 ? 0 : 1].load(std::memory_order_relaxed) >> port & 1) != 0;
  }
  [[nodiscard]] u64 changes() const noexcept { return changes_; }
  [[nodiscard]] u64 fetches() const noexcept { return fetches_; }  // of everything

 private:
  explicit Netlink(Routes& routes) : routes_(routes) {}
  Result<> listen();
  void begin_fetch();
  bool ask_next();
  int receive(const Fd& socket);
  void hear(const nlmsghdr& message, bool found);
  void hear_link(const nlmsghdr& message);
  void hear_route(const nlmsghdr& message, bool found);
  void hear_neighbour(const nlmsghdr& message);
  void hear_forwarding(const nlmsghdr& message);
  void settle_forwarding();

  Routes& routes_;
  std::map<std::string, u32, std::less<>> ports_;
  Fd monitor_, query_;
  std::vector<u8> buffer_;
  std::size_t step_ = 0;  // of a fetch; past the end: none is under way
  bool fetch_again_ = false, broken_off_ = false;
  std::chrono::steady_clock::time_point fetched_;
  u32 sequence_ = 0;
  u64 changes_ = 0, fetches_ = 0;
  std::map<int, std::array<bool, 2>> forwards_;  // by device, -1: all
  std::map<u32, u32> port_by_device_;
  std::array<std::atomic<u64>, 2> forwarding_{};
};

}  // namespace weir::routing
