// SPDX-License-Identifier: BSD-3-Clause
// flow_hash: read as few bytes as there must be, and mix them well.
#include "core/worker/flow_hash.hh"

#include <linux/if_ether.h>
#include <netinet/in.h>

#include <bit>
#include <cstring>

namespace weir {
namespace {

constexpr u32 ipv4_header = 20, ipv6_header = 40, most_tags = 2;

template <typename T>
T load(const u8* at) noexcept {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

u32 be16_at(const u8* at) noexcept { return static_cast<u32>(at[0]) << 8 | at[1]; }

bool has_ports(u8 protocol) noexcept {
  return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP || protocol == IPPROTO_DCCP ||
         protocol == IPPROTO_UDPLITE;
}

// Both ends count alike.
u64 mix(u64 one, u64 other, u64 key) noexcept {
  const u64 ends = (one + other) ^ std::rotl(one ^ other, 29) ^ key;
  const auto product = static_cast<unsigned __int128>(ends ^ 0x9e3779b97f4a7c15) * 0xd6e8feb86659fd93;
  return static_cast<u64>(product >> 64) ^ static_cast<u64>(product);
}

// One end: its address, and its port, in bits that the address leaves free or nearly so. Mixed on its own: otherwise two ends that had
// changed ports would look the same.
u64 end_of(u64 address, const u8* port) noexcept {
  const u64 mixed = (port == nullptr ? address : address + (u64{load<u16>(port)} << 40)) * 0x9e3779b97f4a7c15;
  return mixed ^ mixed >> 32;
}

u64 folded(const u8* address) noexcept { return load<u64>(address) * 0xff51afd7ed558ccd + load<u64>(address + 8); }

}  // namespace

u64 flow_hash(const Frame& frame, u64 key) noexcept {
  const u8* const bytes = frame.data;
  if (frame.length < ETH_HLEN) return mix(0, 0, key);
  u32 at = 2 * ETH_ALEN;
  u32 type = be16_at(bytes + at);
  for (u32 tags = 0; tags < most_tags && (type == ETH_P_8021Q || type == ETH_P_8021AD) && at + 6 <= frame.length; ++tags)
    type = be16_at(bytes + (at += 4));
  const u8* ip = bytes + at + 2;
  const u32 left = frame.length - at - 2;
  if (type == ETH_P_IP && left >= ipv4_header) {
    const u32 header = (ip[0] & 0xfu) * 4;
    const bool whole = (be16_at(ip + 6) & 0x3fff) == 0;
    const u8* ports = whole && has_ports(ip[9]) && header >= ipv4_header && header + 4 <= left ? ip + header : nullptr;
    return mix(end_of(load<u32>(ip + 12), ports), end_of(load<u32>(ip + 16), ports != nullptr ? ports + 2 : nullptr), key);
  }
  if (type == ETH_P_IPV6 && left >= ipv6_header) {
    const u8* ports = has_ports(ip[6]) && ipv6_header + 4 <= left ? ip + ipv6_header : nullptr;
    return mix(end_of(folded(ip + 8), ports), end_of(folded(ip + 24), ports != nullptr ? ports + 2 : nullptr), key);
  }
  const auto station = [](const u8* mac) { return u64{load<u32>(mac)} << 16 | load<u16>(mac + 4); };
  return mix(end_of(station(bytes), nullptr), end_of(station(bytes + ETH_ALEN), nullptr), key);
}

}  // namespace weir
