// SPDX-License-Identifier: BSD-3-Clause
// pool: free frames move between the pool and the workers' caches in chunks.
#include "core/frame/pool.hh"

#include <algorithm>
#include <mutex>

namespace weir {

Result<std::unique_ptr<FramePool>> FramePool::create(u32 count, u32 size, Mapping memory) {
  const u64 bytes = static_cast<u64>(count) * size;
  if (memory.size() == 0) memory = TRY_WITHIN(fmt::format("frames: {} of {} bytes", count, size), Mapping::anonymous(bytes));
  if (memory.size() < bytes) broken("the memory for frames is shorter than they are");
  return std::unique_ptr<FramePool>(new FramePool(std::move(memory), count, size));
}

FramePool::FramePool(Mapping memory, u32 count, u32 size) : memory_(std::move(memory)), count_(count), size_(size) {
  free_.reserve(count);
  for (u32 i = count; i-- > 0;) free_.push_back(static_cast<u64>(i) * size);
}

u32 FramePool::take(u64* frames, u32 want) noexcept {
  std::scoped_lock hold(lock_);
  const u32 given = std::min(want, static_cast<u32>(free_.size()));
  std::copy(free_.end() - given, free_.end(), frames);
  free_.resize(free_.size() - given);
  return given;
}

void FramePool::release(const u64* frames, u32 number) noexcept {
  std::scoped_lock hold(lock_);
  if (free_.size() + number > count_) broken("more free frames than there are frames: one was released twice");
  free_.insert(free_.end(), frames, frames + number);  // within what was reserved: allocates nothing
}

u32 FramePool::free() const noexcept {
  std::scoped_lock hold(lock_);
  return static_cast<u32>(free_.size());
}

u32 FrameCache::take(u64* frames, u32 want) noexcept {
  if (number() < want)
    set(number() + pool_.take(frames_.data() + number(), std::min(capacity - number(), std::max(want - number(), chunk))));
  const u32 given = std::min(want, number());
  std::copy_n(frames_.data() + number() - given, given, frames);
  set(number() - given);
  return given;
}

void FrameCache::spill() noexcept {
  pool_.release(frames_.data() + capacity - chunk, chunk);
  set(capacity - chunk);
}

}  // namespace weir
