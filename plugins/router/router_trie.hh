// SPDX-License-Identifier: BSD-3-Clause
// router_trie: the kernel half's table of routes: 16 bits, then 8 at a time, of IPv4 and IPv6, in memory that it reads at any time.
// A first level of 24 bits would take 64 MiB, twice, for IPv4 alone, and save between 0.2 ns a look-up (1024 flows at a time, of 1000 to
// 900,000 routes of 24 bits), 1.5 ns (100,000 of each) and 4 ns (900,000 of each): where a frame takes 150 ns and more that is not worth
// it.
#pragma once

#include <map>
#include <tuple>

#include "plugins/router/router_shared.hh"

namespace weir::routing {

class Trie {
 public:
  Trie() = default;
  // In the half of `nodes` that `half` names, which begins with the two roots.
  Trie(std::span<router_node> nodes, Half half);

  // A route of a length of 1 or more. Readers find it as a whole or not at all; of one that is replaced, the one or the other.
  void set(const Prefix& prefix, u32 group);
  // `above`: the route that holds its addresses now, and that one's length; group 0: none.
  void erase(const Prefix& prefix, u32 above, u32 above_length);
  // Gives back nodes that have become plain, and tries again what found no room.
  void tick();
  // Whether it has every route. Else it must not be asked.
  [[nodiscard]] bool whole() const noexcept { return missing_.empty(); }
  [[nodiscard]] u32 nodes_used() const noexcept { return used_; }
  [[nodiscard]] u32 root(u32 version) const noexcept { return half_.first + (version == 4 ? 0 : ROUTER_ROOT); }
  // As the kernel half does it; for tests.
  [[nodiscard]] u32 find(const Address& address) const noexcept;

 private:
  struct Change {
    const u8* address;
    u32 length;
    u32 word;    // to be written
    bool erase;  // where the route's own word is; else over all that is shorter
  };
  struct Table {
    u32* words;
    u32 bit, width;  // of the address, that choose the word
  };
  struct Less {
    bool operator()(const Prefix& one, const Prefix& two) const noexcept {
      return std::tie(one.address.version, one.address.bytes, one.length) < std::tie(two.address.version, two.address.bytes, two.length);
    }
  };
  [[nodiscard]] Table root_table(u32 version) const noexcept { return {&nodes_[root(version)].word[0], 0, 16}; }
  [[nodiscard]] Table child(u32 word, const Table& of) const noexcept {
    return {&nodes_[word & ROUTER_INDEX].word[0], of.bit + of.width, 8};
  }
  bool update(const Table& table, const Change& change);
  void put(u32& word, const Change& change) noexcept;
  bool grow(u32& word, const Table& table, const Change& change);
  void shrink(const Table& table, const u8* address, u32 length);

  std::span<router_node> nodes_;
  Half half_;
  Numbers numbers_;
  u32 used_ = 0;
  std::vector<Prefix> erased_;           // since the last tick
  std::map<Prefix, u32, Less> missing_;  // with their groups
};

}  // namespace weir::routing
