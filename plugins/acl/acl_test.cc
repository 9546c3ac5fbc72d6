// SPDX-License-Identifier: BSD-3-Clause
// acl_test: rules that are read and refused, claims for both halves, and both against a plain reference over random rules and frames.
#include "plugins/acl/acl.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "kit/table.hh"
#include "plugins/acl/acl_frame.h"
#include "plugins/acl/acl_kernel.hh"
#include "plugins/acl/acl_rules.hh"
#include "plugins/acl/acl_states.h"

namespace {

using namespace weir;
using namespace weir::kit;
using acl::Rule;
using acl::RuleSet;
using testing::HasSubstr;
using testing::StartsWith;

const Verdict denied = drop(ACL_DENIED), truncated = drop(ACL_TRUNCATED), bad_header = drop(ACL_BAD_HEADER);

std::vector<Rule> rules_of(std::string_view text) {
  std::string lines;
  std::vector<Rule> rules = acl::parse_rules(text, "rules.acl", ACL_MAX_RULES, lines);
  if (!lines.empty()) broken(lines.c_str());
  return rules;
}

std::string refused_lines(std::string_view text, std::size_t most = ACL_MAX_RULES) {
  std::string lines;
  static_cast<void>(acl::parse_rules(text, "rules.acl", most, lines));
  return lines;
}

// A file of rules, for as long as a test.
class RulesFile {
 public:
  explicit RulesFile(std::string_view text) {
    const int fd = ::mkstemp(name_);
    if (fd < 0) broken("a test makes no file");
    ::close(fd);
    write(text);
  }
  RulesFile(const RulesFile&) = delete;
  ~RulesFile() { ::unlink(name_); }
  void write(std::string_view text) const { std::ofstream(name_) << text; }
  [[nodiscard]] std::string name() const { return name_; }
  [[nodiscard]] std::string key() const { return fmt::format("file = \"{}\"\n", name_); }

 private:
  char name_[32] = "/tmp/acl_test_XXXXXX";
};

// A stage of one port over ordinary memory.
struct Acl {
  explicit Acl(std::string_view text, const std::string& more = "") : file(text), keys(more + file.key()), user(bound()) {}
  UserHalf bound() {
    Result<UserHalf> made = UserHalf::make(weir_plugin, keys, context, memory);
    if (!made) broken(made.error().what.c_str());
    return std::move(*made);
  }
  Verdict run(const Packet& bytes) { return user.run(0, bytes).verdict; }
  RulesFile file;
  std::string keys;
  FakeContext context{{"p0"}};
  PlainMemory memory;
  UserHalf user;
};

// The maps of a stage as the one that takes its place sees them.
class Remains final : public StageRemains {
 public:
  Remains(StageMemory& memory, u32 room) : memory_(memory), room_(room) {}

 private:
  template <typename T>
  Found found(std::string_view map, u32 count) const {
    const std::span<T> all = *memory_.array<T>(map, count);
    return {reinterpret_cast<const u8*>(all.data()), sizeof(T), count};
  }
  [[nodiscard]] Found find(std::string_view map) const override {
    const u32 rows = memory_.array<acl_control>("rule_control", room_ / ACL_UNIT)->front().rows;
    if (map == "rule_control") return found<acl_control>(map, room_ / ACL_UNIT);
    if (map == "rule_ids") return found<u64>(map, 2 * ACL_RULES(room_));
    return map == "rule_hits" || map == "user_hits" ? found<u64>(map, rows * 2 * ACL_RULES(room_)) : Found{};
  }
  StageMemory& memory_;
  u32 room_;
};

FrameBuilder ethernet() { return FrameBuilder().ethernet(station(1), station(2)); }
FrameBuilder ipv4(const std::string& src = "192.0.2.1", const std::string& dst = "198.51.100.1") { return ethernet().ipv4(src, dst); }
FrameBuilder ipv6(const std::string& src = "2001:db8::1", const std::string& dst = "2001:db8:1::1") { return ethernet().ipv6(src, dst); }

void put16(Packet& in, std::size_t at, u32 value) { in.at(at) = static_cast<u8>(value >> 8), in.at(at + 1) = static_cast<u8>(value); }
u32 get16(const Packet& in, std::size_t at) { return static_cast<u32>(in.at(at) << 8 | in.at(at + 1)); }

// As a fragment of IPv4: where it is, in 8 bytes, and whether there are more.
Packet fragment(Packet bytes, u32 offset, bool more) {
  put16(bytes, 14 + 6, offset | (more ? 0x2000u : 0u));
  return bytes;
}

constexpr std::size_t behind_ipv6 = 14 + 40;

// The IPv6 packet with an extension header put in front of what there is.
Packet extended(Packet bytes, u8 kind, std::vector<u8> header) {
  header.at(0) = bytes.at(14 + 6);
  bytes.at(14 + 6) = kind;
  bytes.insert(bytes.begin() + behind_ipv6, header.begin(), header.end());
  put16(bytes, 14 + 4, get16(bytes, 14 + 4) + static_cast<u32>(header.size()));
  return bytes;
}
Packet with_options(const Packet& bytes, u8 kind = IPPROTO_DSTOPTS) { return extended(bytes, kind, std::vector<u8>(8)); }
Packet fragment6(const Packet& bytes, u32 offset, bool more) {
  return extended(bytes, IPPROTO_FRAGMENT, {0, 0, static_cast<u8>(offset >> 5), static_cast<u8>(offset << 3 | (more ? 1 : 0)), 0, 0, 0, 1});
}

// Words of IPv4 options behind the 20 bytes.
Packet with_ipv4_options(Packet bytes, u32 words) {
  bytes.insert(bytes.begin() + 14 + 20, 4 * words, u8{1});
  bytes.at(14) = static_cast<u8>(0x45 + words);
  put16(bytes, 14 + 2, get16(bytes, 14 + 2) + 4 * words);
  return bytes;
}

Packet cut(Packet bytes, std::size_t size) {
  bytes.resize(size);
  return bytes;
}

Packet changed(Packet bytes, std::size_t at, u32 value) {
  bytes.at(at) = static_cast<u8>(value);
  return bytes;
}

// The reference: what the manual in acl.cc says, read and compared in the plainest way, without any code of the plugin.
class Reference {
 public:
  explicit Reference(RuleSet set) : set_(std::move(set)), hits_(set_.rules.size() + 1) {}
  Verdict judge(const Packet& bytes) {
    Seen seen;
    if (const std::optional<Verdict> bad = read(bytes, seen)) return *bad;
    for (std::size_t i = 0; i < set_.rules.size(); ++i)
      if (matches(set_.rules[i], seen)) return count(i, set_.rules[i].drops);
    return count(set_.rules.size(), set_.otherwise_drops);
  }
  [[nodiscard]] const std::vector<u64>& hits() const noexcept { return hits_; }

 private:
  struct Seen {
    u32 type = 0, vlan = 0, version = 0, protocol = 0, sport = 0, dport = 0, flags = 0;
    bool later = false, ports = false;
    std::vector<u8> src, dst;
  };
  Verdict count(std::size_t rule, bool drops) {
    ++hits_[rule];
    return drops ? denied : next();
  }
  static bool has_ports(u32 protocol) { return protocol == 6 || protocol == 17 || protocol == 33 || protocol == 132 || protocol == 136; }
  static bool in(const Prefix& prefix, const std::vector<u8>& address) {
    for (u32 bit = 0; bit < prefix.length; ++bit)
      if (((address[bit / 8] ^ prefix.address.bytes[bit / 8]) >> (7 - bit % 8) & 1) != 0) return false;
    return true;
  }
  static bool matches(const Rule& rule, const Seen& seen) {
    const bool asks_for_ip = rule.src || rule.dst || rule.protocol || rule.sport || rule.dport || rule.flags_mask != 0 || rule.fragments;
    if (rule.type && *rule.type != seen.type) return false;
    if (rule.vlan && *rule.vlan != seen.vlan) return false;
    if (asks_for_ip && seen.version == 0) return false;
    if (rule.src && (rule.src->address.version != seen.version || !in(*rule.src, seen.src))) return false;
    if (rule.dst && (rule.dst->address.version != seen.version || !in(*rule.dst, seen.dst))) return false;
    if (rule.protocol && *rule.protocol != seen.protocol) return false;
    if (rule.fragments && !seen.later) return false;
    if ((rule.sport || rule.dport) && !seen.ports) return false;
    if (rule.sport && (seen.sport < rule.sport->first || seen.sport > rule.sport->last)) return false;
    if (rule.dport && (seen.dport < rule.dport->first || seen.dport > rule.dport->last)) return false;
    if (rule.flags_mask != 0 && (!seen.ports || seen.protocol != 6 || (seen.flags & rule.flags_mask) != rule.flags)) return false;
    return true;
  }
  // A verdict: of a frame that no rule is asked about.
  static std::optional<Verdict> read(const Packet& in, Seen& seen) {
    std::size_t at = 14;
    if (in.size() < at) return truncated;
    seen.type = get16(in, 12);
    for (int tags = 0; tags < 2 && (seen.type == 0x8100 || seen.type == 0x88a8); ++tags, at += 4) {
      if (in.size() < at + 4) return truncated;
      if (tags == 0) seen.vlan = get16(in, at) & 0xfff;
      seen.type = get16(in, at + 2);
    }
    std::size_t end = 0;
    if (seen.type == 0x0800) {
      if (in.size() < at + 20) return truncated;
      const std::size_t header = (in[at] & 15u) * 4u, total = get16(in, at + 2);
      if (in[at] >> 4 != 4 || header < 20 || total < header) return bad_header;
      if (at + total > in.size()) return truncated;
      seen.version = 4;
      seen.src.assign(in.begin() + static_cast<long>(at) + 12, in.begin() + static_cast<long>(at) + 16);
      seen.dst.assign(in.begin() + static_cast<long>(at) + 16, in.begin() + static_cast<long>(at) + 20);
      seen.protocol = in[at + 9];
      seen.later = (get16(in, at + 6) & 0x1fff) != 0;
      end = at + total, at += header;
    } else if (seen.type == 0x86dd) {
      if (in.size() < at + 40) return truncated;
      if (in[at] >> 4 != 6) return bad_header;
      seen.version = 6;
      seen.src.assign(in.begin() + static_cast<long>(at) + 8, in.begin() + static_cast<long>(at) + 24);
      seen.dst.assign(in.begin() + static_cast<long>(at) + 24, in.begin() + static_cast<long>(at) + 40);
      seen.protocol = in[at + 6];
      end = at + 40 + get16(in, at + 4), at += 40;
      if (end > in.size()) return truncated;
      const auto walks = [](u32 protocol) { return protocol == 0 || protocol == 43 || protocol == 44 || protocol == 60; };
      for (int headers = 0; !seen.later && walks(seen.protocol); ++headers) {
        if (headers == 16) return bad_header;
        if (at + 8 > end) return truncated;
        const u32 kind = seen.protocol;
        seen.protocol = in[at];
        seen.later = kind == 44 && (get16(in, at + 2) & 0xfff8) != 0;
        at += kind == 44 ? 8u : (in[at + 1] + 1u) * 8u;
      }
      if (!seen.later && at > end) return bad_header;
    }
    if (seen.version == 0 || seen.later || !has_ports(seen.protocol)) return std::nullopt;
    if (at + (seen.protocol == 6 ? 20 : 8) > end) return truncated;
    if (seen.protocol == 6 && in[at + 12] >> 4 < 5) return bad_header;
    seen.ports = true;
    seen.sport = get16(in, at), seen.dport = get16(in, at + 2);
    if (seen.protocol == 6) seen.flags = in[at + 13];
    return std::nullopt;
  }

  RuleSet set_;
  std::vector<u64> hits_;
};

// Rules and frames of few values, so that they meet.
class Dice {
 public:
  explicit Dice(u32 seed) : engine_(seed) {}
  u32 below(u32 end) { return static_cast<u32>(engine_() % end); }
  bool one_in(u32 number) { return below(number) == 0; }

  std::string rules(u32 count, bool logs = false) {
    std::string text;
    for (u32 i = 0; i < count; ++i) text += rule(logs) + "\n";
    return text;
  }
  std::string rule(bool logs) {
    std::string text = one_in(2) ? "permit" : "drop";
    const u32 family = below(8);  // 0: not IP
    if (one_in(6)) text += fmt::format(" vlan {}", below(4));
    if (family == 0) return text + (one_in(3) ? "" : fmt::format(" type 0x{:04x}", one_in(2) ? 0x0806 : 0x88b5 + below(2)));
    const u32 version = family < 4 ? 4 : family < 7 ? 6 : 0;
    if (version != 0 && !one_in(3)) text += " src " + prefix(version);
    if (version != 0 && !one_in(3)) text += " dst " + prefix(version);
    if (version == 0 && one_in(4)) text += one_in(2) ? " type 0x0800" : " type 0x86dd";
    static constexpr const char* protocols[] = {"tcp", "udp", "icmp", "icmpv6", "132", "50"};
    const u32 protocol = below(8);
    if (protocol < 6) text += fmt::format(" protocol {}", protocols[protocol]);
    const bool ports = protocol < 2 || protocol == 4 || protocol >= 6;
    bool asked = false;
    if (ports && one_in(3)) text += " sport " + range(), asked = true;
    if (ports && one_in(2)) text += " dport " + range(), asked = true;
    if ((protocol == 0 || protocol >= 6) && one_in(5)) text += " flags " + flags(), asked = true;
    if (!asked && one_in(6)) text += " fragments";
    if (logs && one_in(8)) text += " log";
    return text;
  }

  Packet frame() {
    static constexpr u16 types[] = {ETH_P_ARP, 0x88b5, 0x88b6, ETH_P_IP, ETH_P_IPV6};
    FrameBuilder made;
    made.ethernet(station(1), station(2), one_in(16) ? types[below(5)] : ETH_P_ARP);
    for (u32 tags = one_in(4) ? 1 + below(3) : 0; tags > 0; --tags)
      made.vlan(static_cast<u16>(below(4)), 0, one_in(2) ? ETH_P_8021AD : ETH_P_8021Q);
    const u32 version = one_in(10) ? 0 : one_in(2) ? 4 : 6;
    if (version == 4) made.ipv4(address(4), address(4));
    if (version == 6) made.ipv6(address(6), address(6));
    std::vector<u8> behind;
    if (version != 0) layer_4(made);
    made.payload(std::vector<u8>(below(40), static_cast<u8>(below(256))));
    Packet bytes = made.build();
    const bool plain = version != 0 && bytes[12] != 0x81 && bytes[12] != 0x88 && bytes[12] != 0;
    if (version == 4 && get16(bytes, 12) == ETH_P_IP) bytes = dressed_4(std::move(bytes));
    if (version == 6 && plain && get16(bytes, 12) == ETH_P_IPV6) bytes = dressed_6(std::move(bytes));
    if (one_in(16)) bytes.resize(14 + below(static_cast<u32>(bytes.size() - 13)));
    if (one_in(8)) bytes.resize(bytes.size() + below(20));
    for (u32 lies = one_in(8) ? 1 + below(2) : 0; lies > 0; --lies)
      bytes[12 + below(std::min<u32>(60, static_cast<u32>(bytes.size()) - 12))] = static_cast<u8>(below(256));
    return bytes;
  }

 private:
  std::string address(u32 version) {
    return version == 4 ? fmt::format("10.{}.{}.{}", below(2), below(2), below(4))
                        : fmt::format("2001:db8:{}::{}:{}", below(2), below(2), below(4));
  }
  std::string prefix(u32 version) {
    static constexpr u32 v4[] = {0, 8, 15, 16, 23, 24, 30, 31, 32}, v6[] = {0, 16, 32, 47, 48, 64, 111, 112, 126, 127, 128};
    std::string lines;
    const u32 length = version == 4 ? v4[below(9)] : v6[below(11)];
    Address of = *parsed(address(version));
    for (u32 bit = length; bit < (version == 4 ? 32u : 128u); ++bit)
      of.bytes[bit / 8] = static_cast<u8>(of.bytes[bit / 8] & ~(0x80u >> bit % 8));
    return fmt::format("{}/{}", text_of(of), length);
  }
  static std::optional<Address> parsed(const std::string& text) {
    Address made{text.find(':') == std::string::npos ? 4u : 6u, {}};
    if (::inet_pton(made.version == 4 ? AF_INET : AF_INET6, text.c_str(), made.bytes.data()) != 1) return std::nullopt;
    return made;
  }
  std::string range() {
    const u32 first = below(10);
    return one_in(2) ? fmt::format("{}", first) : fmt::format("{}-{}", first, first + below(one_in(3) ? 60000 : 6));
  }
  std::string flags() {
    static constexpr const char* names[] = {"syn", "ack", "fin", "rst"};
    const u32 one = below(4), other = (one + 1 + below(3)) % 4;
    const auto word = [&](u32 which) { return fmt::format("{}{}", one_in(2) ? "!" : "", names[which]); };
    return one_in(2) ? word(one) : word(one) + "," + word(other);
  }
  void layer_4(FrameBuilder& made) {
    const u16 from = static_cast<u16>(below(14)), to = static_cast<u16>(one_in(6) ? below(65536) : below(14));
    switch (below(6)) {
      case 0:
      case 1:
        made.tcp(from, to, static_cast<u8>(below(32)));
        break;
      case 2:
        made.udp(from, to);
        break;
      case 3:
        made.icmp(8, 0, from);
        break;
      case 4: {
        const u8 sctp[] = {0, static_cast<u8>(from), 0, static_cast<u8>(to), 0, 0, 0, 0, 0, 0, 0, 0};
        made.protocol(132).payload(std::span(sctp, one_in(3) ? below(12) : 12));
        break;
      }
      default:
        made.protocol(static_cast<u8>(one_in(2) ? 50 : below(256)));
    }
  }
  Packet dressed_4(Packet bytes) {
    if (one_in(8)) bytes = with_ipv4_options(std::move(bytes), 1 + below(10));
    if (one_in(6)) bytes = fragment(std::move(bytes), one_in(2) ? 0 : below(8000), one_in(2));
    return bytes;
  }
  Packet dressed_6(Packet bytes) {
    static constexpr u8 kinds[] = {IPPROTO_HOPOPTS, IPPROTO_ROUTING, IPPROTO_DSTOPTS};
    for (u32 headers = one_in(4) ? 1 + below(one_in(6) ? 20 : 6) : 0; headers > 0; --headers) {
      if (one_in(6)) bytes = fragment6(bytes, one_in(2) ? 0 : below(8000), one_in(2));
      std::vector<u8> header(8 * (1 + (one_in(4) ? below(3) : 0)));
      header[1] = static_cast<u8>(one_in(20) ? below(256) : header.size() / 8 - 1);
      bytes = extended(std::move(bytes), kinds[below(3)], std::move(header));
    }
    if (one_in(8)) bytes = fragment6(bytes, one_in(2) ? 0 : below(8000), one_in(2));
    return bytes;
  }
  std::mt19937 engine_;
};

// What both halves are asked about rules: with the frame of a claim, what becomes of it.
struct Claims {
  std::string rules, keys;
  std::vector<Case> cases;
};

std::vector<Claims> claims() {
  const Packet web = ipv4().tcp(40000, 80, 0x02).build(), tls = ipv4().tcp(40000, 443, 0x10).build(), dns = ipv4().udp(53, 53).build();
  const Packet ping = ipv4().icmp(8, 0).build(), arp = FrameBuilder().ethernet(station(1), broadcast, ETH_P_ARP).pad(60);
  const Packet web6 = ipv6().tcp(40000, 80, 0x02).build(), ping6 = ipv6().icmp(128, 0).build();
  const Packet long_udp = ipv4().udp(1, 2).payload(std::vector<u8>(64)).build(),
               long_udp6 = ipv6().udp(1, 2).payload(std::vector<u8>(64)).build();
  Packet deep = web6;
  for (int i = 0; i < 17; ++i) deep = with_options(deep);
  Packet deepest = web6;
  for (int i = 0; i < 4; ++i) deepest = with_options(deepest);
  return {
      {"drop protocol tcp dport 80",
       "",
       {{"a port is denied", web, denied},
        {"another is not", tls, next()},
        {"that of another protocol is not", ipv4().udp(1, 80).build(), next()},
        {"IPv6 too", web6, denied},
        {"behind a tag", ethernet().vlan(5).ipv4("1.2.3.4", "1.2.3.5").tcp(1, 80).build(), denied}}},
      {"permit src 192.0.2.1 dst 198.51.100.0/24\ndrop src 192.0.2.0/24\npermit",
       "otherwise = \"drop\"\n",
       {{"the first that matches decides", web, next()},
        {"then the second", ipv4("192.0.2.2").tcp(1, 2).build(), denied},
        {"then the third", ipv4("192.0.3.2").tcp(1, 2).build(), next()},
        {"a rule that asks for nothing matches what is not IP", arp, next()},
        {"and IPv6", web6, next()}}},
      {"permit protocol icmp",
       "otherwise = \"drop\"\n",
       {{"ping", ping, next()}, {"no ping of IPv6", ping6, denied}, {"no TCP", web, denied}, {"no ARP", arp, denied}}},
      {"permit type 0x0806\npermit src 2001:db8::/32 dst 2001:db8:1::1",
       "otherwise = \"drop\"\n",
       {{"ARP", arp, next()},
        {"IPv6 within prefixes", web6, next()},
        {"IPv6 beyond", ipv6("2001:db9::1").tcp(1, 2).build(), denied},
        {"IPv4", web, denied}}},
      {"drop sport 53",
       "",
       {{"ports of UDP", dns, denied},
        {"and of TCP", ipv4().tcp(53, 1).build(), denied},
        {"what has none does not match", ping, next()},
        {"ESP has none", ipv4().protocol(50).payload(std::vector<u8>(20)).build(), next()}}},
      {"drop protocol udp dport 1024-2047",
       "",
       {{"below", ipv4().udp(1, 1023).build(), next()},
        {"the first", ipv4().udp(1, 1024).build(), denied},
        {"the last", ipv4().udp(1, 2047).build(), denied},
        {"above", ipv4().udp(1, 2048).build(), next()}}},
      {"drop flags syn,!ack",
       "",
       {{"the first of a connection", web, denied},
        {"its answer", ipv4().tcp(80, 40000, 0x12).build(), next()},
        {"another flag beside", ipv4().tcp(1, 2, 0xc2).build(), denied},
        {"UDP has none", dns, next()}}},
      {"drop vlan 5\ndrop vlan 0 protocol udp",
       "",
       {{"of the only tag", ethernet().vlan(5).ipv4("1.2.3.4", "1.2.3.5").tcp(1, 2).build(), denied},
        {"of two the one in front", ethernet().vlan(5).vlan(6).ipv4("1.2.3.4", "1.2.3.5").tcp(1, 2).build(), denied},
        {"not the one behind it", ethernet().vlan(6).vlan(5).ipv4("1.2.3.4", "1.2.3.5").tcp(1, 2).build(), next()},
        {"no tag", dns, denied},
        {"priority alone", ethernet().vlan(0, 5).ipv4("1.2.3.4", "1.2.3.5").udp(1, 2).build(), denied},
        {"without IP", FrameBuilder().ethernet(station(1), broadcast, 0x88b5).vlan(5).pad(60), denied}}},
      {"drop fragments src 192.0.2.0/24",
       "",
       {{"a whole packet", long_udp, next()},
        {"a first fragment", fragment(long_udp, 0, true), next()},
        {"a later one", fragment(long_udp, 8, true), denied},
        {"the last", fragment(long_udp, 8, false), denied}}},
      {"drop fragments",
       "",
       {{"IPv6 whole", long_udp6, next()},
        {"a fragment header for nothing", fragment6(long_udp6, 0, false), next()},
        {"a first fragment", fragment6(long_udp6, 0, true), next()},
        {"a later one", fragment6(long_udp6, 8, false), denied}}},
      {"permit protocol udp dport 2\npermit src 10.0.0.0/8 protocol udp",
       "otherwise = \"drop\"\n",
       {{"a first fragment has ports", fragment(long_udp, 0, true), next()},
        {"a later one matches no rule with ports", fragment(long_udp, 8, true), denied},
        {"but one without", fragment(ipv4("10.0.0.1").udp(9, 9).payload(std::vector<u8>(9)).build(), 8, true), next()}}},
      {"drop protocol tcp dport 80",
       "",
       {{"less than a tag", cut(ethernet().vlan(1).build(), 15), truncated},
        {"less than IPv4", cut(web, 14 + 19), truncated},
        {"less than its length says", cut(web, web.size() - 1), truncated},
        {"less than TCP", ipv4().protocol(6).payload(std::vector<u8>(19)).build(), truncated},
        {"padding is not TCP", ipv4().protocol(6).payload(std::vector<u8>(4)).pad(60), truncated},
        {"less than UDP", ipv4().protocol(17).payload(std::vector<u8>(7)).build(), truncated},
        {"padding behind a whole packet", ipv4().tcp(1, 80).pad(70), denied},
        {"a header of 16 bytes", changed(web, 14, 0x44), bad_header},
        {"version 5", changed(web, 14, 0x55), bad_header},
        {"shorter in all than its header", changed(changed(web, 16, 0), 17, 19), bad_header},
        {"a TCP header of 16 bytes", changed(web, 14 + 20 + 12, 0x40), bad_header},
        {"options", with_ipv4_options(web, 10), denied},
        {"less than IPv6", cut(web6, 14 + 39), truncated},
        {"less than the length of IPv6 says", cut(web6, web6.size() - 1), truncated},
        {"IPv6 that says 4", changed(web6, 14, 0x40), bad_header}}},
      {"drop protocol tcp dport 80",
       "",
       {{"behind options of IPv6", with_options(web6), denied},
        {"behind hop-by-hop, routing and destination options",
         with_options(with_options(with_options(web6), IPPROTO_ROUTING), IPPROTO_HOPOPTS), denied},
        {"behind 4 of them", deepest, denied},
        {"a chain without end", deep, bad_header},
        {"options longer than the packet", changed(with_options(web6), behind_ipv6 + 1, 200), bad_header},
        {"options that are cut", ipv6().protocol(60).payload(std::vector<u8>(7)).build(), truncated},
        {"authentication is a protocol", with_options(ipv6().protocol(51).payload(std::vector<u8>(30)).build()), next()}}},
      {"drop src 0.0.0.0/0", "", {{"all of IPv4", web, denied}, {"none of IPv6", web6, next()}, {"nor ARP", arp, next()}}},
      {"drop protocol 50\npermit type 0x86dd protocol tcp\ndrop protocol tcp",
       "",
       {{"ESP", ipv4().protocol(50).payload(std::vector<u8>(20)).build(), denied},
        {"IPv6 alone", web6, next()},
        {"IPv4 then", web, denied}}},
  };
}

TEST(Acl, DoesAsItsRulesSay) {
  for (const Claims& each : claims()) {
    SCOPED_TRACE(each.rules);
    Acl acl(each.rules, each.keys);
    EXPECT_EQ(differences(acl.user, each.cases), "");
    RuleSet set{rules_of(each.rules), each.keys.find("drop") != std::string::npos};
    Reference reference(std::move(set));
    for (const Case& one : each.cases) EXPECT_EQ(reference.judge(one.in), one.verdict) << "of the reference: " << one.claim;
  }
}

TEST(Acl, AFrameShorterThanEthernetIsTruncated) {
  Acl acl("permit");
  EXPECT_EQ(acl.run(Packet(13)), truncated);
  EXPECT_EQ(acl.run(Packet(0)), truncated);
}

TEST(Acl, NamesWhatItDropsAndCounts) {
  EXPECT_EQ(weir_plugin.drops, (std::vector<std::string>{"denied", "truncated", "bad_header", "states_full"}));
  EXPECT_EQ(weir_plugin.punts, (std::vector<std::string>{"rules", "log", "extensions", "hidden", "swapped", "opens", "changes", "error"}));
  EXPECT_EQ(weir_plugin.counters,
            (std::vector<std::string>{"permitted", "denied", "otherwise", "logged", "unlogged", "established", "related"}));
}

TEST(Acl, CountsTheHitsOfEachRule) {
  Acl acl("drop protocol tcp dport 80 name web\npermit protocol udp\ndrop protocol icmp");
  for (int i = 0; i < 3; ++i) acl.run(ipv4().tcp(1, 80).build());
  for (int i = 0; i < 2; ++i) acl.run(ipv4().udp(1, 80).build());
  acl.run(ipv6().tcp(1, 81).build());
  EXPECT_EQ(acl.user.gauge("hits.web"), 3u);
  EXPECT_EQ(acl.user.gauge("hits.2"), 2u);
  EXPECT_EQ(acl.user.gauge("hits.3"), 0u);
  EXPECT_EQ(acl.user.gauge("hits.otherwise"), 1u);
  EXPECT_EQ(acl.user.counter("denied"), 3u);
  EXPECT_EQ(acl.user.counter("permitted"), 2u);
  EXPECT_EQ(acl.user.counter("otherwise"), 1u);
}

TEST(Acl, JudgesAWholeBurstOfAllKinds) {
  Dice dice(7);
  Acl acl("drop protocol tcp\npermit src 10.0.0.0/8\ndrop type 0x0806");
  Reference reference({rules_of("drop protocol tcp\npermit src 10.0.0.0/8\ndrop type 0x0806"), false});
  for (u32 size = 1; size <= Burst::capacity; ++size) {
    std::vector<std::pair<u32, Packet>> frames;
    for (u32 i = 0; i < size; ++i) frames.emplace_back(0, dice.frame());
    const std::vector<Outcome> out = acl.user.run(frames);
    for (u32 i = 0; i < size; ++i) ASSERT_EQ(out[i].verdict, reference.judge(frames[i].second)) << "frame " << i << " of " << size;
  }
}

TEST(Acl, RandomRulesAreLookedUpAsOneByOne) {
  const u32 seed = test_seed();
  SCOPED_TRACE(fmt::format("WEIR_TEST_SEED={}", seed));
  Dice dice(seed);
  for (const u32 count : {1u, 2u, 5u, 20u, 100u, 400u, 1500u}) {
    const std::string text = dice.rules(count, true);
    const bool drops = dice.one_in(2);
    Acl acl(text, drops ? "otherwise = \"drop\"\n" : "");
    Reference reference({rules_of(text), drops});
    for (u32 i = 0; i < 6000; ++i) {
      const Packet bytes = dice.frame();
      ASSERT_EQ(acl.run(bytes), reference.judge(bytes)) << fmt::format("{:02x} under\n{}", fmt::join(bytes, " "), count > 20 ? "" : text);
    }
    for (u32 i = 0; count <= 200 && i < count; ++i)
      ASSERT_EQ(acl.user.gauge(fmt::format("hits.{}", i + 1)), reference.hits()[i]) << "rule " << i + 1;
    EXPECT_EQ(acl.user.gauge("hits.otherwise"), reference.hits()[count]);
  }
}

TEST(Acl, AnswersOfAllRules) {
  Acl acl("drop protocol udp name names\npermit src 10.0.0.0/8");
  acl.run(ipv4().udp(1, 2).build());
  std::vector<std::string> words{"hits"};
  const auto hits = nlohmann::json::parse(*acl.user.stage().answer(words));
  ASSERT_EQ(hits.size(), 3u);
  EXPECT_EQ(hits[0], (nlohmann::json{{"number", 1}, {"name", "names"}, {"rule", "drop protocol 17"}, {"hits", 1}}));
  EXPECT_EQ(hits[1]["rule"], "permit src 10.0.0.0/8");
  EXPECT_EQ(hits[2]["name"], "otherwise");
  words = {"what"};
  EXPECT_THAT(acl.user.stage().answer(words).error().what, HasSubstr("hits"));
}

TEST(Acl, ShowsTheRulesWithMostHitsOfMany) {
  std::string text;
  for (u32 i = 0; i < 1000; ++i) text += fmt::format("drop protocol udp dport {}\n", i);
  Acl acl(text);
  for (int i = 0; i < 5; ++i) acl.run(ipv4().udp(1, 900).build());
  EXPECT_EQ(acl.user.gauge("hits.901"), 5u);
  EXPECT_EQ(acl.user.gauge("rules"), 1000u);
  EXPECT_LE(acl.user.stage().gauges().size(), 300u);
}

TEST(Acl, TakesRulesOfTheConfigurationInFrontOfThoseOfTheFile) {
  RulesFile file("drop protocol udp\n");
  FakeContext context({"p0"});
  PlainMemory memory;
  auto made = UserHalf::make(
      weir_plugin, file.key() + R"(rules = [{ action = "permit", protocol = "udp", dport = "50-60", src = "192.0.2.0/24", name = "dns" },
                                    { action = "drop", flags = "syn,!ack", vlan = 3, log = true }])",
      context, memory);
  ASSERT_TRUE(made) << made.error().what;
  EXPECT_EQ(made->run(0, ipv4().udp(1, 53).build()).verdict, next());
  EXPECT_EQ(made->run(0, ipv4().udp(1, 80).build()).verdict, denied);
  EXPECT_EQ(made->gauge("hits.dns"), 1u);
  EXPECT_EQ(made->gauge("hits.3"), 1u);
}

std::string refusal(const std::string& keys) {
  FakeContext context({"p0"});
  const Result<ConfigNode> node = context.keys(weir_plugin, keys);
  if (!node) return node.error().what;
  const auto made = weir_plugin.make(*node, context);
  return made ? "" : made.error().what;
}

TEST(Acl, RefusesWhatNoFrameMatches) {
  const auto refused = [](const std::string& rule, std::string_view key, std::string_view because) {
    const std::string what = refusal("rules = [{ action = \"drop\", " + rule + " }]");
    EXPECT_THAT(what, StartsWith("test.toml:6:")) << rule;
    EXPECT_THAT(what, HasSubstr(fmt::format("rules[0].{}: ", key))) << rule;
    EXPECT_THAT(what, HasSubstr(because)) << rule;
  };
  refused(R"(src = "192.0.2.1", dst = "2001:db8::1")", "dst", "make two rules");
  refused(R"(protocol = "icmp", dport = 80)", "dport", "ports of protocol 1, which has none");
  refused(R"(protocol = "udp", flags = "syn")", "flags", "make it tcp");
  refused(R"(fragments = true, dport = 80)", "fragments", "no ports");
  refused(R"(fragments = true, flags = "syn")", "fragments", "no ports");
  refused(R"(type = 0x0806, src = "192.0.2.1")", "type", "only IP has");
  refused(R"(type = 0x0800, src = "2001:db8::1")", "src", "leave that out");
  refused(R"(flags = "syn,ackk")", "flags", "of fin, syn");
  refused(R"(flags = "syn,!syn")", "flags", "twice");
  refused(R"(flags = "")", "flags", "of fin, syn");
  refused(R"(vlan = 4095)", "vlan", "0 to 4094");
  refused(R"(dport = "80-70")", "dport", "65535");
  refused(R"(name = "a b")", "name", "letters");
  refused(R"(name = "1")", "name", "no digit in front");
  refused(R"(name = "otherwise")", "name", "choose another");
  refused(R"(established = true)", "established", "");
  EXPECT_THAT(refusal("rules = [{ action = \"deny\" }]"), HasSubstr("permit"));
  EXPECT_THAT(refusal("rules = []"), HasSubstr("there is no rule"));
  EXPECT_THAT(refusal(""), HasSubstr("there is no rule"));
  EXPECT_THAT(refusal(R"(rules = [{ action = "drop", name = "a" }, { action = "drop", name = "a" }])"),
              HasSubstr("rules[1].name: is that of rule 1 too"));
}

TEST(Acl, TellsAllMistakesAtOnce) {
  RulesFile file("drop src 10.0.0.1/8\npermit protocol icmp dport 1\n");
  const std::string what =
      refusal(file.key() + R"(rules = [{ action = "drop", fragments = true, dport = 1 }, { action = "drop", flags = "x" }])");
  EXPECT_EQ(std::ranges::count(what, '\n'), 3) << what;
  EXPECT_THAT(what, HasSubstr("rules[0].fragments"));
  EXPECT_THAT(what, HasSubstr("rules[1].flags"));
  EXPECT_THAT(what, HasSubstr(file.name() +
                              ":1:10: src is \"10.0.0.1/8\", which is not zero behind its first 8 bits; the network is \"10.0.0.0/8\""));
  EXPECT_THAT(what, HasSubstr(file.name() + ":2:28: dport: "));
}

TEST(Acl, AFileOfRulesIsToldByLineAndColumn) {
  EXPECT_EQ(refused_lines("# nothing\n\n  permit src 10.0.0.0/8 # why\r\n\tdrop\tlog fragments name x"), "");
  EXPECT_EQ(refused_lines("allow"), "rules.acl:1:1: action is \"allow\", must be permit or drop");
  EXPECT_EQ(
      refused_lines("\ndrop dprot 1"),
      "rules.acl:2:6: there is no key \"dprot\"; allowed: src, dst, protocol, sport, dport, flags, vlan, type, name, fragments, state, "
      "log\n"
      "rules.acl:2:12: there is no key \"1\"; allowed: src, dst, protocol, sport, dport, flags, vlan, type, name, fragments, state, "
      "log");
  EXPECT_EQ(refused_lines("drop dport"), "rules.acl:1:6: dport has no value behind it");
  EXPECT_EQ(refused_lines("drop dport # 1"), "rules.acl:1:6: dport has no value behind it");
  EXPECT_EQ(refused_lines("drop log log"), "rules.acl:1:10: log is given twice");
  EXPECT_EQ(refused_lines("drop dport 65536"),
            "rules.acl:1:12: dport is \"65536\", must be an integer from 0 to 65535, or a range of them such as \"0-65535\"");
  EXPECT_EQ(refused_lines("drop protocol foo"),
            "rules.acl:1:15: protocol is \"foo\", must be tcp, udp, icmp, icmpv6, or a number from 0 to 255");
  EXPECT_EQ(refused_lines("drop vlan -1"), "rules.acl:1:11: vlan is \"-1\", must be an integer from 0 to 4094");
  EXPECT_THAT(refused_lines("drop src 10.0.0.0/33"), HasSubstr("must be a prefix such as"));
  EXPECT_THAT(refused_lines("drop src 10.0.0.0/"), HasSubstr("must be a prefix such as"));
  EXPECT_EQ(refused_lines("drop src 10.0.0.1 dst ::1"),
            "rules.acl:1:23: dst: is not of the IP version of src, so that no frame matches; make two rules of it");
  EXPECT_THAT(refused_lines("drop\ndrop\ndrop\n", 2), HasSubstr("rules.acl:3:1: is one rule too many"));
  std::string many;
  for (int i = 0; i < 300; ++i) many += "what\n";
  EXPECT_THAT(refused_lines(many), HasSubstr("has 200 mistakes more"));
  EXPECT_THAT(refusal("file = \"/nonexistent/rules.acl\""), HasSubstr("file: read the rules of /nonexistent/rules.acl: No such file"));
  EXPECT_THAT(refusal("file = \"/tmp\""), HasSubstr("no regular file"));
}

TEST(Acl, AFileOfAnythingIsNoHarm) {
  const u32 seed = test_seed();
  SCOPED_TRACE(fmt::format("WEIR_TEST_SEED={}", seed));
  std::mt19937 dice(seed);
  static constexpr std::string_view words[] = {"permit", "drop", " ",        "\n",   "src",   "10.0.0.0/8", "::/0",     "/",   "dport",
                                               "1-",     "-",    "syn,",     "!",    "flags", "\0x",        "#",        "log", "name",
                                               "65535",  "0x",   "\xff\xfe", "vlan", "type",  "protocol",   "fragments"};
  for (int i = 0; i < 20000; ++i) {
    std::string text;
    for (u32 n = dice() % 12; n > 0; --n) text += std::string(words[dice() % std::size(words)]) + (dice() % 2 ? " " : "");
    std::string lines;
    const auto rules = acl::parse_rules(text, "rules.acl", 5, lines);
    ASSERT_LE(rules.size(), 6u);
  }
}

TEST(Acl, KeepsTheLastSamples) {
  Acl acl("drop protocol udp log\npermit protocol tcp log");
  for (u32 i = 0; i < 300; ++i) acl.run(ipv4().udp(1, static_cast<u16>(i)).build());
  acl.run(ipv4().tcp(1, 2).build());
  acl.run(ipv4().icmp(1, 2).build());
  EXPECT_EQ(acl.user.counter("logged"), 301u);
  const std::vector<std::string> words{"samples"};
  const auto samples = nlohmann::json::parse(*acl.user.stage().answer(words));
  ASSERT_EQ(samples.size(), 256u);
  EXPECT_EQ(samples[0]["number"], 301 - 255);
  EXPECT_EQ(samples[254]["rule"], "1");
  EXPECT_EQ(samples[254]["action"], "drop");
  EXPECT_EQ(samples[255]["action"], "permit");
  EXPECT_EQ(samples[255]["in"], "p0");
  EXPECT_EQ(samples[255]["length"], ipv4().tcp(1, 2).build().size());
  EXPECT_EQ(samples[255]["bytes"], fmt::format("{:02x}", fmt::join(ipv4().tcp(1, 2).build(), "")));
}

TEST(Acl, GivesTheHitsOfRulesThatStayToTheStageThatTakesItsPlace) {
  Acl acl("drop protocol tcp dport 80 name web\npermit protocol udp");
  for (int i = 0; i < 3; ++i) acl.run(ipv4().tcp(1, 80).build());
  acl.run(ipv4().udp(1, 80).build());
  acl.run(ipv4().icmp(1, 0).build());
  acl.file.write("drop protocol udp\ndrop protocol tcp dport 80 name web\n");
  PlainMemory memory;
  auto made = UserHalf::make(weir_plugin, acl.keys, acl.context, memory);
  ASSERT_TRUE(made) << made.error().what;
  EXPECT_FALSE(acl.user.stage().does_as(made->stage()));
  made->stage().take_state(Remains(acl.memory, ACL_UNIT));
  EXPECT_EQ(made->run(0, ipv4().udp(1, 80).build()).verdict, denied);
  EXPECT_EQ(made->gauge("hits.web"), 3u);
  EXPECT_EQ(made->gauge("hits.1"), 1u) << "another action is another rule";
  EXPECT_EQ(made->gauge("hits.otherwise"), 1u);
  for (u32 second = 1; second < 5; ++second) made->stage().tick(second);
  EXPECT_EQ(made->gauge("hits.web"), 3u);
}

TEST(Acl, TakesNoHitsOfWhatIsNoTable) {
  const u32 seed = test_seed();
  SCOPED_TRACE(fmt::format("WEIR_TEST_SEED={}", seed));
  std::mt19937_64 dice(seed);
  Acl acl("drop protocol tcp");
  for (int round = 0; round < 200; ++round) {
    PlainMemory memory;
    acl_control& control = memory.array<acl_control>("rule_control", 1)->front();
    for (u64& word : std::span(reinterpret_cast<u64*>(&control), sizeof control / sizeof(u64))) word = dice() >> dice() % 64;
    control.rows = 1 + dice() % 4;  // as many as the map is made with
    if (round % 2 == 0) control.room = ACL_UNIT;
    acl.user.stage().take_state(Remains(memory, ACL_UNIT));
  }
  EXPECT_EQ(acl.run(ipv4().tcp(1, 2).build()), denied);
}

TEST(Acl, KnowsWhetherTheFileOfRulesHasChanged) {
  Acl acl("drop protocol tcp dport 80");
  const auto does_as = [&](std::string_view text) {
    acl.file.write(text);
    const Result<ConfigNode> keys = acl.context.keys(weir_plugin, acl.keys);
    return acl.user.stage().does_as(**weir_plugin.make(*keys, acl.context));
  };
  EXPECT_TRUE(does_as("# a comment\ndrop dport 80-80   protocol 6"));
  EXPECT_FALSE(does_as("drop protocol tcp dport 80 log"));
  EXPECT_FALSE(does_as("drop protocol tcp dport 80 name web"));
  EXPECT_FALSE(does_as("permit protocol tcp dport 80"));
  EXPECT_FALSE(does_as("drop protocol tcp dport 80\ndrop"));
}

TEST(Acl, GoesOnCountingAfterARestart) {
  Acl acl("drop protocol tcp dport 80 name web\npermit protocol udp");
  for (int i = 0; i < 3; ++i) acl.run(ipv4().tcp(1, 80).build());
  acl.user = acl.bound();
  acl.run(ipv4().tcp(1, 80).build());
  EXPECT_EQ(acl.user.gauge("hits.web"), 4u);
  for (u32 second = 1; second < 5; ++second) acl.user.stage().tick(second);
  EXPECT_EQ(acl.user.gauge("hits.web"), 4u);
  acl.file.write("drop protocol tcp dport 81\ndrop protocol tcp dport 80 name web\n");
  acl.user = acl.bound();
  EXPECT_EQ(acl.user.gauge("hits.1"), 0u);
  EXPECT_EQ(acl.user.gauge("hits.web"), 4u);
}

// ACL_MAX_RULES of them, as of a blocklist, or as of a firewall.
std::string blocklist(u32 count) {
  std::mt19937 dice(1);
  std::string text;
  for (u32 i = 0; i < count; ++i) text += fmt::format("drop src {}.{}.{}.{}\n", 1 + dice() % 200, dice() % 256, dice() % 256, dice() % 256);
  return text;
}

TEST(Acl, BuildsAsManyRulesAsThereMayBe) {
  const auto start = std::chrono::steady_clock::now();
  Acl acl(blocklist(ACL_MAX_RULES));
  RecordProperty("seconds", std::to_string(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()));
  EXPECT_EQ(acl.user.gauge("rules"), u64{ACL_MAX_RULES});
  EXPECT_EQ(acl.user.gauge("kernel_rules"), u64{ACL_MAX_RULES});
  const std::vector<Rule> rules = rules_of(blocklist(ACL_MAX_RULES));
  for (u32 i = 0; i < 1000; ++i) EXPECT_EQ(acl.run(ipv4(text_of(rules[i * 99].src->address)).udp(1, 2).build()), denied);
  EXPECT_EQ(acl.run(ipv4("250.0.0.1").udp(1, 2).build()), next());
}

// Established flows.

constexpr u8 fin = ACL_FIN, syn = ACL_SYN, rst = ACL_RST, ack = ACL_ACK;
const Verdict states_full = drop(ACL_STATES_FULL);

u32 now_s() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<u32>(now.tv_sec);
}

// Between a client at 192.0.2.1 and a server at 198.51.100.1.
FrameBuilder there() { return ipv4(); }
FrameBuilder back() { return ipv4("198.51.100.1", "192.0.2.1"); }
Packet question(u16 port = 5000) { return there().udp(port, 53).payload("who").build(); }
Packet answer(u16 port = 5000) { return back().udp(53, port).payload("me").build(); }
Packet client(u8 flags, u16 port = 40000) { return there().tcp(port, 80, flags).build(); }
Packet server(u8 flags, u16 port = 40000) { return back().tcp(80, port, flags).build(); }
Packet about(FrameBuilder error, const Packet& packet, std::size_t bytes = 0) {
  return error.payload(std::span(packet).subspan(14, bytes == 0 ? packet.size() - 14 : bytes)).build();
}

constexpr const char* opening = "permit src 192.0.2.0/24 state name open\npermit src 2001:db8::/64 state name open6\n";
constexpr const char* closed = "drop protocol 255\n";

// A stage that shares its table of flows.
struct Side {
  Side(std::string_view rules, std::string more, InCommon& all)
      : file(rules), keys("states = \"edge\"\notherwise = \"drop\"\n" + std::move(more) + file.key()), memory(&all), user(bound(memory)) {}
  UserHalf bound(PlainMemory& to) {
    Result<UserHalf> made = UserHalf::make(weir_plugin, keys, context, to);
    if (!made) broken(made.error().what.c_str());
    return std::move(*made);
  }
  Verdict run(const Packet& bytes) { return user.run(0, bytes).verdict; }
  RulesFile file;
  std::string keys;
  FakeContext context{{"p0"}};
  PlainMemory memory;
  UserHalf user;
};

// The inside may open, the outside may answer.
struct Wall {
  explicit Wall(const std::string& more = "") : inside(opening, more, shared), outside(closed, more, shared) {}
  void tick(u32 second) {
    inside.user.stage().tick(second);
    outside.user.stage().tick(second);
  }
  [[nodiscard]] u64 states() const { return inside.user.gauge("states"); }
  // A reload of the inside: a stage with memory of its own takes the place of the one before.
  void reload(std::string_view rules) {
    inside.file.write(rules);
    PlainMemory& memory = *next.emplace_back(std::make_unique<PlainMemory>(&shared));
    UserHalf made = inside.bound(memory);
    made.stage().take_state(Remains(next.size() > 1 ? **(next.end() - 2) : inside.memory, ACL_UNIT));
    std::swap(inside.user, made);
    inside.user.stage().in_place();
  }
  InCommon shared;
  Side inside, outside;
  std::vector<std::unique_ptr<PlainMemory>> next;
};

struct Step {
  const char* claim;
  bool from_inside;
  Packet bytes;
  Verdict wanted;
};

std::vector<Step> conversation() {
  const auto six = [] { return ipv6("2001:db8::1", "2001:db8:1::1"); };
  const auto six_back = [] { return ipv6("2001:db8:1::1", "2001:db8::1"); };
  const std::vector<u8> much(64);
  return {
      {"an answer to nothing", false, server(syn | ack), denied},
      {"a connection that began elsewhere", true, client(ack), denied},
      {"our answer to nothing", true, client(syn | ack), denied},
      {"SYN with FIN", true, client(syn | fin), denied},
      {"the first of a connection", true, client(syn), next()},
      {"again", true, client(syn), next()},
      {"its answer", false, server(syn | ack), next()},
      {"what follows", true, client(ack), next()},
      {"and the other way", false, server(ack), next()},
      {"with another tag", false, ethernet().vlan(9).ipv4("198.51.100.1", "192.0.2.1").tcp(80, 40000).build(), next()},
      {"from another port", false, back().tcp(81, 40000).build(), denied},
      {"to another port", false, server(ack, 40001), denied},
      {"from another address", false, ipv4("198.51.100.2", "192.0.2.1").tcp(80, 40000).build(), denied},
      {"a connection the other way is a new one", false, server(syn), denied},
      {"the end", true, client(fin | ack), next()},
      {"its answer", false, server(fin | ack), next()},
      {"the last", true, client(ack), next()},
      {"the port again", true, client(syn), next()},
      {"a reset", false, server(rst | ack), next()},
      {"UDP that nobody asked for", false, answer(), denied},
      {"a question", true, question(), next()},
      {"its answer", false, answer(), next()},
      {"to another port", false, answer(5001), denied},
      {"an echo", true, there().icmp(8, 0, 7).build(), next()},
      {"its answer", false, back().icmp(0, 0, 7).build(), next()},
      {"of another one", false, back().icmp(0, 0, 8).build(), denied},
      {"an echo the other way", false, back().icmp(8, 0, 7).build(), denied},
      {"our answer to no echo", true, there().icmp(0, 0, 9).build(), denied},
      {"and none to it", false, back().icmp(8, 0, 9).build(), denied},
      {"other ICMP has no flow, and goes", true, there().icmp(13, 0).build(), next()},
      {"one way", false, back().icmp(14, 0).build(), denied},
      {"ESP that nobody began", false, back().protocol(50).payload(much).build(), denied},
      {"ESP", true, there().protocol(50).payload(much).build(), next()},
      {"its answer", false, back().protocol(50).payload(much).build(), next()},
      {"IPv6", true, six().tcp(40000, 80, syn).build(), next()},
      {"its answer", false, six_back().tcp(80, 40000, syn | ack).build(), next()},
      {"behind options", false, with_options(six_back().tcp(80, 40000).build()), next()},
      {"an echo of IPv6", true, six().icmp(128, 0, 7).build(), next()},
      {"its answer", false, six_back().icmp(129, 0, 7).build(), next()},
      {"not of ICMP", false, six_back().icmp(0, 0, 7).build(), denied},
      {"a later fragment has no ports, and goes by rules", true, fragment(there().udp(5000, 53).payload(much).build(), 8, false), next()},
      {"also of an answer", false, fragment(back().udp(53, 5000).payload(much).build(), 8, false), denied},
      {"a first one is of its flow", false, fragment(back().udp(53, 5000).payload(much).build(), 0, true), next()},
      {"ARP wants its own", true, FrameBuilder().ethernet(station(1), broadcast, ETH_P_ARP).pad(60), denied}};
}

TEST(AclStates, AnswersNeedNoRule) {
  Wall wall;
  for (const Step& step : conversation())
    EXPECT_EQ((step.from_inside ? wall.inside : wall.outside).run(step.bytes), step.wanted) << step.claim;
  EXPECT_EQ(wall.states(), 6u);
  EXPECT_EQ(wall.inside.user.gauge("hits.open"), 8u) << "first frames, again or not, and what has no flow";
  EXPECT_EQ(wall.outside.user.counter("established"), 12u);
}

TEST(AclStates, OneBurstMayOpenAndGoOn) {
  Wall wall;
  const std::vector<Outcome> out =
      wall.inside.user.run({{0, client(ack)}, {0, client(syn)}, {0, server(syn | ack)}, {0, client(ack)}, {0, question()}, {0, answer()}});
  std::vector<Verdict> verdicts;
  for (const Outcome& each : out) verdicts.push_back(each.verdict);
  EXPECT_EQ(verdicts, (std::vector{denied, next(), next(), next(), next(), next()}));
}

TEST(AclStates, APickUpTakesConnectionsInTheMiddle) {
  Wall wall("pick_up = true\n");
  EXPECT_EQ(wall.outside.run(server(ack)), denied);
  EXPECT_EQ(wall.inside.run(client(fin | ack)), next());
  EXPECT_EQ(wall.outside.run(server(ack)), denied) << "one that ends is none";
  EXPECT_EQ(wall.inside.run(client(ack)), next());
  EXPECT_EQ(wall.outside.run(server(ack)), next());
}

TEST(AclStates, ErrorsAboutAFlowReachItsSender) {
  Wall wall;
  const auto router = [](const std::string& to = "192.0.2.1") { return ipv4("203.0.113.1", to); };
  EXPECT_EQ(wall.outside.run(about(router().icmp(3, 1), question())), denied) << "about nothing";
  wall.inside.run(question());
  wall.inside.run(there().icmp(8, 0, 7).build());
  EXPECT_EQ(wall.outside.run(about(router().icmp(3, 1), question())), next());
  EXPECT_EQ(wall.outside.run(about(router().icmp(11, 0), question(), 28)), next()) << "with 8 bytes of it";
  EXPECT_EQ(wall.outside.run(about(router().icmp(12, 0), question(), 27)), denied) << "with less";
  EXPECT_EQ(wall.outside.run(about(router("192.0.2.9").icmp(3, 1), question())), denied) << "to another";
  EXPECT_EQ(wall.outside.run(about(router().icmp(3, 1), question(5001))), denied) << "about another";
  EXPECT_EQ(wall.outside.run(about(router().icmp(5, 1), question())), denied) << "a redirect";
  EXPECT_EQ(wall.outside.run(about(router().icmp(3, 1), there().icmp(8, 0, 7).build())), next()) << "about an echo";
  EXPECT_EQ(wall.inside.run(about(there().icmp(3, 3), answer())), next()) << "about an answer, to the one who answered";
  const Packet six = ipv6().tcp(1, 2, syn).build();
  wall.inside.run(six);
  EXPECT_EQ(wall.outside.run(about(ipv6("2001:db8:9::1", "2001:db8::1").icmp(2, 0), six)), next()) << "too big";
  EXPECT_EQ(wall.outside.run(about(ipv6("2001:db8:9::1", "2001:db8::1").icmp(137, 0), six)), denied);
  EXPECT_EQ(wall.outside.user.counter("related"), 4u);
  EXPECT_EQ(wall.inside.user.gauge("states"), 3u) << "an error opens nothing";
}

TEST(AclStates, WhatFindsNoRoomIsDroppedByName) {
  Wall wall("max_states = 64\n");
  for (u16 port = 0; port < 64; ++port) {
    ASSERT_EQ(wall.inside.run(question(port)), next());
    ASSERT_EQ(wall.outside.run(answer(port)), next());
  }
  const u32 start = now_s();
  wall.tick(start + 10);
  for (u16 port = 100; port < 120; ++port) EXPECT_EQ(wall.inside.run(question(port)), states_full);
  EXPECT_EQ(wall.states(), 64u);
  EXPECT_EQ(wall.inside.user.gauge("states_refused"), 20u);
  EXPECT_EQ(wall.inside.user.gauge("hits.open"), 84u);
  EXPECT_EQ(wall.inside.user.counter("permitted"), 64u);
  for (u16 port = 0; port < 64; ++port) EXPECT_EQ(wall.outside.run(answer(port)), next()) << "those that are there stay";
  EXPECT_EQ(wall.inside.run(question(0)), next());
}

TEST(AclStates, OneWithoutAnAnswerGivesItsPlace) {
  Wall wall("max_states = 64\n");
  const u32 start = now_s() + 1;
  wall.tick(start);
  for (u16 port = 0; port < 64; ++port) ASSERT_EQ(wall.inside.run(client(syn, port)), next());
  for (u16 port = 100; port < 140; ++port) EXPECT_EQ(wall.inside.run(client(syn, port)), states_full) << "within 2 seconds";
  wall.tick(start + 2);
  u32 permitted = 0;
  for (u16 port = 100; port < 140; ++port) permitted += wall.inside.run(client(syn, port)) == next();
  EXPECT_GT(permitted, 20u);
  EXPECT_EQ(wall.states(), 64u);
  EXPECT_EQ(wall.inside.user.gauge("states_evicted"), permitted);
}

FakeCache::Flow cached(Packet bytes, u32 idle_s) {
  return {flow_key_of({.data = bytes.data(), .length = static_cast<u32>(bytes.size()), .port = PortSlot{0}}), idle_s};
}

TEST(AclStates, OneThatTheFlowCacheIsBusyWithKeepsItsPlace) {
  Wall wall("max_states = 64\n");
  FakeCache& cache = *wall.inside.context.flow_cache();
  const u32 start = now_s() + 1;
  wall.tick(start);
  for (u16 port = 0; port < 64; ++port) {
    ASSERT_EQ(wall.inside.run(question(port)), next());
    if (port < 20) cache.flows.push_back(cached(question(port), 0));
  }
  for (u32 second = 1; second < 10; ++second) wall.tick(start + second);
  u32 permitted = 0;
  for (u16 port = 100; port < 400; ++port) permitted += wall.inside.run(question(port)) == next();
  EXPECT_GT(permitted, 20u);
  for (u16 port = 0; port < 20; ++port) EXPECT_EQ(wall.outside.run(answer(port)), next()) << port;
}

TEST(AclStates, OfThoseThatGiveTheirPlacesTheCachedFlowsAloneAreTakenBack) {
  Wall wall("max_states = 64\n");
  FakeCache& cache = *wall.inside.context.flow_cache();
  const u32 start = now_s() + 1;
  wall.tick(start);
  for (u16 port = 0; port < 64; ++port) {
    ASSERT_EQ(wall.inside.run(question(port)), next());
    if (port < 20) cache.flows.push_back(cached(question(port), 100));
  }
  cache.flows.push_back(cached(ipv4("10.0.0.1").udp(1, 2).build(), 0));
  for (u32 second = 1; second < 10; ++second) wall.tick(start + second);
  EXPECT_EQ(cache.flows.size(), 21u);
  for (u16 port = 100; port < 400; ++port) wall.inside.run(question(port));
  EXPECT_GT(wall.inside.user.gauge("states_evicted"), 20u);
  wall.tick(start + 10);
  EXPECT_LT(cache.flows.size(), 21u);
  for (const FakeCache::Flow& flow : cache.flows) {
    if (flow.key.source_port() == 1) continue;
    EXPECT_EQ(wall.outside.run(answer(flow.key.source_port())), next()) << "it has its state";
  }
  ASSERT_FALSE(cache.flows.empty());
  EXPECT_EQ(cache.flows.back().key.source_port(), 1) << "a rule without `state` has permitted it";
}

TEST(AclStates, AFlowThatIsOverEndsWhateverComes) {
  for (const bool reset : {false, true}) {
    Wall wall;
    FakeCache& cache = *wall.inside.context.flow_cache();
    const u32 start = now_s() + 1;
    wall.tick(start);
    wall.inside.run(client(syn));
    wall.outside.run(server(syn | ack));
    wall.inside.run(client(reset ? rst : fin | ack));
    if (!reset) wall.outside.run(server(fin | ack));
    cache.flows.push_back(cached(server(ack), 0));
    for (u32 second = 60; second < 240; second += 60) {
      wall.tick(start + second);
      EXPECT_EQ(wall.outside.run(server(ack)), next()) << second;
    }
    wall.tick(start + 240);
    EXPECT_EQ(wall.states(), 0u);
    EXPECT_EQ(cache.flows.size(), 0u);
    EXPECT_EQ(wall.outside.run(server(ack)), denied);
  }
}

TEST(AclStates, FlowsEndWhenTheyAreIdle) {
  const u32 start = now_s() + 1;
  struct Timeout {
    const char* claim;
    std::vector<Packet> out_and_in;  // from the inside and from the outside, in turn
    u32 seconds;
    Packet probe;  // from the outside
  };
  const std::vector<Timeout> timeouts = {
      {"UDP", {question()}, 300, answer()},
      {"UDP, answered", {question(), answer()}, 300, answer()},
      {"a SYN", {client(syn)}, 240, server(syn | ack)},
      {"a connection", {client(syn), server(syn | ack), client(ack)}, 7440, server(ack)},
      {"one that ends", {client(syn), server(syn | ack), client(fin | ack)}, 240, server(ack)},
      {"one that is reset", {client(syn), server(rst | ack)}, 240, server(ack)},
      {"an echo", {there().icmp(8, 0, 7).build()}, 60, back().icmp(0, 0, 7).build()},
      {"ESP", {there().protocol(50).payload("x").build()}, 600, back().protocol(50).payload("x").build()}};
  for (const Timeout& each : timeouts) {
    SCOPED_TRACE(each.claim);
    const auto go = [&](u32 second) {
      Wall wall;
      wall.tick(start);
      for (std::size_t i = 0; i < each.out_and_in.size(); ++i)
        EXPECT_EQ((i % 2 == 0 ? wall.inside : wall.outside).run(each.out_and_in[i]), next());
      wall.tick(start + second);
      const u64 left = wall.states();
      EXPECT_EQ(wall.outside.user.gauge("states_idle"), 1 - left);
      EXPECT_EQ(wall.outside.run(each.probe), left == 1 ? next() : denied);
      return left;
    };
    EXPECT_EQ(go(each.seconds - 1), 1u);
    EXPECT_EQ(go(each.seconds), 0u);
  }
}

TEST(AclStates, AFrameKeepsItsFlow) {
  Wall wall("udp_idle_s = 5\n");
  const u32 start = now_s() + 1;
  wall.tick(start);
  wall.inside.run(question());
  for (u32 second = 4; second < 40; second += 4) {
    wall.tick(start + second);
    EXPECT_EQ((second % 8 == 0 ? wall.inside.run(question()) : wall.outside.run(answer())), next()) << second;
  }
}

TEST(AclStates, AFlowThatOnlyTheFlowCacheSeesIsNotIdle) {
  for (const bool answered : {false, true}) {
    Wall wall;
    const u32 start = now_s() + 1;
    wall.tick(start);
    Packet out = FrameBuilder().ethernet(station(1), station(2)).vlan(7).ipv4("192.0.2.1", "198.51.100.1").udp(5000, 53).build();
    Packet in = answer();
    wall.inside.run(out);
    if (answered) wall.outside.run(in);
    Packet& seen = answered ? in : out;
    FakeCache& cache = *wall.inside.context.flow_cache();
    const FlowKey key = flow_key_of({.data = seen.data(), .length = static_cast<u32>(seen.size()), .port = PortSlot{0}});
    ASSERT_TRUE(key);
    cache.flows = {{key, 10}};
    wall.tick(start + 400);
    EXPECT_EQ(wall.states(), 1u);
    cache.flows.front().idle_s = 299;
    wall.tick(start + 400 + 289);
    EXPECT_EQ(wall.states(), 1u);
    cache.flows.front().idle_s = 300;
    wall.tick(start + 400 + 290);
    EXPECT_EQ(wall.states(), 0u);
  }
}

TEST(AclStates, OtherRulesJudgeFlowsAnew) {
  Wall wall;
  wall.inside.run(question());
  wall.inside.run(client(syn));
  wall.inside.run(ipv6().icmp(128, 0, 7).build());
  Packet seen = answer(), other = ipv4("10.0.0.1").udp(1, 2).build(), held = server(ack);
  FakeCache& cache = *wall.inside.context.flow_cache();
  for (Packet* bytes : {&seen, &held})
    cache.flows.push_back({flow_key_of({.data = bytes->data(), .length = static_cast<u32>(bytes->size()), .port = PortSlot{0}}), 0});
  wall.reload(std::string("permit src 10.0.0.0/8\n") + opening);
  EXPECT_EQ(wall.states(), 3u) << "all stand";
  EXPECT_EQ(cache.flows.size(), 2u);
  wall.reload(std::string("drop protocol udp dport 53\n") + opening);
  EXPECT_EQ(wall.outside.run(answer()), denied);
  EXPECT_EQ(wall.outside.run(server(syn | ack)), next());
  ASSERT_EQ(cache.flows.size(), 1u) << "what was offloaded because of it is taken back";
  EXPECT_EQ(cache.flows.front().key.protocol(), FLOW_TCP);
  wall.reload("permit src 192.0.2.0/24\n");
  EXPECT_EQ(wall.states(), 0u) << "permitted, but without a state";
  EXPECT_EQ(wall.outside.run(server(ack)), denied);
  EXPECT_EQ(wall.inside.user.gauge("states_judged"), 3u);
}

TEST(AclStates, AReloadJudgesTheFrameThatHasOpenedAFlow) {
  struct Opened {
    const char* claim;
    std::string keys, stays, goes;  // by these rules
    Packet first, later;            // from the inside
  };
  const auto tagged = [](u16 vlan) { return ethernet().vlan(vlan).ipv4("192.0.2.1", "198.51.100.1").udp(5000, 53).payload("who").build(); };
  const Packet outer = ethernet().vlan(100, 0, ETH_P_8021AD).ipv4("192.0.2.1", "198.51.100.1").udp(5000, 53).payload("who").build();
  const std::vector<Opened> all = {
      {"in its VLAN", "", "permit vlan 100 state\n", "permit vlan 200 state\n", tagged(100), tagged(200)},
      {"in that of a provider", "", "permit vlan 100 state\n", "permit vlan 0 state\n", outer, outer},
      {"with its flags", "pick_up = true\n", "permit protocol tcp flags ack state\n", "permit protocol tcp flags syn,!ack state\n",
       client(ack), client(ack)},
      {"with SYN", "", "permit protocol tcp flags syn,!ack state\n", "permit protocol tcp flags ack state\n", client(syn), client(ack)}};
  for (const Opened& each : all) {
    SCOPED_TRACE(each.claim);
    Wall wall(each.keys);
    EXPECT_EQ(wall.inside.run(each.first), next());
    EXPECT_EQ(wall.inside.run(each.later), next());
    wall.reload(each.stays);
    EXPECT_EQ(wall.states(), 1u);
    wall.reload(each.goes);
    EXPECT_EQ(wall.states(), 0u);
  }
}

TEST(AclStates, ATableThatNobodyHadForAWhileIsEmpty) {
  for (const u32 ago : {1u, 100u}) {
    Wall wall;
    wall.tick(now_s() - ago);
    wall.inside.run(question());
    EXPECT_EQ(wall.states(), 1u);
    PlainMemory memory(&wall.shared);
    UserHalf later = wall.inside.bound(memory);
    EXPECT_EQ(later.gauge("states"), ago == 1 ? 1u : 0u);
    EXPECT_EQ(later.run(0, answer()).verdict, ago == 1 ? next() : denied);
  }
}

TEST(AclStates, FlowsOfAStageThatIsNoMoreEnd) {
  Wall wall;
  const u32 start = now_s() + 1;
  wall.tick(start);
  wall.inside.run(question());
  for (u32 second = 1; second < 10; ++second) wall.tick(start + second);
  EXPECT_EQ(wall.outside.run(answer()), next()) << "both are there";
  for (u32 second = 10; second < 13; ++second) wall.outside.user.stage().tick(start + second);
  EXPECT_EQ(wall.outside.run(answer()), denied);
}

TEST(AclStates, ARestartFindsThem) {
  Wall wall("udp_idle_s = 5\n");
  wall.inside.run(question());
  wall.inside.run(client(syn));
  wall.shared.restart();
  wall.inside.file.write(std::string("drop protocol tcp\n") + opening);
  wall.outside.user = wall.outside.bound(wall.outside.memory);
  wall.inside.user = wall.inside.bound(wall.inside.memory);
  EXPECT_EQ(wall.states(), 2u);
  EXPECT_EQ(wall.outside.run(answer()), next());
  const u32 start = now_s() + 1;
  for (u32 second = 0; second < 4; ++second) wall.tick(start + second);
  EXPECT_EQ(wall.outside.run(answer()), next());
  EXPECT_EQ(wall.outside.run(server(syn | ack)), denied) << "the rules of now would not open it";
}

TEST(AclStates, ListsAndFlushesThem) {
  Wall wall;
  wall.inside.run(client(syn));
  wall.outside.run(server(syn | ack));
  wall.inside.run(ipv6().icmp(128, 0, 7).build());
  const auto ask = [&](Side& side, std::vector<std::string> words) {
    const Result<std::string> text = side.user.stage().answer(words);
    return text ? nlohmann::json::parse(*text) : nlohmann::json(text.error().what);
  };
  EXPECT_EQ(ask(wall.inside, {"states"})["states"].size(), 2u);
  const nlohmann::json one = ask(wall.inside, {"states", "192.0.2.1"})["states"];
  ASSERT_EQ(one.size(), 1u);
  EXPECT_EQ(one[0]["from"], "192.0.2.1");
  EXPECT_EQ(one[0]["to"], "198.51.100.1");
  EXPECT_EQ(one[0]["from_port"], 40000);
  EXPECT_EQ(one[0]["to_port"], 80);
  EXPECT_EQ(one[0]["answered"], true);
  EXPECT_EQ(one[0]["rule"], "open");
  EXPECT_EQ(ask(wall.outside, {"states", "2001:db8::1"})["states"][0]["identifier"], 7);
  EXPECT_FALSE(ask(wall.outside, {"states"})["states"][0].contains("rule")) << "it is not one of its own";
  EXPECT_THAT(ask(wall.inside, {"states", "nowhere"}).get<std::string>(), HasSubstr("\"nowhere\" is no address"));
  EXPECT_EQ(ask(wall.outside, {"flush"})["flushed"], 2);
  EXPECT_EQ(wall.states(), 0u);
  EXPECT_EQ(wall.outside.run(server(ack)), denied);
  EXPECT_THAT(ask(wall.inside, {"nothing"}).get<std::string>(), HasSubstr("flush"));
}

TEST(AclStates, RefusesWhatStagesDoNotShare) {
  Acl open("permit state", "states = \"edge\"\n");
  const auto refusal_of = [&](const std::string& keys, std::string_view rules = "permit state") {
    open.file.write(rules);
    const Result<ConfigNode> node = open.context.keys(weir_plugin, keys + open.file.key());
    if (!node) return node.error().what;
    const auto made = weir_plugin.make(*node, open.context);
    return made ? std::string() : made.error().what;
  };
  EXPECT_EQ(refusal_of("states = \"edge\"\n"), "");
  EXPECT_THAT(refusal_of(""), HasSubstr("states: is missing, and rule 1 has `state`"));
  EXPECT_THAT(refusal_of("states = \"a b\"\n"), HasSubstr("states: is \"a b\", must be 1 to 32"));
  EXPECT_THAT(refusal_of("states = \"edge\"\nmax_states = 100\n"), HasSubstr("max_states: is 100, and 65536 in another stage"));
  EXPECT_THAT(refusal_of("states = \"edge\"\nudp_idle_s = 100\n"), HasSubstr("udp_idle_s: is 100, and 300 in another stage"));
  EXPECT_EQ(refusal_of("states = \"other\"\nmax_states = 100\n"), "");
  EXPECT_THAT(refusal_of("states = \"edge\"\n", "drop protocol tcp state"), HasSubstr("state: would keep the flow of what the rule drops"));
  EXPECT_THAT(refusal_of("states = \"edge\"\n", "permit fragments state"), HasSubstr("state: would keep the flow of later fragments"));
  EXPECT_THAT(refusal_of("states = \"edge\"\n", "permit type 0x0806 state"), HasSubstr("type: is 0x0806"));
  FakeContext other{{"p1"}};
  static_cast<void>(other.first_said("acl states edge in main", 1));
  const Result<ConfigNode> node = other.keys(weir_plugin, "states = \"edge\"\n" + open.file.key());
  open.file.write("permit state");
  const auto made = weir_plugin.make(*node, other);
  ASSERT_FALSE(made);
  EXPECT_THAT(made.error().what, HasSubstr("states: is \"edge\", as of a stage before it in this pipeline"));
}

// Frames of few flows, whichever side they come from.
struct FewFlows {
  explicit FewFlows(u32 seed) : engine(seed) {}
  u32 below(u32 end) { return static_cast<u32>(engine() % end); }
  std::pair<bool, Packet> frame() {
    const bool out = below(2) == 0, six = below(3) == 0, stray = below(8) == 0;
    const std::string near = six ? fmt::format("2001:db8::{}", 1 + below(3)) : fmt::format("192.0.2.{}", 1 + below(3));
    const std::string far = six ? fmt::format("2001:db8:1::{}", 1 + below(2)) : fmt::format("198.51.100.{}", 1 + below(2));
    const std::string from = out != stray ? near : far, to = out != stray ? far : near;
    FrameBuilder made = six ? ipv6(from, to) : ipv4(from, to);
    const u16 here = static_cast<u16>(1 + below(3)), yonder = static_cast<u16>(1 + below(2));
    const u16 source = out ? here : yonder, destination = out ? yonder : here;
    static constexpr u8 flags[] = {syn, syn | ack, ack, ack, ack, fin | ack, rst, syn | fin, 0};
    switch (below(8)) {
      case 0:
      case 1:
      case 2:
        made.tcp(source, destination, flags[below(9)]);
        break;
      case 3:
      case 4:
        made.udp(source, destination);
        break;
      case 5:
        made.protocol(50).payload("abcdefgh");
        break;
      case 6:
        made.icmp(six ? static_cast<u8>(128 + below(2)) : static_cast<u8>(8 * below(2)), 0, here);
        break;
      default:
        made.icmp(static_cast<u8>(below(16)), 0, here).payload(std::span(last).subspan(last.empty() ? 0 : 14));
    }
    Packet bytes = made.build();
    if (below(40) == 0 && !six) bytes = fragment(std::move(bytes), below(2) * 8, below(2) == 0);
    last = bytes;
    return {out, bytes};
  }
  std::mt19937 engine;
  Packet last;
};

// What must be known of a frame to say whether it is of a flow; written without the code under test.
struct Plain {
  std::string flow, error_about, to;
  bool six = false, opens = true, starts = false, later = false;
};
Plain plain_of(const Packet& in, std::size_t at, bool quoted) {
  Plain seen;
  seen.six = in.at(at) >> 4 == 6;
  const auto text = [&](std::size_t from, std::size_t size) {
    return std::string(in.begin() + static_cast<long>(from), in.begin() + static_cast<long>(from + size));
  };
  const std::size_t size = seen.six ? 16 : 4, addresses = at + (seen.six ? 8 : 12), upper = at + (seen.six ? 40 : 20);
  const std::string source = text(addresses, size), destination = text(addresses + size, size);
  const u8 protocol = in.at(at + (seen.six ? 6 : 9));
  seen.to = quoted ? source : destination;
  seen.later = !seen.six && (get16(in, at + 6) & 0x1fff) != 0;
  if (seen.later) return seen;
  std::string from = source, to = destination;
  if (protocol == 6 || protocol == 17) from += text(upper, 2), to += text(upper + 2, 2);
  std::string ends = std::min(from, to) + std::max(from, to);
  if (protocol == 6 && !quoted) {
    const u8 flags = in.at(upper + 13) & (syn | ack | fin | rst);
    seen.opens = flags == syn;
    seen.starts = (flags & (syn | ack)) == syn;
  }
  if (protocol == (seen.six ? 58 : 1)) {
    const u8 type = in.at(upper), request = seen.six ? 128 : 8, reply = seen.six ? 129 : 0;
    const bool error = seen.six ? type >= 1 && type <= 4 : type == 3 || type == 11 || type == 12;
    seen.opens = type != reply && !error;
    if (type == request) ends = source + destination + text(upper + 4, 2);
    else if (type == reply) ends = destination + source + text(upper + 4, 2);
    else ends.clear();
    if (error && !quoted && in.size() >= upper + 8 + 20) {
      const std::size_t inner = upper + 8, needed = in.at(inner) >> 4 == 6 ? 40 : in.at(inner) >> 4 == 4 ? 20 : 10000;
      if (in.size() >= inner + needed + 8 && (needed == 40) == seen.six) {
        const Plain about_it = plain_of(in, inner, true);
        if (!about_it.later && about_it.to == destination) seen.error_about = about_it.flow;
      }
    }
  }
  if (!ends.empty()) seen.flow = fmt::format("{} {} ", seen.six, protocol) + ends;
  return seen;
}

// The established flows as a set of texts.
struct PlainStates {
  Verdict judge(bool inside, const Packet& bytes) {
    const Plain seen = plain_of(bytes, 14, false);
    if (!seen.flow.empty() && !seen.starts && flows.contains(seen.flow)) return next();
    if (!seen.error_about.empty() && flows.contains(seen.error_about)) return next();
    if (!inside || !seen.opens) return denied;
    if (!seen.flow.empty()) flows.insert(seen.flow);
    return next();
  }
  std::set<std::string> flows;
};

bool is_of_the_inside(const Packet& bytes) {
  return bytes.at(14) >> 4 == 6 ? bytes.at(14 + 8 + 5) == 0 : bytes.at(14 + 12) == 192;  // 2001:db8:: or 2001:db8:1::
}

TEST(AclStates, RandomFramesGoAsAPlainSetOfFlowsSays) {
  const u32 seed = test_seed();
  SCOPED_TRACE(fmt::format("WEIR_TEST_SEED={}", seed));
  FewFlows dice(seed);
  u64 permitted = 0;
  for (u32 round = 0; round < 50; ++round) {
    Wall wall;
    PlainStates plain;
    for (u32 i = 0; i < 2000; ++i) {
      const auto [out, bytes] = dice.frame();
      const Verdict wanted = plain.judge(out && is_of_the_inside(bytes), bytes);
      permitted += wanted == next();
      ASSERT_EQ((out ? wall.inside : wall.outside).run(bytes), wanted) << fmt::format("frame {} {} {:02x}", i, out, fmt::join(bytes, " "));
      if (dice.below(2000) == 0) wall.reload(std::string("permit src 10.0.0.0/8\n") + opening);
    }
    ASSERT_EQ(wall.states(), plain.flows.size());
  }
  EXPECT_GT(permitted, 20000u);
  EXPECT_LT(permitted, 90000u);
}

Verdict process(Stage& stage, Packet bytes) {
  account count{};
  Burst burst;
  burst.charge(&count);
  burst.push({.data = bytes.data(), .length = static_cast<u32>(bytes.size()), .port = PortSlot{0}});
  stage.process(burst);
  return {static_cast<weir_verdict>(burst.begin()->verdict), burst.begin()->argument};
}

TEST(AclStates, TwoDirectionsArriveOnDifferentWorkers) {
  Wall wall("max_states = 4096\n");
  std::atomic<u32> asked{0}, answered{0}, wrong{0};
  std::atomic<bool> stop{false};
  constexpr u32 last = 3000;
  {
    std::jthread asking([&] {
      for (u32 number = 1; number <= last; ++number) {
        wrong += process(wall.inside.user.stage(), question(static_cast<u16>(number))) != next();
        asked = number;
        wrong += process(wall.inside.user.stage(), client(syn, 7)) != next();
      }
    });
    std::jthread answering([&] {
      for (u32 number = 1; number <= last; ++number) {
        while (asked < number) std::this_thread::yield();
        wrong += process(wall.outside.user.stage(), answer(static_cast<u16>(number))) != next();
        wrong += process(wall.outside.user.stage(), answer(static_cast<u16>(60000 + number % 1000))) != denied;
        answered = number;
      }
    });
    std::jthread control([&] {
      const u32 start = now_s();
      while (!stop) {
        wall.tick(start);
        wall.inside.user.stage().in_place();
        static_cast<void>(wall.inside.user.stage().answer(std::vector<std::string>{"states"}));
      }
    });
    while (answered < last) std::this_thread::yield();
    stop = true;
  }
  EXPECT_EQ(wrong, 0u);
  EXPECT_EQ(wall.states(), last + 1);
}

// Both halves over one memory.
class KernelAcl : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = no_kernel(); !why.empty()) GTEST_SKIP() << why;
  }
  void open(std::string_view text, const std::string& more = "") {
    file.emplace(text);
    keys = more + file->key();
    auto opened = KernelHalf::open(weir_plugin, context);
    ASSERT_TRUE(opened) << opened.error().what;
    kernel = std::move(*opened);
    auto made = UserHalf::make(weir_plugin, keys, context, kernel->memory());
    ASSERT_TRUE(made) << made.error().what;
    user.emplace(std::move(*made));
    const Result<> loaded = kernel->load();
    ASSERT_TRUE(loaded) << loaded.error().what;
  }
  Verdict in_kernel(const Packet& bytes) {
    const Result<Outcome> out = kernel->run(0, bytes);
    if (!out) ADD_FAILURE() << out.error().what;
    EXPECT_TRUE(!out || out->bytes == bytes) << "rules change nothing";
    return out ? out->verdict : Verdict{};
  }
  // As in an instance: by the kernel half, and by the user half what that punts.
  Verdict run(const Packet& bytes) {
    const Verdict verdict = in_kernel(bytes);
    if (verdict.what != WEIR_PUNT) return verdict;
    ++punts;
    return user->run(0, bytes).verdict;
  }
  // The next run of the instance, with these rules, over the memory of a kernel half that is at work.
  void restart(std::string_view text) {
    file->write(text);
    auto made = UserHalf::make(weir_plugin, keys, context, kernel->memory());
    ASSERT_TRUE(made) << made.error().what;
    user.emplace(std::move(*made));
  }
  // One that does not come to it.
  [[nodiscard]] bool fails_to_restart(const std::string& more) {
    context.forget_said();
    const bool fails = !UserHalf::make(weir_plugin, more + file->key(), context, kernel->memory());
    context.forget_said();
    return fails;
  }

  std::optional<RulesFile> file;
  std::string keys;
  FakeContext context{{"p0"}};
  std::unique_ptr<KernelHalf> kernel;
  std::optional<UserHalf> user;
  u32 punts = 0;
};

TEST_F(KernelAcl, DoesAsItsRulesSay) {
  for (const Claims& each : claims()) {
    SCOPED_TRACE(each.rules);
    open(each.rules, each.keys);
    for (const Case& one : each.cases) EXPECT_EQ(run(one.in), one.verdict) << one.claim;
    EXPECT_LE(std::exchange(punts, 0), 1u) << "only a chain without end";
  }
}

TEST_F(KernelAcl, PuntsALongChainOfExtensionHeaders) {
  open("drop protocol tcp");
  Packet bytes = ipv6().tcp(1, 2).build();
  for (u32 headers = 0; headers <= 20; ++headers, bytes = with_options(bytes)) {
    EXPECT_EQ(in_kernel(bytes), headers <= ACL_KERNEL_EXTENSIONS ? denied : punt(ACL_PUNT_EXTENSIONS)) << headers;
    EXPECT_EQ(run(bytes), headers <= ACL_USER_EXTENSIONS ? denied : bad_header) << headers;
  }
}

TEST_F(KernelAcl, PuntsSamplesAsFarAsTheirRateAllows) {
  open("drop protocol udp log\npermit protocol tcp log", "log_rate = 3\n");
  const Packet bytes = ipv4().udp(1, 2).build();
  const u64 most = 3 * possible_cpus();  // of a second, and the test may move from one CPU to another
  u64 handed = 0;
  for (int i = 0; i < 1000; ++i) {
    const Verdict verdict = in_kernel(bytes);
    EXPECT_TRUE(verdict == denied || verdict == punt(ACL_PUNT_LOG)) << verdict;
    handed += verdict.what == WEIR_PUNT;
  }
  EXPECT_GE(handed, 3u);
  EXPECT_LE(handed, most);
  EXPECT_EQ(kernel->counter("unlogged"), 1000 - handed);
  EXPECT_EQ(user->gauge("hits.1"), 1000 - handed) << "those that were handed over are counted by the user half";
  user->stage().tick(1);
  EXPECT_EQ(in_kernel(ipv4().tcp(1, 2).build()), punt(ACL_PUNT_LOG)) << "another second";
}

TEST_F(KernelAcl, AddsUpTheHitsOfBothHalves) {
  open("drop protocol tcp name tcp\npermit protocol udp");
  for (int i = 0; i < 5; ++i) in_kernel(ipv4().tcp(1, 2).build());
  for (int i = 0; i < 3; ++i) user->run(0, ipv4().tcp(1, 2).build());
  in_kernel(ipv4().icmp(1, 2).build());
  EXPECT_EQ(user->gauge("hits.tcp"), 8u);
  EXPECT_EQ(user->gauge("hits.otherwise"), 1u);
  EXPECT_EQ(kernel->counter("denied"), 5u);
  EXPECT_EQ(kernel->counter("otherwise"), 1u);
}

TEST_F(KernelAcl, SeesTheRulesOfTheNextRun) {
  open("drop protocol tcp dport 80 name web\npermit protocol udp");
  for (int i = 0; i < 5; ++i) EXPECT_EQ(in_kernel(ipv4().tcp(1, 80).build()), denied);
  restart("drop protocol udp\npermit src 10.0.0.0/8\ndrop protocol tcp dport 80 name web");
  EXPECT_EQ(in_kernel(ipv4().udp(1, 80).build()), denied);
  EXPECT_EQ(in_kernel(ipv4("10.0.0.1").tcp(1, 80).build()), next());
  EXPECT_EQ(in_kernel(ipv4().tcp(1, 80).build()), denied);
  EXPECT_EQ(user->gauge("hits.web"), 6u);
  EXPECT_EQ(user->gauge("hits.2"), 1u);
}

TEST_F(KernelAcl, PuntsWhatOnlyRulesThatItHasNotCouldDecide) {
  // More exact port ranges of one pair of addresses than a chain holds.
  std::string text = "permit protocol udp dport 9999\n";
  for (u32 i = 0; i < 40; ++i) text += fmt::format("drop src 192.0.2.1 protocol udp dport {}-{}\n", i * 10, i * 10 + 4);
  open(text);
  EXPECT_LT(user->gauge("kernel_rules"), 41u);
  EXPECT_GT(user->gauge("kernel_rules"), 5u);
  EXPECT_EQ(in_kernel(ipv4().udp(1, 9999).build()), next());
  EXPECT_EQ(in_kernel(ipv4().udp(1, 3).build()), denied);
  EXPECT_EQ(in_kernel(ipv4().udp(1, 393).build()), punt(ACL_PUNT_RULES));
  EXPECT_EQ(run(ipv4().udp(1, 393).build()), denied);
  EXPECT_EQ(run(ipv4().udp(1, 7).build()), next());
}

TEST_F(KernelAcl, BothHalvesAgreeWithTheReferenceOverRandomRules) {
  const u32 seed = test_seed();
  SCOPED_TRACE(fmt::format("WEIR_TEST_SEED={}", seed));
  Dice dice(seed);
  u64 frames = 0;
  for (const u32 count : {1u, 3u, 10u, 40u, 200u, 1000u}) {
    const std::string text = dice.rules(count, count > 3);
    const bool drops = dice.one_in(2);
    open(text, drops ? "otherwise = \"drop\"\nlog_rate = 1000000\n" : "log_rate = 2\n");
    Reference reference({rules_of(text), drops});
    for (u32 i = 0; i < 18000; ++i, ++frames) {
      const Packet bytes = dice.frame();
      ASSERT_EQ(run(bytes), reference.judge(bytes)) << fmt::format("{:02x} under\n{}", fmt::join(bytes, " "), count > 20 ? "" : text);
      if (i == 9000) user->stage().tick(i);
    }
    for (u32 i = 0; count <= 200 && i < count; ++i)
      ASSERT_EQ(user->gauge(fmt::format("hits.{}", i + 1)), reference.hits()[i]) << "rule " << i + 1;
    EXPECT_EQ(user->gauge("hits.otherwise"), reference.hits()[count]);
  }
  EXPECT_GE(frames, 100000u);
  EXPECT_LT(punts, frames / 2) << "the kernel half does most of it";
  RecordProperty("punts", std::to_string(punts));
}

TEST_F(KernelAcl, BothHalvesAgreeOverTheTrafficOfTheKitAndACapture) {
  const u32 seed = test_seed();
  SCOPED_TRACE(fmt::format("WEIR_TEST_SEED={}", seed));
  RulesFile rules(
      "permit src 192.0.2.1 protocol tcp dport 1-4\ndrop src 192.0.2.0/30 dst 192.0.2.4/30\ndrop protocol udp sport 3\n"
      "permit src 2001:db8::/126 protocol tcp\ndrop flags syn,!ack\ndrop vlan 0 type 0x0806\npermit protocol icmp log\n"
      "drop src 10.0.0.0/8 protocol tcp sport 80\ndrop fragments\n");
  const Result<Agreement> dice = both_halves_agree(weir_plugin, rules.key(), {"a", "b"}, random_traffic(seed, 100000, 2));
  ASSERT_TRUE(dice) << dice.error().what;
  EXPECT_EQ(dice->frames, 100000u);
  const Result<Traffic> captured = captured_traffic(WEIR_CAPTURE, 2);
  ASSERT_TRUE(captured) << captured.error().what;
  for (const char* otherwise : {"permit", "drop"}) {
    const auto agreed =
        both_halves_agree(weir_plugin, fmt::format("otherwise = \"{}\"\n{}", otherwise, rules.key()), {"a", "b"}, *captured);
    ASSERT_TRUE(agreed) << agreed.error().what;
    EXPECT_EQ(agreed->frames, captured->size());
  }
}

TEST_F(KernelAcl, EachFrameSeesTheOldRulesOrTheNewOnesWhileTheyChange) {
  // A mix would find the first rule of the one set and the others of the other.
  std::string one = "drop protocol udp dport 1 src 192.0.2.0/24\n", two = "drop protocol udp dport 2 src 192.0.2.0/28\n";
  for (u32 i = 0; i < 300; ++i) {
    one += fmt::format("drop src 10.0.{}.{} protocol tcp\n", i / 200, i % 200);
    two += fmt::format("drop dst 10.1.{}.0/24 protocol udp dport {}\n", i % 200, i);
  }
  one += "permit protocol udp dport 2\ndrop protocol udp\n", two += "permit protocol udp dport 1\ndrop protocol udp\n";
  open(one);
  std::atomic<bool> stop{false};
  u64 wrong = 0, seen = 0;
  const Packet first = ipv4().udp(9, 1).build(), other = ipv4().udp(9, 3).build();
  std::jthread frames([&] {
    while (!stop) {
      const Result<Outcome> out = kernel->run(0, first), denied_always = kernel->run(0, other);
      wrong += !out || (out->verdict != denied && out->verdict != next() && out->verdict != punt(ACL_PUNT_SWAPPED));
      wrong += !denied_always || (denied_always->verdict != denied && denied_always->verdict != punt(ACL_PUNT_SWAPPED));
      ++seen;
    }
  });
  for (int i = 0; i < 60; ++i) restart(i % 2 == 0 ? two : one);
  stop = true;
  frames.join();
  EXPECT_EQ(wrong, 0u) << "of " << seen;
  EXPECT_GT(seen, 60u);
}

TEST_F(KernelAcl, IsNotHarmedByWhatIsNoTable) {
  const u32 seed = test_seed();
  SCOPED_TRACE(fmt::format("WEIR_TEST_SEED={}", seed));
  std::mt19937_64 dice(seed);
  open("drop protocol udp");
  const auto scribble = [&](auto span) {
    for (auto& each : span) {
      auto* words = reinterpret_cast<u64*>(&each);
      for (std::size_t i = 0; i < sizeof each / sizeof(u64); ++i) words[i] = dice();
    }
  };
  StageMemory& memory = kernel->memory();
  scribble(*memory.array<acl_control>("rule_control", 1));
  scribble(*memory.array<acl_table>("rule_tables", 2 * ACL_MAX_TABLES));
  scribble(*memory.array<u64>("rule_slots", 2 * ACL_SLOTS(1024)));
  scribble(*memory.array<acl_entry>("rule_entries", 2 * ACL_ENTRIES(1024)));
  Dice frames(seed);
  for (u32 i = 0; i < 2000; ++i) {
    const Result<Outcome> out = kernel->run(0, frames.frame());
    ASSERT_TRUE(out) << out.error().what;
  }
  auto made = UserHalf::make(weir_plugin, keys, context, memory);
  ASSERT_TRUE(made) << made.error().what;
  EXPECT_EQ(in_kernel(ipv4().udp(1, 2).build()), denied);
  EXPECT_EQ(in_kernel(ipv4().tcp(1, 2).build()), next());
}

const std::string with_states = "states = \"edge\"\notherwise = \"drop\"\n";

TEST_F(KernelAcl, PuntsWhatTakesAFlowFurtherAndPermitsTheRest) {
  open("permit src 192.0.2.0/24 state\n", with_states);
  EXPECT_EQ(in_kernel(server(ack)), denied);
  EXPECT_EQ(in_kernel(client(syn)), punt(ACL_PUNT_OPENS));
  EXPECT_EQ(run(client(syn)), next());
  EXPECT_EQ(in_kernel(server(syn | ack)), punt(ACL_PUNT_CHANGES));
  EXPECT_EQ(run(server(syn | ack)), next());
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(in_kernel(client(ack)), next());
    EXPECT_EQ(in_kernel(server(ack)), next());
  }
  EXPECT_EQ(kernel->counter("established"), 10u);
  EXPECT_EQ(in_kernel(server(ack, 40001)), denied);
  EXPECT_EQ(in_kernel(server(syn)), denied);
  EXPECT_EQ(in_kernel(client(syn)), punt(ACL_PUNT_OPENS));
  EXPECT_EQ(in_kernel(server(fin | ack)), punt(ACL_PUNT_CHANGES));
  EXPECT_EQ(run(server(fin | ack)), next());
  EXPECT_EQ(in_kernel(server(fin | ack)), next()) << "again";
  EXPECT_EQ(in_kernel(there().icmp(13, 0).build()), next()) << "what has no flow";
  EXPECT_EQ(in_kernel(there().icmp(8, 0, 7).build()), punt(ACL_PUNT_OPENS));
  EXPECT_EQ(in_kernel(about(back().icmp(3, 1), client(ack))), punt(ACL_PUNT_ERROR));
  EXPECT_EQ(run(about(back().icmp(3, 1), client(ack))), next());
}

TEST_F(KernelAcl, AFrameInTheKernelKeepsItsFlow) {
  open("permit src 192.0.2.0/24 state\n", with_states + "udp_idle_s = 5\n");
  const u32 start = now_s() + 1;
  user->stage().tick(start);
  EXPECT_EQ(run(question()), next());
  EXPECT_EQ(run(answer()), next());
  for (u32 second = 4; second < 40; second += 4) {
    user->stage().tick(start + second);
    EXPECT_EQ(in_kernel(second % 8 == 0 ? question() : answer()), next()) << second;
  }
  user->stage().tick(start + 50);
  EXPECT_EQ(in_kernel(answer()), denied);
}

TEST_F(KernelAcl, AFrameOfAFlowThatIsOverDoesNotKeepIt) {
  open("permit src 192.0.2.0/24 state\n", with_states);
  const u32 start = now_s() + 1;
  user->stage().tick(start);
  for (const Packet& bytes : {client(syn), server(syn | ack), client(fin | ack), server(fin | ack)}) EXPECT_EQ(run(bytes), next());
  for (u32 second = 60; second < 240; second += 60) {
    user->stage().tick(start + second);
    EXPECT_EQ(in_kernel(server(ack)), next()) << second;
  }
  user->stage().tick(start + 240);
  EXPECT_EQ(in_kernel(server(ack)), denied);
}

TEST_F(KernelAcl, GoesByItsFlowsWhileTheNextRunBegins) {
  open("permit src 192.0.2.0/24 state\n", with_states);
  EXPECT_EQ(run(question()), next());
  EXPECT_EQ(run(answer()), next());
  ASSERT_TRUE(fails_to_restart(with_states + "max_states = 64\n")) << "the table is of another size";
  EXPECT_EQ(in_kernel(answer()), next()) << "it has not come to where it has a table";
  restart("permit src 192.0.2.0/24 state\ndrop protocol 255\n");
  EXPECT_EQ(in_kernel(answer()), next());
  keys = "otherwise = \"drop\"\n" + file->key();
  restart("permit src 192.0.2.0/24\n");
  EXPECT_EQ(in_kernel(answer()), denied) << "there is no table any more";
}

TEST_F(KernelAcl, PuntsErrorsAsFarAsTheirRateAllows) {
  open("permit src 192.0.2.0/24 state\n", with_states);
  EXPECT_EQ(run(question()), next());
  const Packet error = about(ipv4("203.0.113.1", "192.0.2.1").icmp(3, 1), question());
  const u64 sent = (u64{possible_cpus()} + 1) * ACL_ERROR_RATE;  // the test may move from one CPU to another
  u64 handed = 0;
  for (u64 i = 0; i < sent; ++i) {
    const Verdict verdict = in_kernel(error);
    ASSERT_TRUE(verdict == denied || verdict == punt(ACL_PUNT_ERROR)) << verdict;
    handed += verdict.what == WEIR_PUNT;
  }
  EXPECT_GE(handed, u64{ACL_ERROR_RATE});
  EXPECT_LE(handed, sent - ACL_ERROR_RATE);
  EXPECT_EQ(kernel->counter("otherwise"), sent - handed) << "those that rules have judged";
  user->stage().tick(1);
  EXPECT_EQ(in_kernel(error), punt(ACL_PUNT_ERROR)) << "another second";
}

TEST_F(KernelAcl, KernelHalvesOfTwoPipelinesShareTheirFlows) {
  InCommon shared;
  struct Both {
    RulesFile file;
    FakeContext context{{"p0"}};
    std::unique_ptr<KernelHalf> kernel;
    std::optional<UserHalf> user;
    Both(const char* rules, InCommon& all) : file(rules) {
      kernel = std::move(*KernelHalf::open(weir_plugin, context, &all));
      user.emplace(std::move(*UserHalf::make(weir_plugin, with_states + file.key(), context, kernel->memory())));
      if (!kernel->load()) broken("a kernel half does not load");
    }
  };
  Both inside(opening, shared), outside(closed, shared);
  EXPECT_EQ(outside.kernel->run(0, answer())->verdict, denied);
  EXPECT_EQ(inside.kernel->run(0, question())->verdict, punt(ACL_PUNT_OPENS));
  EXPECT_EQ(inside.user->run(0, question()).verdict, next());
  EXPECT_EQ(outside.kernel->run(0, answer())->verdict, punt(ACL_PUNT_CHANGES));
  EXPECT_EQ(outside.user->run(0, answer()).verdict, next());
  EXPECT_EQ(outside.kernel->run(0, answer())->verdict, next());
  EXPECT_EQ(inside.kernel->run(0, question())->verdict, next());
}

TEST_F(KernelAcl, BothHalvesAgreeOverFewFlows) {
  const u32 seed = test_seed();
  SCOPED_TRACE(fmt::format("WEIR_TEST_SEED={}", seed));
  FewFlows dice(seed);
  std::vector<Traffic> parts(4);  // each has fewer ICMP errors than a CPU punts in a second
  for (Traffic& part : parts) {
    for (u32 i = 0; i < 25000; ++i) {
      auto [out, bytes] = dice.frame();
      part.emplace_back(out ? 0 : 1, std::move(bytes));
    }
  }
  RulesFile rules(
      "drop src 192.0.2.3 protocol udp\npermit src 192.0.2.0/24 state\npermit protocol tcp dport 1 flags ack\n"
      "permit src 2001:db8::/64 protocol tcp state\npermit src 2001:db8::/64 state\n");
  for (const char* more : {"", "pick_up = true\n"}) {
    for (const Traffic& part : parts) {
      const auto agreed = both_halves_agree(weir_plugin, with_states + more + rules.key(), {"a", "b"}, part);
      ASSERT_TRUE(agreed) << agreed.error().what;
      EXPECT_EQ(agreed->frames, 25000u);
      EXPECT_LT(agreed->punted, agreed->frames / 2) << "the kernel half does most of it";
    }
  }
}

TEST_F(KernelAcl, HoldsAsManyRulesAsThereMayBe) {
  open(blocklist(ACL_MAX_RULES));
  EXPECT_EQ(user->gauge("kernel_rules"), u64{ACL_MAX_RULES});
  const std::vector<Rule> rules = rules_of(blocklist(ACL_MAX_RULES));
  for (u32 i = 0; i < 1000; ++i) EXPECT_EQ(in_kernel(ipv4(text_of(rules[i * 99].src->address)).udp(1, 2).build()), denied);
  EXPECT_EQ(in_kernel(ipv4("250.0.0.1").udp(1, 2).build()), next());
}

}  // namespace
