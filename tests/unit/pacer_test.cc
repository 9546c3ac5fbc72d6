// SPDX-License-Identifier: BSD-3-Clause
// pacer_test: when frames are due, and the times that frames carry.
#include "core/port/pacer.hh"

#include <gtest/gtest.h>
#include <poll.h>

#include "core/frame/pool.hh"

namespace weir {
namespace {

constexpr u64 now = 5'000'000'000, second = 1'000'000'000, year = 1'700'000'000'000'000'000;

Pacer paced(const char* text) { return Pacer(*Pace::parse(text, true)); }

TEST(Pacer, knows_a_pace_from_what_is_none) {
  for (const char* text : {"full", "recorded", "1/s", "0.5/s", "1000000000/s", "2x", "0.001x"})
    EXPECT_TRUE(Pace::parse(text, true)) << text;
  for (const char* text :
       {"", "Full", "2", "x", "/s", "0/s", "-1/s", "1e3/s", "nan/s", "inf/s", "1 /s", " 1/s", "2000000000/s", "0x", "2xx"})
    EXPECT_FALSE(Pace::parse(text, true)) << text;
  for (const char* text : {"recorded", "2x"}) EXPECT_FALSE(Pace::parse(text, false)) << "of a source without times";
}

TEST(Pacer, spaces_frames_as_they_were_recorded_and_turn_after_turn) {
  Pacer pacer = paced("2x");
  EXPECT_EQ(pacer.due(now, year, true), now);
  pacer.next();
  EXPECT_EQ(pacer.due(now, year + second, false), now + second / 2);
  EXPECT_EQ(pacer.due(now + second, year + second, false), now + second / 2) << "asked again, it stays";
  pacer.next();
  EXPECT_EQ(pacer.due(now, year - second, false), now) << "one that was recorded before the first is not waited for";
  pacer.next();
  EXPECT_EQ(pacer.due(now, year + 3 * second, false), now + 3 * second / 2);
  pacer.next();
  EXPECT_EQ(pacer.due(now + 9 * second, year, true), now + 3 * second / 2) << "the next turn begins with the end of the one before";
  pacer.next();
  EXPECT_EQ(pacer.due(now, year + second, false), now + 2 * second);
}

TEST(Pacer, keeps_a_rate_whatever_was_late) {
  Pacer pacer = paced("4/s");
  for (u64 number = 0; number < 100; ++number, pacer.next()) EXPECT_EQ(pacer.due(now + number, 0, false), now + number * second / 4);
}

TEST(Alarm, rings_at_its_time_and_not_when_it_is_off) {
  const auto alarm = Alarm::create();
  ASSERT_TRUE(alarm);
  pollfd wait{alarm->descriptor(), POLLIN, 0};
  EXPECT_EQ(::poll(&wait, 1, 0), 0);
  alarm->now();
  EXPECT_EQ(::poll(&wait, 1, 1000), 1);
  alarm->off();
  EXPECT_EQ(::poll(&wait, 1, 0), 0);
  const u64 due = monotonic_ns() + 20'000'000;
  alarm->at(due);
  EXPECT_EQ(::poll(&wait, 1, 1000), 1);
  EXPECT_GE(monotonic_ns(), due);
}

TEST(FramePool, keeps_the_time_of_a_frame_out_of_reach_of_who_makes_it_longer) {
  const auto pool = FramePool::create(4, 2048);
  ASSERT_TRUE(pool);
  Frame frame{.data = (*pool)->base() + 2048 + FramePool::front, .length = 60};
  EXPECT_EQ((*pool)->headroom(frame), FramePool::front);
  EXPECT_FALSE((*pool)->time_of(frame));
  (*pool)->set_time(frame, year);
  EXPECT_EQ((*pool)->headroom(frame), FramePool::front - sizeof(u64));
  const u32 room = (*pool)->headroom(frame);
  frame.data -= room, frame.length += room;
  std::ranges::fill(frame.bytes(), u8{0xff});
  EXPECT_EQ((*pool)->headroom(frame), 0u);
  EXPECT_EQ((*pool)->time_of(frame), year);
}

}  // namespace
}  // namespace weir
