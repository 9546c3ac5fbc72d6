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

bool is_wide(const bpf_insn& at) { return at.code == (BPF_LD | BPF_IMM | BPF_DW); }

// A function lies behind its program's instructions, and no jump may cross it (kernel/bpf/verifier.c, check_subprogs). Where the first one
// begins, or the end.
std::size_t main_size(std::span<const bpf_insn> code) {
  std::size_t size = code.size();
  for (std::size_t at = 0; at < code.size(); ++at) {
    const bool called = is_call(code[at]) && code[at].src_reg == BPF_PSEUDO_CALL;
    if (called || (is_wide(code[at]) && code[at].src_reg == BPF_PSEUDO_FUNC))
      size = std::min(size, at + 1 + static_cast<std::size_t>(code[at].imm));
  }
  return size;
}

u32 map_id(int fd) {
  bpf_map_info info{};
  u32 size = sizeof info;
  return ::bpf_obj_get_info_by_fd(fd, &info, &size) == 0 ? info.id : 0;
}

bool sets(const bpf_insn& at, u8 reg) {
  const u8 kind = BPF_CLASS(at.code);
  return at.dst_reg == reg && (kind == BPF_LD || kind == BPF_LDX || kind == BPF_ALU || kind == BPF_ALU64);
}

// Whether the tail call at `at` goes by this program array, which is its second argument. libbpf holds it by a descriptor of its own.
bool goes_by(std::span<const bpf_insn> code, std::size_t at, const BpfMap& chain) {
  while (at-- > 0)
    if (sets(code[at], BPF_REG_2)) return is_wide(code[at]) && code[at].src_reg == BPF_PSEUDO_MAP_FD && map_id(code[at].imm) == chain.id();
  return false;
}

// The tail calls between `from` and the end become jumps to the end, where the next part follows. A call's first argument is the context,
// and so is a program's; of all else a program expects nothing. The jump asks for the key, which the verifier knows to be `next`: so it
// takes what is behind the call, where a call that failed would come back, for reachable until it has followed the program.
Result<> jump_instead(std::vector<bpf_insn>& code, std::size_t from, u32 next, const BpfMap& chain) {
  for (std::size_t at = from; at < code.size(); ++at) {
    if (!is_tail_call(code[at])) continue;
    if (!goes_by(code, at, chain)) return unsupported("a part of it calls programs of its own");
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

Result<Fd> join_programs(const char* name, std::span<const JoinPart> parts, const BpfMap& chain) {
  std::vector<bpf_insn> code;
  for (const JoinPart& part : parts) {
    const std::span<const bpf_insn> all = part.object.instructions(part.program);
    const std::span<const bpf_insn> own = part.function.empty() ? all : all.first(main_size(all));
    if (own.empty() || main_size(own) < own.size()) return unsupported("{} has functions of its own", part.program);
    const std::size_t from = code.size();
    code.insert(code.end(), own.begin(), own.end());
    if (&part != &parts.back()) TRY_VOID(jump_instead(code, from, part.next, chain));
    else code.insert(code.end(), part.function.begin(), part.function.end());
  }
  const ProgramKind kind = parts.front().object.kind(parts.front().program);
  std::string log(1 << 16, '\0');
  LIBBPF_OPTS(bpf_prog_load_opts, options, .expected_attach_type = static_cast<bpf_attach_type>(kind.attach_type), .prog_flags = kind.flags,
              .log_size = static_cast<u32>(log.size()), .log_buf = log.data());
  Fd joined(::bpf_prog_load(BPF_PROG_TYPE_XDP, name, "Dual BSD/GPL", code.data(), code.size(), &options));
  if (joined) return joined;
  const int err = errno;
  if (err == E2BIG || err == ENOSPC) return unsupported("{} programs as one are more than the kernel's verifier follows", parts.size());
  return fail_errno(err, fmt::format("load {} egress programs as one: {}", parts.size(), verifier_words(log.c_str())));
}

}  // namespace weir
