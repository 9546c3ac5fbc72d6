// SPDX-License-Identifier: BSD-3-Clause
// mapping: anonymous and shared mappings.
#include "core/base/mapping.hh"

#include <sys/mman.h>

#include <cerrno>

namespace weir {
namespace {

constexpr std::size_t page = 4096;
constexpr std::size_t huge_page = 2 << 20;

std::size_t round_up(std::size_t bytes, std::size_t unit) { return (bytes + unit - 1) / unit * unit; }

}  // namespace

Result<Mapping> Mapping::anonymous(std::size_t bytes) {
  constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE;
  if (bytes >= huge_page) {
    std::size_t size = round_up(bytes, huge_page);
    void* at = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, flags | MAP_HUGETLB, -1, 0);
    if (at != MAP_FAILED) return Mapping({static_cast<u8*>(at), size});
  }
  std::size_t size = round_up(bytes, page);
  void* at = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (at == MAP_FAILED) return fail_errno(errno, fmt::format("map {} bytes of memory", size));
  return Mapping({static_cast<u8*>(at), size});
}

Result<Mapping> Mapping::shared(int fd, std::size_t bytes) {
  std::size_t size = round_up(bytes, page);
  void* at = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) return fail_errno(errno, fmt::format("map {} bytes of a BPF array", size));
  return Mapping({static_cast<u8*>(at), size});
}

Mapping::~Mapping() {
  if (bytes_.empty()) return;
  if (release_ != nullptr) release_(bytes_.data());
  else ::munmap(bytes_.data(), bytes_.size());
}

}  // namespace weir
