// SPDX-License-Identifier: BSD-3-Clause
// traffic: many frames for a test: of dice, or of a capture file.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "kit/frames.hh"

namespace weir::kit {

// Each with the port that it comes in by.
using Traffic = std::vector<std::pair<u32, Packet>>;

// Of few stations and addresses, so that frames answer each other: with and without VLAN tags, IPv4, IPv6 and neither, TCP, UDP, ICMP; some
// cut short, some with a byte that lies. None is shorter than an Ethernet header, which the kernel runs no program over.
Traffic random_traffic(u32 seed, std::size_t frames, u32 ports);

// What a pcap file of Ethernet holds, from one port to the next in turn.
Result<Traffic> captured_traffic(const std::string& file, u32 ports);

}  // namespace weir::kit
