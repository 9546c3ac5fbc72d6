// SPDX-License-Identifier: BSD-3-Clause
// dpdk_test: frames that drivers of DPDK have and those that weir has are always all frames; ports leave nothing in the process.
#include <dirent.h>
#include <gtest/gtest.h>
#include <rte_malloc.h>
#include <rte_mempool.h>

#include <cstring>
#include <numeric>

#include "core/driver.hh"
#include "core/port/dpdk_port.hh"

extern "C" const weir::PortDriver weir_driver;

namespace weir {
namespace {

constexpr u32 frame_count = 4096, frame_size = 2048;

ConfigNode keys_of(const std::string& device, i64 queues = 1) {
  ConfigTable table{{"device", {{}, device}}, {"queues", {{}, queues}}, {"mtu", {{}, i64{1500}}}, {"promiscuous", {{}, true}}};
  return {"", {}, std::move(table)};
}

class Dpdk : public ::testing::Test {
 protected:
  void SetUp() override {
    const ConfigNode keys = keys_of("net_null0");
    Result<Mapping> memory = weir_driver.begin({&keys}, settings(), u64{frame_count} * frame_size);
    ASSERT_TRUE(memory) << memory.error().what;
    pool = std::move(*FramePool::create(frame_count, frame_size, std::move(*memory)));
  }

  static const ConfigNode* settings() {
    static const ConfigNode settings("", {}, {{"eal", {{}, std::vector<ConfigValue>{{{}, std::string("--no-huge")}}}}});
    return &settings;
  }

  std::unique_ptr<Port> open(const std::string& device, u16 slot = 0, i64 queues = 1) {
    const ConfigNode keys = keys_of(device, queues);
    Result<std::unique_ptr<Port>> port = weir_driver.open(keys, {.slot = PortSlot{slot},
                                                                 .name = "p" + std::to_string(slot),
                                                                 .pool = *pool,
                                                                 .fill = 512,
                                                                 .files_only = false,
                                                                 .receives = true,
                                                                 .settings = nullptr});
    EXPECT_TRUE(port) << port.error().what;
    return port ? std::move(*port) : nullptr;
  }

  std::unique_ptr<FramePool> pool;
};

std::size_t open_files() {
  DIR* folder = ::opendir("/proc/self/fd");
  std::size_t number = 0;
  while (::readdir(folder) != nullptr) ++number;
  ::closedir(folder);
  return number;
}

std::size_t heap_bytes() {
  std::size_t bytes = 0;
  for (int socket = 0; socket < RTE_MAX_NUMA_NODES; ++socket)
    if (rte_malloc_socket_stats stats{}; rte_malloc_get_socket_stats(socket, &stats) == 0) bytes += stats.heap_allocsz_bytes;
  return bytes;
}

TEST_F(Dpdk, EachFrameIsWithADriverOrFreeOrInABurst) {
  auto ring = open("net_ring1");
  ASSERT_NE(ring, nullptr);
  FrameCache cache(*pool);
  std::array<u64, 40> offsets{};
  ASSERT_EQ(cache.take(offsets.data(), 40), 40u);
  std::vector<Frame> frames;
  for (u32 i = 0; i < 40; ++i) {
    u8* data = pool->base() + offsets[i] + 256;
    std::memset(data, static_cast<int>(i), 60 + i);
    frames.push_back({.data = data, .length = 60 + i, .port = PortSlot{3}});
  }
  Queue& queue = ring->queue(0);
  EXPECT_EQ(queue.held(), 0u);
  EXPECT_EQ(queue.transmit(frames.data(), 40, cache), 40u);
  EXPECT_EQ(queue.held(), 40u);
  EXPECT_EQ(pool->free() + cache.free(), frame_count - 40);
  Burst burst;
  EXPECT_EQ(queue.receive(burst, cache), 40u);
  EXPECT_EQ(queue.held(), 0u);
  for (u32 i = 0; i < 40; ++i) {
    const Frame& got = burst.begin()[i];
    EXPECT_EQ(got.data, frames[i].data) << "it is the same frame, and no copy";
    EXPECT_EQ(got.length, 60 + i);
    EXPECT_EQ(got.port, PortSlot{0});
    EXPECT_EQ(got.data[59 + i], i);
    cache.release(got);
  }
  EXPECT_EQ(pool->free() + cache.free(), frame_count);
}

TEST_F(Dpdk, AFrameWithAFullHeadroomLeavesWhole) {
  auto ring = open("net_ring1");
  ASSERT_NE(ring, nullptr);
  FrameCache cache(*pool);
  u64 offset = 0;
  ASSERT_EQ(cache.take(&offset, 1), 1u);
  u8* data = pool->base() + offset + 7;
  std::iota(data, data + 1500, 0);
  const Frame frame{.data = data, .length = 1500, .port = PortSlot{0}};
  EXPECT_EQ(ring->queue(0).transmit(&frame, 1, cache), 1u);
  Burst burst;
  ASSERT_EQ(ring->queue(0).receive(burst, cache), 1u);
  EXPECT_EQ(burst.begin()->length, 1500u);
  for (u32 i = 0; i < 1500; ++i) ASSERT_EQ(burst.begin()->data[i], static_cast<u8>(i)) << i;
  cache.release(*burst.begin());
}

TEST_F(Dpdk, WhatADeviceDoesNotTakeStaysWithItsOwner) {
  auto ring = open("net_ring1");
  ASSERT_NE(ring, nullptr);
  FrameCache cache(*pool);
  u32 sent = 0;
  for (u32 i = 0; i < 1100; ++i) {  // a ring of DPDK's takes 1023
    u64 offset = 0;
    ASSERT_EQ(cache.take(&offset, 1), 1u);
    const Frame frame{.data = pool->base() + offset + 256, .length = 60, .port = PortSlot{0}};
    if (ring->queue(0).transmit(&frame, 1, cache) == 1) ++sent;
    else cache.release(frame);
  }
  EXPECT_EQ(sent, 1023u);
  EXPECT_EQ(ring->queue(0).held(), sent);
  EXPECT_EQ(pool->free() + cache.free() + sent, frame_count);
  EXPECT_EQ(ring->take_lost().refused, 0u) << "they were given back, and are no loss of the device's";
  Burst burst;
  while (ring->queue(0).receive(burst, cache) > 0) {
    for (const Frame& frame : burst) cache.release(frame);
    burst.clear();
  }
  EXPECT_EQ(pool->free() + cache.free(), frame_count);
}

TEST_F(Dpdk, WithoutAFreeFrameNothingComesIn) {
  auto null = open("net_null1");
  ASSERT_NE(null, nullptr);
  std::vector<u64> all(frame_count);
  ASSERT_EQ(pool->take(all.data(), frame_count), frame_count);
  FrameCache cache(*pool);
  Burst burst;
  EXPECT_EQ(null->queue(0).receive(burst, cache), 0u);
  EXPECT_EQ(null->queue(0).held(), 0u);
  pool->release(all.data(), frame_count);
  EXPECT_GT(null->queue(0).receive(burst, cache), 0u);
  for (const Frame& frame : burst) cache.release(frame);
}

TEST_F(Dpdk, AHundredStartsAndStopsLeaveNothing) {
  std::size_t files = 0, bytes = 0;
  for (u32 i = 0; i < 100; ++i) {
    auto one = open("net_ring2", 0, 2), other = open("net_ring3", 1);  // net_null of DPDK 22.11 does not free its own when it is closed
    ASSERT_TRUE(one && other);
    one.reset();
    other.reset();
    EXPECT_EQ(pool->free(), frame_count);
    if (i == 9) files = open_files(), bytes = heap_bytes();  // the first ones pay for what is made once
  }
  EXPECT_EQ(open_files(), files);
  EXPECT_EQ(heap_bytes(), bytes);
}

}  // namespace
}  // namespace weir
