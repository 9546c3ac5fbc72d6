// SPDX-License-Identifier: BSD-3-Clause
// table: tests of a plugin as a table of claims, and the test of both halves against each other.
//   EXPECT_EQ(differences(user, {{"an empty frame is dropped", in, drop(MINE_EMPTY)}, {"…", in, redirect(1), out}}), "");
#pragma once

#include <string>
#include <vector>

#include "kit/plugin_kit.hh"
#include "kit/traffic.hh"

namespace weir::kit {

struct Case {
  std::string claim;
  Packet in;
  Verdict verdict;
  Packet out = {};  // empty: as it came in
  u32 port = 0;     // that it comes in by
};

// What the half, or the egress program, does otherwise than the claims say, a line each; empty: nothing. The frames come in the order of
// the table, one after the other.
std::string differences(UserHalf& half, const std::vector<Case>& cases);
std::string differences(KernelHalf& half, const std::vector<Case>& cases);

// How an outcome differs from the one that is wanted; empty: it does not.
std::string difference(const Outcome& wanted, const Outcome& got);

struct Agreement {
  std::size_t frames = 0;
  std::size_t punted = 0;  // by the kernel half, to the user half beside it
};

// Design rule: with kernel halves off the same frames come out. Sends the traffic through a user half alone, and through the kernel half
// with a user half beside it that gets what is punted and shares its memory. The first frame whose verdict or bytes differ is the error.
// Not to be asked where no_kernel() says why.
Result<Agreement> both_halves_agree(const Plugin& plugin, std::string_view keys, const std::vector<std::string>& ports,
                                    const Traffic& traffic);

}  // namespace weir::kit
