// SPDX-License-Identifier: BSD-3-Clause
// ring_reader: the reading side of a ring that BPF programs write to (BPF_MAP_TYPE_RINGBUF).
#pragma once

#include <functional>
#include <memory>
#include <span>

#include "core/base/result.hh"
#include "core/base/types.hh"

struct ring_buffer;

namespace weir {

class RingReader {
 public:
  static Result<RingReader> open(int ring_fd);
  // Hands over what waits, record by record, at most `most` of them. Returns how many. A record's bytes are the ring's again behind `each`.
  u32 read(u32 most, const std::function<void(std::span<const u8>)>& each);

 private:
  struct Turn {
    const std::function<void(std::span<const u8>)>* each = nullptr;
    u32 left = 0;
  };
  struct Close {
    void operator()(ring_buffer* ring) const noexcept;
  };
  RingReader() = default;
  static int take(void* turn, void* data, std::size_t size);
  std::unique_ptr<Turn> turn_;  // libbpf holds its address
  std::unique_ptr<ring_buffer, Close> ring_;
};

}  // namespace weir
