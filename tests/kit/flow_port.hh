// SPDX-License-Identifier: BSD-3-Clause
// flow_port: a source of frames of many flows that carry their numbers, and a sink that sees whether each flow is in order.
#pragma once

#include <array>
#include <atomic>
#include <cstring>
#include <memory>
#include <vector>

#include "core/port/port.hh"

namespace weir::kit {

// UDP over IPv4, one pair of addresses and ports for each flow; behind the headers which flow it is, and which frame of it.
struct NumberedFrame {
  static constexpr u32 length = 60, at = 42;
  u32 flow;
  u32 thread = 0;  // for stages, to leave a mark
  u64 number;
};

inline NumberedFrame numbered(const Frame& frame) noexcept {
  NumberedFrame seen{};
  std::memcpy(&seen, frame.data + NumberedFrame::at, sizeof seen);
  return seen;
}

// Gives frames while there are free ones, and while it is to. `flows`: beginning with `first`.
class NumberedSource final : public Queue {
 public:
  NumberedSource(PortSlot port, u32 first, u32 flows, u64 seed = 1) : port_(port), first_(first), numbers_(flows), dice_(seed) {}
  u32 receive(Burst& burst, FrameCache& cache) noexcept override {
    std::array<u64, Burst::capacity> chunks;
    const u64 left = to_give.load(std::memory_order_relaxed) - given.load(std::memory_order_relaxed);
    const u32 got = cache.take(chunks.data(), static_cast<u32>(std::min<u64>({burst.room(), left, most})));
    for (u32 i = 0; i < got; ++i) {
      u8* data = cache.pool().base() + chunks[i] + headroom;
      write(data);
      burst.push({.data = data, .length = NumberedFrame::length, .port = port_});
    }
    given.store(given.load(std::memory_order_relaxed) + got, std::memory_order_relaxed);
    return got;
  }
  u32 transmit(const Frame*, u32, FrameCache&) noexcept override { return 0; }
  bool reclaim(FrameCache&) noexcept override { return false; }
  [[nodiscard]] u32 held() const noexcept override { return 0; }

  u32 most = Burst::capacity;  // at a time
  std::atomic<u64> to_give{0}, given{0};

 private:
  static constexpr u32 headroom = 256;
  void write(u8* data) noexcept {
    dice_ ^= dice_ << 13, dice_ ^= dice_ >> 7, dice_ ^= dice_ << 17;
    const u32 flow = static_cast<u32>((dice_ >> 32) * numbers_.size() >> 32);
    const NumberedFrame mark{first_ + flow, 0, numbers_[flow]++};
    constexpr u8 headers[NumberedFrame::at] = {2, 0,  0,  0, 0, 1,  2, 0, 0, 0,  0, 2, 8, 0, 0x45, 0, 0, 46, 0,  0, 0,
                                               0, 64, 17, 0, 0, 10, 0, 0, 0, 10, 0, 0, 1, 0, 9,    0, 9, 0,  26, 0, 0};
    std::memcpy(data, headers, sizeof headers);
    std::memcpy(data + 26, &mark.flow, sizeof mark.flow);  // the source address
    std::memcpy(data + NumberedFrame::at, &mark, sizeof mark);
  }
  PortSlot port_;
  u32 first_;
  std::vector<u64> numbers_;  // of the next frame, by flow
  u64 dice_;
};

// Takes everything.
class OrderedSink final : public Queue {
 public:
  explicit OrderedSink(u32 flows) : next_(flows) {}
  u32 receive(Burst&, FrameCache&) noexcept override { return 0; }
  u32 transmit(const Frame* frames, u32 number, FrameCache& cache) noexcept override {
    for (u32 i = 0; i < number; ++i) {
      const NumberedFrame seen = numbered(frames[i]);
      u64& next = next_[seen.flow];
      if (seen.number < next) late.store(late.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
      else missing.store(missing.load(std::memory_order_relaxed) + seen.number - next, std::memory_order_relaxed), next = seen.number + 1;
      cache.release(frames[i]);
    }
    taken.store(taken.load(std::memory_order_relaxed) + number, std::memory_order_release);
    return number;
  }
  bool reclaim(FrameCache&) noexcept override { return false; }
  [[nodiscard]] u32 held() const noexcept override { return 0; }
  [[nodiscard]] bool silent() const noexcept override { return true; }

  std::atomic<u64> taken{0};
  std::atomic<u64> late{0};     // frames that came behind a later one of their flow
  std::atomic<u64> missing{0};  // numbers of flows that were left out

 private:
  std::vector<u64> next_;
};

// A port of queues that somebody has made.
class MadePort final : public Port {
 public:
  explicit MadePort(std::vector<std::unique_ptr<Queue>> queues) : queues_(std::move(queues)) {}
  explicit MadePort(std::unique_ptr<Queue> queue) { queues_.push_back(std::move(queue)); }
  [[nodiscard]] u32 queues() const noexcept override { return static_cast<u32>(queues_.size()); }
  [[nodiscard]] Queue& queue(u32 index) noexcept override { return *queues_[index]; }

 private:
  std::vector<std::unique_ptr<Queue>> queues_;
};

}  // namespace weir::kit
