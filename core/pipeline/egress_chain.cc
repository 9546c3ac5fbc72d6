// SPDX-License-Identifier: BSD-3-Clause
// egress_chain: the same programs as on the device entry, in the same order, with the same counters.
#include "core/pipeline/egress_chain.hh"

#include <algorithm>

// The host side of the programs' own header: struct egress_frame.
extern "C" {
#include "bpf/lib/egress.bpf.h"
}

namespace weir {

u32 EgressChain::run(Frame* frames, u32 number, const Accounts& accounts, u32 row, FrameCache& cache) const noexcept {
  egress_notes notes = notes_;
  for (const Step& step : steps_) {
    account& account = accounts.at(row, step.block);
    u32 kept = 0;
    for (u32 i = 0; i < number; ++i) {
      egress_frame view{frames[i].data, frames[i].length, cache.pool().headroom(frames[i]), step.shared, 0, frames[i].port.value, &notes};
      const u32 verdict = step.program->run(&view, step.config, step.state + row * step.stride);
      if (verdict == EGRESS_TRANSMIT) {
        frames[kept] = frames[i];
        frames[kept].data = view.data;
        frames[kept++].length = view.length;
        continue;
      }
      ++account.drop[std::min<u32>(verdict - 1, WEIR_DROP_UNNAMED - WEIR_DROP_OWN) + WEIR_DROP_OWN];
      cache.release(frames[i]);
    }
    account.verdict[WEIR_NEXT] += kept;
    account.verdict[WEIR_DROP] += number - kept;
    number = kept;
    ++notes.place;
  }
  return number;
}

}  // namespace weir
