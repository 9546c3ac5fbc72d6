// SPDX-License-Identifier: BSD-3-Clause
// router_tables: make groups and hops before they are linked, change them by single words, and let them rest before they are used anew.
#include "plugins/router/router_tables.hh"

#include <sched.h>

#include <algorithm>
#include <numeric>

#include "core/kernel/object.hh"

namespace weir::routing {
namespace {

constexpr u64 magic = 0x77656972'00000001;  // changed with the meaning of any table

router_address address_of(const HopKey& key) noexcept { return key.address.version == 0 ? router_address{} : shared(key.address); }

// How many of a group's places each path has: by weight, at least one each, all places in all.
std::vector<u32> shares(const std::vector<std::pair<HopKey, u32>>& paths) {
  const u64 sum = std::accumulate(paths.begin(), paths.end(), u64{0}, [](u64 all, const auto& path) { return all + path.second; });
  std::vector<u32> places;
  u64 before = 0;
  u32 given = 0;
  for (const auto& path : paths) {
    before += path.second;
    const u32 left = static_cast<u32>(paths.size() - places.size()) - 1;
    const u32 until = static_cast<u32>(before * ROUTER_PATHS / sum);
    const u32 share = std::clamp(until > given ? until - given : 1, 1u, ROUTER_PATHS - given - left);
    places.push_back(share);
    given += share;
  }
  return places;
}

}  // namespace

template <typename Keep>
void Tables::keep_neighbours(Keep keep) noexcept {
  for (u32 number = 0; number < buckets_.size(); ++number)
    for (u32& slot : buckets_[number].slot)
      if (slot != 0 && !keep(number, slot)) store(slot, 0);
}

Result<std::unique_ptr<Tables>> Tables::bind(StageMemory& memory, const Sizes& sizes) {
  std::unique_ptr<Tables> made(new Tables);
  const Half hops{0, sizes.hops}, groups{0, 2 * sizes.hops + 1024}, members{0, std::max(256u, sizes.hops / 4)};
  made->rows_ = 2 * possible_cpus();
  made->config_ = &TRY(memory.array<router_config>(".data.config", 1)).front();
  const auto nodes = TRY(memory.array<router_node>("nodes", 2 * sizes.nodes));
  made->groups_ = TRY(memory.array<__u64>("route_groups", 2 * groups.size));
  made->members_ = TRY(memory.array<router_members>("members", 2 * members.size));
  made->hop_table_ = TRY(memory.array<router_hop>("hops", 2 * hops.size));
  made->buckets_ = TRY(memory.array<router_bucket>("neighbours", std::bit_ceil(std::max(64u, sizes.hops / (ROUTER_SLOTS / 4)))));
  made->counts_ = TRY(memory.array<router_count>("counts", made->rows_ * 2 * hops.size));
  router_config& config = *made->config_;
  // An earlier run whose tables mean something else cannot go on by these: its frames would find others' numbers.
  const bool same = config.magic == magic && config.mask == made->buckets_.size() - 1 && config.hops == 2 * hops.size &&
                    config.seed == sizes.seed && config.by_ports == u32{sizes.by_ports};
  if (!same) {
    store(config.roots, 0);
    for (router_bucket& bucket : made->buckets_)
      for (u32& slot : bucket.slot) store(slot, 0);
    std::ranges::fill(made->counts_, router_count{});
  }
  const u32 half = same && config.roots != 0 && ROUTER_ROOT4(config.roots) == 0 ? 1 : 0;
  const auto in_half = [half](const Half& whole) { return Half{half * whole.size, whole.size}; };
  made->trie_ = Trie(nodes, in_half({0, sizes.nodes}));
  made->hop_half_ = in_half(hops);
  made->group_numbers_ = Numbers(in_half(groups), 1);
  made->member_numbers_ = Numbers(in_half(members), 1);
  made->hop_numbers_ = Numbers(made->hop_half_, 1);
  config.mask = static_cast<u32>(made->buckets_.size() - 1);
  config.hops = 2 * hops.size;
  config.seed = sizes.seed;
  config.by_ports = sizes.by_ports;
  made->keep_neighbours([&](u32 bucket, u32 slot) { return made->is_linked(bucket, slot); });
  store(config.magic, magic);
  made->host_ = made->hold({.kind = ROUTER_KIND_HOST, .paths = {}});
  return made;
}

void Tables::go_live() {
  live_ = true;
  note_whole();
  keep_neighbours([this](u32, u32 slot) { return is_ours(slot & ROUTER_INDEX); });
}

// Whether an earlier run's kernel half may find a neighbour of its own by this slot. It may have ended in the middle of a write, or before
// it worked by what it wrote.
bool Tables::is_linked(u32 bucket, u32 slot) const noexcept {
  const u32 number = slot & ROUTER_INDEX;
  if (number == 0 || number >= hop_table_.size() || is_ours(number)) return false;
  const router_hop& hop = hop_table_[number];
  const u64 hash = router_hash_neighbour(hop.address, router_hop_port(hop.word), config_->seed);
  return router_tag(hash) == (slot & ~ROUTER_INDEX) &&
         (router_first(hash, config_->mask) == bucket || router_second(hash, config_->mask) == bucket);
}

void Tables::note_whole() noexcept {
  if (!live_) return;
  const u64 roots = u64{trie_.root(4)} | u64{trie_.root(6)} << 24 | (trie_.whole() && !overflow_ ? ROUTER_WHOLE : 0);
  if (roots != config_->roots) store(config_->roots, roots);
}

u32 Tables::hold(const GroupKey& key) {
  const auto [at, made] = known_.try_emplace(key);
  Group& group = at->second;
  if (!made) return ++group.held, group.number;
  group.number = group_numbers_.take();
  const std::optional<u64> word = group.number != 0 ? make_word(key, group) : std::nullopt;
  if (!word) {
    ++refused_;
    drop_paths(group);
    if (group.number != 0) group_numbers_.put_back(group.number);
    known_.erase(at);
    return hold({.kind = ROUTER_KIND_HOST, .paths = {}});
  }
  store(groups_[group.number], *word);
  group.held = 1;
  by_number_[group.number] = &at->first;
  return group.number;
}

std::optional<u64> Tables::make_word(const GroupKey& key, Group& group) {
  if (key.kind != ROUTER_KIND_ONE && key.kind != ROUTER_KIND_MANY) return ROUTER_GROUP(key.kind, 0, 0);
  std::vector<u32> numbers;
  for (const auto& [path, weight] : key.paths) {
    Hop* hop = take_hop(path);
    if (hop == nullptr) return std::nullopt;
    if (++hop->groups == 1 && !hop->neighbour && path.address.version != 0) new_gateways_.push_back(path);
    group.paths.push_back(path);
    numbers.push_back(hop->number);
  }
  if (key.kind == ROUTER_KIND_ONE) return ROUTER_GROUP(ROUTER_KIND_ONE, key.mtu, numbers.front());
  group.row = member_numbers_.take();
  if (group.row == 0) return std::nullopt;
  const std::vector<u32> places = shares(key.paths);
  u32 at = 0;
  for (std::size_t i = 0; i < numbers.size(); ++i)
    for (u32 place = 0; place < places[i]; ++place) store(members_[group.row].hop[at++], numbers[i]);
  return ROUTER_GROUP(ROUTER_KIND_MANY, key.mtu, group.row);
}

void Tables::drop_paths(const Group& group) {
  for (const HopKey& path : group.paths) {
    --hops_.at(path).groups;
    let_go(path);
  }
}

void Tables::release(u32 number) {
  const auto named = by_number_.find(number);
  if (named == by_number_.end()) return;
  const auto at = known_.find(*named->second);
  Group& group = at->second;
  if (--group.held > 0) return;
  drop_paths(group);
  if (group.row != 0) member_numbers_.give_back(group.row);
  group_numbers_.give_back(number);
  by_number_.erase(named);
  known_.erase(at);
}

Tables::Hop* Tables::take_hop(const HopKey& key) {
  const auto [at, made] = hops_.try_emplace(key);
  Hop& hop = at->second;
  if (!made) return &hop;
  hop.number = hop_numbers_.take();
  if (hop.number == 0) return hops_.erase(at), ++refused_, nullptr;
  hop.before = count_of(hop.number);
  hop_table_[hop.number].address = address_of(key);
  const bool link = key.address.version == 0;
  write_hop(hop, key, key.port == HopKey::no_port ? ROUTER_STATE_HOST : link ? ROUTER_STATE_LINK : ROUTER_STATE_UNRESOLVED, 0);
  return &hop;
}

void Tables::write_hop(const Hop& hop, const HopKey& key, router_state state, u64 mac) {
  const u64 port = key.port == HopKey::no_port ? 0 : key.port, word = ROUTER_HOP(state, port, mac);
  if (hop_table_[hop.number].word != word) changes_.note_hop(hop.number);
  store(hop_table_[hop.number].word, word);
}

void Tables::let_go(const HopKey& key) {
  const auto at = hops_.find(key);
  if (at->second.groups > 0 || at->second.neighbour) return;
  hop_numbers_.give_back(at->second.number);
  hops_.erase(at);
}

void Tables::set_neighbour(const HopKey& key, router_state state, u64 mac) {
  Hop* hop = take_hop(key);
  if (hop == nullptr) return;
  write_hop(*hop, key, state, mac);
  if (hop->neighbour) return;
  hop->neighbour = link(key, hop->number);
  if (hop->neighbour) ++neighbours_;
  else ++refused_, let_go(key);
}

void Tables::erase_neighbour(const HopKey& key) {
  const auto at = hops_.find(key);
  if (at == hops_.end()) return;
  if (std::exchange(at->second.neighbour, false)) unlink(key, at->second.number), --neighbours_;
  write_hop(at->second, key, ROUTER_STATE_UNRESOLVED, 0);
  let_go(key);
}

std::array<router_bucket*, 2> Tables::buckets(u64 hash) const noexcept {
  return {&buckets_[router_first(hash, config_->mask)], &buckets_[router_second(hash, config_->mask)]};
}

bool Tables::link(const HopKey& key, u32 number) noexcept {
  const u64 hash = router_hash_neighbour(address_of(key), key.port, config_->seed);
  const auto fill = [](const router_bucket* bucket) { return std::ranges::count(bucket->slot, 0u); };
  auto [first, second] = buckets(hash);
  if (fill(second) > fill(first)) std::swap(first, second);
  for (router_bucket* bucket : {first, second})
    for (u32& slot : bucket->slot)
      if (slot == 0) return store(slot, router_tag(hash) | number), true;
  return false;
}

void Tables::unlink(const HopKey& key, u32 number) noexcept {
  for (router_bucket* bucket : buckets(router_hash_neighbour(address_of(key), key.port, config_->seed)))
    for (u32& slot : bucket->slot)
      if ((slot & ROUTER_INDEX) == number) store(slot, 0);
}

u32 Tables::find_neighbour(const router_address& address, u32 port) const noexcept {
  const u64 hash = router_hash_neighbour(address, port, config_->seed);
  const u32 tag = router_tag(hash);
  for (const router_bucket* bucket : buckets(hash))
    for (const u32& slot : bucket->slot) {
      const u32 word = load(slot), number = word & ROUTER_INDEX;
      if (number == 0 || (word & ~ROUTER_INDEX) != tag || number >= hop_table_.size()) continue;
      const router_hop& hop = hop_table_[number];
      if (same(hop.address, address) && router_hop_port(load(hop.word)) == port) return number;
    }
  return 0;
}

void Tables::count(u32 hop, u32 bytes) const noexcept {
  const u32 cpu = static_cast<u32>(std::max(0, ::sched_getcpu())) % (rows_ / 2);  // of rseq or the vDSO: no system call
  router_count& row = counts_[(rows_ / 2 + cpu) * hop_table_.size() + hop];
  std::atomic_ref(row.frames).fetch_add(1, std::memory_order_relaxed);
  std::atomic_ref(row.bytes).fetch_add(bytes, std::memory_order_relaxed);
}

router_count Tables::count_of(u32 number) const noexcept {
  router_count sum{};
  for (u32 row = 0; row < rows_; ++row) {
    router_count& each = counts_[row * hop_table_.size() + number];
    sum.frames += load(each.frames), sum.bytes += load(each.bytes);
  }
  if (const auto at = flow_counts_.find(number); at != flow_counts_.end()) sum.frames += at->second.frames, sum.bytes += at->second.bytes;
  return sum;
}

u64 Tables::frames_of(const HopKey& key) const {
  const auto at = hops_.find(key);
  return at == hops_.end() ? 0 : count_of(at->second.number).frames - at->second.before.frames;
}

std::vector<std::pair<HopKey, router_count>> Tables::counts() const {
  std::vector<std::pair<HopKey, router_count>> all;
  std::map<u32, router_count> links;
  for (const auto& [key, hop] : hops_) {
    if (key.address.version == 0) continue;
    router_count count = count_of(hop.number);
    count.frames -= hop.before.frames, count.bytes -= hop.before.bytes;
    if (hop.groups > 0) {
      all.emplace_back(key, count);
      continue;
    }
    links[key.port].frames += count.frames;
    links[key.port].bytes += count.bytes;
  }
  for (const auto& [port, count] : links) all.emplace_back(HopKey{port, {}}, count);
  return all;
}

void Tables::set_port(u32 port, u64 mac, u32 mtu) {
  const u64 word = mac == 0 ? 0 : mac | u64{std::min(mtu, 0xffffu)} << 48;
  if (config_->port[port] != word) changes_.note_all();
  store(config_->port[port], word);
}

void Tables::set_own(const Address& address, bool own) {
  changes_.note_own(address);
  const u32 bit = router_own_bit(shared(address));
  own_[bit] += own ? 1 : -1;
  const u64 word = config_->own[bit / 64], mask = u64{1} << bit % 64;
  store(config_->own[bit / 64], own_[bit] > 0 ? word | mask : word & ~mask);
}

void Tables::tick() {
  trie_.tick();
  note_whole();
  group_numbers_.tick(), member_numbers_.tick(), hop_numbers_.tick();
}

}  // namespace weir::routing
