// SPDX-License-Identifier: BSD-3-Clause
// traffic: dice for each layer of a frame, and a reader of pcap.
#include "kit/traffic.hh"

#include <cstring>

#include "core/kernel/object.hh"

namespace weir::kit {
namespace {

constexpr std::size_t shortest = sizeof(ethhdr);

class Dice {
 public:
  explicit Dice(u32 seed) : engine_(seed) {}
  u32 below(u32 end) { return static_cast<u32>(engine_() % end); }
  bool one_in(u32 number) { return below(number) == 0; }
  Packet frame();

 private:
  Mac station_or_group() { return one_in(8) ? broadcast : station(below(16)); }
  void network(FrameBuilder& made);
  void transport(FrameBuilder& made);
  std::mt19937 engine_;
};

void Dice::transport(FrameBuilder& made) {
  const u16 from = static_cast<u16>(1 + below(8)), to = static_cast<u16>(1 + below(8));
  switch (below(4)) {
    case 0:
      made.tcp(from, to, static_cast<u8>(below(64)));
      break;
    case 1:
      made.udp(from, to);
      break;
    case 2:
      made.icmp(static_cast<u8>(below(16)), 0, from);
      break;
    default:
      made.protocol(static_cast<u8>(below(256)));
  }
}

void Dice::network(FrameBuilder& made) {
  const u32 from = 1 + below(8), to = 1 + below(8);
  const u8 ttl = static_cast<u8>(below(4) == 0 ? below(3) : 64);
  switch (below(4)) {
    case 0:
      made.ipv6(fmt::format("2001:db8::{}", from), fmt::format("2001:db8::{}", to), ttl);
      return transport(made);
    case 1:
      return;
    default:
      made.ipv4(fmt::format("192.0.2.{}", from), fmt::format("192.0.2.{}", to), ttl);
      return transport(made);
  }
}

Packet Dice::frame() {
  constexpr u16 types[] = {ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, 0x88b5, 0x88b6, ETH_P_8021Q};
  FrameBuilder made;
  made.ethernet(one_in(32) ? broadcast : station(below(16)), station_or_group(), types[below(6)]);
  for (u32 tags = one_in(4) ? 1 + below(2) : 0; tags > 0; --tags)
    made.vlan(static_cast<u16>(below(4095)), static_cast<u8>(below(8)), one_in(4) ? ETH_P_8021AD : ETH_P_8021Q);
  network(made);
  made.payload(std::vector<u8>(below(100), static_cast<u8>(below(256))));
  Packet bytes = made.build();
  if (one_in(8)) bytes.resize(shortest + below(static_cast<u32>(bytes.size() - shortest + 1)));
  if (one_in(8)) bytes[below(static_cast<u32>(bytes.size()))] = static_cast<u8>(below(256));
  return bytes;
}

template <typename T>
T read(const std::vector<u8>& from, std::size_t at) {
  T value;
  std::memcpy(&value, from.data() + at, sizeof value);
  return value;
}

}  // namespace

Traffic random_traffic(u32 seed, std::size_t frames, u32 ports) {
  Dice dice(seed);
  Traffic traffic;
  for (std::size_t i = 0; i < frames; ++i) traffic.emplace_back(dice.below(ports), dice.frame());
  return traffic;
}

// https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-04.html: 24 bytes, then a header of 16 for each frame. In this machine's byte
// order.
Result<Traffic> captured_traffic(const std::string& file, u32 ports) {
  const std::vector<u8> bytes = TRY(read_file(file));
  constexpr u32 in_us = 0xa1b2c3d4, in_ns = 0xa1b23c4d, ethernet = 1;
  if (bytes.size() < 24 || (read<u32>(bytes, 0) != in_us && read<u32>(bytes, 0) != in_ns) || (read<u32>(bytes, 20) & 0xffff) != ethernet)
    return fail("{}: read frames: it is no pcap file of Ethernet in this machine's byte order", file);
  Traffic traffic;
  for (std::size_t at = 24; at < bytes.size();) {
    const std::size_t length = bytes.size() - at < 16 ? bytes.size() : read<u32>(bytes, at + 8);
    if (bytes.size() - at - 16 < length) return fail("{}: read frame {}: the file ends in it", file, traffic.size() + 1);
    at += 16;
    traffic.emplace_back(static_cast<u32>(traffic.size() % ports),
                         Packet(bytes.begin() + static_cast<long>(at), bytes.begin() + static_cast<long>(at + length)));
    at += length;
  }
  return traffic;
}

}  // namespace weir::kit
