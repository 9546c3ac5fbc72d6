// SPDX-License-Identifier: BSD-3-Clause
// flows: how a user half hands a flow to the kernel, which then does with its frames what the user half has done with the first one.
#pragma once

#include <functional>
#include <optional>

#include "bpf/abi/flow.h"
#include "core/frame/frame.hh"

namespace weir {

// What makes frames one flow: the port that they come in by, the VLAN, the Ethernet destination, addresses, protocol and ports.
struct FlowKey {
  flow_key of{};  // the word with the port's slot; version 0: the frame is of no flow
  std::array<u8, ETH_ALEN> was_to{};
  u32 epoch = 0;  // Flows::key_of(): a decision of before a take_back() is not one for behind it
  [[nodiscard]] explicit operator bool() const noexcept { return of.version != 0; }
  [[nodiscard]] PortSlot port() const noexcept { return PortSlot{static_cast<u16>(of.word >> FLOW_PORT & 63)}; }
  [[nodiscard]] bool tagged() const noexcept { return (of.word & FLOW_TAGGED) != 0; }
  [[nodiscard]] u16 vlan() const noexcept { return of.word >> FLOW_VLAN & 0xfff; }
  [[nodiscard]] u8 protocol() const noexcept { return of.word >> FLOW_PROTOCOL & 0xff; }
  // As in the frame, 4 or 16 bytes of them.
  [[nodiscard]] std::array<u8, 16> source() const noexcept;
  [[nodiscard]] std::array<u8, 16> destination() const noexcept;
  [[nodiscard]] u16 source_port() const noexcept { return FLOW_NET16(static_cast<u16>(of.word)); }
  [[nodiscard]] u16 destination_port() const noexcept { return FLOW_NET16(static_cast<u16>(of.word >> 16)); }
  // Of the same flow, whatever else was noted of their frames.
  [[nodiscard]] bool same(const FlowKey& other) const noexcept;
  friend bool operator==(const FlowKey& one, const FlowKey& other) noexcept { return one.same(other); }
  // The same for keys that are equal. Another in each process, so that nobody outside can fill one place of a table.
  [[nodiscard]] u64 hash() const noexcept;
};

// Before anything is changed in the frame. None of: fragments, IPv4 options, IPv6 extension headers, ICMP but echo, more than one
// tag, lengths and checksums that are wrong, and TCP frames that end a connection.
FlowKey flow_key_of(const Frame& frame) noexcept;

// What becomes of the frames of a flow. A frame that it cannot be done with goes the long way: its last hop, too long, no entry of the
// port.
class FlowAction {
 public:
  using Address = std::array<u8, 16>;  // IPv4: the first 4
  static FlowAction transmit(PortSlot port) noexcept { return {FLOW_REDIRECT, port.value}; }
  static FlowAction flood(GroupSlot group) noexcept { return {FLOW_FLOOD, group.value}; }
  static FlowAction to_stack() noexcept { return {FLOW_TO_STACK, 0}; }
  // Reason: the plugin's own enum, in the order of its declared names.
  template <typename Reason>
  requires std::is_enum_v<Reason>
  static FlowAction drop(Reason reason) noexcept { return {FLOW_DROP, static_cast<u32>(reason)}; }

  FlowAction& addresses(const std::array<u8, ETH_ALEN>& to, const std::array<u8, ETH_ALEN>& from) noexcept;  // of Ethernet
  FlowAction& ttl() noexcept { return change(FLOW_TTL); }                                                    // one less
  FlowAction& dscp(u8 value) noexcept;
  FlowAction& vlan(u16 vid) noexcept;          // in the tag that is there
  FlowAction& push(u16 vid, u8 pcp) noexcept;  // a tag, where there is none
  FlowAction& pop() noexcept { return change(FLOW_VLAN_POP); }
  // Of TCP, UDP, and ICMP echo, whose identifier is the source's port.
  FlowAction& source(const Address& address, u16 port) noexcept;
  FlowAction& destination(const Address& address, u16 port) noexcept;
  // Bytes of a frame without tags; one that is longer goes the long way.
  FlowAction& longest(u32 bytes) noexcept;

  [[nodiscard]] u8 fate() const noexcept { return fate_; }
  [[nodiscard]] u8 argument() const noexcept { return argument_; }
  // What is changed in frames of this flow; none: it cannot be done with them.
  [[nodiscard]] std::optional<flow_rewrite> rewrite(const FlowKey& key) const noexcept;

 private:
  FlowAction(flow_fate fate, u32 argument) noexcept : fate_(fate), argument_(static_cast<u8>(std::min<u32>(argument, 255))) {}
  FlowAction& change(flow_change what) noexcept {
    changes_ |= what;
    return *this;
  }
  u8 fate_, argument_;
  u16 changes_ = 0, longest_ = 0xffff, tci_ = 0;
  u8 dscp_ = 0;
  std::array<u8, ETH_ALEN> to_{}, from_{};
  std::optional<std::pair<Address, u16>> source_, destination_;
};

struct FlowTimes {
  u32 idle_s = 60;  // without a frame
  u32 hard_s = 0;   // in all; 0: no limit
};

enum class FlowEnd { idle, hard, tcp, taken_back, evicted, flushed };

// What a stage is told of a flow of its own that has ended.
struct EndedFlow {
  FlowKey key;
  u64 cookie;
  FlowEnd why;
  u64 frames, bytes;  // that the kernel has seen
};

// The flow cache as one stage sees it; see StageContext::flows(). Valid as long as the stage.
class Flows {
 public:
  virtual ~Flows() = default;
  // Whether there is a cache for this stage: not in a run without kernel halves, and not behind a stage that is to see every frame
  // (Plugin::per_flow). offload() asks too; this is for what need not be computed then.
  [[nodiscard]] virtual bool any() const noexcept = 0;
  // To be asked before the decision that is to be offloaded is looked up: see FlowKey::epoch and flow_key_of().
  [[nodiscard]] virtual FlowKey key_of(const Frame& frame) const noexcept = 0;
  // Of now, for a stage that looks a whole burst up: asked before, and put into the keys that it asks for behind.
  [[nodiscard]] virtual u32 epoch() const noexcept = 0;
  // From workers and from the control side. A flow that is there already gets the new action at once. False: its frames go on coming, for
  // now: the key is none, the action cannot be done with it, or there is no room until another flow has ended.
  virtual bool offload(const FlowKey& key, const FlowAction& action, FlowTimes times = {}, u64 cookie = 0) noexcept = 0;
  // Seconds since the flow's last frame in the kernel; none: it is not there.
  [[nodiscard]] virtual std::optional<u32> idle_s(const FlowKey& key) const noexcept = 0;
  // From the control side. A frame that comes in when this has returned meets none of these flows; the stage is told of each soon.
  virtual void take_back(const std::function<bool(const FlowKey& key, u64 cookie)>& which) noexcept = 0;
  // From the control side: each flow that the stage has not been told the end of, with what the kernel has seen of it so far.
  virtual void visit(const std::function<void(const FlowKey& key, u64 cookie, u64 frames, u64 bytes)>& visitor) const = 0;
};

// The flow cache as a stage sees it on whose decisions the flows of other stages depend, such as a filter in front of a router. Valid as
// long as the stage.
class FlowCache {
 public:
  virtual ~FlowCache() = default;
  [[nodiscard]] virtual bool any() const noexcept = 0;
  // Before the decision about a frame is looked up: what a later stage offloads because of it is refused behind a take_back().
  virtual void decide_now(Frame& frame) const noexcept = 0;
  // Seconds since the flow's last frame in the kernel; none: it is not there.
  [[nodiscard]] virtual std::optional<u32> idle_s(const FlowKey& key) const noexcept = 0;
  // From the control side: flows of any stage. A frame that comes in when this has returned meets none of these, and is decided anew.
  virtual void take_back(const std::function<bool(const FlowKey& key)>& which) noexcept = 0;
};

}  // namespace weir

template <>
struct std::hash<weir::FlowKey> {
  std::size_t operator()(const weir::FlowKey& key) const noexcept { return key.hash(); }
};
