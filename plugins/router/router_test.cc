// SPDX-License-Identifier: BSD-3-Clause
// router_test: what becomes of a packet, in each half and in both; routes that come and go; the tries of both halves.
#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <thread>

#include "kit/table.hh"
#include "plugins/router/router_fib.hh"
#include "plugins/router/router_notes.hh"
#include "plugins/router/router_routes.hh"

namespace {

using namespace weir;
using namespace weir::kit;
using namespace weir::routing;

// Two networks and what lies behind them: p0 has 192.0.2.0/26 and 2001:db8::/64, p1 192.0.2.64/26 and 2001:db8:1::/64, p2 is of another
// network with a smaller MTU.
const std::string keys = R"(kernel_routes = false
max_routes = 1024
max_next_hops = 256
kernel_nodes = 2048
hash_seed = 7
interface = [{ port = "p0", mac = "02:00:00:00:01:00", address = "192.0.2.1", length = 26 },
             { port = "p0", mac = "02:00:00:00:01:00", address = "2001:db8::1", length = 64 },
             { port = "p1", mac = "02:00:00:00:01:01", address = "192.0.2.65", length = 26 },
             { port = "p1", mac = "02:00:00:00:01:01", address = "2001:db8:1::1", length = 64 },
             { port = "p2", mac = "02:00:00:00:01:02", mtu = 1300, address = "192.0.2.129", length = 26 },
             { port = "p2", mac = "02:00:00:00:01:02", mtu = 1300, address = "2001:db8:2::1", length = 64 }]
neighbour = [{ address = "192.0.2.2", mac = "02:00:00:00:00:02", port = "p0" }, { address = "192.0.2.66", mac = "02:00:00:00:00:42", port = "p1" },
             { address = "192.0.2.130", mac = "02:00:00:00:00:82", port = "p2" }, { address = "2001:db8::2", mac = "02:00:00:00:06:02", port = "p0" },
             { address = "2001:db8:1::2", mac = "02:00:00:00:06:42", port = "p1" },
             { address = "2001:db8:2::2", mac = "02:00:00:00:06:82", port = "p2" },
             { address = "fe80::2", mac = "02:00:00:00:06:99", port = "p1" }]
route = [{ to = "10.0.0.0/8", via = "192.0.2.66", port = "p1" }, { to = "10.1.0.0/16", via = "192.0.2.130", port = "p2" },
         { to = "10.1.1.0/24", via = "192.0.2.66", port = "p1", mtu = 600 }, { to = "10.1.1.128/25", kind = "blackhole" },
         { to = "10.1.2.0/24", kind = "unreachable" }, { to = "10.1.3.0/24", kind = "prohibit" },
         { to = "10.2.0.0/16", via = "192.0.2.67", port = "p1" },
         { to = "10.3.0.0/16", via = "192.0.2.66", port = "p1" }, { to = "10.3.0.0/16", via = "192.0.2.130", port = "p2" },
         { to = "10.4.0.1/32", via = "fe80::2", port = "p1" }, { to = "10.5.0.0/16", via = "192.0.2.66", port = "p1", metric = 5 },
         { to = "10.5.0.0/16", kind = "blackhole", metric = 6 },
         { to = "2001:db8:a::/48", via = "2001:db8:1::2", port = "p1" }, { to = "2001:db8:a:1::/64", via = "2001:db8:2::2", port = "p2" },
         { to = "2001:db8:a:2::/64", kind = "blackhole" }, { to = "2001:db8:a:3::/64", kind = "unreachable" },
         { to = "2001:db8:a:4::/64", kind = "prohibit" }, { to = "2001:db8:a::77/128", via = "fe80::2", port = "p1" },
         { to = "2001:db8:b::/48", via = "2001:db8:1::2", port = "p1" }, { to = "2001:db8:b::/48", via = "2001:db8:2::2", port = "p2" },
         { to = "2001:db8:a:5::/64", via = "2001:db8:1::9", port = "p1" }])";
const std::vector<std::string> ports = {"p0", "p1", "p2"};
const Mac in_mac = mac("02:00:00:00:01:00"), out_mac = mac("02:00:00:00:01:01"), small_mac = mac("02:00:00:00:01:02");

FrameBuilder arriving() { return FrameBuilder().ethernet(station(2), in_mac); }
FrameBuilder v4(const std::string& to, u8 ttl = 64, const std::string& from = "192.0.2.2") { return arriving().ipv4(from, to, ttl); }
FrameBuilder v6(const std::string& to, u8 hops = 64, const std::string& from = "2001:db8::2") { return arriving().ipv6(from, to, hops); }
FrameBuilder routed4(const Mac& from, const Mac& to, const std::string& address, u8 ttl = 63) {
  return FrameBuilder().ethernet(from, to).ipv4("192.0.2.2", address, ttl);
}
FrameBuilder routed6(const Mac& from, const Mac& to, const std::string& address, u8 hops = 63) {
  return FrameBuilder().ethernet(from, to).ipv6("2001:db8::2", address, hops);
}
weir::kit::Packet long_one(FrameBuilder frame, std::size_t packet) {
  return frame.payload(std::string(packet + 14 - frame.build().size(), 'w')).build();
}
// With another byte in the IPv4 header, and a checksum that is right again, unless it is the checksum.
weir::kit::Packet with(weir::kit::Packet frame, std::size_t at, u8 value) {
  frame.at(at) = value;
  if (at == 24 || at == 25) return frame;
  frame[24] = frame[25] = 0;
  const u16 sum = internet_checksum(internet_sum(std::span(frame).subspan(14, 20)));
  frame[24] = static_cast<u8>(sum >> 8), frame[25] = static_cast<u8>(sum);
  return frame;
}
constexpr std::size_t version_at = 14, length_at = 16, flags_at = 20, checksum_at = 24;

// What both halves say of these frames; what the kernel half punts, the user half says.
std::vector<Case> claims() {
  const Mac next = station(0x42), far = station(0x82), next6 = station(0x642), far6 = station(0x682), local6 = station(0x699);
  std::vector<Case> all = {
      {"a packet goes to its gateway", v4("10.0.0.1").udp(1, 2).build(), redirect(1), routed4(out_mac, next, "10.0.0.1").udp(1, 2).build()},
      {"the longest prefix decides", v4("10.1.0.1").udp(1, 2).build(), redirect(2), routed4(small_mac, far, "10.1.0.1").udp(1, 2).build()},
      {"and one within that one", v4("10.1.1.1").udp(1, 2).build(), redirect(1), routed4(out_mac, next, "10.1.1.1").udp(1, 2).build()},
      {"a neighbour on the link gets it itself", v4("192.0.2.66").udp(1, 2).build(), redirect(1),
       routed4(out_mac, next, "192.0.2.66").udp(1, 2).build()},
      {"bytes behind the packet's end go with it", v4("10.0.0.1").udp(1, 2).pad(60), redirect(1),
       routed4(out_mac, next, "10.0.0.1").udp(1, 2).pad(60)},
      {"an IPv4 packet may have a gateway of IPv6", v4("10.4.0.1").udp(1, 2).build(), redirect(1),
       routed4(out_mac, local6, "10.4.0.1").udp(1, 2).build()},
      {"the least metric decides", v4("10.5.0.1").udp(1, 2).build(), redirect(1), routed4(out_mac, next, "10.5.0.1").udp(1, 2).build()},
      {"IPv6 goes to its gateway", v6("2001:db8:a::1").udp(1, 2).build(), redirect(1),
       routed6(out_mac, next6, "2001:db8:a::1").udp(1, 2).build()},
      {"the longest prefix decides, IPv6", v6("2001:db8:a:1::1").udp(1, 2).build(), redirect(2),
       routed6(small_mac, far6, "2001:db8:a:1::1").udp(1, 2).build()},
      {"to the last bit", v6("2001:db8:a::77").udp(1, 2).build(), redirect(1),
       routed6(out_mac, local6, "2001:db8:a::77").udp(1, 2).build()},
      {"an IPv6 neighbour on the link gets it itself", v6("2001:db8:2::2").udp(1, 2).build(), redirect(2),
       routed6(small_mac, far6, "2001:db8:2::2").udp(1, 2).build()},
      {"one hop left is enough to arrive", v4("10.0.0.1", 2).udp(1, 2).build(), redirect(1),
       routed4(out_mac, next, "10.0.0.1", 1).udp(1, 2).build()},

      {"to the host's own address", v4("192.0.2.65").udp(1, 2).build(), to_stack()},
      {"to the host's own address, whatever the TTL", v4("192.0.2.1", 1).udp(1, 2).build(), to_stack()},
      {"to the host's own IPv6 address", v6("2001:db8:1::1").udp(1, 2).build(), to_stack()},
      {"directed broadcast", v4("192.0.2.127").udp(1, 2).build(), to_stack()},
      {"broadcast", v4("255.255.255.255", 64, "0.0.0.0").udp(68, 67).build(), to_stack()},
      {"IPv4 multicast", v4("224.0.0.5").protocol(89).build(), to_stack()},
      {"IPv6 multicast, of nobody yet", v6("ff02::1:ff00:1", 255, "::").icmp(135, 0).build(), to_stack()},
      {"IPv6 link-local", v6("fe80::1").icmp(135, 0).build(), to_stack()},
      {"from an IPv6 link-local address", v6("2001:db8:a::1", 64, "fe80::3").udp(1, 2).build(), to_stack()},
      {"IPv4 link-local", v4("169.254.1.1").udp(1, 2).build(), to_stack()},
      {"ARP", FrameBuilder().ethernet(station(2), broadcast, ETH_P_ARP).pad(60), to_stack()},
      {"ARP to the port", FrameBuilder().ethernet(station(2), in_mac, ETH_P_ARP).pad(60), to_stack()},
      {"for another MAC address", FrameBuilder().ethernet(station(2), station(3)).ipv4("192.0.2.2", "10.0.0.1").udp(1, 2).build(),
       to_stack()},
      {"a broadcast of layer 2 is not routed",
       FrameBuilder().ethernet(station(2), broadcast).ipv4("192.0.2.2", "10.0.0.1").udp(1, 2).build(), to_stack()},
      {"behind a VLAN tag", arriving().vlan(7).ipv4("192.0.2.2", "10.0.0.1").udp(1, 2).build(), to_stack()},
      {"IPv4 options", with(v4("10.0.0.1").udp(1, 2).payload("xxxxxxxx").build(), version_at, 0x46), to_stack()},
      {"IPv6 hop-by-hop options", v6("2001:db8:a::1").protocol(0).payload("xxxxxxxx").build(), to_stack()},

      {"blackhole", v4("10.1.1.200").udp(1, 2).build(), drop(ROUTER_BLACKHOLE)},
      {"blackhole, IPv6", v6("2001:db8:a:2::1").udp(1, 2).build(), drop(ROUTER_BLACKHOLE)},
      {"cut in the IP header", arriving().ipv4("192.0.2.2", "10.0.0.1").build(), drop(ROUTER_TRUNCATED)},
      {"not version 4", with(v4("10.0.0.1").udp(1, 2).build(), version_at, 0x65), drop(ROUTER_BAD_VERSION)},
      {"a header of 16 bytes", with(v4("10.0.0.1").udp(1, 2).build(), version_at, 0x44), drop(ROUTER_BAD_VERSION)},
      {"not version 6", with(v6("2001:db8:a::1").udp(1, 2).build(), version_at, 0x40), drop(ROUTER_BAD_VERSION)},
      {"longer than the frame", with(v4("10.0.0.1").udp(1, 2).build(), length_at, 1), drop(ROUTER_BAD_LENGTH)},
      {"shorter than its header", with(v4("10.0.0.1").udp(1, 2).build(), length_at + 1, 19), drop(ROUTER_BAD_LENGTH)},
      {"IPv6 longer than the frame", with(v6("2001:db8:a::1").udp(1, 2).build(), length_at + 2, 1), drop(ROUTER_BAD_LENGTH)},
      {"a wrong checksum", with(v4("10.0.0.1").udp(1, 2).build(), checksum_at, 0x12), drop(ROUTER_BAD_CHECKSUM)},
      {"to nobody", v4("0.0.0.1").udp(1, 2).build(), drop(ROUTER_MARTIAN_DESTINATION)},
      {"to loopback", v4("127.0.0.1").udp(1, 2).build(), drop(ROUTER_MARTIAN_DESTINATION)},
      {"to class E", v4("240.0.0.1").udp(1, 2).build(), drop(ROUTER_MARTIAN_DESTINATION)},
      {"to IPv6 loopback", v6("::1").udp(1, 2).build(), drop(ROUTER_MARTIAN_DESTINATION)},
  };
  std::ranges::find(all, "cut in the IP header", &Case::claim)->in.resize(33);  // a byte less than both
  for (const std::string from : {"0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.2.65", "192.0.2.1"})
    all.push_back({"from " + from, v4("10.0.0.1", 64, from).udp(1, 2).build(), drop(ROUTER_MARTIAN_SOURCE)});
  for (const std::string from : {"::", "::1", "ff02::1", "2001:db8:1::1"})
    all.push_back({"from " + from, v6("2001:db8:a::1", 64, from).udp(1, 2).build(), drop(ROUTER_MARTIAN_SOURCE)});
  return all;
}

struct Told {
  std::string claim;
  weir::kit::Packet in;
  router_punt punt;
  router_drop drop;
};

// What the kernel half leaves to the user half, which drops it without a host that forwards.
std::vector<Told> told() {
  return {
      {"TTL 1", v4("10.0.0.1", 1).udp(1, 2).build(), ROUTER_PUNT_EXPIRED, ROUTER_EXPIRED},
      {"TTL 0", v4("10.0.0.1", 0).udp(1, 2).build(), ROUTER_PUNT_EXPIRED, ROUTER_EXPIRED},
      {"hop limit 1", v6("2001:db8:a::1", 1).udp(1, 2).build(), ROUTER_PUNT_EXPIRED, ROUTER_EXPIRED},
      {"longer than the port's MTU", long_one(v4("10.1.0.1").udp(1, 2), 1301), ROUTER_PUNT_TOO_BIG, ROUTER_TOO_BIG},
      {"longer than the route's MTU", long_one(v4("10.1.1.1").udp(1, 2), 601), ROUTER_PUNT_TOO_BIG, ROUTER_TOO_BIG},
      {"the same without DF", with(long_one(v4("10.1.1.1").udp(1, 2), 601), flags_at, 0), ROUTER_PUNT_TOO_BIG, ROUTER_CANNOT_FRAGMENT},
      {"IPv6 longer than the port's MTU", long_one(v6("2001:db8:a:1::1").udp(1, 2), 1301), ROUTER_PUNT_TOO_BIG, ROUTER_TOO_BIG},
      {"no route", v4("198.51.100.1").udp(1, 2).build(), ROUTER_PUNT_NO_ROUTE, ROUTER_NO_ROUTE},
      {"no route, IPv6", v6("2001:db9::1").udp(1, 2).build(), ROUTER_PUNT_NO_ROUTE, ROUTER_NO_ROUTE},
      {"an unreachable route", v4("10.1.2.1").udp(1, 2).build(), ROUTER_PUNT_REFUSED, ROUTER_UNREACHABLE},
      {"an unreachable route, IPv6", v6("2001:db8:a:3::1").udp(1, 2).build(), ROUTER_PUNT_REFUSED, ROUTER_UNREACHABLE},
      {"a prohibited one", v4("10.1.3.1").udp(1, 2).build(), ROUTER_PUNT_REFUSED, ROUTER_PROHIBITED},
      {"a prohibited one, IPv6", v6("2001:db8:a:4::1").udp(1, 2).build(), ROUTER_PUNT_REFUSED, ROUTER_PROHIBITED},
      {"a gateway that is not known", v4("10.2.0.1").udp(1, 2).build(), ROUTER_PUNT_NEIGHBOUR, ROUTER_NO_NEIGHBOUR},
      {"a neighbour that is not known", v4("192.0.2.70").udp(1, 2).build(), ROUTER_PUNT_NEIGHBOUR, ROUTER_NO_NEIGHBOUR},
      {"an IPv6 neighbour that is not known", v6("2001:db8:1::70").udp(1, 2).build(), ROUTER_PUNT_NEIGHBOUR, ROUTER_NO_NEIGHBOUR},
      {"an IPv6 gateway that is not known", v6("2001:db8:a:5::1").udp(1, 2).build(), ROUTER_PUNT_NEIGHBOUR, ROUTER_NO_NEIGHBOUR},
  };
}

UserHalf opened(FakeContext& context, StageMemory& memory, std::string_view text = keys) {
  auto made = UserHalf::make(weir_plugin, text, context, memory);
  if (!made) broken(made.error().what.c_str());
  return std::move(*made);
}

TEST(Router, DoesWithEachPacketWhatItsManualSays) {
  FakeContext context(ports);
  PlainMemory memory;
  UserHalf user = opened(context, memory);
  EXPECT_EQ(differences(user, claims()), "");
  for (const Told& each : told()) EXPECT_EQ(user.run(0, each.in).verdict, drop(each.drop)) << each.claim;
}

TEST(Router, LetsWhatFitsExactlyGo) {
  FakeContext context(ports);
  PlainMemory memory;
  UserHalf user = opened(context, memory);
  EXPECT_EQ(user.run(0, long_one(v4("10.1.0.1").udp(1, 2), 1300)).verdict, redirect(2));
  EXPECT_EQ(user.run(0, long_one(v4("10.1.1.1").udp(1, 2), 600)).verdict, redirect(1));
  EXPECT_EQ(user.run(0, long_one(v6("2001:db8:a:1::1").udp(1, 2), 1300)).verdict, redirect(2));
}

TEST(Router, KeepsTheChecksumRightForEveryTtl) {
  FakeContext context(ports);
  PlainMemory memory;
  UserHalf user = opened(context, memory);
  for (u32 ttl = 2; ttl < 256; ++ttl)
    for (const char* to : {"10.0.0.1", "10.0.255.255", "10.200.13.77"}) {
      const weir::kit::Packet out = user.run(0, v4(to, static_cast<u8>(ttl)).udp(1, 2).build()).bytes;
      EXPECT_EQ(out[22], ttl - 1);
      EXPECT_EQ(internet_checksum(internet_sum(std::span(out).subspan(14, 20))), 0) << to << " " << ttl;
    }
}

TEST(Router, SpreadsFlowsOverPathsAndKeepsEachOnOne) {
  FakeContext context(ports);
  PlainMemory memory;
  UserHalf user = opened(context, memory);
  std::map<u32, u32> by_port;
  for (u16 flow = 0; flow < 1000; ++flow) {
    const Verdict first = user.run(0, v4("10.3.0.1").udp(static_cast<u16>(1000 + flow), 53).build()).verdict;
    ASSERT_EQ(first.what, WEIR_REDIRECT);
    ++by_port[first.argument];
    EXPECT_EQ(user.run(0, v4("10.3.0.1").udp(static_cast<u16>(1000 + flow), 53).payload("more").build()).verdict, first);
  }
  EXPECT_EQ(by_port.size(), 2u);
  for (const auto& [port, flows] : by_port) EXPECT_GT(flows, 400u) << port;
  std::set<u32> of_fragments;
  for (u16 flow = 0; flow < 50; ++flow)
    of_fragments.insert(user.run(0, with(v4("10.3.0.1").udp(static_cast<u16>(1000 + flow), 53).build(), flags_at, 0x20)).verdict.argument);
  EXPECT_EQ(of_fragments.size(), 1u) << "a first fragment takes the way of the later ones, which have no ports";
}

TEST(Router, CountsByNextHop) {
  FakeContext context(ports);
  PlainMemory memory;
  UserHalf user = opened(context, memory);
  for (u32 i = 0; i < 5; ++i) user.run(0, v4("10.0.0.1").udp(1, 2).pad(60));
  for (u32 i = 0; i < 3; ++i) user.run(0, v4("192.0.2.2", 64, "192.0.2.66").udp(1, 2).pad(60));
  EXPECT_EQ(user.gauge("via 192.0.2.66 p1 frames"), 5u);
  EXPECT_EQ(user.gauge("via 192.0.2.66 p1 bytes"), 300u);
  EXPECT_EQ(user.gauge("link p0 frames"), 3u);
  EXPECT_EQ(user.counter("forwarded_ipv4"), 8u);
}

TEST(Router, RoutesFullBursts) {
  FakeContext context(ports);
  PlainMemory memory;
  UserHalf user = opened(context, memory);
  std::vector<std::pair<u32, weir::kit::Packet>> frames;
  for (u32 i = 0; i < Burst::capacity; ++i)
    frames.emplace_back(0, i % 2 == 0 ? v4("10.0.0.1").udp(1, 2).build() : v6("2001:db8:a:1::1").udp(1, 2).build());
  for (u32 i = 0; const Outcome& out : user.run(frames)) EXPECT_EQ(out.verdict, redirect(i++ % 2 == 0 ? 1 : 2));
}

TEST(Router, LeavesAllToTheHostWhenItsTableIsFull) {
  FakeContext context(ports);
  PlainMemory memory;
  std::string text =
      "kernel_routes = false\nmax_routes = 64\n"
      "interface = [{ port = \"p0\", mac = \"02:00:00:00:01:00\" }, { port = \"p1\", mac = \"02:00:00:00:01:01\" }]\n"
      "neighbour = [{ address = \"192.0.2.66\", mac = \"02:00:00:00:00:42\", port = \"p1\" }]\nroute = [";
  for (u32 i = 0; i < 200; ++i) text += fmt::format("{{ to = \"10.0.{}.0/24\", via = \"192.0.2.66\", port = \"p1\" }}, ", i);
  UserHalf user = opened(context, memory, text + "]");
  EXPECT_GT(user.gauge("routes_refused"), 0u);
  for (u32 i = 0; i < 200; ++i) EXPECT_EQ(user.run(0, v4(fmt::format("10.0.{}.1", i)).udp(1, 2).build()).verdict, to_stack());
}

std::string refusal(const std::string& text) {
  FakeContext context(ports);
  const Result<ConfigNode> node = context.keys(weir_plugin, text);
  if (!node) return node.error().what;
  const auto made = weir_plugin.make(*node, context);
  return made ? "" : made.error().what;
}

TEST(Router, RefusesWhatCannotBe) {
  const auto refused = [](const std::string& text, std::string_view because) {
    const std::string what = refusal(text);
    EXPECT_TRUE(what.starts_with("test.toml:6:")) << text << ": " << what;
    EXPECT_NE(what.find(because), std::string::npos) << text << ": " << what;
  };
  refused(R"(route = [{ to = "10.0.0.0/8", via = "192.0.2.1" }])", "port");
  refused(R"(route = [{ to = "10.0.0.1/8", port = "p0" }])", "route[0].to");
  refused(R"(route = [{ to = "10.0.0.0/8", kind = "blackhole", port = "p0" }])", "leads nowhere");
  refused(R"(route = [{ to = "10.0.0.0/8", port = "p7" }])", "p7");
  refused(R"(interface = [{ port = "p0", mac = "02:00:00:00:00:01", address = "10.0.0.1" }])", "length");
  refused(R"(interface = [{ port = "p0", mac = "02:00:00:00:00:01", address = "10.0.0.1", length = 33 }])", "32 bits");
  refused(R"(interface = [{ port = "p0", mac = "01:00:00:00:00:01" }])", "mac");
  refused(R"(interface = [{ port = "p0", mac = "02:00:00:00:00:01", length = 24 }])", "without an address");
  refused(R"(interface = [{ port = "p0", mac = "02:00:00:00:00:01" }, { port = "p0", mac = "02:00:00:00:00:02" }])", "another mac or mtu");
  refused(R"(route = [{ to = "10.0.0.0/8", port = "p0", via = "224.0.0.1" }])", "address of a host");
  refused(R"(route = [{ to = "2001:db8::/32", port = "p0", via = "192.0.2.1" }])", "address of IPv6");
  refused(R"(route = [{ to = "10.0.0.0/8", port = "p0" }, { to = "10.0.0.0/8", kind = "blackhole" }])", "two metrics");
  refused(R"(route = [{ to = "10.0.0.0/8", kind = "prohibit" }, { to = "10.0.0.0/8", kind = "blackhole" }])", "two metrics");
  refused(R"(neighbour = [{ port = "p0", address = "192.0.2.1", mac = "02:00:00:00:00:01" }, )"
          R"({ port = "p0", address = "192.0.2.1", mac = "02:00:00:00:00:02" }])",
          "MAC address already");
  EXPECT_EQ(refusal(R"(route = [{ to = "10.0.0.0/8", port = "p0" }, { to = "10.0.0.0/8", kind = "blackhole", metric = 1 }])"), "");
  refused(R"(ecmp = "dice")", "ecmp");
  refused("max_routes = 1", "from 64");
}

TEST(Router, TellsAllThatIsWrongAtOnce) {
  const std::string what = refusal(R"(
interface = [{ port = "p0", mac = "02:00:00:00:00:01", address = "10.0.0.1" }]
route = [{ to = "10.0.0.0/8" }, { to = "10.0.0.0/8", kind = "blackhole", port = "p0" }])");
  EXPECT_EQ(std::ranges::count(what, '\n'), 2) << what;
  for (const char* part : {"interface[0].length", "route[0].port", "route[1].kind"}) EXPECT_NE(what.find(part), std::string::npos) << what;
}

// Tables of a router without frames, whose routes a test changes.
struct Bench {
  Bench() {
    auto made = Tables::bind(memory, {.nodes = 4096, .hops = 1024, .seed = 3, .by_ports = true});
    if (!made) broken(made.error().what.c_str());
    tables = std::move(*made);
    auto fibs = Fib::create(8192);
    if (!fibs) broken(fibs.error().what.c_str());
    fib = std::move(*fibs);
    routes.emplace(*tables, *fib);
    relink();
    tables->go_live();
  }
  void relink() {
    for (u32 port = 0; port < 4; ++port)
      routes->set_link(10 + port, {fmt::format("d{}", port), 0x020000000002ull + port, 1500, true, true, port});
  }
  static Prefix prefix(const std::string& text, u32 length) {
    Prefix made;
    made.address.version = text.contains(':') ? 6 : 4;
    if (::inet_pton(made.address.version == 6 ? AF_INET6 : AF_INET, text.c_str(), made.address.bytes.data()) != 1)
      broken("a test names no address");
    made.length = length;
    return made;
  }
  static Route via(u32 device, const std::string& gateway, u32 metric = 0) {
    Route made{.metric = metric, .kind = ROUTER_KIND_ONE, .paths = {Path{.device = device, .via = prefix(gateway, 0).address}}};
    return made;
  }
  // By both tables: the group's kind, and the port of its hop, where it has one.
  std::pair<u32, u32> find(const std::string& text) {
    const Address address = prefix(text, 0).address;
    u64 group = 0;
    if (address.version == 4) {
      u32 key = router_host32(address.bytes.data());
      fib->find4(&key, &group, 1);
    } else {
      u8 key[1][16];
      std::ranges::copy(address.bytes, key[0]);
      fib->find6(key, &group, 1);
    }
    EXPECT_EQ(group, tables->trie().find(address)) << text << ": the halves' tables differ";
    if (group == 0) group = tables->config().fallback[address.version == 4 ? 0 : 1];
    const u64 word = group == 0 ? 0 : tables->group(group);
    return {router_group_kind(word),
            router_group_kind(word) == ROUTER_KIND_ONE ? router_hop_port(tables->hop(router_group_index(word))) : 0};
  }
  PlainMemory memory;
  std::unique_ptr<Tables> tables;
  std::unique_ptr<Fib> fib;
  std::optional<Routes> routes;
};
using Found = std::pair<u32, u32>;

TEST(RouterRoutes, ComeAndGo) {
  Bench bench;
  const Prefix wide = Bench::prefix("10.0.0.0", 8), narrow = Bench::prefix("10.1.1.0", 26), all = Bench::prefix("0.0.0.0", 0);
  bench.routes->add(wide, Bench::via(10, "192.0.2.1"), Routes::Change::add);
  bench.routes->add(narrow, Bench::via(11, "192.0.2.65"), Routes::Change::add);
  bench.routes->apply();
  EXPECT_EQ(bench.find("10.1.1.1"), (Found{ROUTER_KIND_ONE, 1}));
  EXPECT_EQ(bench.find("10.1.1.65"), (Found{ROUTER_KIND_ONE, 0}));
  EXPECT_EQ(bench.find("11.0.0.1"), (Found{ROUTER_KIND_NONE, 0}));
  bench.routes->add(all, Bench::via(12, "192.0.2.129"), Routes::Change::add);
  bench.routes->remove(narrow, Bench::via(11, "192.0.2.65"));
  bench.routes->apply();
  EXPECT_EQ(bench.find("10.1.1.1"), (Found{ROUTER_KIND_ONE, 0}));
  EXPECT_EQ(bench.find("11.0.0.1"), (Found{ROUTER_KIND_ONE, 2}));
  EXPECT_EQ(bench.routes->size(4), 2u);
}

TEST(RouterRoutes, OfAPrefixFollowTheKernelsOrder) {
  Bench bench;
  const Prefix to = Bench::prefix("10.0.0.0", 8);
  bench.routes->add(to, Bench::via(10, "192.0.2.1", 20), Routes::Change::add);
  bench.routes->add(to, Bench::via(11, "192.0.2.65", 10), Routes::Change::add);
  bench.routes->apply();
  EXPECT_EQ(bench.find("10.0.0.1"), (Found{ROUTER_KIND_ONE, 1})) << "the least metric";
  bench.routes->add(to, Bench::via(12, "192.0.2.129", 10), Routes::Change::append);
  bench.routes->apply();
  EXPECT_EQ(bench.find("10.0.0.1"), (Found{ROUTER_KIND_ONE, 1})) << "appended behind its like";
  bench.routes->add(to, Bench::via(13, "192.0.2.193", 10), Routes::Change::replace);
  bench.routes->apply();
  EXPECT_EQ(bench.find("10.0.0.1"), (Found{ROUTER_KIND_ONE, 3})) << "in the place of the first";
  bench.routes->remove(to, Bench::via(13, "192.0.2.193", 10));
  bench.routes->remove(to, Bench::via(12, "192.0.2.129", 10));
  bench.routes->apply();
  EXPECT_EQ(bench.find("10.0.0.1"), (Found{ROUTER_KIND_ONE, 0}));
}

TEST(RouterRoutes, OfIpv6LosePathsOneByOne) {
  Bench bench;
  const Prefix to = Bench::prefix("2001:db8::", 32);
  Route both = Bench::via(10, "fe80::1", 1024);
  both.paths.push_back(Bench::via(11, "fe80::2").paths.front());
  bench.routes->add(to, Bench::via(10, "fe80::1", 1024), Routes::Change::add);
  bench.routes->add(to, both, Routes::Change::append);
  bench.routes->apply();
  EXPECT_EQ(bench.find("2001:db8::1").first, u32{ROUTER_KIND_MANY});
  bench.routes->remove(to, Bench::via(10, "fe80::1", 1024));
  bench.routes->apply();
  EXPECT_EQ(bench.find("2001:db8::1"), (Found{ROUTER_KIND_ONE, 1}));
  bench.routes->remove(to, Bench::via(11, "fe80::2", 1024));
  bench.routes->apply();
  EXPECT_EQ(bench.find("2001:db8::1"), (Found{ROUTER_KIND_NONE, 0}));
}

TEST(RouterRoutes, LeaveOutPathsThatAreDown) {
  Bench bench;
  const Prefix to = Bench::prefix("10.0.0.0", 8);
  Route both = Bench::via(10, "192.0.2.1");
  both.paths.push_back(Bench::via(11, "192.0.2.65").paths.front());
  bench.routes->add(to, both, Routes::Change::add);
  bench.routes->apply();
  EXPECT_EQ(bench.find("10.0.0.1").first, u32{ROUTER_KIND_MANY});
  bench.routes->set_link(10, {"d0", 2, 1500, true, false, 0});
  bench.routes->apply();
  EXPECT_EQ(bench.find("10.0.0.1"), (Found{ROUTER_KIND_ONE, 1}));
  bench.routes->set_link(10, {"d0", 2, 1500, true, true, 0});
  bench.routes->apply();
  EXPECT_EQ(bench.find("10.0.0.1").first, u32{ROUTER_KIND_MANY});
}

TEST(RouterRoutes, ThatASweepDoesNotFindAreGone) {
  Bench bench;
  const Prefix stays = Bench::prefix("10.0.0.0", 8), goes = Bench::prefix("11.0.0.0", 8);
  for (const Prefix& prefix : {stays, goes}) bench.routes->add(prefix, Bench::via(10, "192.0.2.1"), Routes::Change::add);
  bench.routes->apply();
  bench.routes->begin_sweep();
  bench.relink();
  bench.routes->add(stays, Bench::via(10, "192.0.2.1"), Routes::Change::found);
  bench.routes->end_sweep();
  bench.routes->apply();
  EXPECT_EQ(bench.find("10.0.0.1"), (Found{ROUTER_KIND_ONE, 0}));
  EXPECT_EQ(bench.find("11.0.0.1"), (Found{ROUTER_KIND_NONE, 0}));
}

TEST(RouterRoutes, OfADeviceThatASweepDoesNotFindAreTheHosts) {
  Bench bench;
  const Prefix to = Bench::prefix("10.0.0.0", 8);
  bench.routes->add(to, Bench::via(10, "192.0.2.1"), Routes::Change::add);
  bench.routes->apply();
  EXPECT_NE(bench.tables->config().port[0], 0u);
  bench.routes->begin_sweep();
  bench.routes->add(to, Bench::via(10, "192.0.2.1"), Routes::Change::found);
  bench.routes->end_sweep();
  bench.routes->apply();
  EXPECT_EQ(bench.find("10.0.0.1").first, u32{ROUTER_KIND_HOST});
  EXPECT_EQ(bench.tables->config().port[0], 0u);
}

TEST(RouterRoutes, OutOfADeviceThatIsNoPortAreTheHosts) {
  Bench bench;
  bench.routes->set_link(99, {"tun0", 0, 1400, true, true, HopKey::no_port});
  bench.routes->add(Bench::prefix("10.0.0.0", 8), Bench::via(99, "192.0.2.1"), Routes::Change::add);
  Route special = Bench::via(10, "192.0.2.1");
  special.special = 8;
  bench.routes->add(Bench::prefix("11.0.0.0", 8), special, Routes::Change::add);
  bench.routes->apply();
  EXPECT_EQ(bench.find("10.0.0.1").first, u32{ROUTER_KIND_HOST});
  EXPECT_EQ(bench.find("11.0.0.1").first, u32{ROUTER_KIND_HOST});
}

TEST(RouterRoutes, AskForGatewaysAndKeepUsedNeighboursFresh) {
  Bench bench;
  std::vector<std::string> asked;
  bench.routes->ask = [&](u32 device, const Address& address) { asked.push_back(fmt::format("{} {}", device, text_of(address))); };
  bench.routes->add(Bench::prefix("10.0.0.0", 8), Bench::via(10, "192.0.2.1"), Routes::Change::add);
  bench.routes->apply();
  bench.routes->tick(1);
  EXPECT_EQ(asked, (std::vector<std::string>{"10 192.0.2.1"})) << "before the first frame needs it";
  const Address gateway = Bench::prefix("192.0.2.1", 0).address;
  bench.routes->set_neighbour(10, gateway, ROUTER_STATE_READY, 0x42, true);
  bench.routes->tick(2);
  EXPECT_EQ(asked.size(), 1u) << "nobody uses it";
  bench.tables->count(bench.tables->find_neighbour(shared(gateway), 0), 60);
  bench.routes->tick(3);
  EXPECT_EQ(asked.size(), 2u);
  bench.routes->tick(4);
  EXPECT_EQ(asked.size(), 2u);
  for (u32 i = 0; i < 5; ++i) bench.routes->want(1, gateway, 5);
  EXPECT_EQ(asked.size(), 3u) << "once a second";
}

// Everything is given back: what is left of thousands of changes is what there was.
TEST(RouterRoutes, LeaveNothingBehind) {
  Bench bench;
  for (u32 round = 0; round < 20; ++round) {
    for (u32 i = 0; i < 300; ++i)
      bench.routes->add(Bench::prefix(fmt::format("10.{}.{}.{}", i % 7, i % 200, i % 256), 32),
                        Bench::via(10 + i % 4, fmt::format("192.0.2.{}", i % 250)), Routes::Change::add);
    bench.routes->apply();
    EXPECT_EQ(bench.routes->size(4), 300u);
    bench.routes->begin_sweep();
    bench.relink();
    bench.routes->end_sweep();
    bench.routes->apply();
    for (u32 s = 0; s < 3; ++s) bench.routes->tick(10 * round + s);
    ASSERT_EQ(bench.tables->trie().nodes_used(), 0u);
    ASSERT_EQ(bench.tables->refused(), 0u);
    ASSERT_EQ(bench.routes->size(4), 0u);
  }
}

class Random {
 public:
  explicit Random(u32 seed) : dice_(seed) {}
  u32 below(u32 end) { return static_cast<u32>(dice_() % end); }
  // Of few first bytes, so that routes lie within each other.
  Address address() {
    Address made;
    made.version = below(2) == 0 ? 4 : 6;
    const u32 size = made.version == 4 ? 4 : 16;
    for (u32 i = 0; i < size; ++i) made.bytes[i] = static_cast<u8>(i < 2 ? 0x20 + below(2) : below(3) == 0 ? below(256) : 0x80 * below(2));
    return made;
  }
  Prefix prefix() {
    Prefix made{address(), 0};
    made.length = 1 + below(made.address.version == 4 ? 32 : 128);
    for (u32 bit = made.length; bit < 128; ++bit) made.address.bytes[bit / 8] &= static_cast<u8>(~(0x80u >> bit % 8));
    return made;
  }

 private:
  std::mt19937 dice_;
};

TEST(RouterTries, AgreeOverRandomPrefixes) {
  const u32 seed = test_seed();
  SCOPED_TRACE(fmt::format("WEIR_TEST_SEED={}", seed));
  Random dice(seed);
  PlainMemory memory;
  constexpr u32 nodes = 30000;
  Trie trie(*memory.array<router_node>("nodes", nodes), {0, nodes});
  auto made = Fib::create(65536);
  ASSERT_TRUE(made) << made.error().what;
  Fib& fib = **made;
  std::vector<Prefix> present;
  const auto compare = [&](u32 number) {
    for (u32 i = 0; i < number; ++i) {
      const Address address = dice.address();
      u64 group = 0;
      u32 key = router_host32(address.bytes.data());
      u8 key6[1][16];
      std::ranges::copy(address.bytes, key6[0]);
      if (address.version == 4) fib.find4(&key, &group, 1);
      else fib.find6(key6, &group, 1);
      ASSERT_EQ(trie.find(address), group) << text_of(address);
    }
  };
  for (u32 round = 0; round < 200; ++round) {
    for (u32 i = 0; i < 40; ++i) {
      if (dice.below(5) < 2 && !present.empty()) {
        const u32 at = dice.below(static_cast<u32>(present.size()));
        const Fib::Above above = fib.erase(present[at]);
        trie.erase(present[at], above.group, above.length);
        present.erase(present.begin() + at);
        continue;
      }
      const Prefix prefix = dice.prefix();
      const u32 group = 1 + dice.below(1000);
      ASSERT_TRUE(fib.set(prefix, group));
      trie.set(prefix, group);
      if (std::ranges::find(present, prefix) == present.end()) present.push_back(prefix);
    }
    if (round % 10 == 0) trie.tick();
    ASSERT_TRUE(trie.whole());
    ASSERT_NO_FATAL_FAILURE(compare(200));
  }
  for (const Prefix& prefix : present) {
    const Fib::Above above = fib.erase(prefix);
    trie.erase(prefix, above.group, above.length);
  }
  ASSERT_NO_FATAL_FAILURE(compare(1000));
  trie.tick();
  EXPECT_EQ(trie.nodes_used(), 0u);
}

TEST(RouterTries, SayWhenTheyAreNotWholeAndBecomeSo) {
  PlainMemory memory;
  constexpr u32 nodes = 2 * ROUTER_ROOT + 4;
  Trie trie(*memory.array<router_node>("nodes", nodes), {0, nodes});
  std::vector<Prefix> prefixes;
  for (u32 i = 0; i < 5; ++i) prefixes.push_back(Bench::prefix(fmt::format("10.{}.1.0", i), 24));
  for (u32 i = 0; i < 5; ++i) trie.set(prefixes[i], i + 1);
  EXPECT_FALSE(trie.whole());
  trie.erase(prefixes[0], 0, 0);
  for (u32 i = 0; i < 4; ++i) trie.tick();
  EXPECT_TRUE(trie.whole());
  for (u32 i = 1; i < 5; ++i) EXPECT_EQ(trie.find(prefixes[i].address), i + 1);
}

// Routes that no change touches are found all the while, whatever is written around them.
TEST(RouterTries, AreReadWhileTheyAreWritten) {
  auto made = Fib::create(8192);
  ASSERT_TRUE(made) << made.error().what;
  Fib& fib = **made;
  PlainMemory memory;
  constexpr u32 nodes = 30000;
  Trie trie(*memory.array<router_node>("nodes", nodes), {0, nodes});
  for (u32 i = 0; i < 64; ++i) {
    const Prefix steady = Bench::prefix(fmt::format("10.0.{}.7", i), 32), steady6 = Bench::prefix(fmt::format("2001:db8:{:x}::7", i), 128);
    ASSERT_TRUE(fib.set(steady, 100 + i) && fib.set(steady6, 200 + i));
    trie.set(steady, 100 + i);
  }
  std::atomic<bool> done{false};
  std::atomic<u64> read{0};
  const auto reader = [&] {
    u32 keys4[64];
    u8 keys6[64][16];
    u64 groups[64];
    for (u32 i = 0; i < 64; ++i) {
      const Address address = Bench::prefix(fmt::format("10.0.{}.7", i), 32).address,
                    address6 = Bench::prefix(fmt::format("2001:db8:{:x}::7", i), 0).address;
      keys4[i] = router_host32(address.bytes.data());
      std::ranges::copy(address6.bytes, keys6[i]);
    }
    while (!done) {
      fib.find4(keys4, groups, 64);
      for (u32 i = 0; i < 64; ++i) ASSERT_EQ(groups[i], 100 + i);
      fib.find6(keys6, groups, 64);
      for (u32 i = 0; i < 64; ++i) ASSERT_EQ(groups[i], 200 + i);
      for (u32 i = 0; i < 64; ++i) ASSERT_EQ(trie.find(Bench::prefix(fmt::format("10.0.{}.7", i), 0).address), 100 + i);
      ++read;
    }
  };
  {
    std::jthread one(reader);
    for (u32 round = 0; round < 300 || read < 50; ++round) {
      for (u32 i = 0; i < 64; ++i) {
        const Prefix prefix = Bench::prefix(fmt::format("10.0.{}.{}", i, 128 + round % 100), 32),
                     prefix6 = Bench::prefix(fmt::format("2001:db8:{:x}::{:x}", i, 256 + round % 100), 128);
        fib.set(prefix, 1), fib.set(prefix6, 2), trie.set(prefix, 1);
        fib.erase(prefix), fib.erase(prefix6), trie.erase(prefix, 0, 0);
      }
      fib.set(Bench::prefix("10.0.0.0", 9), 5 + round), trie.set(Bench::prefix("10.0.0.0", 9), 5 + round);
    }
    done = true;
  }
}

TEST(RouterTables, OfAnEarlierRunGoOnUntilTheNewOnesAreWhole) {
  FakeContext context(ports);
  PlainMemory memory;
  { UserHalf first = opened(context, memory); }
  router_config& config = memory.config<router_config>();
  const u64 before = config.roots;
  EXPECT_NE(before & ROUTER_WHOLE, 0u);
  UserHalf second = opened(context, memory);
  EXPECT_NE(config.roots, before) << "in the other half";
  EXPECT_EQ(differences(second, claims()), "");
  UserHalf third = opened(context, memory);
  EXPECT_EQ(config.roots, before);
  EXPECT_EQ(differences(third, claims()), "");
}

TEST(RouterTables, AreNotHarmedByWhatIsNoTable) {
  const u32 seed = test_seed();
  SCOPED_TRACE(fmt::format("WEIR_TEST_SEED={}", seed));
  std::mt19937_64 dice(seed);
  FakeContext context(ports);
  PlainMemory memory;
  { UserHalf first = opened(context, memory); }
  router_config& config = memory.config<router_config>();
  config.roots = dice();
  const std::span<router_bucket> buckets = *memory.array<router_bucket>("neighbours", config.mask + 1);
  for (router_bucket& bucket : buckets)
    for (u32& slot : bucket.slot) slot = static_cast<u32>(dice());
  UserHalf second = opened(context, memory);
  EXPECT_EQ(differences(second, claims()), "");
}

TEST(RouterNotes, AreTakenInOrderAndBoundedAndCountWhatIsLost) {
  auto notes = std::make_unique<Notes<u32, 8>>();
  for (u32 i = 0; i < 11; ++i) notes->push([&](u32& to) { to = i; });
  EXPECT_EQ(notes->lost(), 3u);
  std::vector<u32> got;
  notes->take([&](u32 each) { got.push_back(each); });
  EXPECT_EQ(got, (std::vector<u32>{0, 1, 2, 3, 4, 5, 6, 7}));
}

TEST(RouterNotes, ComeFromSeveralWorkers) {
  auto notes = std::make_unique<Notes<u32, 64>>();
  std::atomic<u32> writing{3};
  std::vector<std::jthread> writers;
  u64 sum = 0;
  for (u32 writer = 0; writer < 3; ++writer)
    writers.emplace_back([&] {
      for (u32 i = 1; i <= 20000; ++i) notes->push([&](u32& to) { to = 1; });
      --writing;
    });
  while (writing > 0) notes->take([&](u32 each) { sum += each; });
  notes->take([&](u32 each) { sum += each; });
  EXPECT_EQ(sum + notes->lost(), 60000u);
}

class KernelRouter : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = no_kernel(); !why.empty()) GTEST_SKIP() << why;
  }
};

TEST_F(KernelRouter, DoesWithEachPacketWhatTheManualSays) {
  FakeContext context(ports);
  auto kernel = KernelHalf::open(weir_plugin, context);
  ASSERT_TRUE(kernel) << kernel.error().what;
  const UserHalf user = opened(context, (*kernel)->memory());
  const Result<> loaded = (*kernel)->load();
  ASSERT_TRUE(loaded) << loaded.error().what;
  EXPECT_EQ(differences(**kernel, claims()), "");
  for (const Told& each : told()) {
    const auto out = (*kernel)->run(0, each.in);
    ASSERT_TRUE(out) << out.error().what;
    EXPECT_EQ(out->verdict, punt(each.punt)) << each.claim;
    EXPECT_EQ(out->bytes, each.in) << each.claim;
  }
  EXPECT_GT((*kernel)->counter("forwarded_ipv4"), 0u);
  EXPECT_GT((*kernel)->counter("forwarded_ipv6"), 0u);
}

// Frames for the router itself, from and to addresses of the tables, some of them with a byte that lies.
Traffic router_traffic(u32 seed, std::size_t number) {
  Random dice(seed);
  Traffic traffic;
  const Mac macs[] = {in_mac, out_mac, small_mac};
  const std::string hosts4[] = {"192.0.2.2", "192.0.2.66", "192.0.2.130", "192.0.2.1", "192.0.2.70",   "10.0.0.9",   "10.1.0.9",
                                "10.1.1.9",  "10.1.1.130", "10.1.2.9",    "10.1.3.9",  "10.2.0.9",     "10.3.7.9",   "10.4.0.1",
                                "10.5.5.5",  "127.0.0.1",  "224.0.0.9",   "0.0.0.0",   "198.51.100.4", "169.254.3.3"};
  const std::string hosts6[] = {
      "2001:db8::2",     "2001:db8:1::2",   "2001:db8:2::2",   "2001:db8::1",    "2001:db8:1::70", "2001:db8:a::9", "2001:db8:a:1::9",
      "2001:db8:a:2::9", "2001:db8:a:3::9", "2001:db8:a:4::9", "2001:db8:a::77", "2001:db8:b::9",  "2001:db9::1",   "::1",
      "fe80::2",         "ff02::1"};
  while (traffic.size() < number) {
    const u32 port = dice.below(3);
    FrameBuilder frame;
    frame.ethernet(station(9), dice.below(20) == 0 ? station(3) : macs[port]);
    const u8 ttl = static_cast<u8>(dice.below(10) == 0 ? dice.below(3) : 64);
    if (dice.below(2) == 0)
      frame.ipv4(hosts4[dice.below(4) == 0 ? dice.below(std::size(hosts4)) : 5], hosts4[dice.below(std::size(hosts4))], ttl);
    else frame.ipv6(hosts6[dice.below(4) == 0 ? dice.below(std::size(hosts6)) : 5], hosts6[dice.below(std::size(hosts6))], ttl);
    const u16 from = static_cast<u16>(dice.below(1000)), to = static_cast<u16>(dice.below(1000));
    if (dice.below(2) == 0) frame.udp(from, to);
    else if (dice.below(2) == 0) frame.tcp(from, to);
    else frame.icmp(8, 0, from);
    frame.payload(std::string(dice.below(20) == 0 ? dice.below(1500) : dice.below(64), 'r'));
    weir::kit::Packet bytes = frame.build();
    if (dice.below(10) == 0) bytes[14 + dice.below(20)] ^= static_cast<u8>(1 << dice.below(8));
    if (dice.below(20) == 0) bytes.resize(14 + dice.below(static_cast<u32>(bytes.size() - 14)));
    traffic.emplace_back(port, std::move(bytes));
  }
  return traffic;
}

void expect_agreement(const Traffic& traffic, std::size_t most_punted) {
  const Result<Agreement> agreed = both_halves_agree(weir_plugin, keys, ports, traffic);
  ASSERT_TRUE(agreed) << agreed.error().what;
  EXPECT_EQ(agreed->frames, traffic.size());
  EXPECT_LE(agreed->punted, most_punted);
}

TEST_F(KernelRouter, AgreesWithTheUserHalfOverItsOwnTraffic) {
  const u32 seed = test_seed();
  SCOPED_TRACE(fmt::format("WEIR_TEST_SEED={}", seed));
  // 100,000 frames; on a machine that another one emulates, as many as a test may take.
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  for (u32 part = 0; part < 5 && (part == 0 || std::chrono::steady_clock::now() < end); ++part)
    expect_agreement(router_traffic(seed + part, 20000), 12000);
}

TEST_F(KernelRouter, AgreesWithTheUserHalfOverAnyTraffic) {
  const u32 seed = test_seed();
  SCOPED_TRACE(fmt::format("WEIR_TEST_SEED={}", seed));
  expect_agreement(random_traffic(seed, 5000, 3), 5000);
  const Result<Traffic> captured = captured_traffic(WEIR_CAPTURE, 3);
  ASSERT_TRUE(captured) << captured.error().what;
  expect_agreement(*captured, captured->size());
}

}  // namespace
