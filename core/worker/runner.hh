// SPDX-License-Identifier: BSD-3-Clause
// runner: one thread's part of the data path: take bursts from queues and from lanes, run them through their pipeline, send them out.
#pragma once

#include <atomic>
#include <vector>

#include "bpf/abi/link.h"
#include "core/pipeline/data_path.hh"
#include "core/worker/lanes.hh"

namespace weir {

class Runner {
 public:
  struct RxQueue {
    PortSlot port;
    Queue* queue;
  };

  // `row`: in the accounts, this runner's own. `number`: of the thread; picks its queue of ports that it sends to.
  Runner(DataPath& path, FramePool& pool, u32 number, u32 row, std::vector<RxQueue> queues);

  // One turn over all queues. Returns the number of frames that came in.
  u32 poll() noexcept { return poll(*this); }
  // In the place of another runner's thread, while that is kept out: see keep_out().
  u32 poll_for(const Runner& other) noexcept;
  // Works off some of the frames of lanes. Returns how many; 0: there are none, or others have them.
  u32 drain(Lanes& lanes) noexcept;
  // A burst through a pipeline from its first stage, or from where the kernel half left each frame; then out.
  void run(const Pipeline* pipeline, Burst& burst) noexcept;
  // Sends what has been collected.
  void flush() noexcept;
  // Takes back what has left through rings that drain() has filled. True: a ring waits for another kick.
  bool reclaim_drained() noexcept;

  // Between two polls.
  void add_queue(const RxQueue& from) { queues_.push_back(from); }
  void drop_queues(PortSlot port) {
    std::erase_if(queues_, [port](const RxQueue& from) { return from.port == port; });
  }
  void fit_ways();  // ports have other queues than before
  [[nodiscard]] const std::vector<RxQueue>& queues() const noexcept { return queues_; }
  [[nodiscard]] u32 free() const noexcept { return cache_.free(); }
  [[nodiscard]] u32 held() const noexcept;  // in bursts: none between two polls
  // Sends what it has, and kicks what waits for a kick. Whether nothing does any more.
  bool empty_rings() noexcept;
  [[nodiscard]] bool unsent() const noexcept { return unsent_; }  // a ring waits for another kick
  [[nodiscard]] FrameCache& cache() noexcept { return cache_; }

  // Which call of which stage the thread is in now. Of a parallel stage it can be kept from coming back, so that others may meanwhile do
  // what it would do behind it: what it has collected is sent then, and its burst is the stage's.
  class Place {
   public:
    [[nodiscard]] bool inside() const noexcept { return (bits_ & inside_bit) != 0; }
    [[nodiscard]] bool of_parallel() const noexcept { return (bits_ & parallel_bit) != 0; }
    [[nodiscard]] bool of_poll() const noexcept { return (bits_ & poll_bit) != 0; }  // the frames have just come in, and not from a lane
    [[nodiscard]] u32 stage() const noexcept { return bits_ & 0xff; }                // its number in the instance
    friend bool operator==(Place one, Place other) noexcept { return ((one.bits_ ^ other.bits_) & ~u64{kept_out_bit}) == 0; }

   private:
    friend class Runner;
    static constexpr u32 inside_bit = 1u << 8, parallel_bit = 1u << 9, poll_bit = 1u << 10, kept_out_bit = 1u << 11, call_shift = 12;
    explicit Place(u64 bits) noexcept : bits_(bits) {}
    u64 bits_;
  };
  [[nodiscard]] Place place() const noexcept { return Place(place_.load(std::memory_order_acquire)); }
  // From another thread. False: it is not there any more. True: until let_in() it does not come back from there.
  bool keep_out(Place at) noexcept;
  void let_in() noexcept;
  // The same, to poll in its place. What then comes in stays in the lanes of a stage that still has frames which came in before; see
  // publish().
  bool take_over(Place at, Lanes& lanes) noexcept;

  // What it did, for those who look at it at rest.
  struct StageTime {
    u64 frames = 0, bursts = 0, ns = 0;  // of the bursts that were timed
  };
  struct Numbers {
    u64 polls = 0, found = 0, frames = 0;             // of queues; those that had frames; these frames
    u64 drained = 0, drains = 0;                      // frames worked off from lanes, and in how many bursts
    std::array<StageTime, WEIR_MAX_STAGES> stages{};  // by their number in the instance
  };
  [[nodiscard]] const Numbers& numbers() const noexcept { return numbers_; }

 private:
  struct Outbox {
    PortSlot port;
    u32 queue;
    u32 size = 0;
    bool drained = false;  // is in drained_
    std::array<Frame, Burst::capacity> frames;
  };
  // Frames on their way into the lanes of a stage, by lane: handed over all at once, since a lane's memory is another CPU's too.
  struct Staging {
    static constexpr u32 room = 64;  // frames of each lane
    Lanes* lanes;
    std::vector<Frame> frames;
    std::array<u32, Lanes::most> sizes{};
    u32 total = 0;
    u32 held = 0;  // how often somebody holds the lanes until frames of this turn are away
  };
  u32 poll(const Runner& whose) noexcept;
  u32 receive(const RxQueue& from) noexcept;
  void run_from(const Pipeline* pipeline, u32 stage, Burst& burst) noexcept;
  void run_on(const Pipeline* pipeline, u32 at, Burst& burst, bool from_lane) noexcept;
  u64 process_timed(const StageEntry& entry, Burst& burst) noexcept;  // nanoseconds
  void process_parallel(const StageEntry& entry, Burst& burst, bool from_lane) noexcept;
  void wait_to_be_let_in(const StageEntry& entry, bool polled) noexcept;
  bool hand_over(Lanes& lanes, Burst& burst) noexcept;
  void publish(Staging& staging) noexcept;
  void publish() noexcept;
  void publish_before() noexcept;
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
  void send(u32 box) noexcept;
  u32 send_now(Queue& queue, const Frame* frames, u32 number) noexcept;
  void reclaim() noexcept;
  bool reclaim(PortSlot port, u32 queue) noexcept;
  [[nodiscard]] u32 box_of(PortSlot port, u32 way) const noexcept {
    const auto [first, count] = ways_[port.value];
    return first + (count == 1 ? 0 : way % count);
  }
  [[nodiscard]] account& of(PortSlot port) noexcept { return path_.accounts.at(row_, path_.ports[port.value].block); }

  struct Ways {
    u32 first, count;  // outboxes
  };
  DataPath& path_;
  u32 number_, row_;
  u32 way_;  // whose queues frames leave by: this runner's, or that in whose place it polls
  FrameCache cache_;
  std::vector<RxQueue> queues_;
  std::vector<Ways> ways_;         // by port
  std::vector<Outbox> out_;        // one for each queue of each port
  std::vector<u32> waiting_;       // outboxes that are not empty
  std::vector<u32> drained_;       // outboxes whose rings drain() has filled
  std::vector<Staging> stagings_;  // by the number of the lanes
  bool unsent_ = false;
  bool draining_ = false;   // the burst is from lanes
  bool stands_in_ = false;  // must not stay in a parallel stage itself: hands over what goes there
  Miss miss_ = Miss::drop;  // of the pipeline that runs
  Burst burst_, part_, drained_burst_;
  [[nodiscard]] bool any_staged() const noexcept {
    return std::ranges::any_of(stagings_, [](const Staging& each) { return each.total > 0; });
  }
  u64 calls_ = 0;                                // of stages, shifted as in a Place
  u32 until_timed_ = 1, until_lanes_timed_ = 1;  // calls
  Numbers numbers_;
  alignas(WEIR_CACHE_LINE) std::atomic<u64> place_{0};
  std::atomic<u32> kept_out_{0};  // by how many
  u32 stood_in_ = 0;              // how many of them hold the lanes; theirs until they let it in
};

}  // namespace weir
