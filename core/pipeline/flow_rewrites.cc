// SPDX-License-Identifier: BSD-3-Clause
// flow_rewrites: a hash table with open addressing over places that do not move. Nothing is allocated after construction.
#include "core/pipeline/flow_rewrites.hh"

#include <bit>
#include <cstring>
#include <mutex>

namespace weir {

FlowRewrites::FlowRewrites(std::span<flow_rewrite> places)
    : places_(places), holds_(places.size()), index_(std::bit_ceil(places.size() * 2)) {
  for (auto* list : {&free_, &resting_, &rested_}) list->reserve(places.size());
  for (u32 number = static_cast<u32>(places.size()); number > 0; --number) free_.push_back(number - 1);
}

u32 FlowRewrites::home(const flow_rewrite& rewrite) const noexcept {
  u64 hash = 0, word = 0;
  for (std::size_t at = 0; at < sizeof rewrite; at += sizeof word) {
    std::memcpy(&word, reinterpret_cast<const u8*>(&rewrite) + at, sizeof word);
    hash = flow_round(hash, word);
  }
  return static_cast<u32>(hash) & static_cast<u32>(index_.size() - 1);
}

// Its cell of the index, or the free one where it belongs.
u32* FlowRewrites::find(const flow_rewrite& rewrite) noexcept {
  for (u32 at = home(rewrite);; at = (at + 1) & static_cast<u32>(index_.size() - 1))
    if (index_[at] == 0 || std::memcmp(&places_[index_[at] - 1], &rewrite, sizeof rewrite) == 0) return &index_[at];
}

std::optional<u32> FlowRewrites::take(const flow_rewrite& rewrite) noexcept {
  std::scoped_lock hold(lock_);
  u32* cell = find(rewrite);
  if (*cell == 0) {
    if (free_.empty()) return {};
    *cell = free_.back() + 1;
    free_.pop_back();
    places_[*cell - 1] = rewrite;
  }
  ++holds_[*cell - 1];
  return *cell - 1;
}

void FlowRewrites::release(u32 number) noexcept {
  std::scoped_lock hold(lock_);
  if (--holds_[number] > 0) return;
  forget(find(places_[number]));
  resting_.push_back(number);
}

// Those behind it that would not be found any more move up.
void FlowRewrites::forget(u32* cell) noexcept {
  const u32 mask = static_cast<u32>(index_.size() - 1);
  u32 hole = static_cast<u32>(cell - index_.data());
  for (u32 at = (hole + 1) & mask; index_[at] != 0; at = (at + 1) & mask)
    if (((at - home(places_[index_[at] - 1])) & mask) >= ((at - hole) & mask)) {
      index_[hole] = index_[at];
      hole = at;
    }
  index_[hole] = 0;
}

void FlowRewrites::age() noexcept {
  std::scoped_lock hold(lock_);
  free_.insert(free_.end(), rested_.begin(), rested_.end());
  rested_.clear();
  std::swap(rested_, resting_);
}

}  // namespace weir
