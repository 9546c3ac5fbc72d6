// SPDX-License-Identifier: BSD-3-Clause
// acl_kernel: sort rules into few hash tables, so that a look-up ends soon.
#include "plugins/acl/acl_kernel.hh"

#include <linux/if_ether.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <unordered_map>

#include "plugins/acl/acl_frame.h"

namespace weir::acl {
namespace {

using Words = std::array<__u64, ACL_WORDS>;

constexpr u32 most_of_key = ACL_MAX_CHAIN - 4;  // entries of one masked key; the rest is for what else comes into its slot
constexpr u32 seeds = 16;

std::array<u8, 16> prefix_bits(u32 length) {
  std::array<u8, 16> bits{};
  for (u32 i = 0; i < bits.size(); ++i)
    bits[i] = static_cast<u8>(i * 8 >= length ? 0 : length - i * 8 >= 8 ? 0xff : 0xff00 >> (length - i * 8));
  return bits;
}

void put_prefix(const Prefix& prefix, u32 word, acl_entry& entry) {
  const std::array<u8, 16> bits = prefix_bits(prefix.length);
  std::memcpy(&entry.mask[word], bits.data(), bits.size());
  std::memcpy(&entry.value[word], prefix.address.bytes.data(), bits.size());
}

void put_kind(acl_entry& entry, u32 at, u64 mask, u64 value) {
  entry.mask[ACL_KIND_WORD] |= mask << at;
  entry.value[ACL_KIND_WORD] |= value << at;
}

u32 length_of(const __u64* words) { return static_cast<u32>(std::popcount(words[0]) + std::popcount(words[1])); }

// How coarse the masks of tables are. Fine ones make many tables, and coarse ones long chains.
struct Grain {
  u32 ipv4, ipv6;  // prefixes are cut down to multiples of these
  bool ports, vlan;
};
constexpr std::array<Grain, 4> grains{{{4, 16, true, true}, {8, 32, true, true}, {16, 32, true, false}, {16, 64, false, false}}};

bool is_exact(u16 more) { return more == 0; }

Words mask_of(const acl_entry& entry, const Grain& grain) {
  Words mask{};
  const u64 kind = entry.mask[ACL_KIND_WORD];
  const bool ipv6 = entry.mask[1] != 0 || entry.mask[3] != 0 || entry.value[ACL_KIND_WORD] >> ACL_TYPE == ETH_P_IPV6;
  const u32 step = ipv6 ? grain.ipv6 : grain.ipv4;
  for (u32 word : {0u, 2u}) {
    const std::array<u8, 16> bits = prefix_bits(length_of(&entry.mask[word]) / step * step);
    std::memcpy(&mask[word], bits.data(), bits.size());
  }
  mask[ACL_KIND_WORD] = kind & (0xffffull << ACL_TYPE | 0xffull << ACL_PROTOCOL | (grain.vlan ? 0xffffull << ACL_VLAN : 0));
  if (grain.ports && is_exact(entry.sport_more)) mask[ACL_PORTS_WORD] |= 0xffffull << 16;
  if (grain.ports && is_exact(entry.dport_more)) mask[ACL_PORTS_WORD] |= 0xffff;
  return mask;
}

Words key_of(const acl_entry& entry) {
  Words key{};
  std::copy(std::begin(entry.value), std::end(entry.value), key.begin());
  key[ACL_PORTS_WORD] = u64{entry.sport} << 16 | entry.dport;
  return key;
}

bool within(const Words& inner, const Words& outer) {
  for (u32 i = 0; i < ACL_WORDS; ++i)
    if ((inner[i] & ~outer[i]) != 0) return false;
  return true;
}

u32 bits_of(const Words& mask) {
  u32 bits = 0;
  for (const u64 word : mask) bits += static_cast<u32>(std::popcount(word));
  return bits;
}

class Builder {
 public:
  explicit Builder(const Grain& grain) : grain_(grain) {}
  bool add(const acl_entry& entry);
  [[nodiscard]] KernelTables lay_out(u32 slots, u32 decided) const;
  [[nodiscard]] std::size_t tables() const noexcept { return tables_.size(); }

 private:
  struct Table {
    Words mask;
    u32 bits = 0;
    std::vector<acl_entry> entries;        // in the order of their rules
    std::unordered_map<u64, u32> of_keys;  // how many entries a masked key has
  };
  static u64 key_in(const Table& table, const Words& key) {
    return u64{acl_hash(key.data(), table.mask.data(), 1)} << 32 | acl_hash(key.data(), table.mask.data(), 0x85ebca6b);
  }
  static bool put(Table& table, const Words& key, const acl_entry& entry) {
    u32& count = table.of_keys[key_in(table, key)];
    if (count >= most_of_key) return false;
    ++count;
    table.entries.push_back(entry);
    return true;
  }
  Table* table_of(const Words& mask);
  bool put_within(const Words& mask, const Words& key, const acl_entry& entry);
  static bool lay_out(const Table& table, u32 room, KernelTables& into);

  Grain grain_;
  std::vector<Table> tables_;  // those of most bits first
};

Builder::Table* Builder::table_of(const Words& mask) {
  const auto at = std::ranges::find(tables_, mask, &Table::mask);
  if (at != tables_.end()) return &*at;
  if (tables_.size() == ACL_MAX_TABLES) return nullptr;
  const u32 bits = bits_of(mask);
  const auto place = std::ranges::find_if(tables_, [&](const Table& table) { return table.bits < bits; });
  return &*tables_.insert(place, Table{mask, bits, {}, {}});
}

// Into a table that asks for less, of those the one that asks for most.
bool Builder::put_within(const Words& mask, const Words& key, const acl_entry& entry) {
  for (Table& table : tables_)
    if (within(table.mask, mask) && put(table, key, entry)) return true;
  return false;
}

bool Builder::add(const acl_entry& entry) {
  const Words key = key_of(entry), coarse = mask_of(entry, grain_), fine = mask_of(entry, {1, 1, true, true});
  if (Table* table = table_of(coarse); table != nullptr && put(*table, key, entry)) return true;
  if (put_within(fine, key, entry)) return true;
  Table* table = table_of(fine);
  return table != nullptr && put(*table, key, entry);
}

// With so many slots, and a seed, that no chain is too long.
bool Builder::lay_out(const Table& table, u32 room, KernelTables& into) {
  const u32 count = static_cast<u32>(table.entries.size());
  acl_table made{};
  std::ranges::copy(table.mask, made.mask);
  made.first = static_cast<u32>(into.slots.size());
  made.rule = table.entries.front().rule & ACL_NUMBER;
  for (u32 slots = std::bit_ceil(2 * count); slots <= room; slots *= 2)
    for (made.seed = 0; made.seed < seeds; ++made.seed) {
      made.slot_mask = slots - 1;
      std::vector<u32> length(slots), place(count);
      u32 longest = 0;
      for (u32 i = 0; i < count; ++i) {
        place[i] = acl_hash(key_of(table.entries[i]).data(), made.mask, made.seed) & made.slot_mask;
        longest = std::max(longest, ++length[place[i]]);
      }
      if (longest > ACL_MAX_CHAIN) continue;
      u32 start = static_cast<u32>(into.entries.size());
      into.entries.resize(start + count);
      std::vector<u32> next(slots);
      for (u32 slot = 0; slot < slots; ++slot) {
        into.slots.push_back(length[slot] == 0 ? 0 : u64{start} << ACL_SLOT_ENTRY | length[slot]);
        next[slot] = start;
        start += length[slot];
      }
      for (u32 i = 0; i < count; ++i) into.entries[next[place[i]]++] = table.entries[i];
      into.tables.push_back(made);
      return true;
    }
  return false;
}

KernelTables Builder::lay_out(u32 slots, u32 decided) const {
  KernelTables made;
  made.decided = decided;
  // What is left is always enough for the smallest layout of the tables to come.
  u64 least = 0;
  for (const Table& table : tables_) least += table.entries.empty() ? 0 : std::bit_ceil(2 * table.entries.size());
  std::vector<const Table*> ordered;
  for (const Table& table : tables_)
    if (!table.entries.empty()) ordered.push_back(&table);
  std::ranges::sort(ordered, {}, [](const Table* table) { return table->entries.front().rule & ACL_NUMBER; });
  for (const Table* table : ordered) {
    const u64 own = std::bit_ceil(2 * table->entries.size());
    least -= own;
    const u64 room = slots > made.slots.size() + least ? slots - made.slots.size() - least : 0;
    if (lay_out(*table, static_cast<u32>(room), made)) continue;
    made.decided = std::min(made.decided, table->entries.front().rule & ACL_NUMBER);
  }
  return made;
}

}  // namespace

std::vector<acl_entry> entries_of(const Rule& rule, u32 number) {
  acl_entry entry{};
  entry.rule = number | (rule.drops ? ACL_DROPS : 0) | (rule.logs ? ACL_LOGS : 0) | (rule.keeps ? ACL_KEEPS : 0);
  if (rule.src) put_prefix(*rule.src, 0, entry);
  if (rule.dst) put_prefix(*rule.dst, 2, entry);
  const Ports sport = rule.sport.value_or(Ports{}), dport = rule.dport.value_or(Ports{});
  entry.sport = sport.first, entry.sport_more = static_cast<u16>(sport.last - sport.first);
  entry.dport = dport.first, entry.dport_more = static_cast<u16>(dport.last - dport.first);
  if (rule.vlan) put_kind(entry, ACL_VLAN, 0xffff, *rule.vlan);
  if (rule.flags_mask != 0) put_kind(entry, ACL_FLAGS, rule.flags_mask, rule.flags);
  if (rule.protocol || rule.flags_mask != 0) put_kind(entry, ACL_PROTOCOL, 0xff, rule.protocol.value_or(IPPROTO_TCP));
  if (rule.has_ports() || rule.flags_mask != 0) put_kind(entry, ACL_SHOWS, ACL_HAS_PORTS, ACL_HAS_PORTS);
  if (rule.fragments) put_kind(entry, ACL_SHOWS, ACL_LATER, ACL_LATER);
  if (rule.asks_for_first()) put_kind(entry, ACL_SHOWS, ACL_OPENS, ACL_OPENS);
  if (rule.may_be(rule.type.value_or(0))) {  // whatever it is
    if (rule.type) put_kind(entry, ACL_TYPE, 0xffff, *rule.type);
    return {entry};
  }
  std::vector<acl_entry> entries;
  for (const u16 type : {ETH_P_IP, ETH_P_IPV6})
    if (rule.may_be(type)) {
      entries.push_back(entry);
      put_kind(entries.back(), ACL_TYPE, 0xffff, type);
    }
  return entries;
}

KernelTables make_kernel_tables(const RuleSet& set, u32 room) {
  KernelTables best;
  bool first = true;
  for (const Grain& grain : grains) {
    Builder builder(grain);
    u32 decided = 0, count = 0;
    for (bool fits = true; fits && decided < set.rules.size(); decided += fits)
      for (const acl_entry& entry : entries_of(set.rules[decided], decided))
        fits = fits && ++count <= ACL_ENTRIES(room) && builder.add(entry);
    KernelTables made = builder.lay_out(ACL_SLOTS(room), decided);
    const bool better = made.decided > best.decided || (made.decided == best.decided && made.tables.size() < best.tables.size());
    if (first || better) best = std::move(made);
    first = false;
  }
  return best;
}

}  // namespace weir::acl
