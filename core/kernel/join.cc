// SPDX-License-Identifier: BSD-3-Clause
// join: the instructions of loaded programs, one behind the other, with jumps in place of tail calls.
#include "core/kernel/join.hh"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/bpf.h>

#include <cerrno>
#include <cstring>
#include <limits>
#include <vector>

namespace weir {
namespace {

bool is_call(const bpf_insn& at) { return at.code == (BPF_JMP | BPF_CALL); }
bool is_tail_call(const bpf_insn& at) { return is_call(at) && at.src_reg == 0 && at.imm == BPF_FUNC_tail_call; }

// A function lies behind its program's instructions, and no jump may cross it (kernel/bpf/verifier.c, check_subprogs).
bool has_functions(std::span<const bpf_insn> code) {
  for (const bpf_insn& at : code) {
    if (is_call(at) && at.src_reg == BPF_PSEUDO_CALL) return true;
    if (at.code == (BPF_LD | BPF_IMM | BPF_DW) && at.src_reg == BPF_PSEUDO_FUNC) return true;
  }
  return false;
}

// The tail calls between `from` and the end become jumps to the end, where the next part follows. A call's first argument is the context,
// and so is a program's; of all else a program expects nothing. The jump asks for the key, which the verifier knows to be `next`: so it
// takes what is behind the call, where a call that failed would come back, for reachable until it has followed the program.
Result<> jump_instead(std::vector<bpf_insn>& code, std::size_t from, u32 next) {
  for (std::size_t at = from; at < code.size(); ++at) {
    if (!is_tail_call(code[at])) continue;
    const std::size_t distance = code.size() - at - 1;
    if (distance > std::numeric_limits<__s16>::max()) return unsupported("a part of it is too long to jump over");
    code[at] = {.code = BPF_JMP | BPF_JEQ | BPF_K,
                .dst_reg = BPF_REG_3,
                .src_reg = 0,
                .off = static_cast<__s16>(distance),
                .imm = static_cast<__s32>(next)};
  }
  return {};
}

}  // namespace

Result<Fd> join_programs(const char* name, std::span<const JoinPart> parts) {
  std::vector<bpf_insn> code;
  for (const JoinPart& part : parts) {
    const std::span<const bpf_insn> own = part.object.instructions(part.program);
    if (own.empty() || has_functions(own)) return unsupported("{} has functions of its own", part.program);
    const std::size_t from = code.size();
    code.insert(code.end(), own.begin(), own.end());
    if (&part != &parts.back()) TRY_VOID(jump_instead(code, from, part.next));
  }
  const ProgramKind kind = parts.front().object.kind(parts.front().program);
  LIBBPF_OPTS(bpf_prog_load_opts, options, .expected_attach_type = static_cast<bpf_attach_type>(kind.attach_type),
              .prog_flags = kind.flags);
  Fd joined(::bpf_prog_load(BPF_PROG_TYPE_XDP, name, "Dual BSD/GPL", code.data(), code.size(), &options));
  if (!joined) return unsupported("the kernel does not take {} programs as one: {}", parts.size(), std::strerror(errno));
  return joined;
}

}  // namespace weir
