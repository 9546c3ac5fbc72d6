// SPDX-License-Identifier: BSD-3-Clause
// anchor: keeps an XDP program ready for test runs, so that each of them begins at once.
#pragma once

#include "core/base/fd.hh"
#include "core/kernel/xdp_link.hh"

namespace weir {

// A program that is not in the kernel's XDP dispatcher is put there for each test run of more than one frame and taken out behind it
// (bpf_prog_change_xdp in net/bpf/test_run.c), which waits for RCU twice: 24 ms. A program that is attached to a device is there already,
// and a run of 64 frames costs 17 us before what becomes of them. So the program is attached to a tap that no frame ever enters, in a
// network namespace that nobody else sees; both go when the tap is closed. The dispatcher has 48 places (BPF_DISPATCHER_MAX).
class Anchor {
 public:
  // Not held where the process may not make namespaces or taps.
  explicit Anchor(int program);
  [[nodiscard]] bool holds() const noexcept { return link_.fd() >= 0; }

 private:
  Fd tap_;
  XdpLink link_;
};

}  // namespace weir
