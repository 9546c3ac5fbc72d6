// SPDX-License-Identifier: BSD-3-Clause
// tables: what the bench of tables times: a table with so many entries in both halves of a plugin, and frames that look for them.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/kernel/object.hh"
#include "core/pipeline/registry.hh"
#include "kit/plugin_kit.hh"

namespace weir::bench {

constexpr std::size_t frame_size = 64;
using FrameBytes = std::array<u8, frame_size>;

// splitmix64.
class Dice {
 public:
  using result_type = u64;
  explicit Dice(u64 seed) : state_(seed) {}
  static constexpr u64 min() noexcept { return 0; }
  static constexpr u64 max() noexcept { return ~u64{0}; }
  u64 operator()() noexcept {
    u64 word = state_ += 0x9e3779b97f4a7c15ull;
    word = (word ^ word >> 30) * 0xbf58476d1ce4e5b9ull;
    word = (word ^ word >> 27) * 0x94d049bb133111ebull;
    return word ^ word >> 31;
  }
  u32 below(u64 bound) noexcept { return static_cast<u32>(((*this)() >> 32) * bound >> 32); }

 private:
  u64 state_;
};

class Table {
 public:
  virtual ~Table() = default;
  [[nodiscard]] virtual std::vector<u32> versions() const { return {4}; }
  // A frame that looks for an entry by its number, in what the entry leaves open of dice. `version`: of IP, where the table has both.
  [[nodiscard]] virtual FrameBytes frame_for(u32 entry, u32 version, Dice& dice) const = 0;
  // What it must look like behind the look-up, by a reference of its own.
  [[nodiscard]] virtual FrameBytes after(const FrameBytes& frame) const = 0;
  // Whether both halves do with it what the reference says.
  virtual Result<> check(const FrameBytes& frame) = 0;
  // Puts the kernel half into slot 0.
  virtual Result<> lead(const BpfMap& programs) = 0;
  [[nodiscard]] virtual account kernel_counts() const = 0;
  // Null: there is no user half.
  [[nodiscard]] virtual Stage* user() const = 0;
  // Of what has been counted, the frames whose entry was found.
  [[nodiscard]] virtual u64 found(const account& counted) const = 0;
  // What is to be known of it beside figures.
  [[nodiscard]] virtual std::string says() const { return ""; }
};

// A plugin's stage, both of its halves over one memory. Frames come in by port 0 of two, "in" and "out".
class PluginTable : public Table {
 public:
  Result<> check(const FrameBytes& frame) override;
  Result<> lead(const BpfMap& programs) override { return kernel_->lead_to(programs, 0, 0); }
  [[nodiscard]] account kernel_counts() const override { return kernel_->counted(); }
  [[nodiscard]] Stage* user() const override { return &user_->stage(); }
  [[nodiscard]] FrameBytes after(const FrameBytes& frame) const override { return frame; }

 protected:
  PluginTable() : context_({"in", "out"}) {}
  Result<> make_stage(const Plugin& plugin, const std::string& keys);
  [[nodiscard]] virtual kit::Verdict verdict(const FrameBytes& frame) const = 0;  // by the reference

  kit::FakeContext context_;
  std::unique_ptr<kit::KernelHalf> kernel_;
  std::optional<kit::UserHalf> user_;
};

Result<std::unique_ptr<Table>> make_lines(const Registry& registry, u32 size, Dice& dice);
Result<std::unique_ptr<Table>> make_flows(const Registry& registry, u32 size, Dice& dice);
Result<std::unique_ptr<Table>> make_router(const Registry& registry, u32 version, u32 size, Dice& dice);
Result<std::unique_ptr<Table>> make_acl(const Registry& registry, u32 size, Dice& dice);
Result<std::unique_ptr<Table>> make_l2_switch(const Registry& registry, u32 size, Dice& dice);

// Frames of 64 bytes with UDP, checksums of IPv4 included.
struct Ends {
  std::array<u8, 16> source{}, destination{};  // IPv4: the first 4
  u16 sport = 0, dport = 0;
  u8 protocol = 17;
};
FrameBytes ip_frame(u32 version, const Ends& ends, const Mac& to, const Mac& from);
// One hop further: hop limit, IPv4 checksum, both Ethernet addresses.
FrameBytes forwarded(FrameBytes frame, const Mac& to, const Mac& from);

template <typename T>
T get(const FrameBytes& frame, std::size_t at) {
  T value;
  std::copy_n(frame.begin() + static_cast<std::ptrdiff_t>(at), sizeof value, reinterpret_cast<u8*>(&value));
  return value;
}
template <typename T>
void put(std::span<u8> bytes, std::size_t at, T value) {
  std::copy_n(reinterpret_cast<const u8*>(&value), sizeof value, bytes.begin() + static_cast<std::ptrdiff_t>(at));
}

}  // namespace weir::bench
