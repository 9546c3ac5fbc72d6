// SPDX-License-Identifier: BSD-3-Clause
// frames: build the bytes of a frame layer by layer, as a test names them; lengths and checksums are filled in.
//   Packet frame = FrameBuilder().ethernet(station(1), station(2)).ipv4("10.0.0.1", "10.0.0.2").udp(1, 2).payload("x").pad(60);
#pragma once

#include <linux/if_ether.h>
#ifndef _LINUX_IN_H  // where a plugin's header has the kernel's <linux/in.h>: glibc's says the same once more
#include <arpa/inet.h>
#include <netinet/in.h>
#endif

#include <array>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/result.hh"
#include "core/base/types.hh"
#include "core/config/node.hh"

namespace weir::kit {

using Packet = std::vector<u8>;

inline Mac mac(std::string_view text) {
  unsigned part[6];
  if (std::sscanf(std::string(text).c_str(), "%2x:%2x:%2x:%2x:%2x:%2x", &part[0], &part[1], &part[2], &part[3], &part[4], &part[5]) != 6)
    broken("a test names a MAC address that is none");
  Mac made{};
  for (std::size_t i = 0; i < made.size(); ++i) made[i] = static_cast<u8>(part[i]);
  return made;
}

// The station of a number: 02:00 and the number.
inline Mac station(u32 number) {
  return {2, 0, static_cast<u8>(number >> 24), static_cast<u8>(number >> 16), static_cast<u8>(number >> 8), static_cast<u8>(number)};
}

constexpr Mac broadcast = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

// RFC 1071. `sum` carries what was summed before, as after another even number of bytes.
inline u32 internet_sum(std::span<const u8> bytes, u32 sum = 0) {
  for (std::size_t i = 0; i < bytes.size(); ++i) sum += i % 2 == 0 ? u32{bytes[i]} << 8 : u32{bytes[i]};
  return sum;
}
inline u16 internet_checksum(u32 sum) {
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<u16>(~sum);
}

// Of "192.0.2.1" 4 bytes, of "2001:db8::1" 16; for version 4 or 6.
std::vector<u8> address_bytes(u8 version, const std::string& text);

class FrameBuilder {
 public:
  FrameBuilder& ethernet(const Mac& source, const Mac& destination, u16 type = 0x88b5) {
    append(destination), append(source);
    type_at_ = bytes_.size();
    return number16(type);
  }
  // Behind ethernet() or another tag; `tpid` goes in front of the EtherType there is.
  FrameBuilder& vlan(u16 vid, u8 priority = 0, u16 tpid = ETH_P_8021Q) {
    const u16 inner = get16(type_at_);
    put16(type_at_, tpid);
    number16(static_cast<u16>(priority << 13 | vid));
    type_at_ = bytes_.size();
    return number16(inner);
  }
  FrameBuilder& ipv4(const std::string& source, const std::string& destination, u8 ttl = 64) {
    put16(type_at_, ETH_P_IP);
    ip_at_ = bytes_.size(), version_ = 4;
    append(std::array<u8, 12>{0x45, 0, 0, 0, 0, 0, 0x40, 0, ttl, 255, 0, 0});
    append(address_bytes(4, source)), append(address_bytes(4, destination));
    return *this;
  }
  FrameBuilder& ipv6(const std::string& source, const std::string& destination, u8 hop_limit = 64) {
    put16(type_at_, ETH_P_IPV6);
    ip_at_ = bytes_.size(), version_ = 6;
    append(std::array<u8, 8>{0x60, 0, 0, 0, 0, 0, 59, hop_limit});
    append(address_bytes(6, source)), append(address_bytes(6, destination));
    return *this;
  }
  // DSCP 6 bits, ECN 2: of the IP header.
  FrameBuilder& traffic_class(u8 value) {
    if (version_ == 4) bytes_[ip_at_ + 1] = value;
    else put16(ip_at_, static_cast<u16>(6u << 12 | value << 4));
    return *this;
  }
  // Of what is behind the IP header, where payload() brings it.
  FrameBuilder& protocol(u8 value) {
    bytes_[ip_at_ + (version_ == 4 ? 9 : 6)] = value;
    return *this;
  }
  FrameBuilder& udp(u16 source, u16 destination) {
    open_l4(of_udp, 6);
    return number16(source).number16(destination).number16(0).number16(0);
  }
  FrameBuilder& tcp(u16 source, u16 destination, u8 flags = 0x10, u32 sequence = 0, u32 acknowledged = 0) {
    open_l4(of_tcp, 16);
    number16(source).number16(destination).number32(sequence).number32(acknowledged);
    append(std::array<u8, 2>{0x50, flags});
    return number16(0xffff).number16(0).number16(0);
  }
  FrameBuilder& icmp(u8 type, u8 code, u16 id = 0, u16 sequence = 0) {
    open_l4(version_ == 6 ? of_icmpv6 : of_icmp, 2);
    append(std::array<u8, 4>{type, code, 0, 0});
    return number16(id).number16(sequence);
  }
  FrameBuilder& payload(std::span<const u8> bytes) {
    append(bytes);
    return *this;
  }
  FrameBuilder& payload(std::string_view text) { return payload({reinterpret_cast<const u8*>(text.data()), text.size()}); }

  [[nodiscard]] Packet build() const {
    Packet made = bytes_;
    const auto put = [&](std::size_t at, u16 value) { made[at] = static_cast<u8>(value >> 8), made[at + 1] = static_cast<u8>(value); };
    if (version_ == 4) {
      put(ip_at_ + 2, static_cast<u16>(made.size() - ip_at_));
      put(ip_at_ + 10, internet_checksum(internet_sum(std::span(made).subspan(ip_at_, 20))));
    } else if (version_ == 6) {
      put(ip_at_ + 4, static_cast<u16>(made.size() - ip_at_ - 40));
    }
    if (l4_at_ == 0) return made;
    const std::span<const u8> l4 = std::span(made).subspan(l4_at_);
    if (protocol_ == of_udp) put(l4_at_ + 4, static_cast<u16>(l4.size()));
    u32 sum = internet_sum(l4);
    if (protocol_ != of_icmp) {  // the others cover the addresses, the protocol and the length
      const std::span<const u8> addresses = std::span(made).subspan(ip_at_ + (version_ == 4 ? 12 : 8), version_ == 4 ? 8 : 32);
      sum = internet_sum(addresses, sum + protocol_ + static_cast<u32>(l4.size()));
    }
    const u16 checksum = internet_checksum(sum);
    put(l4_at_ + checksum_at_, protocol_ == of_udp && checksum == 0 ? 0xffff : checksum);
    return made;
  }
  // build(), and zeroes up to `size` bytes, as a device adds them: behind what the lengths speak of.
  [[nodiscard]] Packet pad(std::size_t size) const {
    Packet made = build();
    if (made.size() < size) made.resize(size);
    return made;
  }

 private:
  template <typename Bytes>
  void append(const Bytes& bytes) {
    bytes_.insert(bytes_.end(), std::begin(bytes), std::end(bytes));
  }
  FrameBuilder& number16(u16 value) {
    append(std::array<u8, 2>{static_cast<u8>(value >> 8), static_cast<u8>(value)});
    return *this;
  }
  FrameBuilder& number32(u32 value) { return number16(static_cast<u16>(value >> 16)).number16(static_cast<u16>(value)); }
  void open_l4(u8 protocol, std::size_t checksum_at) {
    if (version_ == 0) broken("a test builds a layer 4 header without an IP header");
    bytes_[ip_at_ + (version_ == 4 ? 9 : 6)] = protocol_ = protocol;
    l4_at_ = bytes_.size(), checksum_at_ = checksum_at;
  }
  [[nodiscard]] u16 get16(std::size_t at) const { return static_cast<u16>(bytes_[at] << 8 | bytes_[at + 1]); }
  void put16(std::size_t at, u16 value) { bytes_[at] = static_cast<u8>(value >> 8), bytes_[at + 1] = static_cast<u8>(value); }

  static constexpr u8 of_icmp = 1, of_tcp = 6, of_udp = 17, of_icmpv6 = 58;  // protocols
  Packet bytes_;
  std::size_t type_at_ = 0, ip_at_ = 0, l4_at_ = 0, checksum_at_ = 0;
  u8 version_ = 0, protocol_ = 0;
};

// The dice of a test: WEIR_TEST_SEED repeats a run. Print the seed with SCOPED_TRACE or RecordProperty.
inline u32 test_seed() {
  const char* given = std::getenv("WEIR_TEST_SEED");
  return given != nullptr ? static_cast<u32>(std::strtoul(given, nullptr, 0)) : std::random_device()();
}

}  // namespace weir::kit
