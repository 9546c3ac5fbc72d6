// SPDX-License-Identifier: BSD-3-Clause
// flow_table: user space's side of the flow cache: puts flows where the kernel looks for them, ages them, and gives their counters back.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "bpf/abi/link.h"
#include "core/base/spin_lock.hh"
#include "core/pipeline/flow_rewrites.hh"
#include "core/pipeline/flows.hh"

namespace weir {

class FlowTable {
 public:
  // What the kernel reads: as many places, a power of two, for each version.
  struct Memory {
    std::span<flow4> ipv4;
    std::span<flow6> ipv6;
    std::span<flow_rewrite> rewrites;
    port_entries* entries = nullptr;  // null: no kernel half asks whether it should have a flow offloaded
  };
  struct Owner {
    static constexpr u32 stages = WEIR_MAX_STAGES;
    u16 stage;  // its number in the instance, and how many had that before, times `stages`
    u16 block;  // in the accounts
    [[nodiscard]] u32 number() const noexcept { return stage % stages; }
  };
  struct Entry {
    FlowKey key;
    FlowAction action;
    FlowTimes times;
    u64 cookie;
  };
  // A flow as it is now.
  struct Seen {
    FlowKey key;
    Owner owner;
    u64 cookie;
    u64 frames, bytes;
    u32 age_s, idle_s;
    u8 fate, argument;
    flow_rewrite rewrite;
  };
  struct Counts {
    u64 count;  // that the kernel has now
    u64 hits;   // frames of flows that have ended; hits() has all
    u64 added, updated;
    u64 expired;  // idle or hard timeout
    u64 ended;    // by TCP
    u64 evicted, taken_back, flushed;
    u64 refused;  // full, or out of date when they came
  };
  using Told = std::function<void(Owner, const EndedFlow&)>;
  using Which = std::function<bool(const Seen&)>;

  FlowTable(const Memory& memory, u64 seed);

  [[nodiscard]] FlowKey key_of(const Frame& frame) const noexcept;
  [[nodiscard]] u32 epoch() const noexcept { return epoch_.load(std::memory_order_acquire); }
  // Where all places of a flow's hash are taken, the one of them that was seen longest ago is evicted, unless it was within the last
  // second; its place is free two ticks later.
  bool put(Owner owner, const Entry& entry) noexcept;
  [[nodiscard]] std::optional<u32> idle_s(const FlowKey& key) const noexcept;
  // From here on, control side only. Ends flows, and flows of before offloads that are on their way.
  u64 take_back(const Which& which, FlowEnd why) noexcept;
  // `all`: also those that have ended and are not told of yet. The visitor's false: no more.
  void visit(const std::function<bool(const Seen&)>& visitor, bool all = false) const;
  // Once a second: ends those whose time has come, and tells of those that have ended and that no program can still be working with.
  void tick(u32 now_s, const Told& told);
  [[nodiscard]] Counts counts() const noexcept;
  // Frames that the kernel has found the flow of.
  [[nodiscard]] u64 hits() const;

 private:
  enum class State : u8 { free, live, ending };
  struct Note {
    u64 cookie = 0;
    u32 idle_s = 0, hard_s = 0;
    u32 since_s = 0;  // when it was added
    u32 ended = 0;    // of one that is ending: at which tick
    u16 stage = 0;
    State state = State::free;
    FlowEnd why{};
    std::array<u8, ETH_ALEN> was_to{};
  };
  template <typename Flow>
  struct Family {
    std::span<Flow> flows;
    std::vector<Note> notes;
  };
  static constexpr u32 stripes = 256;
  // In a second: behind so many that found no room kernel halves forward by themselves until the next one, so that a table that is full
  // does not send every frame through user space.
  static constexpr u32 most_refused = 1024;
  static constexpr u32 longest_sweep = 1u << 20;  // places in one tick: a larger table is gone through in several

  template <typename Flow>
  bool put(Family<Flow>& family, Owner owner, const Entry& entry, const flow_rewrite& rewrite, bool& room) noexcept;
  template <typename Flow>
  void end(Flow& flow, Note& note, FlowEnd why) noexcept;
  template <typename Flow>
  void sweep(Family<Flow>& family, u32 from, u32 to, const Told& told);
  template <typename Flow>
  u64 take_back(Family<Flow>& family, const Which& which, FlowEnd why) noexcept;
  template <typename Flow>
  bool visit(const Family<Flow>& family, const std::function<bool(const Seen&)>& visitor, bool all) const;
  template <typename Flow>
  [[nodiscard]] Seen seen(const Flow& flow, const Note& note) const noexcept;
  template <typename Flow>
  [[nodiscard]] std::optional<u32> idle_s(const Family<Flow>& family, const FlowKey& key) const noexcept;
  [[nodiscard]] SpinLock& lock_of(u32 place) const noexcept { return locks_[place / FLOW_BUCKET & (stripes - 1)]; }
  void add(u64 Counts::*counter, u64 by = 1) noexcept { std::atomic_ref(counts_.*counter).fetch_add(by, std::memory_order_relaxed); }

  Family<flow4> ipv4_;
  Family<flow6> ipv6_;
  FlowRewrites rewrites_;
  u64 seed_;
  u32 mask_;
  std::atomic<u32> now_s_ = 0, ticks_ = 0;
  std::atomic<u32> epoch_ = 0;
  u32 swept_ = 0;
  port_entries* entries_;
  u64 handled_before_ = 0;  // at the last tick
  std::atomic<u32> refused_now_ = 0;
  mutable Counts counts_{};
  std::unique_ptr<SpinLock[]> locks_;
};

// The flow cache for one stage, none until it is given one.
class StageFlows final : public Flows {
 public:
  void connect(FlowTable& table, FlowTable::Owner owner) noexcept {
    table_ = &table;
    owner_ = owner;
  }
  [[nodiscard]] bool any() const noexcept override { return table_ != nullptr; }
  [[nodiscard]] FlowKey key_of(const Frame& frame) const noexcept override { return table_ != nullptr ? table_->key_of(frame) : FlowKey{}; }
  bool offload(const FlowKey& key, const FlowAction& action, FlowTimes times, u64 cookie) noexcept override {
    return table_ != nullptr && key && table_->put(owner_, {key, action, times, cookie});
  }
  [[nodiscard]] u32 epoch() const noexcept override { return table_ != nullptr ? table_->epoch() : 0; }
  [[nodiscard]] std::optional<u32> idle_s(const FlowKey& key) const noexcept override {
    return table_ != nullptr ? table_->idle_s(key) : std::nullopt;
  }
  void take_back(const std::function<bool(const FlowKey&, u64)>& which) noexcept override {
    if (table_ == nullptr) return;
    table_->take_back([&](const FlowTable::Seen& flow) { return flow.owner.stage == owner_.stage && which(flow.key, flow.cookie); },
                      FlowEnd::taken_back);
  }
  void visit(const std::function<void(const FlowKey&, u64, u64, u64)>& visitor) const override {
    if (table_ == nullptr) return;
    table_->visit(
        [&](const FlowTable::Seen& flow) {
          if (flow.owner.stage == owner_.stage) visitor(flow.key, flow.cookie, flow.frames, flow.bytes);
          return true;
        },
        true);
  }

 private:
  FlowTable* table_ = nullptr;
  FlowTable::Owner owner_{};
};

// The flow cache of all stages, none until there is one.
class AllFlows final : public FlowCache {
 public:
  void connect(FlowTable& table) noexcept { table_ = &table; }
  [[nodiscard]] bool any() const noexcept override { return table_ != nullptr; }
  void decide_now(Frame& frame) const noexcept override {
    if (table_ != nullptr && frame.kept == 0) frame.kept = FLOW_EPOCH(table_->epoch());
  }
  [[nodiscard]] std::optional<u32> idle_s(const FlowKey& key) const noexcept override {
    return table_ != nullptr ? table_->idle_s(key) : std::nullopt;
  }
  void take_back(const std::function<bool(const FlowKey&)>& which) noexcept override {
    if (table_ != nullptr) table_->take_back([&](const FlowTable::Seen& flow) { return which(flow.key); }, FlowEnd::taken_back);
  }

 private:
  FlowTable* table_ = nullptr;
};

}  // namespace weir
