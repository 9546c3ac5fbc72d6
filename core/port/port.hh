// SPDX-License-Identifier: BSD-3-Clause
// port: where frames enter and leave, seen from a worker. Each driver implements Port and Queue.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/base/result.hh"
#include "core/base/spin_lock.hh"
#include "core/config/node.hh"
#include "core/frame/pool.hh"

namespace weir {

// One rx/tx queue of a port. receive() is called by the worker that owns it; transmit() and reclaim() by any worker that holds
// tx_lock(). Whoever calls brings its own cache of free frames.
class Queue {
 public:
  virtual ~Queue() = default;

  // Appends received frames to the burst, as many as there is room for. The caller owns them. Returns how many.
  virtual u32 receive(Burst& burst, FrameCache& cache) noexcept = 0;
  // Takes ownership of the first frames of `frames` and returns how many; the caller keeps the others.
  virtual u32 transmit(const Frame* frames, u32 number, FrameCache& cache) noexcept = 0;
  // Takes back frames that have left, and kicks the kernel for those that it has not taken yet. Returns whether any are still on
  // their way through a ring that needs kicking.
  virtual bool reclaim(FrameCache& cache) noexcept = 0;

  // The frames that lie in its rings.
  [[nodiscard]] virtual u32 held() const noexcept = 0;
  // Those of them that receive() would give.
  [[nodiscard]] virtual u32 waiting() const noexcept { return 0; }
  // Readable when receive() would find something; -1: none tells, so that who owns the queue does not sleep.
  [[nodiscard]] virtual int descriptor() const noexcept { return -1; }
  // Nothing will come in any more.
  [[nodiscard]] virtual bool silent() const noexcept { return false; }
  [[nodiscard]] SpinLock& tx_lock() noexcept { return tx_lock_; }
  // Frames that it has taken and that the device then did not, since the last call. Under tx_lock().
  u32 take_refused() noexcept { return std::exchange(refused_, 0); }

  // Frames that came in and that receive() could not give.
  struct Unread {
    u32 runt = 0;      // shorter than an Ethernet header
    u32 too_long = 0;  // for the memory of a frame
    u32 no_frame = 0;  // none was free
    u64 bytes = 0;     // of all of them
    [[nodiscard]] u32 frames() const noexcept { return runt + too_long + no_frame; }
    explicit operator bool() const noexcept { return frames() != 0; }
  };
  // Those since the last call. By the owner of the queue.
  Unread take_unread() noexcept { return std::exchange(unread_, {}); }

 protected:
  u32 refused_ = 0;
  Unread unread_;

 private:
  SpinLock tx_lock_;
};

class Port {
 public:
  virtual ~Port() = default;
  [[nodiscard]] virtual u32 queues() const noexcept = 0;
  [[nodiscard]] virtual Queue& queue(u32 index) noexcept = 0;

  // Bytes of the longest frame that it takes.
  [[nodiscard]] virtual u32 longest() const noexcept { return ~0u; }
  // What keys of egress programs take that are left out. Without a device: no address and no limit.
  [[nodiscard]] virtual Mac mac() const noexcept { return {}; }
  [[nodiscard]] virtual u32 mtu() const noexcept { return 0xffff; }
  // What of its keys came true, for `weir stats`: names and values.
  [[nodiscard]] virtual std::vector<std::pair<std::string, std::string>> facts() const { return {}; }
  // What stands in its way now, each with its remedy, as long as it holds. On the control side, beside the workers.
  [[nodiscard]] virtual std::vector<std::string> warnings() const { return {}; }
  // Frames that the device has lost by its own count, since the last call. On the control side, beside the workers.
  struct Lost {
    u64 unread = 0;   // they came in, and it had no room for them, or they were damaged or too long
    u64 refused = 0;  // transmit() had taken them
  };
  virtual Lost take_lost() { return {}; }
  // What comes in has an end, such as that of a file. The run ends when all of its ports that have a pipeline have come to theirs.
  [[nodiscard]] virtual bool finite() const noexcept { return false; }
  // At the end of a run, when no worker is there any more: writes what has not been written yet, and says what went wrong with what came in
  // or went out. Once. What could not be written is among take_refused().
  virtual Result<> finish() { return {}; }
};

}  // namespace weir
