// SPDX-License-Identifier: BSD-3-Clause
// types: the project's integers, and strong types where plain numbers are easily confused.
#pragma once

#include <bit>
#include <compare>
#include <cstddef>
#include <cstdint>

namespace weir {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
// As the kernel's headers have them, so that tables shared with BPF programs are of one type on both sides.
using u64 = unsigned long long;
using i64 = long long;

// An integer in network byte order. Read it with host(), make it with be16() or be32(); compare it with another of its kind. It may lie
// anywhere: headers are made of them (core/frame/wire.hh).
template <typename T>
class [[gnu::packed]] BigEndian {
 public:
  BigEndian() = default;
  static constexpr BigEndian of(T host) noexcept { return BigEndian(swap(host)); }
  [[nodiscard]] constexpr T host() const noexcept { return swap(raw_); }
  [[nodiscard]] constexpr T raw() const noexcept { return raw_; }
  friend constexpr bool operator==(BigEndian, BigEndian) = default;

 private:
  explicit constexpr BigEndian(T raw) noexcept : raw_(raw) {}
  static constexpr T swap(T value) noexcept {
    if constexpr (std::endian::native == std::endian::big) return value;
    else if constexpr (sizeof(T) == 2) return __builtin_bswap16(value);
    else return __builtin_bswap32(value);
  }
  T raw_ = 0;
};

using Be16 = BigEndian<u16>;
using Be32 = BigEndian<u32>;
constexpr Be16 be16(u16 host) noexcept { return Be16::of(host); }
constexpr Be32 be32(u32 host) noexcept { return Be32::of(host); }

// A number with a meaning: no arithmetic, no conversion from another meaning.
template <typename T, typename Tag>
struct Strong {
  T value{};
  friend constexpr auto operator<=>(Strong, Strong) = default;
};

using Ifindex = Strong<u32, struct IfindexTag>;      // the kernel's number of a netdev, within its network namespace
using QueueId = Strong<u32, struct QueueIdTag>;      // rx and tx of a port
using PortSlot = Strong<u16, struct PortSlotTag>;    // index of a port in this instance: devmap key and counter block
using GroupSlot = Strong<u16, struct GroupSlotTag>;  // index of a group in this instance

constexpr std::size_t cache_line = 64;

}  // namespace weir
