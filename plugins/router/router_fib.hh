// SPDX-License-Identifier: BSD-3-Clause
// router_fib: the user half's table of routes: rte_fib and rte_fib6, with one writer and readers on other threads.
#pragma once

#include <atomic>
#include <memory>

#include "core/config/node.hh"

struct rte_fib;
struct rte_fib6;

namespace weir::routing {

class Fib {
 public:
  // Starts DPDK's environment. `max_routes` of each version.
  static Result<std::unique_ptr<Fib>> create(u32 max_routes);
  Fib(const Fib&) = delete;
  ~Fib();

  // A route of a length of 1 or more; group not 0. False: there is no room for it.
  bool set(const Prefix& prefix, u32 group);
  struct Above {
    u32 group = 0, length = 0;  // group 0: there is none
  };
  // Of a route that it has: the one that has its addresses from now on.
  Above erase(const Prefix& prefix);

  // The groups of up to a burst of addresses, 0 where there is none; of IPv4 in host order. Beside set() and erase().
  void find4(u32* addresses, u64* groups, u32 number) const noexcept;
  void find6(u8 (*addresses)[16], u64* groups, u32 number) const noexcept;

 private:
  Fib() = default;
  template <typename Find>
  void read(const std::atomic<u32>& changes, u64* groups, u32 number, Find find) const noexcept;
  rte_fib* fib4_ = nullptr;
  rte_fib6* fib6_ = nullptr;
  // Odd while a change is made. rte_fib gives a table of the last 8 bits that is not needed any more out again at once, so that a reader
  // may be in the wrong one: what was read while something changed is read again.
  std::atomic<u32> changes4_{0}, changes6_{0};
};

}  // namespace weir::routing
