// SPDX-License-Identifier: BSD-3-Clause
// runner: one worker's part of the data path: take bursts from its queues, run them through their pipeline, send them out.
#pragma once

#include <vector>

#include "core/pipeline/data_path.hh"

namespace weir {

class Runner {
 public:
  struct RxQueue {
    PortSlot port;
    Queue* queue;
  };

  // `row`: in the accounts, this runner's own. `number`: of the worker, picks its queue of ports that it sends to.
  Runner(DataPath& path, FramePool& pool, u32 number, u32 row, std::vector<RxQueue> queues);

  // One turn over all queues. Returns the number of frames that came in.
  u32 poll() noexcept;
  // A burst through a pipeline from its first stage, or from where the kernel half left each frame; then out.
  void run(const Pipeline* pipeline, Burst& burst) noexcept;
  // Sends what has been collected.
  void flush() noexcept;

  // Between two polls.
  void add_queue(const RxQueue& from) { queues_.push_back(from); }
  void drop_queues(PortSlot port) {
    std::erase_if(queues_, [port](const RxQueue& from) { return from.port == port; });
  }
  [[nodiscard]] const std::vector<RxQueue>& queues() const noexcept { return queues_; }
  [[nodiscard]] u32 free() const noexcept { return cache_.free(); }
  [[nodiscard]] u32 held() const noexcept;                        // in bursts: none between two polls
  [[nodiscard]] bool unsent() const noexcept { return unsent_; }  // a ring waits for another kick
  [[nodiscard]] FrameCache& cache() noexcept { return cache_; }

 private:
  struct Outbox {
    u32 size = 0;
    std::array<Frame, Burst::capacity> frames;
  };
  void run_from(const Pipeline* pipeline, u32 stage, Burst& burst) noexcept;
  static void count(const Queue::Unread& unread, account& port) noexcept;
  void settle(Burst& burst, account& stage) noexcept;
  void miss(const Frame& frame) noexcept;
  weir_verdict emit(const Frame* frames, u32 number, PortSlot port) noexcept;  // what becomes of them
  void collect(const Frame* frames, u32 number, PortSlot port) noexcept;
  bool copy(const Frame& frame, Frame& to) noexcept;
  void flood(const Frame& frame, u32 group) noexcept;
  void to_stack(const Frame& frame) noexcept;
  void drop(const Frame& frame, u32 reason) noexcept;
  using Taken = std::pair<u32, u64>;  // frames, and their bytes
  Taken drop_longer(Frame* frames, u32 number, PortEntry& to, account& account) noexcept;
  void send(PortSlot port) noexcept;
  u32 send_now(Queue& queue, const Frame* frames, u32 number) noexcept;
  void reclaim() noexcept;
  [[nodiscard]] Queue& way_out(PortSlot port) noexcept;
  [[nodiscard]] account& of(PortSlot port) noexcept { return path_.accounts.at(row_, path_.ports[port.value].block); }

  DataPath& path_;
  u32 number_, row_;
  FrameCache cache_;
  std::vector<RxQueue> queues_;
  std::vector<Outbox> out_;   // by port
  std::vector<u16> waiting_;  // ports whose outbox is not empty
  bool unsent_ = false;
  Miss miss_ = Miss::drop;  // of the pipeline that runs
  Burst burst_, part_;
};

}  // namespace weir
