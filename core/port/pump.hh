// SPDX-License-Identifier: BSD-3-Clause
// pump: a second way out for frames of user space: one call lets the kernel redirect many of them, which costs less than a socket in copy
// mode does.
#pragma once

#include <atomic>
#include <memory>
#include <optional>

#include "core/config/config.hh"
#include "core/kernel/anchor.hh"
#include "core/kernel/devmap.hh"
#include "core/kernel/object.hh"
#include "core/port/xsk.hh"

struct pump_ring;

namespace weir {

// Frames are named in a ring, and a run of bpf/ingress/pump.bpf.c over as many live frames (Linux 5.18) copies them and redirects them out
// of the device. The run is a system call of whoever sends: it needs no thread and no CPU of its own, and when it returns the device has
// had them all, so that they leave in their order. It costs 13 us, and some 200 ns for each frame, where AF_XDP in copy mode costs 700 to
// 1000 for each [ran].
class Pump {
 public:
  // `frames`: the memory of the pool, as a map with an entry for each. `key`: of the port's device entry, for the counters of what the
  // device does not take. unsupported: the kernel cannot, or a run costs so much that it would be no gain.
  static Result<std::unique_ptr<Pump>> create(FramePool& pool, const BpfMap& frames, Ifindex device, u32 key);

  // Bytes of the longest frame that it takes.
  [[nodiscard]] bool takes(const Frame& frame) const noexcept;
  [[nodiscard]] u32 longest() const noexcept { return longest_; }
  // Takes the first of the frames, as many as it has room for.
  u32 push(const Frame* frames, u32 number) noexcept;
  [[nodiscard]] u32 waiting() const noexcept;
  // Sends what waits, and releases it. 0, or an errno: the kernel refused, and some still wait.
  int run(FrameCache& cache) noexcept;
  // Takes the first one that waits away from it.
  Frame pop() noexcept;
  // Frames that were taken and found no device, since the last call.
  u32 take_lost() noexcept;
  // What a run costs that sends nothing.
  [[nodiscard]] u64 call_ns() const noexcept { return call_ns_; }
  [[nodiscard]] FramePool& pool() const noexcept { return pool_; }

 private:
  Pump(FramePool& pool, BpfObject object) noexcept : pool_(pool), object_(std::move(object)) {}
  Result<> measure();
  FramePool& pool_;
  BpfObject object_;
  BpfMap ring_map_;
  Devmap out_;
  std::optional<Anchor> anchor_;  // goes before the program
  Mapping memory_;
  pump_ring* ring_ = nullptr;
  int program_ = -1;
  u32 longest_ = 0;
  u64 call_ns_ = 0, lost_ = 0;
};

// A queue whose frames leave by the pump, by the socket, or by what costs less.
//
// Order: nothing goes to the pump before the device has had all that the socket took, and the other way round only where both lead into one
// queue of the peer, or when the pump has sent nothing for a while. Else what is sent now might overtake what waits in another queue of the
// device. A frame that the pump cannot take goes by the socket all the same.
class PumpedQueue final : public Queue {
 public:
  // `one_queue`: both ways lead into one.
  PumpedQueue(XskSocket& socket, std::unique_ptr<Pump> pump, Tx wanted, bool one_queue) noexcept
      : socket_(socket), pump_(std::move(pump)), automatic_(wanted == Tx::automatic), one_queue_(one_queue) {}

  u32 receive(Burst& burst, FrameCache& cache) noexcept override { return socket_.receive(burst, cache); }
  u32 transmit(const Frame* frames, u32 number, FrameCache& cache) noexcept override;
  bool reclaim(FrameCache& cache) noexcept override;
  [[nodiscard]] u32 held() const noexcept override { return socket_.held() + pump_->waiting(); }
  [[nodiscard]] u32 waiting() const noexcept override { return socket_.waiting(); }
  [[nodiscard]] int descriptor() const noexcept override { return socket_.descriptor(); }

  // Whether the device takes what is redirected to it. False at first. By any thread.
  void open(bool takes_redirects) noexcept { open_.store(takes_redirects, std::memory_order_relaxed); }
  // Nobody else works with the queue: sends what waits in the pump, or gives it back to the pool.
  void finish() noexcept;
  u32 take_back() noexcept;  // how many

  struct Seen {
    u64 pumped, by_socket;                        // frames
    u64 call_ns, pump_frame_ns, socket_frame_ns;  // what they cost: a run, and each frame of either way; 0: not measured yet
    int refused;                                  // why the kernel refused a run, an errno: since then the pump stands still
  };
  [[nodiscard]] Seen seen() const noexcept;

 private:
  // Time over frames, of which those long ago weigh less.
  struct Cost {
    std::atomic<float> time_ns{0}, frames{0};
    u64 measured_ns = 0;  // when
    void add(u64 now, u64 taken_ns, u32 number) noexcept;
    [[nodiscard]] float each() const noexcept;
  };
  [[nodiscard]] bool wants_pump(u32 number, u64 now) const noexcept;
  bool may_pump(FrameCache& cache) noexcept;
  [[nodiscard]] bool may_leave_pump(u64 now) const noexcept;
  void run(FrameCache& cache) noexcept;
  u32 by_socket(const Frame* frames, u32 number, FrameCache& cache, u64 now) noexcept;

  XskSocket& socket_;
  std::unique_ptr<Pump> pump_;
  bool automatic_, one_queue_;
  std::atomic<bool> open_{false};
  std::atomic<int> broken_{0};
  u32 seen_waiting_ = 0;  // when reclaim() was called last
  u64 ran_ns_ = 0;        // when the pump ran last
  Cost pump_cost_, socket_cost_;
  std::atomic<u64> pumped_{0}, by_socket_{0};
};

}  // namespace weir
