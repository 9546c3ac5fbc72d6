// SPDX-License-Identifier: BSD-3-Clause
// lanes: where frames wait in front of a parallel stage, in the order of their flows, until a thread has time for them.
#pragma once

#include <atomic>
#include <bit>
#include <memory>
#include <vector>

#include "bpf/abi/account.h"
#include "core/base/spin_lock.hh"
#include "core/pipeline/data_path.hh"
#include "core/worker/flow_hash.hh"

namespace weir {

// The lanes of one stage. A frame's lane follows from its flow. Any thread puts frames into a lane, and any works them off, but one at a
// time: it claims the lane, and releases it when what it took has left by a port, so that the next one cannot overtake it.
//
// A lane is one ring, whose producers take a lock: with a ring for each producer, nothing would say which of two frames came first when the
// same flow comes in by another thread, as it does when one polls in another's place. The lock is taken once for all frames of a turn.
class Lanes {
 public:
  static constexpr u32 most = 64;  // lanes: which of them have frames is one word

  struct Shape {
    u32 lanes = 16;     // a power of two, up to `most`
    u32 room = 512;     // frames of one lane, a power of two
    u32 limit = 4096;   // of all of them, so that one stage that stands still cannot take every frame there is
    u32 dear_ns = 100;  // of a frame: a stage that costs less is run at once by who has the frames. 0: none is
  };
  // For so many threads that work off lanes, and of `frames` in all, with so many parallel stages.
  static Shape shape_for(u32 threads, u32 frames, u32 stages) noexcept;

  // In front of the stage in this place of the pipeline. `number`: among the parallel stages.
  Lanes(const Pipeline& pipeline, u32 stage, u32 number, const Shape& shape, u64 key);

  [[nodiscard]] const Pipeline& pipeline() const noexcept { return pipeline_; }
  [[nodiscard]] u32 stage() const noexcept { return stage_; }
  [[nodiscard]] u32 number() const noexcept { return number_; }
  [[nodiscard]] const Shape& shape() const noexcept { return shape_; }
  [[nodiscard]] u32 lane_of(const Frame& frame) const noexcept {
    return static_cast<u32>(flow_hash(frame, key_) >> 32) & (shape_.lanes - 1);
  }

  // Frames for lanes: reserve() as many as there are room for in all, push() them, and tell by offer() which lanes have got some.
  u32 reserve(u32 want) noexcept;
  u32 push(u32 lane, const Frame* frames, u32 number) noexcept;  // how many it took; the caller keeps the others
  void offer(u64 lanes) noexcept { ready_.fetch_or(lanes); }
  void overflowed(u32 frames) noexcept { overflow_.fetch_add(frames, std::memory_order_relaxed); }

  // Lanes that have frames and that nobody else works on, as bits; about as many as it takes for `frames`. `turn`: where to begin to look.
  [[nodiscard]] u64 claim(u32 frames, u32 turn) noexcept;
  // Of a lane that is claimed. Up to the room of the burst.
  void pop(u32 lane, Burst& burst) noexcept;
  [[nodiscard]] bool empty(u32 lane) const noexcept;
  // Behind the last of what pop() gave has left. `frames`: how many these were. `left`: those of the lanes that are not empty.
  void release(u64 lanes, u64 left, u32 frames) noexcept;

  // Frames that are in lanes, or taken from them and not away yet.
  [[nodiscard]] u32 pending() const noexcept { return pending_.load(std::memory_order_acquire); }
  [[nodiscard]] bool any_ready() const noexcept { return (ready_.load() & ~busy_.load(std::memory_order_relaxed)) != 0 && !held(); }
  // While it is held nobody gets a lane: a frame that came before those in the lanes is still in the stage.
  void hold() noexcept { holds_.fetch_add(1); }
  void unhold() noexcept { holds_.fetch_sub(1); }
  [[nodiscard]] bool held() const noexcept { return holds_.load(std::memory_order_acquire) != 0; }

  // What a burst has cost in the stage decides whether its frames go through lanes. One long burst decides nothing: the thread may have
  // been interrupted.
  void note(u64 ns, u32 frames) noexcept;
  [[nodiscard]] bool spreads() const noexcept { return spreads_.load(std::memory_order_relaxed); }
  [[nodiscard]] u32 cost_ns() const noexcept { return cost_.load(std::memory_order_relaxed); }  // of a frame

  // For those who look on.
  [[nodiscard]] u32 depth(u32 lane) const noexcept;
  [[nodiscard]] u32 depth() const noexcept;  // of all
  [[nodiscard]] u64 overflow() const noexcept { return overflow_.load(std::memory_order_relaxed); }

 private:
  struct alignas(WEIR_CACHE_LINE) Lane {
    SpinLock lock;  // of the producers
    u32 seen = 0;   // what they last saw of `head`
    std::atomic<u32> tail{0};
    alignas(WEIR_CACHE_LINE) std::atomic<u32> head{0};  // written by who has claimed the lane
    std::unique_ptr<Frame[]> ring;
  };
  const Pipeline& pipeline_;
  u32 stage_, number_;
  Shape shape_;
  u64 key_;
  std::vector<Lane> lanes_;
  alignas(WEIR_CACHE_LINE) std::atomic<u64> ready_{0};  // lanes that have frames
  std::atomic<u64> busy_{0};                            // lanes that are claimed
  std::atomic<u32> pending_{0};
  alignas(WEIR_CACHE_LINE) std::atomic<u32> holds_{0};  // mostly read
  std::atomic<u32> cost_{0}, last_{0};
  std::atomic<bool> spreads_{false};
  std::atomic<u64> overflow_{0};
};

}  // namespace weir
