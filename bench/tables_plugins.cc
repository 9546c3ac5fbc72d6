// SPDX-License-Identifier: BSD-3-Clause
// tables_plugins: what the tables of plugins share, and those of l2_switch and acl.
#include <linux/if_ether.h>
#include <netinet/in.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "bench/tables.hh"
#include "plugins/acl/acl.h"
#include "plugins/l2_switch/l2_switch.h"

namespace weir::bench {

using kit::Packet;
using kit::Verdict;

FrameBytes ip_frame(u32 version, const Ends& ends, const Mac& to, const Mac& from) {
  FrameBytes frame{};
  put(frame, 0, to), put(frame, 6, from);
  put<u16>(frame, 12, __builtin_bswap16(version == 4 ? ETH_P_IP : ETH_P_IPV6));
  const std::size_t address = version == 4 ? 4 : 16, l4 = version == 4 ? 34 : 54;
  if (version == 4) {
    put(frame, 14, std::array<u8, 12>{0x45, 0, 0, frame_size - 14, 0, 0, 0x40, 0, 64, ends.protocol, 0, 0});
    std::copy_n(ends.source.begin(), address, frame.begin() + 26), std::copy_n(ends.destination.begin(), address, frame.begin() + 30);
    put<u16>(frame, 24, __builtin_bswap16(kit::internet_checksum(kit::internet_sum(std::span(frame).subspan(14, 20)))));
  } else {
    put(frame, 14, std::array<u8, 8>{0x60, 0, 0, 0, 0, frame_size - 54, ends.protocol, 64});
    std::copy_n(ends.source.begin(), address, frame.begin() + 22), std::copy_n(ends.destination.begin(), address, frame.begin() + 38);
  }
  put<u16>(frame, l4, __builtin_bswap16(ends.sport)), put<u16>(frame, l4 + 2, __builtin_bswap16(ends.dport));
  if (ends.protocol == IPPROTO_TCP) put<u16>(frame, l4 + 12, __builtin_bswap16(0x5010));
  else put<u16>(frame, l4 + 4, __builtin_bswap16(static_cast<u16>(frame_size - l4)));
  return frame;
}

FrameBytes forwarded(FrameBytes frame, const Mac& to, const Mac& from) {
  put(frame, 0, to), put(frame, 6, from);
  if (get<u16>(frame, 12) == __builtin_bswap16(ETH_P_IPV6)) return frame[21]--, frame;
  frame[22]--;
  put<u16>(frame, 24, 0);
  put<u16>(frame, 24, __builtin_bswap16(kit::internet_checksum(kit::internet_sum(std::span(frame).subspan(14, 20)))));
  return frame;
}

Result<> PluginTable::make_stage(const Plugin& plugin, const std::string& keys) {
  kernel_ = TRY(kit::KernelHalf::open(plugin, context_));
  user_ = TRY(kit::UserHalf::make(plugin, keys, context_, kernel_->memory()));
  return kernel_->load();
}

Result<> PluginTable::check(const FrameBytes& frame) {
  const Packet bytes(frame.begin(), frame.end());
  const FrameBytes wanted = after(frame);
  const auto right = [&](const kit::Outcome& outcome) {
    return outcome.verdict == verdict(frame) && std::ranges::equal(outcome.bytes, wanted);
  };
  if (!right(TRY(kernel_->run(0, bytes)))) return fail("the kernel half decides otherwise than the reference");
  if (!right(user_->run(0, bytes))) return fail("the user half decides otherwise than the reference");
  return {};
}

namespace {

Result<const Plugin*> plugin_of(const Registry& registry, const char* name) {
  const Plugin* found = registry.plugin(name);
  if (found == nullptr) return fail("the plugin {} is not there: build it first", name);
  return found;
}

// Half of the addresses on each port, learned from frames. Frames go from a station of the one to one of the other.
class Switch final : public PluginTable {
 public:
  static Result<std::unique_ptr<Table>> make(const Plugin& plugin, u32 size) {
    std::unique_ptr<Switch> made(new Switch(size));
    TRY_VOID(made->make_stage(plugin, fmt::format("table_size = {}", size)));
    TRY_VOID(made->learn());
    return made;
  }
  [[nodiscard]] std::vector<u32> versions() const override { return {0}; }
  // To that station or the one beside it, which is of the second port, from one of the first that is anywhere.
  [[nodiscard]] FrameBytes frame_for(u32 entry, u32, Dice&) const override {
    return between(kit::station(static_cast<u32>(entry * 0x9e3779b1ull % (size_ / 2)) * 2), kit::station(entry | 1));
  }
  [[nodiscard]] u64 found(const account& counted) const override { return counted.verdict[WEIR_REDIRECT]; }

 private:
  explicit Switch(u32 size) : size_(size) {}
  [[nodiscard]] Verdict verdict(const FrameBytes&) const override { return kit::redirect(1); }
  static FrameBytes between(const Mac& from, const Mac& to) {
    FrameBytes frame{};
    put(frame, 0, to), put(frame, 6, from);
    put<u16>(frame, 12, __builtin_bswap16(ETH_P_802_EX1));
    return frame;
  }
  Result<> learn();
  u32 size_;
};

Result<> Switch::learn() {
  account counted{};
  for (u32 number = 0; number < size_; ++number) {
    FrameBytes frame = between(kit::station(number), kit::broadcast);
    Burst burst;
    burst.charge(&counted);
    burst.push({.data = frame.data(),
                .length = frame_size,
                .port = PortSlot{static_cast<u16>(number & 1)},
                .stage = 0,
                .reason = 0,
                .verdict = 0,
                .argument = 0});
    user()->process(burst);
  }
  if (counted.counter[L2_LEARNED] != size_) return fail("{} of {} addresses were learned", counted.counter[L2_LEARNED], size_);
  return {};
}

// A rule, and what it asks a frame.
struct Rule {
  u32 source, destination, source_length, destination_length;
  u8 protocol;      // 0: any
  u16 first, last;  // destination ports
  bool drops;
  [[nodiscard]] static u32 mask(u32 length) noexcept { return length == 0 ? 0 : ~u32{0} << (32 - length); }
  [[nodiscard]] bool matches(u32 from, u32 to, u8 number, u16 port) const noexcept {
    return ((from ^ source) & mask(source_length)) == 0 && ((to ^ destination) & mask(destination_length)) == 0 &&
           (protocol == 0 || protocol == number) && port >= first && port <= last;
  }
};

// Rules of a site's edge: who may speak to which network or host, by which service.
Rule rule_of(Dice& dice) {
  static constexpr std::array<u32, 8> lengths{0, 8, 16, 16, 24, 24, 24, 32}, to{16, 24, 24, 28, 32, 32, 32, 32};
  static constexpr std::array<u16, 12> services{22, 25, 53, 80, 110, 123, 143, 443, 993, 3306, 5060, 8080};
  Rule rule{};
  rule.source_length = lengths[dice.below(lengths.size())], rule.destination_length = to[dice.below(to.size())];
  rule.source = (1u << 24 | dice.below(0xdc000000)) & Rule::mask(rule.source_length);
  rule.destination = (10u << 24 | dice.below(1 << 24)) & Rule::mask(rule.destination_length);
  rule.protocol = dice.below(4) == 0 ? IPPROTO_UDP : IPPROTO_TCP;
  rule.first = rule.last = services[dice.below(services.size())];
  if (const u32 kind = dice.below(8); kind == 0) rule.first = 0, rule.last = 0xffff;
  else if (kind == 1) rule.first = 1024, rule.last = static_cast<u16>(1024 + dice.below(60000));
  rule.drops = dice.below(2) == 0;
  return rule;
}

class Acl final : public PluginTable {
 public:
  static Result<std::unique_ptr<Table>> make(const Plugin& plugin, u32 size, Dice& dice) {
    std::unique_ptr<Acl> made(new Acl);
    for (u32 number = 0; number < size; ++number) made->rules_.push_back(rule_of(dice));
    std::string name = std::filesystem::temp_directory_path() / "weir-bench-XXXXXX";
    const Fd file(::mkstemp(name.data()));
    if (!file) return fail_errno(errno, fmt::format("make file {}", name));
    made->write(name);
    const Result<> done = made->make_stage(plugin, fmt::format("file = \"{}\"\notherwise = \"drop\"", name));
    std::filesystem::remove(name);
    TRY_VOID(done);
    return made;
  }
  [[nodiscard]] FrameBytes frame_for(u32 number, u32, Dice& dice) const override {
    const Rule& rule = rules_[number];
    Ends ends{.sport = static_cast<u16>(dice()), .protocol = rule.protocol == 0 ? u8{IPPROTO_TCP} : rule.protocol};
    put<u32>(ends.source, 0, __builtin_bswap32(rule.source | (static_cast<u32>(dice()) & ~Rule::mask(rule.source_length))));
    put<u32>(ends.destination, 0, __builtin_bswap32(rule.destination | (static_cast<u32>(dice()) & ~Rule::mask(rule.destination_length))));
    ends.dport = static_cast<u16>(rule.first + dice.below(rule.last - rule.first + 1u));
    return ip_frame(4, ends, kit::station(1), kit::station(2));
  }
  [[nodiscard]] u64 found(const account& counted) const override {
    return counted.counter[ACL_COUNT_PERMITTED] + counted.counter[ACL_COUNT_DENIED];
  }
  [[nodiscard]] std::string says() const override {
    std::string text;
    for (const auto& [name, value] : user()->gauges())
      if (name == "kernel_rules" || name == "kernel_tables") text += fmt::format("{}{} {}", text.empty() ? "" : ", ", name, value);
    return text;
  }

 private:
  Acl() = default;
  void write(const std::string& name) const {
    std::ofstream file(name);
    const auto prefix = [](u32 address, u32 length) {
      return fmt::format("{}.{}.{}.{}/{}", address >> 24, address >> 16 & 255, address >> 8 & 255, address & 255, length);
    };
    for (const Rule& rule : rules_)
      file << fmt::format("{} src {} dst {} protocol {} dport {}-{}\n", rule.drops ? "drop" : "permit",
                          prefix(rule.source, rule.source_length), prefix(rule.destination, rule.destination_length),
                          rule.protocol == IPPROTO_TCP ? "tcp" : "udp", rule.first, rule.last);
  }
  // The first rule that matches, one after the other.
  [[nodiscard]] Verdict verdict(const FrameBytes& frame) const override {
    const u32 from = __builtin_bswap32(get<u32>(frame, 26)), to = __builtin_bswap32(get<u32>(frame, 30));
    const u16 port = __builtin_bswap16(get<u16>(frame, 36));
    const auto at = std::ranges::find_if(rules_, [&](const Rule& rule) { return rule.matches(from, to, frame[23], port); });
    if (at == rules_.end()) broken("a frame that was made for a rule matches none");
    return at->drops ? kit::drop(ACL_DENIED) : kit::next();
  }
  std::vector<Rule> rules_;
};

}  // namespace

Result<std::unique_ptr<Table>> make_l2_switch(const Registry& registry, u32 size, Dice&) {
  return Switch::make(*TRY(plugin_of(registry, "l2_switch")), size);
}

Result<std::unique_ptr<Table>> make_acl(const Registry& registry, u32 size, Dice& dice) {
  return Acl::make(*TRY(plugin_of(registry, "acl")), size, dice);
}

}  // namespace weir::bench
