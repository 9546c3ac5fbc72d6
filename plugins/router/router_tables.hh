// SPDX-License-Identifier: BSD-3-Clause
// router_tables: groups and next hops, in memory that both halves read at any time. One writer, the control thread.
#pragma once

#include <map>
#include <optional>

#include "core/pipeline/stage.hh"
#include "plugins/router/router_changes.hh"
#include "plugins/router/router_trie.hh"

namespace weir::routing {

// A next hop by what it is: an address behind a port; without an address, the link itself; without a port, whatever the host does.
struct HopKey {
  static constexpr u32 no_port = ~0u;
  u32 port = no_port;
  Address address;  // version 0: none
  friend bool operator==(const HopKey&, const HopKey&) = default;
  friend bool operator<(const HopKey& one, const HopKey& two) noexcept {
    return std::tie(one.port, one.address.version, one.address.bytes) < std::tie(two.port, two.address.version, two.address.bytes);
  }
};

// What a route does with a packet.
struct GroupKey {
  router_kind kind = ROUTER_KIND_NONE;
  u32 mtu = 0;                                // 0: that of the port
  std::vector<std::pair<HopKey, u32>> paths;  // of kinds ONE and MANY, with their weights; in order
  friend bool operator<(const GroupKey& one, const GroupKey& two) noexcept {
    return std::tie(one.kind, one.mtu, one.paths) < std::tie(two.kind, two.mtu, two.paths);
  }
};

class Tables {
 public:
  struct Sizes {
    u32 nodes, hops;  // of the kernel half's trie; next hops and neighbours
    u64 seed;         // of the flows' hash, and where neighbours are
    bool by_ports;    // the flows' hash takes ports in
  };
  // What an earlier run left goes on until go_live().
  static Result<std::unique_ptr<Tables>> bind(StageMemory& memory, const Sizes& sizes);
  Tables(const Tables&) = delete;
  // From here on the kernel half works by these.
  void go_live();

  // The number of a group, which is held until it is let go of. Without room for it: that of the host, which can do everything.
  u32 hold(const GroupKey& key);
  void release(u32 group);

  // A neighbour whose address is known: `mac`; or, with none, is not, or was not found.
  void set_neighbour(const HopKey& key, router_state state, u64 mac);
  void erase_neighbour(const HopKey& key);
  // Whether anything leads to the address: as a gateway or as a known neighbour.
  [[nodiscard]] bool has_hop(const HopKey& key) const { return hops_.contains(key); }
  [[nodiscard]] u64 frames_of(const HopKey& key) const;  // forwarded to it, over both halves
  // Of all gateways, and of neighbours on the links of each port together.
  [[nodiscard]] std::vector<std::pair<HopKey, router_count>> counts() const;
  // Gateways that a group came to hold since it was last asked.
  [[nodiscard]] std::vector<HopKey> new_gateways() { return std::exchange(new_gateways_, {}); }

  void set_port(u32 port, u64 mac, u32 mtu);
  void set_own(const Address& address, bool own);
  void set_fallback(u32 version, u32 group) noexcept { store(config_->fallback[version == 4 ? 0 : 1], group); }
  // After changes of the trie.
  void note_whole() noexcept;
  // Whether there is a route that found no room in user space, where all routes must be: then the host routes everything.
  void set_overflow(bool overflow) noexcept {
    if (overflow != overflow_) changes_.note_all();
    store(overflow_, overflow), note_whole();
  }
  [[nodiscard]] bool overflows() const noexcept { return load(overflow_); }
  void tick();
  [[nodiscard]] Trie& trie() noexcept { return trie_; }
  [[nodiscard]] const Trie& trie() const noexcept { return trie_; }
  [[nodiscard]] std::size_t neighbours() const noexcept { return neighbours_; }
  [[nodiscard]] u64 refused() const noexcept { return refused_; }  // for want of room
  // What offloaded flows have counted, by hop.
  using FlowCounts = std::unordered_map<u32, router_count>;
  void set_flow_counts(FlowCounts counts) { flow_counts_ = std::move(counts); }
  // Since flows were last taken back.
  [[nodiscard]] Changes& changes() noexcept { return changes_; }

  // For workers, beside all of these.
  [[nodiscard]] router_config& config() const noexcept { return *config_; }
  [[nodiscard]] u64 group(u64 number) const noexcept { return load(groups_[number % groups_.size()]); }
  [[nodiscard]] u32 member(u32 row, u32 flow) const noexcept { return load(members_[row % members_.size()].hop[router_place(flow)]); }
  [[nodiscard]] u64 hop(u32 number) const noexcept { return load(hop_table_[number % hop_table_.size()].word); }
  [[nodiscard]] router_address hop_address(u32 number) const noexcept { return hop_table_[number % hop_table_.size()].address; }
  [[nodiscard]] u32 find_neighbour(const router_address& address, u32 port) const noexcept;  // hop, 0: none
  void count(u32 hop, u32 bytes) const noexcept;

 private:
  struct Hop {
    u32 number = 0;
    u32 groups = 0;  // that hold it
    bool neighbour = false;
    router_count before{};  // what the number had counted when it was given out
  };
  struct Group {
    u32 number = 0, held = 0, row = 0;
    std::vector<HopKey> paths;
  };
  Tables() = default;
  Hop* take_hop(const HopKey& key);
  void let_go(const HopKey& key);
  void write_hop(const Hop& hop, const HopKey& key, router_state state, u64 mac);
  [[nodiscard]] bool is_ours(u32 hop) const noexcept { return hop >= hop_half_.first && hop < hop_half_.first + hop_half_.size; }
  [[nodiscard]] bool is_linked(u32 bucket, u32 slot) const noexcept;
  template <typename Keep>
  void keep_neighbours(Keep keep) noexcept;
  bool link(const HopKey& key, u32 number) noexcept;
  void unlink(const HopKey& key, u32 number) noexcept;
  [[nodiscard]] std::array<router_bucket*, 2> buckets(u64 hash) const noexcept;
  [[nodiscard]] router_count count_of(u32 number) const noexcept;
  std::optional<u64> make_word(const GroupKey& key, Group& group);
  void drop_paths(const Group& group);

  router_config* config_ = nullptr;
  std::span<__u64> groups_;
  std::span<router_members> members_;
  std::span<router_hop> hop_table_;
  std::span<router_bucket> buckets_;
  std::span<router_count> counts_;  // rows: of each CPU in the kernel, then of each in user space
  u32 rows_ = 0;
  Half hop_half_;
  u64 new_roots_ = 0;
  Trie trie_;
  Numbers group_numbers_, member_numbers_, hop_numbers_;
  std::map<HopKey, Hop> hops_;
  std::map<GroupKey, Group> known_;
  std::map<u32, const GroupKey*> by_number_;
  std::vector<HopKey> new_gateways_;
  std::array<u32, 512> own_{};  // addresses for each bit of config.own
  u32 host_ = 0;                // the group of the host
  Changes changes_;
  FlowCounts flow_counts_;
  std::size_t neighbours_ = 0;
  u64 refused_ = 0;
  bool live_ = false;
  mutable bool overflow_ = false;
};

}  // namespace weir::routing
