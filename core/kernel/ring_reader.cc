// SPDX-License-Identifier: BSD-3-Clause
// ring_reader: libbpf's ring buffer, read to an end that a writer who never rests does not move.
#include "core/kernel/ring_reader.hh"

#include <bpf/libbpf.h>

#include <cerrno>

namespace weir {

void RingReader::Close::operator()(ring_buffer* ring) const noexcept { ::ring_buffer__free(ring); }

Result<RingReader> RingReader::open(int ring_fd) {
  RingReader made;
  made.turn_ = std::make_unique<Turn>();
  made.ring_.reset(::ring_buffer__new(ring_fd, take, made.turn_.get(), nullptr));
  if (!made.ring_) return fail_errno(errno, "map a ring of BPF programs");
  return made;
}

// What is not 0 ends the turn, behind this record (libbpf's ringbuf.c, ringbuf_process_ring).
int RingReader::take(void* turn, void* data, std::size_t size) {
  Turn& now = *static_cast<Turn*>(turn);
  (*now.each)({static_cast<const u8*>(data), size});
  return --now.left == 0 ? -EAGAIN : 0;
}

u32 RingReader::read(u32 most, const std::function<void(std::span<const u8>)>& each) {
  *turn_ = {&each, most};
  static_cast<void>(::ring_buffer__consume(ring_.get()));
  return most - turn_->left;
}

}  // namespace weir
