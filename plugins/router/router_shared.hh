// SPDX-License-Identifier: BSD-3-Clause
// router_shared: how the user half reads and writes what the kernel half reads at any time, and numbers that are given out anew with care.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/config/node.hh"
#include "plugins/router/router.h"

namespace weir::routing {

template <typename T>
T load(T& from) noexcept {
  return std::atomic_ref(from).load(std::memory_order_acquire);
}
template <typename T>
void store(T& to, std::type_identity_t<T> value) noexcept {
  std::atomic_ref(to).store(value, std::memory_order_release);
}

inline router_address shared(const Address& address) noexcept {
  return address.version == 4 ? router_address4(address.bytes.data()) : router_address6(address.bytes.data());
}
inline bool same(const router_address& one, const router_address& two) noexcept { return one.high == two.high && one.low == two.low; }

// Where the new run builds its tables: an earlier one's kernel half may still work by those in the other half.
struct Half {
  u32 first = 0, size = 0;
};

// Numbers of entries of a table. One that was given back is given out again two ticks later, when no frame is under way with it.
class Numbers {
 public:
  Numbers() = default;
  // The first `unused` are not given out.
  Numbers(Half half, u32 unused) : next_(half.first + unused), end_(half.first + half.size) {}
  // 0: there is none left.
  u32 take() noexcept {
    if (!free_.empty()) {
      const u32 number = free_.back();
      free_.pop_back();
      return number;
    }
    return next_ < end_ ? next_++ : 0;
  }
  void give_back(u32 number) { resting_.emplace_back(ticks_, number); }
  // Of one that nobody has seen.
  void put_back(u32 number) { free_.push_back(number); }
  void tick() {
    ++ticks_;
    for (; !resting_.empty() && ticks_ - resting_.front().first >= 2; resting_.pop_front()) free_.push_back(resting_.front().second);
  }

 private:
  u32 next_ = 0, end_ = 0, ticks_ = 0;
  std::vector<u32> free_;
  std::deque<std::pair<u32, u32>> resting_;
};

}  // namespace weir::routing
