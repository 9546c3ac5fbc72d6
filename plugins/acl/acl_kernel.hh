// SPDX-License-Identifier: BSD-3-Clause
// acl_kernel: the hash tables in which the kernel half looks rules up, made of a set of rules.
#pragma once

#include <vector>

#include "plugins/acl/acl.h"
#include "plugins/acl/acl_rules.hh"

namespace weir::acl {

struct KernelTables {
  std::vector<acl_table> tables;  // in the order of their first rules; `first` counts from 0
  std::vector<u64> slots;         // and so do the entries of these
  std::vector<acl_entry> entries;
  u32 decided = 0;  // rules from the first on that they hold; behind them one found no place
};

// What a frame must show to match the rule: one entry, or one for each IP version.
std::vector<acl_entry> entries_of(const Rule& rule, u32 number);

// Within the bounds of acl.h for so many rules.
KernelTables make_kernel_tables(const RuleSet& set, u32 room);

}  // namespace weir::acl
