// SPDX-License-Identifier: BSD-3-Clause
// lanes: rings, and two words that say which of them have frames and which are somebody's.
#include "core/worker/lanes.hh"

#include <algorithm>
#include <mutex>

namespace weir {

// Few lanes give bursts of many frames, many lanes spread a few heavy flows: eight for each thread.
Lanes::Shape Lanes::shape_for(u32 threads, u32 frames, u32 stages) noexcept {
  Shape shape;
  shape.lanes = std::clamp(std::bit_ceil(8 * threads), 16u, most);
  shape.limit = std::max(frames / 4 / std::max(stages, 1u), Burst::capacity);
  if (threads < 2) shape.dear_ns = ~0u;  // nobody would help
  return shape;
}

Lanes::Lanes(const Pipeline& pipeline, u32 stage, u32 number, const Shape& shape, u64 key)
    : pipeline_(pipeline), stage_(stage), number_(number), shape_(shape), key_(key), lanes_(shape.lanes), spreads_(shape.dear_ns == 0) {
  for (Lane& lane : lanes_) lane.ring = std::make_unique<Frame[]>(shape.room);
}

u32 Lanes::reserve(u32 want) noexcept {
  const u32 before = pending_.fetch_add(want, std::memory_order_relaxed);
  const u32 room = shape_.limit - std::min(before, shape_.limit);
  if (room >= want) return want;
  pending_.fetch_sub(want - room, std::memory_order_relaxed);
  return room;
}

u32 Lanes::push(u32 number, const Frame* frames, u32 count) noexcept {
  Lane& lane = lanes_[number];
  const std::scoped_lock hold(lane.lock);
  const u32 tail = lane.tail.load(std::memory_order_relaxed);
  if (shape_.room - (tail - lane.seen) < count) lane.seen = lane.head.load(std::memory_order_acquire);
  const u32 taken = std::min(count, shape_.room - (tail - lane.seen));
  for (u32 i = 0; i < taken; ++i) lane.ring[(tail + i) & (shape_.room - 1)] = frames[i];
  lane.tail.store(tail + taken, std::memory_order_release);
  if (taken < count) pending_.fetch_sub(count - taken, std::memory_order_relaxed);
  return taken;
}

u64 Lanes::claim(u32 frames, u32 turn) noexcept {
  const u64 free = ready_.load(std::memory_order_acquire) & ~busy_.load(std::memory_order_relaxed);
  if (free == 0 || held()) return 0;
  const u32 many = static_cast<u32>(std::popcount(free));
  // One more than it takes on average: what a burst has no room for stays where it is.
  u32 want = std::clamp(frames * many / std::max(pending_.load(std::memory_order_relaxed), 1u) + 1, 1u, many);
  u64 chosen = 0;
  for (u64 rest = std::rotr(free, static_cast<int>(turn % most)); want > 0; --want, rest &= rest - 1) chosen |= rest & -rest;
  chosen = std::rotl(chosen, static_cast<int>(turn % most));
  const u64 got = chosen & ~busy_.fetch_or(chosen, std::memory_order_acquire);
  // Before the rings are read: what is pushed behind that sets its bit again.
  if (got != 0) ready_.fetch_and(~got, std::memory_order_acq_rel);
  return got;
}

void Lanes::pop(u32 number, Burst& burst) noexcept {
  Lane& lane = lanes_[number];
  const u32 head = lane.head.load(std::memory_order_relaxed);
  const u32 count = std::min(lane.tail.load(std::memory_order_acquire) - head, burst.room());
  for (u32 i = 0; i < count; ++i) {
    const Frame& frame = lane.ring[(head + i) & (shape_.room - 1)];
    __builtin_prefetch(frame.data);  // another CPU's, more often than not
    burst.push(frame);
  }
  lane.head.store(head + count, std::memory_order_release);
}

bool Lanes::empty(u32 number) const noexcept {
  const Lane& lane = lanes_[number];
  return lane.tail.load(std::memory_order_acquire) == lane.head.load(std::memory_order_relaxed);
}

void Lanes::release(u64 lanes, u64 left, u32 frames) noexcept {
  if (left != 0) ready_.fetch_or(left, std::memory_order_relaxed);
  busy_.fetch_and(~lanes, std::memory_order_release);
  if (frames != 0) pending_.fetch_sub(frames, std::memory_order_release);
}

void Lanes::note(u64 ns, u32 frames) noexcept {
  if (frames == 0) return;
  const u32 now = static_cast<u32>(std::min<u64>(ns / frames, ~0u - 1)), before = last_.exchange(now, std::memory_order_relaxed);
  cost_.store(std::min(now, before), std::memory_order_relaxed);
  if (shape_.dear_ns == 0) return;
  if (std::min(now, before) >= shape_.dear_ns) spreads_.store(true, std::memory_order_relaxed);
  else if (std::max(now, before) < shape_.dear_ns / 2) spreads_.store(false, std::memory_order_relaxed);
}

// The head first: it never overtakes a tail that is read behind it.
u32 Lanes::depth(u32 number) const noexcept {
  const Lane& lane = lanes_[number];
  const u32 head = lane.head.load(std::memory_order_acquire);
  return lane.tail.load(std::memory_order_acquire) - head;
}

u32 Lanes::depth() const noexcept {
  u32 frames = 0;
  for (u32 lane = 0; lane < shape_.lanes; ++lane) frames += depth(lane);
  return frames;
}

}  // namespace weir
