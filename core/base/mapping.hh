// SPDX-License-Identifier: BSD-3-Clause
// mapping: a piece of memory that is given back when its owner goes.
#pragma once

#include <span>
#include <utility>

#include "core/base/result.hh"
#include "core/base/types.hh"

namespace weir {

class Mapping {
 public:
  Mapping() = default;
  // Zeroed anonymous memory, on huge pages where some are reserved. `bytes` is rounded up to whole pages.
  static Result<Mapping> anonymous(std::size_t bytes);
  // Shared memory of a descriptor, read and write, from its start.
  static Result<Mapping> shared(int fd, std::size_t bytes);
  // Memory that is another library's, which gets it back by `release`.
  static Mapping of(std::span<u8> bytes, void (*release)(void*)) noexcept { return Mapping(bytes, release); }

  Mapping(Mapping&& other) noexcept : bytes_(std::exchange(other.bytes_, {})), release_(other.release_) {}
  Mapping& operator=(Mapping&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    std::swap(release_, other.release_);
    return *this;
  }
  ~Mapping();

  [[nodiscard]] u8* data() const noexcept { return bytes_.data(); }
  [[nodiscard]] std::size_t size() const noexcept { return bytes_.size(); }

 private:
  explicit Mapping(std::span<u8> bytes, void (*release)(void*) = nullptr) noexcept : bytes_(bytes), release_(release) {}
  std::span<u8> bytes_;
  void (*release_)(void*) = nullptr;  // null: it is unmapped
};

}  // namespace weir
