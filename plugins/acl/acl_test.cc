// SPDX-License-Identifier: BSD-3-Clause
// acl_test: rules that are read and refused, claims for both halves, and both against a plain reference over random rules and frames.
#include "plugins/acl/acl.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "kit/table.hh"
#include "plugins/acl/acl_frame.h"
#include "plugins/acl/acl_kernel.hh"
#include "plugins/acl/acl_rules.hh"

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
  EXPECT_EQ(weir_plugin.drops, (std::vector<std::string>{"denied", "truncated", "bad_header"}));
  EXPECT_EQ(weir_plugin.punts, (std::vector<std::string>{"rules", "log", "extensions", "hidden", "swapped"}));
  EXPECT_EQ(weir_plugin.counters, (std::vector<std::string>{"permitted", "denied", "otherwise", "logged", "unlogged"}));
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
  EXPECT_EQ(refused_lines("\ndrop dprot 1"),
            "rules.acl:2:6: there is no key \"dprot\"; allowed: src, dst, protocol, sport, dport, flags, vlan, type, name, fragments, log\n"
            "rules.acl:2:12: there is no key \"1\"; allowed: src, dst, protocol, sport, dport, flags, vlan, type, name, fragments, log");
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

TEST_F(KernelAcl, HoldsAsManyRulesAsThereMayBe) {
  open(blocklist(ACL_MAX_RULES));
  EXPECT_EQ(user->gauge("kernel_rules"), u64{ACL_MAX_RULES});
  const std::vector<Rule> rules = rules_of(blocklist(ACL_MAX_RULES));
  for (u32 i = 0; i < 1000; ++i) EXPECT_EQ(in_kernel(ipv4(text_of(rules[i * 99].src->address)).udp(1, 2).build()), denied);
  EXPECT_EQ(in_kernel(ipv4("250.0.0.1").udp(1, 2).build()), next());
}

}  // namespace
