// SPDX-License-Identifier: BSD-3-Clause
// pool: the memory of all frames of an instance, and who holds the free ones.
#pragma once

#include <array>
#include <atomic>
#include <cstring>
#include <optional>
#include <vector>

#include "core/base/mapping.hh"
#include "core/base/spin_lock.hh"
#include "core/frame/frame.hh"

namespace weir {

// One piece of memory in frames of one size. A frame is named by its offset, a multiple of the size, as in an AF_XDP umem.
class FramePool {
 public:
  // `size`: bytes of a frame, 2048 or 4096. `memory`: where they are to be, at the start of a page; empty: anywhere.
  static Result<std::unique_ptr<FramePool>> create(u32 count, u32 size, Mapping memory = {});

  [[nodiscard]] u8* base() const noexcept { return memory_.data(); }
  [[nodiscard]] u64 bytes() const noexcept { return static_cast<u64>(count_) * size_; }
  [[nodiscard]] u32 count() const noexcept { return count_; }
  [[nodiscard]] u32 size() const noexcept { return size_; }
  [[nodiscard]] u64 of(const u8* data) const noexcept { return static_cast<u64>(data - memory_.data()) & ~static_cast<u64>(size_ - 1); }

  // Bytes in front of a frame that it may grow into. One that comes in has `front` of them, or less its time.
  static constexpr u32 front = 256;
  [[nodiscard]] u32 headroom(const Frame& frame) const noexcept {
    return (static_cast<u32>(frame.data - memory_.data()) & (size_ - 1)) - (frame.timed != 0 ? static_cast<u32>(sizeof(u64)) : 0);
  }
  // When a frame was captured, in nanoseconds since 1970: where a port knows that, it stands at the start of the frame's memory.
  void set_time(Frame& frame, u64 ns) const noexcept {
    frame.timed = 1;
    std::memcpy(memory_.data() + of(frame.data), &ns, sizeof ns);
  }
  [[nodiscard]] std::optional<u64> time_of(const Frame& frame) const noexcept {
    if (frame.timed == 0) return std::nullopt;
    u64 ns = 0;
    std::memcpy(&ns, memory_.data() + of(frame.data), sizeof ns);
    return ns;
  }

  // Moves up to `want` free frames out, or any number in. Rare: workers keep a cache.
  u32 take(u64* frames, u32 want) noexcept;
  void release(const u64* frames, u32 number) noexcept;
  [[nodiscard]] u32 free() const noexcept;

 private:
  FramePool(Mapping memory, u32 count, u32 size);
  Mapping memory_;
  u32 count_, size_;
  mutable SpinLock lock_;
  std::vector<u64> free_;
};

// One worker's free frames. Not shared; free() may be read from outside.
class FrameCache {
 public:
  static constexpr u32 capacity = 512;
  explicit FrameCache(FramePool& pool) noexcept : pool_(pool) {}
  FrameCache(const FrameCache&) = delete;
  ~FrameCache() { pool_.release(frames_.data(), number()); }

  // Takes up to `want` frames, from the pool when it must. Returns how many.
  u32 take(u64* frames, u32 want) noexcept;
  void release(u64 frame) noexcept {
    if (number() == capacity) spill();
    frames_[number()] = frame;
    set(number() + 1);
  }
  void release(const Frame& frame) noexcept { release(pool_.of(frame.data)); }
  [[nodiscard]] FramePool& pool() const noexcept { return pool_; }
  [[nodiscard]] u32 free() const noexcept { return number(); }

 private:
  static constexpr u32 chunk = 256;  // frames that go to the pool, or come from it, at once
  [[nodiscard]] u32 number() const noexcept { return number_.load(std::memory_order_relaxed); }
  void set(u32 number) noexcept { number_.store(number, std::memory_order_relaxed); }
  void spill() noexcept;
  FramePool& pool_;
  std::atomic<u32> number_{0};  // atomic only for readers
  std::array<u64, capacity> frames_;
};

}  // namespace weir
