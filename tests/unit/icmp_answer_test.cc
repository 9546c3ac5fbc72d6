// SPDX-License-Identifier: BSD-3-Clause
// icmp_answer_test: who is told that a packet was too big, and what, as the RFCs have it.
#include "core/pipeline/icmp_answer.hh"

#include <gtest/gtest.h>

#include "kit/frames.hh"

namespace weir {
namespace {

using namespace kit;

FrameBuilder link() { return FrameBuilder().ethernet(station(1), station(2)); }
FrameBuilder v4(const std::string& from = "10.0.0.1", const std::string& to = "10.0.0.2") { return link().ipv4(from, to); }
FrameBuilder v6(const std::string& from = "2001:db8::1", const std::string& to = "2001:db8::2") { return link().ipv6(from, to); }
Packet filled(FrameBuilder frame, std::size_t size = 1514) { return frame.payload(std::string(size - frame.build().size(), 'w')).build(); }

// With another byte, and an IPv4 header checksum that is right again.
Packet with(Packet frame, std::size_t at, u8 value) {
  frame.at(at) = value;
  frame[24] = frame[25] = 0;
  const u16 sum = internet_checksum(internet_sum(std::span(frame).subspan(14, (frame[14] & 0xfu) * 4)));
  frame[24] = static_cast<u8>(sum >> 8), frame[25] = static_cast<u8>(sum);
  return frame;
}
// Of IPv6, from its header on.
Packet extended(u8 first, std::initializer_list<Packet> headers) {
  FrameBuilder frame = v6();
  frame.protocol(first);
  for (const Packet& each : headers) frame.payload(each);
  return filled(frame);
}
// The first 1254 bytes, which is all that a note has.
std::optional<IcmpAnswer> answered(const Packet& frame, u32 mtu = 1400) {
  return answer_too_big(std::span(frame).first(std::min<std::size_t>(frame.size(), 1254)), mtu);
}

TEST(IcmpAnswer, says_the_mtu_and_quotes_as_much_as_576_bytes_hold) {
  const Packet frame = filled(v4().udp(1, 2));
  const auto answer = answered(frame);
  ASSERT_TRUE(answer);
  ASSERT_EQ(answer->message.size(), 576u - 20);
  EXPECT_EQ(Packet(answer->to.begin(), answer->to.begin() + 4), (Packet{10, 0, 0, 1}));
  EXPECT_EQ(internet_checksum(internet_sum(answer->message)), 0);
  EXPECT_EQ(Packet(answer->message.begin(), answer->message.begin() + 2), (Packet{3, 4}));
  EXPECT_EQ(Packet(answer->message.begin() + 4, answer->message.begin() + 8), (Packet{0, 0, 1400 >> 8, 1400 & 0xff}));
  EXPECT_TRUE(std::equal(answer->message.begin() + 8, answer->message.end(), frame.begin() + 14));
}

TEST(IcmpAnswer, quotes_as_much_of_ipv6_as_1280_bytes_hold) {
  const Packet frame = filled(link().vlan(9, 0, ETH_P_8021AD).vlan(7).ipv6("2001:db8::1", "2001:db8::2").udp(1, 2));
  const auto answer = answered(frame);
  ASSERT_TRUE(answer);
  ASSERT_EQ(answer->message.size(), 1280u - 40);
  EXPECT_EQ(Packet(answer->to.begin(), answer->to.end()), (Packet{0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}));
  EXPECT_EQ(Packet(answer->message.begin(), answer->message.begin() + 2), (Packet{2, 0}));
  EXPECT_EQ(Packet(answer->message.begin() + 4, answer->message.begin() + 8), (Packet{0, 0, 1400 >> 8, 1400 & 0xff}));
  EXPECT_TRUE(std::equal(answer->message.begin() + 8, answer->message.end(), frame.begin() + 22));
}

TEST(IcmpAnswer, is_for_every_packet_that_a_host_may_have_sent_to_another) {
  EXPECT_TRUE(answered(filled(v4().tcp(1, 2)), 68));
  EXPECT_TRUE(answered(filled(v4().icmp(8, 0))));
  EXPECT_TRUE(answered(filled(link().vlan(7).ipv4("10.0.0.1", "10.0.0.2").udp(1, 2))));
  EXPECT_TRUE(answered(filled(v4("223.255.255.254"))));
  EXPECT_TRUE(answered(with(filled(v4().udp(1, 2)), 20, 0x60))) << "the first fragment";
  EXPECT_TRUE(answered(with(filled(v4().protocol(17)), 14, 0x4f))) << "with options";
  EXPECT_TRUE(answered(filled(v6().tcp(1, 2)), 1280));
  EXPECT_TRUE(answered(filled(v6().icmp(128, 0))));
  EXPECT_TRUE(answered(filled(v6("fe80::1"))));
  EXPECT_TRUE(answered(extended(0, {{43, 0, 0, 0, 0, 0, 0, 0}, {44, 0, 0, 0, 0, 0, 0, 0}, {58, 0, 0, 1, 0, 0, 0, 1}, {128, 0, 0, 0}})));
  EXPECT_TRUE(answered(extended(59, {})));
}

TEST(IcmpAnswer, is_not_for_ipv4_where_the_rfcs_want_none) {
  const Packet frame = filled(v4().udp(1, 2));
  EXPECT_FALSE(answered(with(frame, 20, 0))) << "may be fragmented";
  EXPECT_FALSE(answered(with(frame, 21, 1))) << "not the first fragment";
  EXPECT_FALSE(answered(with(frame, 20, 0x50))) << "not the first fragment";
  for (const u8 type : {3, 4, 5, 11, 12, 19, 255}) EXPECT_FALSE(answered(filled(v4().icmp(type, 0)))) << int{type};
  for (const char* none : {"0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"}) {
    EXPECT_FALSE(answered(filled(v4(none)))) << "from " << none;
    EXPECT_FALSE(answered(filled(v4("10.0.0.1", none)))) << "to " << none;
  }
  EXPECT_FALSE(answered(filled(FrameBuilder().ethernet(station(1), broadcast).ipv4("10.0.0.1", "10.0.0.2").udp(1, 2))));
  Packet wrong = frame;
  wrong[24] ^= 1;
  EXPECT_FALSE(answered(wrong)) << "its checksum is wrong";
  Packet padded = filled(v4().udp(1, 2), 1414);
  padded.resize(1514);
  EXPECT_FALSE(answered(padded)) << "the packet fits";
  EXPECT_FALSE(answered(with(frame, 14, 0x44))) << "its header is too short";
  EXPECT_FALSE(answered(Packet(frame.begin(), frame.begin() + 41))) << "less than 8 bytes behind its header";
}

TEST(IcmpAnswer, is_not_for_ipv6_where_the_rfcs_want_none) {
  const Packet frame = filled(v6().udp(1, 2));
  EXPECT_FALSE(answered(frame, 1279)) << "less than every link takes";
  for (const u8 type : {0, 1, 2, 3, 4, 127, 137}) EXPECT_FALSE(answered(filled(v6().icmp(type, 0)))) << int{type};
  for (const char* none : {"::", "::1", "ff02::1"}) {
    EXPECT_FALSE(answered(filled(v6(none)))) << "from " << none;
    EXPECT_FALSE(answered(filled(v6("2001:db8::1", none)))) << "to " << none;
  }
  EXPECT_FALSE(answered(extended(44, {{17, 0, 0, 8, 0, 0, 0, 1}}))) << "not the first fragment";
  EXPECT_FALSE(answered(extended(60, {{58, 0, 0, 0, 0, 0, 0, 0}, {1, 0, 0, 0}}))) << "an error behind an extension header";
  EXPECT_FALSE(answered(extended(60, {{58, 200, 0, 0, 0, 0, 0, 0}}))) << "an extension header whose end is not in the note";
  Packet padded = filled(v6().udp(1, 2), 1414);
  padded.resize(1514);
  EXPECT_FALSE(answered(padded)) << "the packet fits";
  EXPECT_FALSE(answered(filled(link().vlan(9).vlan(8).vlan(7).ipv6("2001:db8::1", "2001:db8::2")))) << "behind three tags";
  EXPECT_FALSE(answered(filled(link()))) << "not IP";
  EXPECT_FALSE(answered(Packet(13)));
}

TEST(IcmpAnswer, names_each_reason_as_the_rfcs_do) {
  struct {
    IcmpReason why;
    Packet v4, v6;
  } const rows[] = {{IcmpReason::expired, {11, 0}, {3, 0}},
                    {IcmpReason::net_unreachable, {3, 0}, {1, 0}},
                    {IcmpReason::host_unreachable, {3, 1}, {1, 3}},
                    {IcmpReason::prohibited, {3, 13}, {1, 1}}};
  for (const auto& row : rows)
    for (const Packet& frame : {v4().udp(1, 2).payload("x").pad(60), v6().udp(1, 2).build()}) {
      const auto answer = icmp_answer(row.why, frame);
      ASSERT_TRUE(answer) << "however short it is";
      EXPECT_EQ(Packet(answer->message.begin(), answer->message.begin() + 2), answer->version == 4 ? row.v4 : row.v6);
      EXPECT_EQ(Packet(answer->message.begin() + 4, answer->message.begin() + 8), (Packet{0, 0, 0, 0}));
    }
}

TEST(IcmpAnswer, speaks_of_no_error_fragment_or_group_whatever_the_reason) {
  for (const IcmpReason why : {IcmpReason::expired, IcmpReason::net_unreachable, IcmpReason::host_unreachable, IcmpReason::prohibited}) {
    EXPECT_FALSE(icmp_answer(why, v4().icmp(11, 0).build()));
    EXPECT_FALSE(icmp_answer(why, v6().icmp(3, 0).build()));
    EXPECT_FALSE(icmp_answer(why, with(v4().udp(1, 2).build(), 21, 1))) << "a later fragment";
    EXPECT_FALSE(icmp_answer(why, v4("10.0.0.1", "224.0.0.5").udp(1, 2).build()));
    EXPECT_FALSE(icmp_answer(why, v6("2001:db8::1", "ff02::1").udp(1, 2).build()));
    EXPECT_FALSE(icmp_answer(why, v4("0.0.0.0").udp(1, 2).build()));
    EXPECT_FALSE(icmp_answer(why, FrameBuilder().ethernet(station(1), broadcast).ipv4("10.0.0.1", "10.0.0.2").udp(1, 2).build()));
  }
}

TEST(IcmpAnswer, of_what_is_cut_reads_nothing_behind_the_end) {
  std::mt19937 dice(test_seed());
  for (const Packet& whole : {filled(v4().icmp(8, 0)), filled(v6().udp(1, 2)), extended(0, {{60, 0, 0, 0, 0, 0, 0, 0}})})
    for (u32 i = 0; i < 5000; ++i) {
      Packet frame(whole.begin(), whole.begin() + dice() % whole.size());
      frame.shrink_to_fit();
      if (!frame.empty()) frame[dice() % std::min<std::size_t>(frame.size(), 100)] = static_cast<u8>(dice());
      static_cast<void>(answer_too_big(frame, 1280));
    }
}

}  // namespace
}  // namespace weir
