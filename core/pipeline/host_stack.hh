// SPDX-License-Identifier: BSD-3-Clause
// host_stack: frames from user space into the host's own network stack, as if they had come in by the port's device.
#pragma once

#include <memory>
#include <vector>

#include "core/kernel/object.hh"
#include "core/pipeline/data_path.hh"

namespace weir {

// A worker copies a frame into the ring of its port. A thread runs bpf/ingress/to_stack.bpf.c over all that waits there, by the kernel's
// live-frame test runs (5.18 and newer): a call takes some 20 ms to set up, whatever the number of frames, so that the first frame of
// a burst arrives that much later and a long burst goes at some hundred thousand frames a second.
class HostStack final : public StackEntry {
 public:
  struct Entry {
    PortSlot slot;
    Ifindex device;
    bool generic;  // mode of its ingress program
  };
  // `scratch`: the instance's map of that name.
  static Result<std::unique_ptr<HostStack>> create(const std::vector<Entry>& ports, int scratch_fd);
  HostStack(const HostStack&) = delete;
  // Hands over what waits, then stops.
  ~HostStack() override;

  bool submit(PortSlot port, std::span<const u8> bytes) noexcept override;
  [[nodiscard]] u32 held() const noexcept override;
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
