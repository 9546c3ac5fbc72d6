// SPDX-License-Identifier: BSD-3-Clause
// xdp_port: a netdev under XDP: one AF_XDP socket per queue, and perhaps a pump.
#pragma once

#include "core/port/pump.hh"

namespace weir {

class XdpPort final : public Port {
 public:
  // Binds a socket to each of the first `queues` queues.
  static Result<std::unique_ptr<XdpPort>> open(Umem& umem, const std::string& device, u32 queues, PortSlot port,
                                               const XskOptions& options) {
    std::unique_ptr<XdpPort> made(new XdpPort);
    for (u32 queue = 0; queue < queues; ++queue) {
      auto socket = XskSocket::bind(umem, device, QueueId{queue}, port, options);
      if (!socket) {
        made->take_back();  // what those before it hold for receiving
        return std::unexpected(std::move(socket).error());
      }
      made->sockets_.push_back(std::move(*socket));
    }
    made->busy_poll_ = options.busy_poll;
    return made;
  }

  [[nodiscard]] u32 queues() const noexcept override { return static_cast<u32>(sockets_.size()); }
  [[nodiscard]] Queue& queue(u32 index) noexcept override {
    if (!pumped_.empty()) return *pumped_[index];
    return *sockets_[index];
  }
  // Puts a pump beside each socket, before anyone asks for a queue. `one_queue`: see PumpedQueue. After an error frames leave by the
  // sockets.
  Result<> add_pumps(FramePool& pool, const BpfMap& frames, Ifindex device, u32 key, Tx wanted, bool one_queue) {
    std::vector<std::unique_ptr<PumpedQueue>> made;
    for (const auto& socket : sockets_)
      made.push_back(std::make_unique<PumpedQueue>(*socket, TRY(Pump::create(pool, frames, device, key)), wanted, one_queue));
    pumped_ = std::move(made);
    return {};
  }
  [[nodiscard]] const std::vector<std::unique_ptr<PumpedQueue>>& pumped() const noexcept { return pumped_; }
  [[nodiscard]] int descriptor(u32 index) const noexcept { return sockets_[index]->descriptor(); }
  [[nodiscard]] std::vector<std::pair<std::string, std::string>> facts() const override {
    return {{"busy_poll", std::to_string(busy_poll_)},
            {"tx_budget", zero_copy() || sockets_.empty() ? "none" : std::to_string(sockets_.front()->tx_budget())}};
  }
  [[nodiscard]] bool zero_copy() const noexcept { return !sockets_.empty() && sockets_.front()->zero_copy(); }
  // See XskSocket; of all queues.
  XskSocket::Remains take_back() noexcept {
    XskSocket::Remains all;
    for (const auto& socket : sockets_) {
      const XskSocket::Remains one = socket->take_back();
      all.unread += one.unread;
      all.unread_bytes += one.unread_bytes;
      all.unsent += one.unsent;
    }
    for (const auto& queue : pumped_) all.unsent += queue->take_back();
    return all;
  }

 private:
  XdpPort() = default;
  std::vector<std::unique_ptr<XskSocket>> sockets_;
  u32 busy_poll_ = 0;
  std::vector<std::unique_ptr<PumpedQueue>> pumped_;  // of them; empty: there is no pump
};

}  // namespace weir
