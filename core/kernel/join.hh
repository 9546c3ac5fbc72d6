// SPDX-License-Identifier: BSD-3-Clause
// join: one BPF program of several that call one another.
#pragma once

#include <span>
#include <string>

#include "core/base/fd.hh"
#include "core/base/result.hh"
#include "core/kernel/object.hh"

namespace weir {

// A loaded program that tail calls the one behind it by the constant `next`, a key of a program array.
struct JoinPart {
  const BpfObject& object;
  std::string program;
  u32 next = 0;
};

// The same programs as one, of the name `name`: where a part would call the one behind it, it goes on there, which saves the call and lets
// the CPU run ahead. The last part's call, if it has one, stays. The parts have done their work when this returns.
// Failure::unsupported: a part has functions of its own, or together they are more than the verifier follows. They run by calls then.
Result<Fd> join_programs(const char* name, std::span<const JoinPart> parts);

}  // namespace weir
