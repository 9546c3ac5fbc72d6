// SPDX-License-Identifier: BSD-3-Clause
// xsk: AF_XDP sockets over one shared umem. One socket is one queue of a port.
#pragma once

#include <xdp/xsk.h>

#include <atomic>
#include <memory>

#include "core/base/result.hh"
#include "core/config/config.hh"
#include "core/port/port.hh"

namespace weir {

// The pool's memory, registered with the kernel. Outlives its sockets.
class Umem {
 public:
  static Result<std::unique_ptr<Umem>> create(FramePool& pool);
  Umem(const Umem&) = delete;
  ~Umem();
  [[nodiscard]] xsk_umem* get() const noexcept { return umem_; }
  [[nodiscard]] FramePool& pool() const noexcept { return pool_; }

 private:
  friend class XskSocket;
  explicit Umem(FramePool& pool) noexcept : pool_(pool) {}
  FramePool& pool_;
  xsk_umem* umem_ = nullptr;
  // The kernel's first fill and completion ring come with the umem and serve the first socket; later sockets bring theirs.
  xsk_ring_prod first_fill_{};
  xsk_ring_cons first_completion_{};
  bool first_taken_ = false;
};

struct XskOptions {
  ZeroCopy zero_copy = ZeroCopy::automatic;
  u32 fill = 0;       // frames that the kernel may hold for receiving, at most ring_size; they are taken from the pool
  u32 busy_poll = 0;  // frames that receive() has the driver take at most, instead of an interrupt; 0: interrupts
};

class XskSocket final : public Queue {
 public:
  // Binds to one queue of a device in the current network namespace.
  static Result<std::unique_ptr<XskSocket>> bind(Umem& umem, const std::string& device, QueueId queue, PortSlot port,
                                                 const XskOptions& options);
  XskSocket(const XskSocket&) = delete;
  ~XskSocket() override;

  u32 receive(Burst& burst, FrameCache& cache) noexcept override;
  u32 transmit(const Frame* frames, u32 number, FrameCache& cache) noexcept override;
  bool reclaim(FrameCache& cache) noexcept override;
  [[nodiscard]] u32 held() const noexcept override {
    return receiving_.load(std::memory_order_relaxed) + transmitting_.load(std::memory_order_relaxed);
  }
  // The frames that it has taken and that the device has not had yet, as far as reclaim() knows.
  [[nodiscard]] u32 sending() const noexcept { return transmitting_.load(std::memory_order_relaxed); }
  [[nodiscard]] u32 waiting() const noexcept override;
  [[nodiscard]] int descriptor() const noexcept override { return ::xsk_socket__fd(socket_); }
  [[nodiscard]] bool zero_copy() const noexcept { return zero_copy_; }
  [[nodiscard]] u32 tx_budget() const noexcept { return tx_budget_; }  // frames that one kick sends in copy mode

  // What lay in the rings of a socket whose device has gone.
  struct Remains {
    u32 unread = 0, unsent = 0;  // frames that had come in, and frames that were to go out
    u64 unread_bytes = 0;
  };
  // Gives the frames of all rings back to the pool. Nobody works with the socket, and nothing comes in by it, since its device has gone or
  // nothing was ever attached to it: in copy mode all frames are in the rings then; what a zero-copy driver took with it stays among
  // held().
  Remains take_back() noexcept;

  static constexpr u32 ring_size = 2048;

 private:
  XskSocket(Umem& umem, PortSlot port) noexcept : umem_(umem), pool_(umem.pool()), port_(port) {}
  void refill(FrameCache& cache) noexcept;
  Frame frame_of(const xdp_desc& descriptor) const noexcept;
  void kick() noexcept;
  Result<> poll_busily(u32 budget);

  Umem& umem_;
  FramePool& pool_;
  PortSlot port_;
  xsk_socket* socket_ = nullptr;
  bool zero_copy_ = false, busy_ = false;
  u32 tx_budget_ = 32;  // net/xdp/xsk.c, TX_BATCH_SIZE
  xsk_ring_cons rx_{};
  xsk_ring_prod tx_{};
  xsk_ring_prod own_fill_{};
  xsk_ring_cons own_completion_{};
  xsk_ring_prod* fill_ = nullptr;
  xsk_ring_cons* completion_ = nullptr;
  u32 fill_target_ = 0;
  std::atomic<u32> receiving_{0};     // in the fill and rx rings; written by the owner of the queue
  std::atomic<u32> transmitting_{0};  // in the tx and completion rings; written under tx_lock()
  bool kick_again_ = false;           // the kernel left frames in the tx ring
};

}  // namespace weir
