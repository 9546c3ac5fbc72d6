// SPDX-License-Identifier: BSD-3-Clause
// router_notes: what workers leave for the control thread: frames whose sender is to be told, and neighbours that are wanted.
#pragma once

#include <array>
#include <atomic>
#include <memory>

#include "core/pipeline/icmp_answer.hh"

namespace weir::routing {

// Of many writers and one reader, without locks. What finds no room is lost, and counted.
template <typename T, u32 size>
class Notes {
  static_assert((size & (size - 1)) == 0);

 public:
  Notes() {
    for (u32 i = 0; i < size; ++i) cells_[i].turn.store(i, std::memory_order_relaxed);
  }
  template <typename Fill>
  void push(Fill fill) noexcept {
    u32 at = tail_.load(std::memory_order_relaxed);
    while (true) {
      Cell& cell = cells_[at % size];
      const u32 turn = cell.turn.load(std::memory_order_acquire);
      if (turn == at) {
        if (!tail_.compare_exchange_weak(at, at + 1, std::memory_order_relaxed)) continue;
        fill(cell.value);
        return cell.turn.store(at + 1, std::memory_order_release);
      }
      if (static_cast<i32>(turn - at) < 0) return static_cast<void>(lost_.fetch_add(1, std::memory_order_relaxed));
      at = tail_.load(std::memory_order_relaxed);
    }
  }
  template <typename Each>
  void take(Each each) {
    for (u32 taken = 0; taken < size; ++taken, ++head_) {
      Cell& cell = cells_[head_ % size];
      if (cell.turn.load(std::memory_order_acquire) != head_ + 1) return;
      each(std::as_const(cell.value));
      cell.turn.store(head_ + size, std::memory_order_release);
    }
  }
  [[nodiscard]] u64 lost() const noexcept { return lost_.load(std::memory_order_relaxed); }

 private:
  using i32 = std::int32_t;
  struct Cell {
    std::atomic<u32> turn;
    T value;
  };
  std::array<Cell, size> cells_;
  std::atomic<u32> tail_{0};
  u32 head_ = 0;
  std::atomic<u64> lost_{0};
};

struct Untold {
  IcmpReason why;
  u32 port, mtu, length;
  std::array<u8, 1254> bytes;  // as much as any answer quotes
};

struct Wanted {
  u32 port;
  u32 version;
  std::array<u8, 16> address;
};

}  // namespace weir::routing
