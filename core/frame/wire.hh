// SPDX-License-Identifier: BSD-3-Clause
// wire: headers as they lie in a frame, for Frame::header(): numbers in network order, fields by the names of the RFCs.
//   const auto* ip = frame.header<Ipv4Header>(sizeof(EthernetHeader));  // null: the frame ends before it
#pragma once

#include <array>

#include "core/base/types.hh"

namespace weir {

struct EthernetHeader {  // IEEE 802.3
  std::array<u8, 6> destination, source;
  Be16 type;  // ETH_P_… of <linux/if_ether.h>: be16(ETH_P_IP)
};

// Behind EthernetHeader or another tag, whose type is ETH_P_8021Q or ETH_P_8021AD.
struct VlanTag {  // IEEE 802.1Q
  Be16 control;
  Be16 type;  // of what is behind it
  [[nodiscard]] u16 vid() const noexcept { return control.host() & 0xfff; }
  [[nodiscard]] u8 pcp() const noexcept { return static_cast<u8>(control.host() >> 13); }
};

struct ArpPacket {  // RFC 826, of Ethernet and IPv4
  Be16 hardware_type, protocol_type;
  u8 hardware_length, protocol_length;
  Be16 operation;
  std::array<u8, 6> sender_hardware_address;
  Be32 sender_protocol_address;
  std::array<u8, 6> target_hardware_address;
  Be32 target_protocol_address;
};

struct Ipv4Header {  // RFC 791, without options
  u8 version_and_ihl;
  u8 type_of_service;
  Be16 total_length;
  Be16 identification;
  Be16 flags_and_fragment_offset;
  u8 time_to_live;
  u8 protocol;
  Be16 header_checksum;
  Be32 source_address, destination_address;
  [[nodiscard]] u8 version() const noexcept { return version_and_ihl >> 4; }
  [[nodiscard]] u32 length() const noexcept { return 4u * (version_and_ihl & 15); }  // bytes, with options
  // What is behind it then begins with no header, or ends early.
  [[nodiscard]] bool is_fragment() const noexcept { return (flags_and_fragment_offset.host() & 0x3fff) != 0; }
};

struct Ipv6Header {  // RFC 8200
  Be32 version_traffic_class_flow_label;
  Be16 payload_length;
  u8 next_header;
  u8 hop_limit;
  std::array<u8, 16> source_address, destination_address;
  [[nodiscard]] u8 version() const noexcept { return static_cast<u8>(version_traffic_class_flow_label.host() >> 28); }
  [[nodiscard]] u8 traffic_class() const noexcept { return static_cast<u8>(version_traffic_class_flow_label.host() >> 20); }
};

struct TcpHeader {  // RFC 9293, without options
  Be16 source_port, destination_port;
  Be32 sequence_number, acknowledgment_number;
  u8 data_offset_and_reserved;
  u8 control_bits;  // FIN 1, SYN 2, RST 4, PSH 8, ACK 16
  Be16 window, checksum, urgent_pointer;
  [[nodiscard]] u32 length() const noexcept { return 4u * (data_offset_and_reserved >> 4); }  // bytes, with options
};

struct UdpHeader {  // RFC 768
  Be16 source_port, destination_port, length, checksum;
};

struct IcmpHeader {  // RFC 792 and RFC 4443
  u8 type, code;
  Be16 checksum;
  Be32 rest;  // by the type
};

static_assert(sizeof(EthernetHeader) == 14 && sizeof(VlanTag) == 4 && sizeof(ArpPacket) == 28 && sizeof(Ipv4Header) == 20);
static_assert(sizeof(Ipv6Header) == 40 && sizeof(TcpHeader) == 20 && sizeof(UdpHeader) == 8 && sizeof(IcmpHeader) == 8);

}  // namespace weir
