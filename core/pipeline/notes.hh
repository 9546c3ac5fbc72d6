// SPDX-License-Identifier: BSD-3-Clause
// notes: what egress programs tell user space of frames (bpf/abi/note.h), from both of their builds, to one reader.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <span>

#include "bpf/abi/note.h"
#include "core/base/mapping.hh"
#include "core/base/spin_lock.hh"
#include "core/kernel/ring_reader.hh"

namespace weir {

class Notes {
 public:
  // `kernel_ring`: the map "notes"; -1: there is no kernel side.
  static Result<std::unique_ptr<Notes>> create(int kernel_ring);

  // For EgressChain::tell(). Any number of workers may write; a copy under a spin lock each time.
  [[nodiscard]] egress_notes way(PortSlot port) noexcept { return {take, this, port.value, 0}; }
  // Hands over what waits in either ring, about as much as both hold at most. One thread alone.
  void read(const std::function<void(const note&, std::span<const u8>)>& each);

 private:
  struct Slot {
    note head;
    std::array<u8, NOTE_LONGEST> bytes;
  };
  explicit Notes(Mapping memory) : memory_(std::move(memory)) {}
  static int take(void* notes, const note* head, const u8* bytes) noexcept;
  [[nodiscard]] bool push(const note& head, const u8* bytes) noexcept;
  [[nodiscard]] Slot& slot(u64 number) const noexcept { return reinterpret_cast<Slot*>(memory_.data())[number % NOTE_SLOTS]; }

  Mapping memory_;
  SpinLock lock_;             // of those that write
  std::atomic<u64> head_{0};  // slots ever filled
  std::atomic<u64> tail_{0};  // slots ever emptied
  std::optional<RingReader> kernel_;
};

}  // namespace weir
