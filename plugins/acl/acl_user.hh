// SPDX-License-Identifier: BSD-3-Clause
// acl_user: the user half's look-up: DPDK's ACL library over a burst at once.
#pragma once

#include <array>
#include <memory>
#include <span>
#include <vector>

#include "core/frame/frame.hh"
#include "plugins/acl/acl.h"
#include "plugins/acl/acl_frame.h"
#include "plugins/acl/acl_rules.hh"

struct rte_acl_ctx;

namespace weir::acl {

// A set of rules, ready to be looked up in; any number of threads may do so. Needs DPDK's environment (ensure_eal()).
class Classifier {
 public:
  static Result<std::unique_ptr<Classifier>> make(const RuleSet& set);

  // The number of the first rule that each key matches, or ACL_NO_RULE. At most a burst of them.
  void classify(std::span<const acl_key> keys, std::span<u32> rules) const noexcept;

 private:
  struct Free {
    void operator()(rte_acl_ctx* context) const noexcept;
  };
  using Context = std::unique_ptr<rte_acl_ctx, Free>;
  enum Family { ipv4, ipv6, other, families };
  template <Family F>
  static Result<std::vector<Context>> build(const RuleSet& set);
  static Family family_of(const acl_key& key) noexcept;
  template <typename Input>
  static void run(const std::vector<Context>& contexts, std::span<const Input> inputs, std::span<const u8> places,
                  std::span<u32> rules) noexcept;

  std::array<std::vector<Context>, families> contexts_;  // of each family, the one with the first rules first
};

}  // namespace weir::acl
