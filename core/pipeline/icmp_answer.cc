// SPDX-License-Identifier: BSD-3-Clause
// icmp_answer: who is told, what, and how often.
#include "core/pipeline/icmp_answer.hh"

#include <linux/icmp.h>
#include <linux/icmpv6.h>
#include <linux/if_ether.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

namespace weir {
namespace {

using Bytes = std::span<const u8>;
constexpr std::size_t ipv4_header = 20, ipv6_header = 40;  // the least

u32 word(Bytes bytes, std::size_t at) noexcept { return static_cast<u32>(bytes[at] << 8 | bytes[at + 1]); }

// RFC 1071, of what is filled up with a zero to whole words. 0: a header that has its checksum in it is right.
u16 checksum(Bytes bytes) noexcept {
  u32 sum = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i) sum += i % 2 == 0 ? static_cast<u32>(bytes[i] << 8) : bytes[i];
  while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<u16>(~sum);
}

void put(std::vector<u8>& into, std::size_t at, u32 value, std::size_t size) noexcept {
  for (std::size_t i = 0; i < size; ++i) into[at + i] = static_cast<u8>(value >> 8 * (size - 1 - i));
}

struct TypeAndCode {
  u8 type, code;
};

// The header, of 8 bytes with the MTU in the last four, and as much of the packet as `room` leaves.
std::vector<u8> message_of(TypeAndCode what, u32 mtu, Bytes packet, std::size_t room) {
  const Bytes quoted = packet.first(std::min(packet.size(), room));
  std::vector<u8> message(8 + quoted.size());
  message[0] = what.type, message[1] = what.code;
  put(message, 4, mtu, 4);
  std::ranges::copy(quoted, message.begin() + 8);
  return message;
}

// Where the IP header of a frame is, behind up to two tags; 0: there is none.
std::size_t network_header(Bytes frame, u32 type) noexcept {
  std::size_t at = ETH_HLEN;
  for (int tags = 0; frame.size() >= at; ++tags, at += 4) {
    const u32 found = word(frame, at - 2);
    if (found == type) return at;
    if (tags == 2 || (found != ETH_P_8021Q && found != ETH_P_8021AD)) return 0;
  }
  return 0;
}

// RFC 1812, 4.2.2.11 and 5.3.7: of this network, of loopback, of a group, reserved, everybody.
bool is_host4(Bytes address) noexcept { return address[0] != 0 && address[0] != 127 && address[0] < 224; }

bool is_icmp_error4(u8 type) noexcept {
  for (const u8 error : {ICMP_DEST_UNREACH, ICMP_SOURCE_QUENCH, ICMP_REDIRECT, ICMP_TIME_EXCEEDED, ICMP_PARAMETERPROB})
    if (type == error) return true;
  return type > NR_ICMP_TYPES;  // what nobody knows may be one (net/ipv4/icmp.c, __icmp_send)
}

TypeAndCode as_icmp(IcmpReason why) noexcept {
  switch (why) {
    case IcmpReason::too_big:
      return {ICMP_DEST_UNREACH, ICMP_FRAG_NEEDED};
    case IcmpReason::expired:
      return {ICMP_TIME_EXCEEDED, ICMP_EXC_TTL};
    case IcmpReason::net_unreachable:
      return {ICMP_DEST_UNREACH, ICMP_NET_UNREACH};
    case IcmpReason::host_unreachable:
      return {ICMP_DEST_UNREACH, ICMP_HOST_UNREACH};
    case IcmpReason::prohibited:
      return {ICMP_DEST_UNREACH, ICMP_PKT_FILTERED};
  }
  return {};
}

TypeAndCode as_icmpv6(IcmpReason why) noexcept {
  switch (why) {
    case IcmpReason::too_big:
      return {ICMPV6_PKT_TOOBIG, 0};
    case IcmpReason::expired:
      return {ICMPV6_TIME_EXCEED, ICMPV6_EXC_HOPLIMIT};
    case IcmpReason::net_unreachable:
      return {ICMPV6_DEST_UNREACH, ICMPV6_NOROUTE};
    case IcmpReason::host_unreachable:
      return {ICMPV6_DEST_UNREACH, ICMPV6_ADDR_UNREACH};
    case IcmpReason::prohibited:
      return {ICMPV6_DEST_UNREACH, ICMPV6_ADM_PROHIBITED};
  }
  return {};
}

std::optional<IcmpAnswer> answer4(IcmpReason why, Bytes packet, u32 mtu) {
  constexpr u32 dont_fragment = 0x4000, offset = 0x1fff;
  if (packet.size() < ipv4_header) return std::nullopt;
  const std::size_t header = (packet[0] & 0xfu) * 4;
  const u32 length = word(packet, 2);
  if (packet[0] >> 4 != 4 || header < ipv4_header || packet.size() < header + 8 || length < header) return std::nullopt;
  if (checksum(packet.first(header)) != 0) return std::nullopt;  // RFC 1812, 5.2.2: not even a packet
  if ((word(packet, 6) & offset) != 0) return std::nullopt;
  if (why == IcmpReason::too_big && (length <= mtu || (word(packet, 6) & dont_fragment) == 0)) return std::nullopt;
  if (!is_host4(packet.subspan(12)) || !is_host4(packet.subspan(16))) return std::nullopt;
  if (packet[9] == IPPROTO_ICMP && is_icmp_error4(packet[header])) return std::nullopt;
  // RFC 1812, 4.3.2.3: as much as goes into 576 bytes.
  IcmpAnswer answer{4, {}, message_of(as_icmp(why), mtu, packet.first(std::min<std::size_t>(packet.size(), length)), 576 - 20 - 8)};
  std::ranges::copy(packet.subspan(12, 4), answer.to.begin());
  put(answer.message, 2, checksum(answer.message), 2);
  return answer;
}

bool is_host6(Bytes address) noexcept {
  const bool nearly_zero = std::ranges::all_of(address.first(15), [](u8 byte) { return byte == 0; });
  return address[0] != 0xff && !(nearly_zero && address[15] <= 1);  // nobody, and loopback
}

// Whether the packet may be answered by what its extension headers say: what cannot be told may be an ICMP error.
bool answerable6(Bytes packet) noexcept {
  u8 next = packet[6];
  for (std::size_t at = ipv6_header, headers = 0; headers < 8; ++headers) {
    if (next == IPPROTO_NONE) return true;
    if (packet.size() < at + 8) return false;
    switch (next) {
      case IPPROTO_HOPOPTS:
      case IPPROTO_ROUTING:
      case IPPROTO_DSTOPTS:
        next = packet[at];
        at += (packet[at + 1] + 1u) * 8;
        break;
      case IPPROTO_FRAGMENT:
        if ((word(packet, at + 2) & 0xfff8) != 0) return false;
        next = packet[at];
        at += 8;
        break;
      case IPPROTO_ICMPV6:
        return packet[at] >= 128 && packet[at] != 137;  // RFC 4443, 2.4 (e.1) and (e.2): no error, no redirect
      default:
        return true;
    }
  }
  return false;
}

std::optional<IcmpAnswer> answer6(IcmpReason why, Bytes packet, u32 mtu) {
  if (packet.size() < ipv6_header + 8 || packet[0] >> 4 != 6) return std::nullopt;
  const std::size_t length = ipv6_header + word(packet, 4);
  if (why == IcmpReason::too_big && (length <= mtu || mtu < 1280)) return std::nullopt;
  // To a multicast destination RFC 4443, 2.4 (e.3) would allow this one error. Its sender would hear as many as there are paths.
  if (!is_host6(packet.subspan(8, 16)) || !is_host6(packet.subspan(24, 16)) || !answerable6(packet)) return std::nullopt;
  // RFC 4443, 3.2: as much as the least MTU of IPv6 leaves.
  IcmpAnswer answer{6, {}, message_of(as_icmpv6(why), mtu, packet.first(std::min(packet.size(), length)), 1280 - 40 - 8)};
  std::ranges::copy(packet.subspan(8, 16), answer.to.begin());
  return answer;
}

// It only sends: what else comes in by ICMP is not kept for it.
Fd open_socket(u32 version) {
  Fd made(
      ::socket(version == 4 ? AF_INET : AF_INET6, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, version == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6));
  if (!made) return made;
  if (version == 4) {
    const icmp_filter none{~0u};
    const int precedence = 0xc0;  // RFC 1812, 4.3.2.5: of internetwork control
    ::setsockopt(made.get(), SOL_RAW, ICMP_FILTER, &none, sizeof none);
    ::setsockopt(made.get(), IPPROTO_IP, IP_TOS, &precedence, sizeof precedence);
  } else {
    icmp6_filter none{};
    std::ranges::fill(none.data, ~0u);
    ::setsockopt(made.get(), IPPROTO_ICMPV6, ICMPV6_FILTER, &none, sizeof none);
  }
  return made;
}

}  // namespace

std::optional<IcmpAnswer> icmp_answer(IcmpReason why, Bytes frame, u32 mtu) {
  if (frame.size() < ETH_HLEN || (frame[0] & 1) != 0) return std::nullopt;  // RFC 1122, 3.2.2: nor to a link-layer broadcast
  if (const std::size_t at = network_header(frame, ETH_P_IP); at != 0) return answer4(why, frame.subspan(at), mtu);
  if (const std::size_t at = network_header(frame, ETH_P_IPV6); at != 0) return answer6(why, frame.subspan(at), mtu);
  return std::nullopt;
}

bool IcmpSender::within_limit(u64 now) noexcept {
  const u64 passed = std::min(now - std::min(now, filled_), burst * second / rate);
  tokens_ = std::min(tokens_ + passed * rate, burst * second);
  filled_ = std::max(now, filled_);
  if (tokens_ < second) return false;
  tokens_ -= second;
  return true;
}

IcmpSender::Outcome IcmpSender::send(const IcmpAnswer& answer, u32 device, u64 now) {
  if (!within_limit(now)) return Outcome::limited;
  Fd& socket = answer.version == 4 ? v4_ : v6_;
  if (!socket) socket = open_socket(answer.version);
  sockaddr_in to4{.sin_family = AF_INET, .sin_port = 0, .sin_addr = {}, .sin_zero = {}};
  sockaddr_in6 to6{.sin6_family = AF_INET6, .sin6_port = 0, .sin6_flowinfo = 0, .sin6_addr = {}, .sin6_scope_id = 0};
  std::memcpy(&to4.sin_addr, answer.to.data(), sizeof to4.sin_addr);
  std::memcpy(&to6.sin6_addr, answer.to.data(), sizeof to6.sin6_addr);
  if (answer.to[0] == 0xfe && (answer.to[1] & 0xc0) == 0x80) to6.sin6_scope_id = device;  // fe80::/10, link-local
  const bool v4 = answer.version == 4;
  const ssize_t sent =
      ::sendto(socket.get(), answer.message.data(), answer.message.size(), 0,
               v4 ? reinterpret_cast<const sockaddr*>(&to4) : reinterpret_cast<const sockaddr*>(&to6), v4 ? sizeof to4 : sizeof to6);
  return sent < 0 ? Outcome::unsent : Outcome::answered;
}

}  // namespace weir
