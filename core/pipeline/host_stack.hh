// SPDX-License-Identifier: BSD-3-Clause
// host_stack: frames from user space into the host's own network stack, as if they had come in by the port's device.
#pragma once

#include <memory>
#include <vector>

#include "core/pipeline/data_path.hh"
#include "core/pipeline/kernel_side.hh"

namespace weir {

// A worker copies a frame into the ring of its port. A thread runs bpf/ingress/to_stack.bpf.c over all that waits there, by the kernel's
// live-frame test runs (5.18 and newer). On veth a lone frame reaches a socket some 20 us after it was submitted, and a stream of mixed
// lengths goes at 0.2 to 0.5 million frames a second; a tenth of that where the process may not make a network namespace and a tap. Each
// frame counts as 4 KiB in a socket's receive buffer, whatever its length: the default one holds about 50.
class HostStack final : public StackEntry {
 public:
  struct Entry {
    PortSlot slot;
    Ifindex device;
  };
  // The rings in `pins` of a run that was killed are adopted when `adopt`, with what it left in them.
  static Result<std::unique_ptr<HostStack>> create(const std::vector<Entry>& ports, const PinFolder& pins, bool adopt);
  HostStack(const HostStack&) = delete;
  // Hands over what waits, then stops.
  ~HostStack() override;
  // Begins to hand over. `marks`, by port slot: see struct to_stack_ring. Not before the ports' programs know them: they would take such a
  // frame for one that came in.
  void start(std::span<const u64> marks);

  // When a port's device has come back under another index.
  void follow(PortSlot port, Ifindex device, u64 mark) noexcept;

  // "stack_full": the port's ring. "stack_failed": a frame of this length cannot go that way (TO_STACK_SHORTEST to TO_STACK_LONGEST bytes
  // can).
  std::optional<weir_drop> submit(PortSlot port, std::span<const u8> bytes) noexcept override;
  [[nodiscard]] u32 held() const noexcept override;
  // The memory of the rings, to be pinned.
  [[nodiscard]] std::vector<const KernelMemory*> memories() const;
  // Frames that were taken and did not reach the stack.
  [[nodiscard]] u64 lost(PortSlot port) const noexcept;

 private:
  class Ring;
  struct Worker;
  HostStack();
  std::vector<std::unique_ptr<Ring>> rings_;  // by port slot; null: not a device
  std::unique_ptr<Worker> worker_;
};

}  // namespace weir
