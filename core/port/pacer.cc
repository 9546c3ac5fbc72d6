// SPDX-License-Identifier: BSD-3-Clause
// pacer: the next frame's time, and a timer that rings then.
#include "core/port/pacer.hh"

#include <sys/timerfd.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <charconv>

namespace weir {
namespace {

constexpr u64 second_ns = 1'000'000'000;
constexpr double most_rate = 1e9, least_factor = 1e-3, most_factor = 1e6;

std::optional<double> number_of(std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, std::chars_format::fixed);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

}  // namespace

std::optional<Pace> Pace::parse(std::string_view text, bool recorded) {
  if (text == "full") return Pace{};
  if (text == "recorded" && recorded) return Pace{Kind::recorded, 1};
  if (text.ends_with("/s")) {
    const std::optional<double> rate = number_of(text.substr(0, text.size() - 2));
    if (rate && *rate >= least_factor && *rate <= most_rate) return Pace{Kind::rate, *rate};
  }
  if (text.ends_with("x") && recorded) {
    const std::optional<double> factor = number_of(text.substr(0, text.size() - 1));
    if (factor && *factor >= least_factor && *factor <= most_factor) return Pace{Kind::recorded, *factor};
  }
  return std::nullopt;
}

u64 Pacer::due(u64 now, u64 recorded, bool anew) noexcept {
  if (known_) return due_;
  known_ = true;
  if (!begun_) start_ = due_ = now;
  if (pace_.kind == Pace::Kind::rate) {
    due_ = start_ + static_cast<u64>(static_cast<double>(given_) * static_cast<double>(second_ns) / pace_.number);
  } else if (pace_.kind == Pace::Kind::recorded) {
    if (!begun_ || anew) start_ = due_, base_ = recorded;
    // A frame whose time is before that of the first is due with it.
    due_ = start_ + static_cast<u64>(static_cast<double>(recorded - std::min(recorded, base_)) / pace_.number);
  }
  begun_ = true;
  return due_;
}

Result<Alarm> Alarm::create() {
  Fd timer(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  if (!timer) return fail_errno(errno, "create a timer");
  return Alarm(std::move(timer));
}

void Alarm::at(u64 ns) const noexcept {
  const itimerspec when{{0, 0}, {static_cast<time_t>(ns / second_ns), static_cast<long>(ns % second_ns)}};
  // That it rang before is forgotten. It fails for no argument that comes here.
  static_cast<void>(::timerfd_settime(timer_.get(), TFD_TIMER_ABSTIME, &when, nullptr));
}

u64 monotonic_ns() noexcept {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<u64>(now.tv_sec) * second_ns + static_cast<u64>(now.tv_nsec);
}

}  // namespace weir
