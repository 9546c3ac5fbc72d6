// SPDX-License-Identifier: BSD-3-Clause
// egress_chain: the host builds of a port's egress programs, for frames that leave from user space.
#pragma once

#include <vector>

#include "bpf/abi/egress.h"
#include "bpf/abi/note.h"
#include "core/frame/pool.hh"
#include "core/pipeline/accounts.hh"

namespace weir {

// Bytes from row to row of a program's state, as the BPF build has it: whole cache lines.
[[nodiscard]] constexpr std::size_t egress_stride(const egress_program& program) noexcept {
  return (program.state_size + WEIR_CACHE_LINE - 1u) / WEIR_CACHE_LINE * WEIR_CACHE_LINE;
}

class EgressChain {
 public:
  struct Step {
    const egress_program* program;
    const void* config;  // shared with the kernel's build of the program
    u8* state;           // one row after the other
    std::size_t stride;  // bytes from row to row
    void* shared;        // what all rows share; null: nothing
    u32 block;           // in the accounts
  };

  void append(const Step& step) { steps_.push_back(step); }
  // Where its programs' notes go. Before that they are lost.
  void tell(const egress_notes& notes) noexcept { notes_ = notes; }
  [[nodiscard]] const std::vector<Step>& steps() const noexcept { return steps_; }
  [[nodiscard]] bool empty() const noexcept { return steps_.empty(); }

  // Runs the chain over frames that leave by one port; moves those to transmit to the front, releases the others, returns how many
  // are left.
  u32 run(Frame* frames, u32 number, const Accounts& accounts, u32 row, FrameCache& cache) const noexcept;

 private:
  std::vector<Step> steps_;
  egress_notes notes_{};
};

}  // namespace weir
