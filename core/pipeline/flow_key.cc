// SPDX-License-Identifier: BSD-3-Clause
// flow_key: which flow a frame is of, and what an action changes in its frames.
#include <cstring>
#include <random>

#include "bpf/abi/link.h"
#include "core/pipeline/flows.hh"

namespace weir {
namespace {

const u64 hash_seed = std::random_device()() | u64{std::random_device()()} << 32;

// The difference that a change of whole words makes to a checksum over them.
template <std::size_t Bytes>
u32 difference(const u8* from, const u8* to) noexcept {
  u32 sum = 0;
  for (std::size_t at = 0; at < Bytes; at += 2) sum += flow_delta(FLOW_GET16(from + at), FLOW_GET16(to + at));
  return flow_fold(sum);
}

bool is_echo(u8 protocol) noexcept { return protocol == FLOW_ICMP || protocol == FLOW_ICMP6; }

}  // namespace

FlowKey flow_key_of(const Frame& frame) noexcept {
  FlowKey key;
  if (frame.kept == 1) return key;
  flow_parse(frame.data, frame.data + frame.length, frame.length, &key.of);
  if (key.of.version == 0 || (key.of.tcp_flags & (FLOW_TCP_FIN | FLOW_TCP_RST)) != 0) return {};
  key.of.word |= u64{frame.port.value} << FLOW_PORT;
  std::memcpy(key.was_to.data(), frame.data, key.was_to.size());
  return key;
}

std::array<u8, 16> FlowKey::source() const noexcept {
  std::array<u8, 16> address{};
  std::memcpy(address.data(), of.addresses, of.version == 4 ? 4 : 16);
  return address;
}

std::array<u8, 16> FlowKey::destination() const noexcept {
  std::array<u8, 16> address{};
  const auto* bytes = reinterpret_cast<const u8*>(of.addresses);
  if (of.version == 4) std::memcpy(address.data(), bytes + 4, 4);
  else std::memcpy(address.data(), bytes + 16, 16);
  return address;
}

bool FlowKey::same(const FlowKey& other) const noexcept {
  return of.version == other.of.version && of.word == other.of.word &&
         std::memcmp(of.addresses, other.of.addresses, of.version == 4 ? 8 : 32) == 0;
}

u64 FlowKey::hash() const noexcept { return flow_hash(&of, of.word, hash_seed); }

FlowAction& FlowAction::addresses(const std::array<u8, ETH_ALEN>& to, const std::array<u8, ETH_ALEN>& from) noexcept {
  to_ = to;
  from_ = from;
  return change(FLOW_ADDRESSES);
}

FlowAction& FlowAction::dscp(u8 value) noexcept {
  dscp_ = value & 63;
  return change(FLOW_DSCP);
}

FlowAction& FlowAction::vlan(u16 vid) noexcept {
  tci_ = vid & 0xfff;
  return change(FLOW_VLAN_SET);
}

FlowAction& FlowAction::push(u16 vid, u8 pcp) noexcept {
  tci_ = static_cast<u16>((vid & 0xfff) | (pcp & 7) << 13);
  return change(FLOW_VLAN_PUSH);
}

FlowAction& FlowAction::source(const Address& address, u16 port) noexcept {
  source_.emplace(address, port);
  return change(FLOW_NAT);
}

FlowAction& FlowAction::destination(const Address& address, u16 port) noexcept {
  destination_.emplace(address, port);
  return change(FLOW_NAT);
}

FlowAction& FlowAction::longest(u32 bytes) noexcept {
  longest_ = static_cast<u16>(std::min<u32>(bytes, 0xffff));
  return *this;
}

std::optional<flow_rewrite> FlowAction::rewrite(const FlowKey& key) const noexcept {
  const u8 protocol = key.protocol();
  const u16 tags = changes_ & (FLOW_VLAN_SET | FLOW_VLAN_PUSH | FLOW_VLAN_POP);
  if (!key || (tags & (tags - 1)) != 0 || (tags != 0 && key.tagged() == (tags == FLOW_VLAN_PUSH))) return {};
  if ((fate_ == FLOW_REDIRECT && argument_ >= WEIR_MAX_PORTS) || (fate_ == FLOW_FLOOD && argument_ >= WEIR_MAX_GROUPS)) return {};
  if ((changes_ & FLOW_NAT) != 0 && !flow_has_ports(protocol) && !is_echo(protocol)) return {};
  flow_rewrite made;
  std::memset(&made, 0, sizeof made);  // also what no member names: it is compared as bytes
  std::memcpy(made.was_to, key.was_to.data(), ETH_ALEN);
  std::memcpy(made.to, to_.data(), ETH_ALEN);
  std::memcpy(made.from, from_.data(), ETH_ALEN);
  made.changes = changes_;
  made.longest = longest_;
  made.tci = FLOW_NET16(tci_);
  made.dscp = dscp_;
  if ((changes_ & FLOW_NAT) == 0) return made;

  const bool ipv4 = key.of.version == 4;
  const Address old_source = key.source(), old_destination = key.destination();
  const Address source = source_ ? source_->first : old_source, destination = destination_ ? destination_->first : old_destination;
  const u16 old_ports[] = {static_cast<u16>(key.of.word), static_cast<u16>(key.of.word >> 16)};
  const u16 ports[] = {source_ ? FLOW_NET16(source_->second) : old_ports[0],
                       destination_ ? FLOW_NET16(destination_->second) : old_ports[1]};
  made.source_port = ports[0];
  made.destination_port = ports[1];
  u32 addresses = 0;
  if (ipv4) {
    std::memcpy(&made.ipv4.source, source.data(), 4);
    std::memcpy(&made.ipv4.destination, destination.data(), 4);
    addresses = flow_fold(difference<4>(old_source.data(), source.data()) + difference<4>(old_destination.data(), destination.data()));
    made.ipv4.l3_delta = static_cast<u16>(addresses);
  } else {
    std::memcpy(&made.ipv6[0], source.data(), 16);
    std::memcpy(&made.ipv6[2], destination.data(), 16);
    addresses = flow_fold(difference<16>(old_source.data(), source.data()) + difference<16>(old_destination.data(), destination.data()));
  }
  // The checksum of ICMP has no pseudo-header; that of ICMPv6 has one (RFC 4443, 2.3).
  u32 delta = protocol == FLOW_ICMP ? 0 : addresses;
  delta += flow_delta(old_ports[0], ports[0]);
  if (flow_has_ports(protocol)) delta += flow_delta(old_ports[1], ports[1]);
  made.l4_delta = static_cast<u16>(flow_fold(delta));
  return made;
}

}  // namespace weir
