// SPDX-License-Identifier: BSD-3-Clause
// frame: a packet buffer with its bytes, and a burst of them, as stages see them.
#pragma once

#include <algorithm>
#include <array>
#include <span>
#include <type_traits>

#include "bpf/abi/account.h"
#include "core/base/types.hh"

namespace weir {

// Where a frame's bytes are, how it came in, and what is to become of it. Plain data: it does not own the memory, the runtime does.
struct Frame {
  u8* data;
  u32 length;     // bytes, from the link-layer header on
  PortSlot port;  // that it came in by
  u8 stage;       // in the pipeline, that its user part starts at
  u8 reason;      // the kernel half's reason to punt it, or 0
  u8 verdict;     // enum weir_verdict; never WEIR_PUNT
  u16 argument;   // of the verdict: port, group or reason
  u8 kept = 0;    // 1: a stage wants to see every frame of the flow, see Burst::keep(); above: see struct punt_meta
  u8 way = 0;     // of a frame that has been in a lane: whose queues it leaves by, the number of the worker that it came in by
  u8 timed = 0;   // 1: it says when it was captured, see FramePool::time_of()

  // The T at `offset`, or null when the frame is shorter.
  template <typename T>
  [[nodiscard]] T* header(u32 offset = 0) const noexcept {
    static_assert(std::is_trivially_copyable_v<T> && alignof(T) == 1, "headers lie anywhere: core/frame/wire.hh has them");
    return offset + sizeof(T) <= length ? reinterpret_cast<T*>(data + offset) : nullptr;
  }
  [[nodiscard]] std::span<u8> bytes() const noexcept { return {data, length}; }
};
static_assert(sizeof(Frame) == 24);

// Up to 64 frames that move together. A stage gives each frame at most one verdict; a frame without one goes on to the next stage.
class Burst {
 public:
  static constexpr u32 capacity = 64;

  [[nodiscard]] Frame* begin() noexcept { return frames_.data(); }
  [[nodiscard]] Frame* end() noexcept { return frames_.data() + size_; }
  [[nodiscard]] u32 size() const noexcept { return size_; }
  [[nodiscard]] bool empty() const noexcept { return size_ == 0; }
  [[nodiscard]] u32 room() const noexcept { return capacity - size_; }

  void transmit(Frame& frame, PortSlot port) noexcept { decide(frame, WEIR_REDIRECT, port.value); }
  void flood(Frame& frame, GroupSlot group) noexcept { decide(frame, WEIR_FLOOD, group.value); }  // never to frame.port
  void to_stack(Frame& frame) noexcept { decide(frame, WEIR_TO_STACK, 0); }
  // Reason: the plugin's own enum, in the order of its declared names.
  template <typename Reason>
  requires std::is_enum_v<Reason>
  void drop(Frame& frame, Reason reason) noexcept {
    decide(frame, WEIR_DROP, static_cast<u16>(std::min<u32>(static_cast<u16>(reason), WEIR_DROP_UNNAMED - WEIR_DROP_OWN) + WEIR_DROP_OWN));
  }
  // No later stage is to offload the frame's flow.
  static void keep(Frame& frame) noexcept { frame.kept = 1; }
  // One of the plugin's own counters, by its enum in the order of the declared names.
  template <typename Counter>
  requires std::is_enum_v<Counter>
  void count(Counter counter, u64 by = 1) noexcept { account_->counter[static_cast<u32>(counter)] += by; }
  // The thread that runs the stage now: below StageContext::threads(). See PerThread.
  [[nodiscard]] u32 thread() const noexcept { return thread_; }

  // The runtime's side: fill a burst, hand it to a stage, take out what has been decided.
  void push(const Frame& frame) noexcept { frames_[size_++] = frame; }
  void clear() noexcept { size_ = 0, decided_ = 0; }
  void truncate(u32 size) noexcept { size_ = size, decided_ = 0; }
  void charge(account* to) noexcept { account_ = to; }
  void run_by(u32 thread) noexcept { thread_ = thread; }
  [[nodiscard]] u32 decided() const noexcept { return decided_; }  // frames with a verdict

 private:
  void decide(Frame& frame, u8 verdict, u16 argument) noexcept {
    decided_ += frame.verdict == WEIR_NEXT;
    frame.verdict = verdict;
    frame.argument = argument;
  }
  u32 size_ = 0;
  u32 decided_ = 0;
  u32 thread_ = 0;
  account* account_ = nullptr;
  std::array<Frame, capacity> frames_;
};

}  // namespace weir
