// SPDX-License-Identifier: BSD-3-Clause
// join: one BPF program of several that call one another.
#pragma once

#include <span>
#include <string>

#include "core/base/fd.hh"
#include "core/base/result.hh"
#include "core/kernel/object.hh"

namespace weir {

// A loaded program that tail calls the one behind it by the constant `next`, a key of the program array `chain`.
struct JoinPart {
  const BpfObject& object;
  std::string program;
  u32 next = 0;
  // Of the last part alone: what comes in the place of the one function that it has.
  std::span<const bpf_insn> function = {};
};

// The same programs as one, of the name `name`: where a part would call the one behind it, it goes on there, which saves the call and lets
// the CPU run ahead. The last part's call, if it has one, stays. The parts have done their work when this returns.
// Failure::unsupported: a part has functions of its own or calls by another program array, or together they are longer than a jump reaches
// or more than the verifier follows. They can run by calls then.
Result<Fd> join_programs(const char* name, std::span<const JoinPart> parts, const BpfMap& chain);

}  // namespace weir
