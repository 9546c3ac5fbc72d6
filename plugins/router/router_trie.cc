// SPDX-License-Identifier: BSD-3-Clause
// router_trie: write a trie beside its readers. Each word tells the length of its route, so that a shorter one never covers a longer one.
#include "plugins/router/router_trie.hh"

#include <algorithm>

namespace weir::routing {
namespace {

constexpr u32 roots = 2 * ROUTER_ROOT;

u32 word_of(u32 group, u32 length) noexcept { return group == 0 ? 0 : group | (length - 1) << ROUTER_LENGTH; }
u32 length_of(u32 word) noexcept { return (word & ROUTER_INDEX) == 0 ? 0 : (word >> ROUTER_LENGTH & 127) + 1; }
bool is_child(u32 word) noexcept { return (word & ROUTER_CHILD) != 0; }

// `width` bits of the address from `bit` on: 8 or 16, from a byte's beginning.
u32 bits(const u8* address, u32 bit, u32 width) noexcept {
  const u8* at = address + bit / 8;
  return width == 8 ? at[0] : static_cast<u32>(at[0] << 8 | at[1]);
}

}  // namespace

Trie::Trie(std::span<router_node> nodes, Half half) : nodes_(nodes), half_(half), numbers_(half, roots) {
  for (router_node& node : nodes_.subspan(half.first, roots))
    for (u32& word : node.word) store(word, 0);
}

void Trie::set(const Prefix& prefix, u32 group) {
  const u8* address = prefix.address.bytes.data();
  if (update(root_table(prefix.address.version), {address, prefix.length, word_of(group, prefix.length), false})) missing_.erase(prefix);
  else missing_.insert_or_assign(prefix, group);
}

void Trie::erase(const Prefix& prefix, u32 above, u32 above_length) {
  missing_.erase(prefix);
  update(root_table(prefix.address.version), {prefix.address.bytes.data(), prefix.length, word_of(above, above_length), true});
  erased_.push_back(prefix);
}

// False: there is no node left, and nothing has changed.
bool Trie::update(const Table& table, const Change& change) {
  const u32 end = table.bit + table.width;
  u32& word = table.words[bits(change.address, table.bit, table.width)];
  if (change.length > end) {
    if (is_child(word)) return update(child(word, table), change);
    return change.erase || grow(word, table, change);
  }
  std::for_each_n(&word, std::size_t{1} << (end - change.length), [&](u32& each) { put(each, change); });
  return true;
}

void Trie::put(u32& word, const Change& change) noexcept {
  if (is_child(word)) {
    for (u32& each : nodes_[word & ROUTER_INDEX].word) put(each, change);
    return;
  }
  const u32 length = length_of(word);
  if (change.erase ? length == change.length : length <= change.length) store(word, change.word);
}

// The node has all that the word said, and the change, before it is linked.
bool Trie::grow(u32& word, const Table& table, const Change& change) {
  const u32 number = numbers_.take();
  if (number == 0) return false;
  std::ranges::fill(nodes_[number].word, word);
  if (!update(child(number, table), change)) {
    numbers_.put_back(number);
    return false;
  }
  ++used_;
  store(word, ROUTER_CHILD | number);
  return true;
}

// On the way to an address: a node all of whose words say one thing, which its parent can say too.
void Trie::shrink(const Table& table, const u8* address, u32 length) {
  if (length <= table.bit + table.width) return;
  u32& word = table.words[bits(address, table.bit, table.width)];
  if (!is_child(word)) return;
  const Table below = child(word, table);
  shrink(below, address, length);
  const u32 first = below.words[0];
  if (is_child(first) || length_of(first) > below.bit) return;
  if (!std::all_of(below.words, below.words + 256, [&](u32 each) { return each == first; })) return;
  numbers_.give_back(word & ROUTER_INDEX);
  --used_;
  store(word, first);
}

void Trie::tick() {
  numbers_.tick();
  for (const Prefix& prefix : erased_) shrink(root_table(prefix.address.version), prefix.address.bytes.data(), prefix.length);
  erased_.clear();
  const auto again = missing_;
  for (const auto& [prefix, group] : again) {
    set(prefix, group);
    if (missing_.contains(prefix)) return;  // no node is free
  }
}

u32 Trie::find(const Address& address) const noexcept {
  Table table = root_table(address.version);
  while (true) {
    const u32 word = table.words[bits(address.bytes.data(), table.bit, table.width)];
    if (!is_child(word)) return word & ROUTER_INDEX;
    table = child(word, table);
  }
}

}  // namespace weir::routing
