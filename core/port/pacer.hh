// SPDX-License-Identifier: BSD-3-Clause
// pacer: when the frames of a source are due, and a descriptor that is readable then.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "core/base/fd.hh"
#include "core/base/result.hh"
#include "core/base/types.hh"

namespace weir {

struct Pace {
  enum class Kind { full, rate, recorded };
  Kind kind = Kind::full;
  double number = 1;  // rate: frames in a second; recorded: times as fast

  // "full"; "1000/s"; where frames have times too, "recorded" and "2.5x". None: it is none of these.
  static std::optional<Pace> parse(std::string_view text, bool recorded);
};

// Times are CLOCK_MONOTONIC, in nanoseconds; the first frame is due when it is asked for.
class Pacer {
 public:
  explicit Pacer(Pace pace) noexcept : pace_(pace) {}
  [[nodiscard]] bool full() const noexcept { return pace_.kind == Pace::Kind::full; }
  // When the next frame is due. `recorded`: its own time. `anew`: its times have nothing to do with those of the frames before it.
  u64 due(u64 now, u64 recorded, bool anew) noexcept;
  // It has been given.
  void next() noexcept {
    ++given_;
    known_ = false;
  }

 private:
  Pace pace_;
  u64 start_ = 0, base_ = 0;  // of the clock, and of the recorded times
  u64 given_ = 0;             // frames since the start
  u64 due_ = 0;
  bool known_ = false;  // due_ is of the next frame
  bool begun_ = false;
};

// A descriptor that one sleeps at.
class Alarm {
 public:
  static Result<Alarm> create();
  [[nodiscard]] int descriptor() const noexcept { return timer_.get(); }
  void at(u64 ns) const noexcept;       // of CLOCK_MONOTONIC; readable from then on
  void now() const noexcept { at(1); }  // which has been
  void off() const noexcept { at(0); }

 private:
  explicit Alarm(Fd timer) noexcept : timer_(std::move(timer)) {}
  Fd timer_;
};

u64 monotonic_ns() noexcept;

}  // namespace weir
