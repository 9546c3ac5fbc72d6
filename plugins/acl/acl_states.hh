// SPDX-License-Identifier: BSD-3-Clause
// acl_states: established flows: a table in memory that stages of several pipelines have in common, and that their kernel halves read.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "core/base/spin_lock.hh"
#include "core/pipeline/stage.hh"
#include "plugins/acl/acl_states.h"

namespace weir::acl {

// Seconds without a frame, behind which a flow is forgotten.
struct StateTimes {
  u32 tcp = 7440, tcp_transitory = 240;  // RFC 5382, REQ-5; transitory: before the answer, and from the first FIN or RST on
  u32 udp = 300;                         // RFC 4787, REQ-5
  u32 icmp = 60;                         // RFC 5508, REQ-2
  u32 other = 600;
};

struct StateCounts {
  u64 count, most;
  u64 opened, refused;                 // refused: there was no room
  u64 idle, evicted, judged, flushed;  // why they ended
};

// One stage's hold of the table. What is said to be the workers' any thread may call; the rest is the control thread's.
class States {
 public:
  States() noexcept;
  static constexpr u32 keepers = 64;  // stages that share a table

  // `keeper`: what the stage was to the others before, or 0; it gets the number that it is from here on.
  Result<> bind(StageMemory& memory, const std::string& name, u32 most, const StateTimes& times, std::span<const PortSlot> ports,
                FlowCache* cache, u32& keeper);
  // This stage goes on under the number of the one whose place it takes.
  void succeed(u32 before, u32& keeper) noexcept;
  [[nodiscard]] bool any() const noexcept { return head_ != nullptr; }
  [[nodiscard]] u64 seed() const noexcept { return head_->seed; }
  [[nodiscard]] u32 mask() const noexcept { return head_->mask; }

  // The workers': whether the frame is of an established flow, which is then as far as this frame takes it.
  bool passes(const acl_key& key, const Frame& frame) noexcept;
  // The workers': whether it is an ICMP error about a frame of an established flow, to the one who has sent that.
  bool concerns(const acl_key& key, const Frame& frame) const noexcept;
  // The workers': a rule permits the frame and keeps its flow. False: there is no room.
  bool open(const acl_key& key, const Frame& frame, u32 keeper, u32 rule) noexcept;
  // The workers': before a look-up, so that what is offloaded because of it holds no longer than it.
  void decide_now(Frame& frame) const noexcept {
    if (cache_ != nullptr) cache_->decide_now(frame);
  }

  // Once a second. Of the stages that share the table the first one that comes does what is to be done for all.
  void tick(u32 now_s, u32 keeper) noexcept;
  // Ends the keeper's flows that `stands` has no rule for any more. It gets a burst of first frames, and gives their rules, or ACL_NO_RULE.
  using Stands = std::function<void(std::span<const acl_key> keys, std::span<u32> rules)>;
  void judge(u32 keeper, const Stands& stands) noexcept;
  u64 flush() noexcept;

  void visit(const std::function<void(const acl_state&)>& visitor) const;
  [[nodiscard]] u32 idle_s(const acl_state& state) const noexcept;
  [[nodiscard]] u32 longest_idle(const acl_state& state) const noexcept;
  [[nodiscard]] StateCounts counts() const noexcept;

 private:
  static constexpr u32 locks = 256;
  static constexpr u32 most_ended = 256;
  // Flows that the flow cache may have, and that have no state any more.
  struct Ended {
    u32 count;  // above most_ended: there were more
    acl_flow flows[most_ended];
  };
  // Shared by processes of one build alone.
  struct Head {
    u64 version;
    u64 seed, ports;  // ports: those that the stages serve, by slot
    u32 mask, most, count;
    u32 now_s, swept_s, swept;  // swept: place
    u64 opened, refused, idle, evicted, judged, flushed;
    u64 again;             // all flows without a state are to be taken back at the next sweep
    u32 alive_s[keepers];  // when each was last heard of; 0: there is none
    SpinLock lock[locks];
    SpinLock ended_lock;
    u32 ended_now;   // which of the two is added to
    Ended ended[2];  // since the last sweep, and before that
  };
  class Held;
  [[nodiscard]] SpinLock& lock_of(u32 place) const noexcept { return head_->lock[place / ACL_BUCKET % locks]; }
  template <typename Visit>
  bool find(const acl_flow& flow, Visit visit) const noexcept;
  [[nodiscard]] bool knows(const acl_flow& flow) const noexcept;
  void write(acl_state& state, const acl_flow& flow, const acl_key& key, u32 now, u32 keeper, u32 rule) noexcept;
  bool end(u32 place, u64 word, u64 Head::*why) noexcept;
  void look_after(u32 place, const acl_state& state, u32 now) noexcept;
  void note_ended(const acl_state& state) noexcept;
  [[nodiscard]] u32 sweep_s() const noexcept;
  [[nodiscard]] std::optional<u32> idle_in_cache(const acl_state& state) const noexcept;
  [[nodiscard]] std::optional<u32> idle_in_cache(const acl_state& state, u32 direction) const noexcept;
  void take_flows_back() noexcept;
  void take_ended_back(bool all) noexcept;
  [[nodiscard]] acl_state copy(u32 place) const noexcept;

  u32 made_s_;  // before anything that takes long, such as a classifier
  Head* head_ = nullptr;
  std::span<acl_state> states_;
  StateTimes times_;
  FlowCache* cache_ = nullptr;
};

// The flow that an offloaded one is of.
std::optional<acl_flow> flow_of(const FlowKey& key) noexcept;
// The flow of the packet at `offset` of the frame, which an ICMP error quotes: there may be no more of it than 8 bytes behind its IP
// header.
std::optional<acl_flow> quoted_flow(const Frame& frame, u32 offset) noexcept;
// The frame that has opened it, as rules see it.
acl_key first_frame(const acl_state& state) noexcept;

}  // namespace weir::acl
