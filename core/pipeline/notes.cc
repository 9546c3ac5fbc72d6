// SPDX-License-Identifier: BSD-3-Clause
// notes: the kernel's ring and the process's own.
#include "core/pipeline/notes.hh"

#include <cstring>
#include <mutex>

namespace weir {

Result<std::unique_ptr<Notes>> Notes::create(int kernel_ring) {
  std::unique_ptr<Notes> made(new Notes(TRY(Mapping::anonymous(sizeof(Slot) * NOTE_SLOTS))));
  if (kernel_ring >= 0) made->kernel_ = TRY(RingReader::open(kernel_ring));
  return made;
}

int Notes::take(void* notes, const note* head, const u8* bytes) noexcept { return static_cast<Notes*>(notes)->push(*head, bytes) ? 1 : 0; }

bool Notes::push(const note& head, const u8* bytes) noexcept {
  if (head.captured > NOTE_LONGEST) return false;
  std::scoped_lock hold(lock_);
  const u64 number = head_.load(std::memory_order_relaxed);
  if (number - tail_.load(std::memory_order_acquire) == NOTE_SLOTS) return false;
  Slot& into = slot(number);
  into.head = head;
  std::memcpy(into.bytes.data(), bytes, head.captured);
  head_.store(number + 1, std::memory_order_release);
  return true;
}

void Notes::read(const std::function<void(const note&, std::span<const u8>)>& each) {
  const u64 end = head_.load(std::memory_order_acquire);
  for (u64 number = tail_.load(std::memory_order_relaxed); number != end; ++number) {
    const Slot& from = slot(number);
    each(from.head, std::span(from.bytes).first(from.head.captured));
    tail_.store(number + 1, std::memory_order_release);
  }
  if (!kernel_) return;
  kernel_->read(NOTE_RING_BYTES / (sizeof(note) + 128), [&](std::span<const u8> record) {
    note head;
    if (record.size() < sizeof head) return;
    std::memcpy(&head, record.data(), sizeof head);
    if (head.captured <= record.size() - sizeof head) each(head, record.subspan(sizeof head, head.captured));
  });
}

}  // namespace weir
