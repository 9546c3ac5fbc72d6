// SPDX-License-Identifier: BSD-3-Clause
// flow_hash: a number for the flow that a frame is of, the same in both of its directions.
#pragma once

#include "core/frame/frame.hh"

namespace weir {

// Of the addresses, and of the ports where the frame has them: TCP, UDP, UDP-Lite, DCCP and SCTP right behind the IP header, under up to
// two VLAN tags, whose numbers do not count. Fragments have no ports but for the first, which therefore does not count them either; no more
// does IPv6 with extension headers. What is not IP, or is cut short, goes by its link-layer addresses, and a runt by nothing. `key`:
// whoever does not know it cannot choose frames that all meet in one lane.
[[nodiscard]] u64 flow_hash(const Frame& frame, u64 key) noexcept;

}  // namespace weir
