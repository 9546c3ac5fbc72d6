// SPDX-License-Identifier: BSD-3-Clause
// router_fib: DPDK's FIB, with what it lacks in DPDK 22.11 for readers beside a writer.
#include "plugins/router/router_fib.hh"

#include <rte_errno.h>
#include <rte_fib.h>
#include <rte_fib6.h>
#include <rte_memory.h>
#include <rte_rib.h>
#include <rte_rib6.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "core/frame/frame.hh"
#include "core/port/eal.hh"

namespace weir::routing {
namespace {

u32 host_order(const Address& address) noexcept {
  u32 raw = 0;
  std::memcpy(&raw, address.bytes.data(), sizeof raw);
  return __builtin_bswap32(raw);
}

// For as long as the writer is in it.
class Change {
 public:
  explicit Change(std::atomic<u32>& changes) : changes_(changes) {
    changes_.fetch_add(1, std::memory_order_acq_rel);
    std::atomic_thread_fence(std::memory_order_seq_cst);
  }
  Change(const Change&) = delete;
  ~Change() { changes_.fetch_add(1, std::memory_order_release); }

 private:
  std::atomic<u32>& changes_;
};

std::string new_name() {
  static std::atomic<u32> number{0};
  return fmt::format("weir_router_{}", number.fetch_add(1));
}

}  // namespace

Result<std::unique_ptr<Fib>> Fib::create(u32 max_routes) {
  TRY_VOID(ensure_eal());
  std::unique_ptr<Fib> made(new Fib);
  rte_fib_conf config4{};
  config4.type = RTE_FIB_DIR24_8;
  config4.max_routes = static_cast<int>(max_routes);
  // Tables of the last 8 bits, 1 KiB each, which DPDK clears when it makes them: as many as a mixture of routes needs, and more than one of
  // any kind. What needs more finds no room, as what is beyond max_routes does.
  config4.dir24_8 = {RTE_FIB_DIR24_8_4B, std::clamp(max_routes / 8, 1024u, 65536u)};
  made->fib4_ = rte_fib_create(new_name().c_str(), SOCKET_ID_ANY, &config4);
  if (made->fib4_ == nullptr)
    return fail("make a table of {} IPv4 routes: {}; max_routes is too large for the {} MB that DPDK's tables have", max_routes,
                rte_strerror(rte_errno), eal_memory_mb());
  rte_fib6_conf config6{};
  config6.type = RTE_FIB6_TRIE;
  config6.max_routes = static_cast<int>(max_routes);
  config6.trie = {RTE_FIB6_TRIE_4B, std::clamp(max_routes / 2, 8192u, 262144u)};
  made->fib6_ = rte_fib6_create(new_name().c_str(), SOCKET_ID_ANY, &config6);
  if (made->fib6_ == nullptr)
    return fail("make a table of {} IPv6 routes: {}; max_routes is too large for the {} MB that DPDK's tables have", max_routes,
                rte_strerror(rte_errno), eal_memory_mb());
  return made;
}

Fib::~Fib() {
  rte_fib_free(fib4_);
  rte_fib6_free(fib6_);
}

bool Fib::set(const Prefix& prefix, u32 group) {
  const u8 length = static_cast<u8>(prefix.length);
  if (prefix.address.version == 4) {
    const Change change(changes4_);
    return rte_fib_add(fib4_, host_order(prefix.address), length, group) == 0;
  }
  const Change change(changes6_);
  return rte_fib6_add(fib6_, prefix.address.bytes.data(), length, group) == 0;
}

Fib::Above Fib::erase(const Prefix& prefix) {
  const u8 length = static_cast<u8>(prefix.length);
  u64 group = 0;
  u8 above = 0;
  if (prefix.address.version == 4) {
    const u32 address = host_order(prefix.address);
    rte_rib_node* own = rte_rib_lookup_exact(rte_fib_get_rib(fib4_), address, length);
    if (rte_rib_node* parent = own != nullptr ? rte_rib_lookup_parent(own) : nullptr)
      rte_rib_get_nh(parent, reinterpret_cast<uint64_t*>(&group)), rte_rib_get_depth(parent, &above);
    const Change change(changes4_);
    rte_fib_delete(fib4_, address, length);
  } else {
    rte_rib6_node* own = rte_rib6_lookup_exact(rte_fib6_get_rib(fib6_), prefix.address.bytes.data(), length);
    if (rte_rib6_node* parent = own != nullptr ? rte_rib6_lookup_parent(own) : nullptr)
      rte_rib6_get_nh(parent, reinterpret_cast<uint64_t*>(&group)), rte_rib6_get_depth(parent, &above);
    const Change change(changes6_);
    rte_fib6_delete(fib6_, prefix.address.bytes.data(), length);
  }
  return {static_cast<u32>(group), above};
}

// A change of a route of few bits takes longer than frames can wait for. Then two readings that say the same are believed: each of them
// would have had to fall into the moment in which a table found a new use.
template <typename Find>
void Fib::read(const std::atomic<u32>& changes, u64* groups, u32 number, Find find) const noexcept {
  constexpr u32 patience = 32;
  std::array<u64, Burst::capacity> before{};
  for (u32 turn = 0;; ++turn) {
    const u32 seen = changes.load(std::memory_order_acquire);
    find();
    std::atomic_thread_fence(std::memory_order_acquire);
    if (seen % 2 == 0 && changes.load(std::memory_order_relaxed) == seen) return;
    if (turn > patience && std::equal(groups, groups + number, before.begin())) return;
    std::copy_n(groups, number, before.begin());
  }
}

void Fib::find4(u32* addresses, u64* groups, u32 number) const noexcept {
  if (number == 0) return;
  read(changes4_, groups, number,
       [&] { rte_fib_lookup_bulk(fib4_, addresses, reinterpret_cast<uint64_t*>(groups), static_cast<int>(number)); });
}

void Fib::find6(u8 (*addresses)[16], u64* groups, u32 number) const noexcept {
  if (number == 0) return;
  read(changes6_, groups, number,
       [&] { rte_fib6_lookup_bulk(fib6_, addresses, reinterpret_cast<uint64_t*>(groups), static_cast<int>(number)); });
}

}  // namespace weir::routing
