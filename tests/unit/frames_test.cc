// SPDX-License-Identifier: BSD-3-Clause
// frames_test: who owns a frame, where its headers end, and what a burst remembers of it.
#include <gtest/gtest.h>

#include <algorithm>
#include <latch>
#include <set>
#include <thread>

#include "core/frame/pool.hh"
#include "core/frame/wire.hh"
#include "kit/frames.hh"

namespace weir {
namespace {

std::unique_ptr<FramePool> pool_of(u32 count, u32 size = 2048) {
  auto made = FramePool::create(count, size);
  if (!made) broken(made.error().what.c_str());
  return std::move(*made);
}

std::vector<u64> taken(FramePool& pool, u32 want) {
  std::vector<u64> frames(want);
  frames.resize(pool.take(frames.data(), want));
  return frames;
}

TEST(FramePool, gives_every_frame_once) {
  for (u32 size : {2048u, 4096u}) {
    const auto pool = pool_of(100, size);
    EXPECT_EQ(pool->bytes(), 100ull * size);
    std::vector<u64> all = taken(*pool, 60);
    for (u64 frame : taken(*pool, 60)) all.push_back(frame);
    EXPECT_EQ(pool->free(), 0u);
    std::ranges::sort(all);
    ASSERT_EQ(all.size(), 100u) << "what is not there is not given";
    for (u64 i = 0; i < 100; ++i) EXPECT_EQ(all[i], i * size);
    EXPECT_TRUE(taken(*pool, 1).empty());
    pool->release(all.data(), 100);
    EXPECT_EQ(pool->free(), 100u);
  }
}

TEST(FramePool, knows_a_frame_by_any_of_its_bytes) {
  const auto pool = pool_of(4, 4096);
  EXPECT_EQ(pool->of(pool->base()), 0u);
  EXPECT_EQ(pool->of(pool->base() + 4095), 0u);
  EXPECT_EQ(pool->of(pool->base() + 4096), 4096u);
  EXPECT_EQ(pool->of(pool->base() + 4 * 4096 - 1), 3u * 4096);
}

TEST(FramePool, has_memory_behind_every_frame) {
  const auto pool = pool_of(64);
  EXPECT_TRUE(std::all_of(pool->base(), pool->base() + pool->bytes(), [](u8 byte) { return byte == 0; }));
  std::fill_n(pool->base(), pool->bytes(), u8{1});
}

TEST(FramePool, conserves_frames_when_several_take_and_release_at_once) {
  constexpr u32 count = 64;
  const auto pool = pool_of(count);
  std::latch start(3);
  const auto work = [&](u32 want) {
    start.arrive_and_wait();
    for (u32 turn = 0; turn < 500'000; ++turn) {
      u64 held[8];
      const u32 got = pool->take(held, want);
      for (u32 i = 0; i < got; ++i) *reinterpret_cast<volatile u32*>(pool->base() + held[i]) = want;
      for (u32 i = 0; i < got; ++i)
        if (*reinterpret_cast<volatile u32*>(pool->base() + held[i]) != want) return ADD_FAILURE() << "a frame has two owners";
      pool->release(held, got);
    }
  };
  {
    std::vector<std::jthread> threads;
    for (u32 want : {3u, 5u, 7u}) threads.emplace_back(work, want);
  }
  std::vector<u64> all = taken(*pool, count);
  std::ranges::sort(all);
  ASSERT_EQ(all.size(), count);
  for (u64 i = 0; i < count; ++i) EXPECT_EQ(all[i], i * pool->size());
}

TEST(FramePoolDeathTest, aborts_when_a_frame_is_released_twice) {
  const auto pool = pool_of(4);
  const u64 frame = taken(*pool, 1).front();
  pool->release(&frame, 1);
  EXPECT_DEATH(pool->release(&frame, 1), "released twice");
}

TEST(FrameCache, takes_from_the_pool_what_it_lacks) {
  const auto pool = pool_of(2000);
  FrameCache cache(*pool);
  u64 frames[64];
  EXPECT_EQ(cache.take(frames, 64), 64u);
  EXPECT_GT(cache.free(), 0u) << "it takes more than it was asked for, since the pool's lock costs";
  const u32 left = pool->free();
  EXPECT_EQ(cache.take(frames, 64), 64u);
  EXPECT_EQ(pool->free(), left);
  EXPECT_EQ(pool->free() + cache.free(), 2000u - 128);
}

TEST(FrameCache, gives_the_last_frame_of_the_pool_and_no_more) {
  const auto pool = pool_of(10);
  FrameCache cache(*pool);
  std::vector<u64> frames(16);
  EXPECT_EQ(cache.take(frames.data(), 7), 7u);
  EXPECT_EQ(cache.take(frames.data() + 7, 7), 3u);
  EXPECT_EQ(cache.take(frames.data() + 10, 1), 0u);
  EXPECT_EQ(std::set(frames.begin(), frames.begin() + 10).size(), 10u);
  for (int i = 0; i < 10; ++i) cache.release(frames[i]);
}

TEST(FrameCache, spills_into_the_pool_and_mixes_no_frames_up) {
  constexpr u32 count = 3 * FrameCache::capacity;
  const auto pool = pool_of(count);
  std::vector<u64> all = taken(*pool, count);
  {
    FrameCache cache(*pool);
    for (u64 frame : all) {
      cache.release(frame);
      ASSERT_LE(cache.free(), FrameCache::capacity);
    }
    EXPECT_GE(pool->free(), count - FrameCache::capacity);
    EXPECT_EQ(pool->free() + cache.free(), count);
  }
  EXPECT_EQ(pool->free(), count) << "a cache that goes gives its frames back";
  const std::vector<u64> again = taken(*pool, count);
  EXPECT_TRUE(std::ranges::is_permutation(all, again));
}

TEST(FrameCache, releases_a_frame_whatever_its_bytes_begin_at) {
  const auto pool = pool_of(4);
  FrameCache cache(*pool);
  std::vector<u64> frames(4);
  ASSERT_EQ(cache.take(frames.data(), 4), 4u);
  cache.release({.data = pool->base() + frames[2] + 2000, .length = 14});
  u64 back = 0;
  ASSERT_EQ(cache.take(&back, 1), 1u);
  EXPECT_EQ(back, frames[2]);
}

TEST(Frame, shows_a_header_that_lies_within_it) {
  std::array<u8, 34> bytes{};
  const Frame frame{.data = bytes.data(), .length = bytes.size()};
  EXPECT_EQ(reinterpret_cast<u8*>(frame.header<EthernetHeader>()), bytes.data());
  EXPECT_EQ(reinterpret_cast<u8*>(frame.header<EthernetHeader>(20)), bytes.data() + 20) << "up to its last byte";
  EXPECT_EQ(frame.header<EthernetHeader>(21), nullptr);
  EXPECT_EQ(frame.header<EthernetHeader>(34), nullptr);
  EXPECT_EQ(frame.header<u8>(34), nullptr);
  EXPECT_EQ(frame.bytes().size(), 34u);
}

TEST(Frame, shows_no_header_of_a_frame_without_bytes) {
  const Frame frame{};
  EXPECT_EQ(frame.header<u8>(), nullptr);
  EXPECT_EQ(frame.header<EthernetHeader>(), nullptr);
}

TEST(Frame, shows_no_header_where_offset_and_size_overflow) {
  std::array<u8, 64> bytes{};
  const Frame frame{.data = bytes.data(), .length = bytes.size()};
  for (u32 offset : {~0u, ~0u - 13, ~0u - 14}) EXPECT_EQ(frame.header<EthernetHeader>(offset), nullptr) << offset;
}

Frame frame_of(kit::Packet& bytes) { return {.data = bytes.data(), .length = static_cast<u32>(bytes.size())}; }

TEST(Wire, shows_the_fields_of_ipv4_and_tcp_behind_a_tag) {
  kit::Packet bytes = kit::FrameBuilder()
                          .ethernet(kit::station(1), kit::station(2))
                          .vlan(100, 5)
                          .ipv4("192.0.2.1", "198.51.100.2", 17)
                          .tcp(1025, 443, 0x12, 0x01020304, 0x05060708)
                          .payload("x")
                          .build();
  const Frame frame = frame_of(bytes);
  const auto* eth = frame.header<EthernetHeader>();
  EXPECT_EQ(eth->destination, kit::station(2));
  EXPECT_EQ(eth->source, kit::station(1));
  EXPECT_EQ(eth->type, be16(ETH_P_8021Q));
  const auto* tag = frame.header<VlanTag>(14);
  EXPECT_EQ(tag->vid(), 100);
  EXPECT_EQ(tag->pcp(), 5);
  EXPECT_EQ(tag->type, be16(ETH_P_IP));
  const auto* ip = frame.header<Ipv4Header>(18);
  EXPECT_EQ(ip->version(), 4);
  EXPECT_EQ(ip->length(), 20u);
  EXPECT_EQ(ip->total_length, be16(41));
  EXPECT_EQ(ip->time_to_live, 17);
  EXPECT_EQ(ip->protocol, 6);
  EXPECT_EQ(ip->source_address, be32(0xc0000201));
  EXPECT_EQ(ip->destination_address, be32(0xc6336402));
  EXPECT_FALSE(ip->is_fragment()) << "DF alone";
  bytes[18 + 6] = 0x20;
  EXPECT_TRUE(ip->is_fragment()) << "MF";
  bytes[18 + 6] = 0, bytes[18 + 7] = 1;
  EXPECT_TRUE(ip->is_fragment()) << "an offset";
  const auto* tcp = frame.header<TcpHeader>(38);
  EXPECT_EQ(tcp->source_port, be16(1025));
  EXPECT_EQ(tcp->destination_port, be16(443));
  EXPECT_EQ(tcp->sequence_number.host(), 0x01020304u);
  EXPECT_EQ(tcp->acknowledgment_number.host(), 0x05060708u);
  EXPECT_EQ(tcp->length(), 20u);
  EXPECT_EQ(tcp->control_bits, 0x12);
  EXPECT_EQ(tcp->window, be16(0xffff));
}

TEST(Wire, shows_the_fields_of_ipv6_and_udp) {
  kit::Packet bytes = kit::FrameBuilder()
                          .ethernet(kit::station(1), kit::station(2))
                          .ipv6("2001:db8::1", "2001:db8::2", 3)
                          .traffic_class(0xb8)
                          .udp(53, 1053)
                          .payload("four")
                          .build();
  const Frame frame = frame_of(bytes);
  const auto* ip = frame.header<Ipv6Header>(14);
  EXPECT_EQ(ip->version(), 6);
  EXPECT_EQ(ip->traffic_class(), 0xb8);
  EXPECT_EQ(ip->payload_length, be16(12));
  EXPECT_EQ(ip->next_header, 17);
  EXPECT_EQ(ip->hop_limit, 3);
  EXPECT_EQ(ip->source_address[15], 1);
  EXPECT_EQ(ip->destination_address[15], 2);
  const auto* udp = frame.header<UdpHeader>(54);
  EXPECT_EQ(udp->source_port, be16(53));
  EXPECT_EQ(udp->destination_port, be16(1053));
  EXPECT_EQ(udp->length, be16(12));
  EXPECT_NE(udp->checksum, be16(0));
}

TEST(Wire, shows_the_fields_of_icmp_and_arp) {
  kit::Packet bytes =
      kit::FrameBuilder().ethernet(kit::station(1), kit::station(2)).ipv4("192.0.2.1", "192.0.2.2").icmp(8, 0, 7, 9).build();
  const auto* icmp = frame_of(bytes).header<IcmpHeader>(34);
  EXPECT_EQ(icmp->type, 8);
  EXPECT_EQ(icmp->code, 0);
  EXPECT_EQ(icmp->rest, be32(7 << 16 | 9));
  // RFC 826: 02:00:00:00:00:01, who is 192.0.2.1, asks for 192.0.2.2.
  kit::Packet arp = {0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 192, 0, 2, 2};
  const auto* asks = frame_of(arp).header<ArpPacket>();
  EXPECT_EQ(asks->hardware_type, be16(1));
  EXPECT_EQ(asks->protocol_type, be16(ETH_P_IP));
  EXPECT_EQ(asks->operation, be16(1));
  EXPECT_EQ(asks->sender_hardware_address, kit::station(1));
  EXPECT_EQ(asks->sender_protocol_address, be32(0xc0000201));
  EXPECT_EQ(asks->target_protocol_address, be32(0xc0000202));
}

enum class Drop { first, second };
enum class Counter { first, second };

Burst burst_of(u32 number) {
  Burst burst;
  for (u32 i = 0; i < number; ++i) burst.push({.length = i, .port = PortSlot{7}});
  return burst;
}

TEST(Burst, holds_64_frames_in_their_order) {
  Burst burst = burst_of(Burst::capacity);
  EXPECT_EQ(Burst::capacity, 64u);
  EXPECT_EQ(burst.size(), 64u);
  EXPECT_EQ(burst.room(), 0u);
  u32 at = 0;
  for (const Frame& frame : burst) EXPECT_EQ(frame.length, at++);
  EXPECT_EQ(at, 64u);
  burst.clear();
  EXPECT_TRUE(burst.empty());
  EXPECT_EQ(burst.begin(), burst.end());
}

TEST(Burst, writes_each_verdict_with_its_argument) {
  Burst burst = burst_of(5);
  Frame* frames = burst.begin();
  burst.transmit(frames[0], PortSlot{3});
  burst.flood(frames[1], GroupSlot{4});
  burst.to_stack(frames[2]);
  burst.drop(frames[3], Drop::second);
  const std::pair<u8, u16> expected[] = {
      {WEIR_REDIRECT, 3}, {WEIR_FLOOD, 4}, {WEIR_TO_STACK, 0}, {WEIR_DROP, WEIR_DROP_OWN + 1}, {WEIR_NEXT, 0}};
  for (u32 i = 0; i < 5; ++i) EXPECT_EQ(std::pair(frames[i].verdict, frames[i].argument), expected[i]) << i;
  EXPECT_EQ(burst.decided(), 4u);
}

TEST(Burst, counts_a_frame_once_however_often_it_is_decided) {
  Burst burst = burst_of(2);
  burst.drop(*burst.begin(), Drop::first);
  burst.transmit(*burst.begin(), PortSlot{1});
  EXPECT_EQ(burst.decided(), 1u);
  EXPECT_EQ(burst.begin()->verdict, WEIR_REDIRECT) << "the last word counts";
}

TEST(Burst, starts_anew_with_what_is_left) {
  Burst burst = burst_of(4);
  burst.to_stack(*burst.begin());
  burst.truncate(2);
  EXPECT_EQ(burst.size(), 2u);
  EXPECT_EQ(burst.decided(), 0u);
  EXPECT_EQ(burst.room(), 62u);
}

TEST(Burst, counts_where_it_is_charged) {
  account first{}, second{};
  Burst burst;
  burst.charge(&first);
  burst.count(Counter::second);
  burst.charge(&second);
  burst.count(Counter::first, 5);
  EXPECT_EQ(first.counter[1], 1u);
  EXPECT_EQ(first.counter[0] + second.counter[1], 0u);
  EXPECT_EQ(second.counter[0], 5u);
}

}  // namespace
}  // namespace weir
