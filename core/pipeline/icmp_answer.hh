// SPDX-License-Identifier: BSD-3-Clause
// icmp_answer: tell the sender of a packet why it went no further.
#pragma once

#include <array>
#include <optional>
#include <span>
#include <vector>

#include "core/base/fd.hh"
#include "core/base/types.hh"

namespace weir {

struct IcmpAnswer {
  u32 version = 4;          // of IP
  std::array<u8, 16> to{};  // of IPv4, in the first four bytes
  std::vector<u8> message;  // from the ICMP header on. Of ICMPv6, the kernel fills the checksum in
};

// Of RFC 792 and RFC 4443, what a router has to say: of IPv4 and IPv6.
enum class IcmpReason {
  too_big,           // "fragmentation needed and DF set", "packet too big"
  expired,           // time exceeded in transit
  net_unreachable,   // no route
  host_unreachable,  // the last hop did not answer
  prohibited,        // by an administrator
};

// To a frame of which this is the beginning; `mtu`: of too_big, that of the next hop. Nothing where the RFCs want no answer, or one would
// be wrong (RFC 1812, 4.3.2.7; RFC 4443, 2.4): bpf/egress/mtu_guard.bpf.c says which frames these are.
std::optional<IcmpAnswer> icmp_answer(IcmpReason why, std::span<const u8> frame, u32 mtu = 0);
inline std::optional<IcmpAnswer> answer_too_big(std::span<const u8> frame, u32 mtu) { return icmp_answer(IcmpReason::too_big, frame, mtu); }

// Sends answers by raw sockets of the network namespace that it first sends in, so that the kernel routes them and gives them their source.
class IcmpSender {
 public:
  enum class Outcome { answered, limited, unsent };
  // `device`: that the frame came in by, since a link-local address says nothing without. 0: not known. `now`: CLOCK_MONOTONIC,
  // nanoseconds.
  Outcome send(const IcmpAnswer& answer, u32 device, u64 now);

 private:
  bool within_limit(u64 now) noexcept;
  Fd v4_, v6_;
  u64 tokens_ = burst * second, filled_ = 0;  // a token is a second's worth of nanoseconds, so that none is lost by division
  static constexpr u64 second = 1'000'000'000;
  // As the kernel limits its own (net.ipv4.icmp_msgs_per_sec and icmp_msgs_burst, Documentation/networking/ip-sysctl.rst).
  static constexpr u64 rate = 1000, burst = 50;
};

}  // namespace weir
