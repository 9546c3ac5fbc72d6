// SPDX-License-Identifier: BSD-3-Clause
// fake_port: a port whose queues a test fills, and whose transmit rings it looks into.
#pragma once

#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "core/port/port.hh"

namespace weir::kit {

class FakeQueue final : public Queue {
 public:
  u32 receive(Burst& burst, FrameCache&) noexcept override {
    const std::scoped_lock hold(mutex_);
    u32 got = 0;
    for (; burst.room() > 0 && !arriving_.empty(); ++got, arriving_.pop_front()) burst.push(arriving_.front());
    return got;
  }
  u32 transmit(const Frame* frames, u32 number, FrameCache&) noexcept override {
    const u32 taken = std::min<u32>(number, room - std::min<u32>(room, static_cast<u32>(ring_.size())));
    for (u32 i = 0; i < taken; ++i) {
      ++transmitted;
      if (wire) deliver({.data = frames[i].data, .length = frames[i].length, .port = *wire});
      else ring_.push_back(frames[i]), sent.emplace_back(frames[i].data, frames[i].data + frames[i].length);
    }
    return taken;
  }
  bool reclaim(FrameCache& cache) noexcept override {
    for (; !stuck && !ring_.empty(); ring_.pop_front()) cache.release(ring_.front());
    return !ring_.empty();
  }
  [[nodiscard]] u32 held() const noexcept override { return static_cast<u32>(arriving_.size() + ring_.size()); }
  void deliver(const Frame& frame) noexcept {
    const std::scoped_lock hold(mutex_);
    arriving_.push_back(frame);
  }

  u32 room = 4096;                // frames that the transmit ring holds
  bool stuck = false;             // frames do not leave it
  std::optional<PortSlot> wire;   // what is sent comes in again at once, by this port
  std::vector<std::string> sent;  // without a wire
  u64 transmitted = 0;

 private:
  std::mutex mutex_;
  std::deque<Frame> arriving_, ring_;
};

struct FakePort final : Port {
  explicit FakePort(u32 queues) : all(queues) {}
  [[nodiscard]] u32 queues() const noexcept override { return static_cast<u32>(all.size()); }
  [[nodiscard]] Queue& queue(u32 index) noexcept override { return all.at(index); }
  std::deque<FakeQueue> all;
};

}  // namespace weir::kit
