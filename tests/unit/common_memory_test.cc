// SPDX-License-Identifier: BSD-3-Clause
// common_memory_test: who asks by one name gets one memory, and of one size.
#include "core/pipeline/common_memory.hh"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace {

using namespace weir;

TEST(CommonMemory, is_one_by_one_name) {
  CommonMemory common;
  const auto first = common.get("a", "m", 8, 4), again = common.get("a", "m", 8, 4), other = common.get("b", "m", 8, 4);
  ASSERT_TRUE(first && again && other);
  EXPECT_TRUE(first->first);
  EXPECT_FALSE(again->first);
  EXPECT_TRUE(other->first);
  EXPECT_EQ(first->bytes, again->bytes);
  EXPECT_NE(first->bytes, other->bytes);
  EXPECT_EQ(first->fd, -1);
  EXPECT_TRUE(common.pin_names().empty());
  for (u32 i = 0; i < 32; ++i) EXPECT_EQ(first->bytes[i], 0);
}

TEST(CommonMemory, keeps_its_size) {
  CommonMemory common;
  ASSERT_TRUE(common.get("a", "m", 8, 4));
  const auto larger = common.get("a", "m", 8, 5), wider = common.get("a", "m", 16, 4);
  ASSERT_FALSE(larger);
  EXPECT_EQ(larger.error().what, "a: has 4 entries of 8 bytes, and 5 of 8 are asked for; another size takes a new start");
  EXPECT_FALSE(wider);
}

}  // namespace
