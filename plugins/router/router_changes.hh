// SPDX-License-Identifier: BSD-3-Clause
// router_changes: what has changed since flows were last taken back, and which flows that concerns.
#pragma once

#include <set>
#include <unordered_set>

#include "core/pipeline/flows.hh"
#include "plugins/router/router_shared.hh"

namespace weir::routing {

class Changes {
 public:
  void note_all() { all_ = true; }
  void note_hop(u32 number) { hops_.insert(number); }
  // The host's own addresses: a packet from there is not forwarded.
  void note_own(const Address& address) { own_.insert(key_of(address, bits_of(address))); }
  void note_route(const Prefix& prefix) {
    if (prefixes_.size() >= most) return note_all();
    if (prefixes_.insert(key_of(prefix.address, prefix.length)).second) lengths_.emplace(prefix.address.version, prefix.length);
  }
  [[nodiscard]] bool any() const noexcept { return all_ || !hops_.empty() || !prefixes_.empty() || !own_.empty(); }
  // Whether a flow by this hop might go another way now.
  [[nodiscard]] bool concern(const FlowKey& flow, u64 hop) const {
    if (all_ || hops_.contains(static_cast<u32>(hop))) return true;
    const Address to{flow.of.version, flow.destination()}, from{flow.of.version, flow.source()};
    if (!own_.empty() && own_.contains(key_of(from, bits_of(from)))) return true;
    return std::ranges::any_of(
        lengths_, [&](const auto& length) { return length.first == to.version && prefixes_.contains(key_of(to, length.second)); });
  }

 private:
  static constexpr std::size_t most = 1 << 16;
  struct Key {
    router_address network;
    u32 version, length;
    friend bool operator==(const Key& one, const Key& two) noexcept {
      return one.network.high == two.network.high && one.network.low == two.network.low && one.version == two.version &&
             one.length == two.length;
    }
  };
  struct Hash {
    std::size_t operator()(const Key& key) const noexcept { return router_hash_address(key.network, u64{key.version} << 8 | key.length); }
  };
  static u32 bits_of(const Address& address) noexcept { return address.version == 4 ? 32 : 128; }
  static Key key_of(Address address, u32 length) noexcept {
    for (u32 at = length / 8; at < bits_of(address) / 8; ++at)
      address.bytes[at] &= at == length / 8 ? static_cast<u8>(0xff00u >> length % 8) : u8{0};
    return {shared(address), address.version, length};
  }
  bool all_ = false;
  std::unordered_set<u32> hops_;
  std::unordered_set<Key, Hash> prefixes_, own_;
  std::set<std::pair<u32, u32>> lengths_;  // version and length of those
};

}  // namespace weir::routing
