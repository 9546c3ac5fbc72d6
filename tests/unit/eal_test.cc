// SPDX-License-Identifier: BSD-3-Clause
// eal_test: DPDK's environment leaves the process and the host as they were, and its tables work.
#include "core/port/eal.hh"

#include <gtest/gtest.h>
#include <rte_eal.h>
#include <rte_fib.h>
#include <rte_malloc.h>
#include <sched.h>

#include <filesystem>
#include <thread>

namespace weir {
namespace {

void expect_started() {
  const Result<> done = ensure_eal();
  ASSERT_TRUE(done) << done.error().what;
}

TEST(Eal, KeepsTheCpusOfItsCaller) {
  cpu_set_t before, after;
  ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
  expect_started();
  ASSERT_EQ(sched_getaffinity(0, sizeof after, &after), 0);
  EXPECT_TRUE(CPU_EQUAL(&before, &after));
}

TEST(Eal, StartsOnceHoweverOftenItIsAskedFor) {
  expect_started();
  expect_started();
  std::thread(expect_started).join();
}

TEST(Eal, LeavesNoFileBehind) {
  expect_started();
  const std::string folder = rte_eal_get_runtime_dir();
  EXPECT_NE(folder.find("weir-"), std::string::npos) << folder;
  EXPECT_FALSE(std::filesystem::exists(folder)) << folder;
}

TEST(Eal, HasMemoryForTables) {
  expect_started();
  void* memory = rte_zmalloc("test", std::size_t{eal_memory_mb()} << 18, 64);
  EXPECT_NE(memory, nullptr);
  rte_free(memory);
}

TEST(Eal, ItsTablesFindRoutes) {
  expect_started();
  rte_fib_conf config{};
  config.type = RTE_FIB_DIR24_8;
  config.default_nh = 7;
  config.max_routes = 64;
  config.dir24_8 = {RTE_FIB_DIR24_8_4B, 64};
  rte_fib* fib = rte_fib_create("eal_test", SOCKET_ID_ANY, &config);
  ASSERT_NE(fib, nullptr);
  ASSERT_EQ(rte_fib_add(fib, 0x0a000000, 8, 42), 0);
  u32 addresses[2] = {0x0a010203, 0x0b010203};
  uint64_t found[2] = {};
  ASSERT_EQ(rte_fib_lookup_bulk(fib, addresses, found, 2), 0);
  EXPECT_EQ(found[0], 42u);
  EXPECT_EQ(found[1], 7u);
  rte_fib_free(fib);
}

}  // namespace
}  // namespace weir
