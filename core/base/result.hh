// SPDX-License-Identifier: BSD-3-Clause
// result: how the control side reports failure. The one home of std::expected.
#pragma once

#include <fmt/format.h>

#include <expected>
#include <string>
#include <utility>

namespace weir {

enum class Failure {
  failed,       // could not be done now: exit code 1
  invalid,      // bad usage or configuration: exit code 2
  unsupported,  // the kernel or the driver lacks it: a caller may fall back
  missing,      // what was asked for is not there: a caller may do without
};

// One line, or one for each mistake of a file: what was tried on what, why it failed, what to do about it.
struct Error {
  Failure failure = Failure::failed;
  std::string what;
  int errno_value = 0;   // the system's reason, when there was one
  bool of_file = false;  // each line of `what` begins with FILE:, and most with FILE:LINE:COL:

  // The same failure seen from further out: "port wan: " + what.
  [[nodiscard]] Error within(std::string_view outer) && {
    what = fmt::format("{}: {}", outer, what);
    return std::move(*this);
  }
};

// A class and not an alias, since only a class can be [[nodiscard]].
template <typename T = void>
class [[nodiscard]] Result : public std::expected<T, Error> {
 public:
  using std::expected<T, Error>::expected;
};

template <typename... Args>
std::unexpected<Error> fail(fmt::format_string<Args...> format, Args&&... args) {
  return std::unexpected(Error{Failure::failed, fmt::format(format, std::forward<Args>(args)...)});
}

template <typename... Args>
std::unexpected<Error> invalid(fmt::format_string<Args...> format, Args&&... args) {
  return std::unexpected(Error{Failure::invalid, fmt::format(format, std::forward<Args>(args)...)});
}

template <typename... Args>
std::unexpected<Error> unsupported(fmt::format_string<Args...> format, Args&&... args) {
  return std::unexpected(Error{Failure::unsupported, fmt::format(format, std::forward<Args>(args)...)});
}

template <typename... Args>
std::unexpected<Error> missing(fmt::format_string<Args...> format, Args&&... args) {
  return std::unexpected(Error{Failure::missing, fmt::format(format, std::forward<Args>(args)...)});
}

// fail(), with the system's reason for error number `err` (positive) appended.
std::unexpected<Error> fail_errno(int err, std::string what);

// A broken invariant of the program itself; never for input. Prints the sentence and aborts.
[[noreturn]] void broken(const char* sentence) noexcept;

}  // namespace weir

// The value of a Result, or return its error from the enclosing function.
#define TRY(expression)                                                       \
  ({                                                                          \
    auto try_result_ = (expression);                                          \
    if (!try_result_) return std::unexpected(std::move(try_result_).error()); \
    std::move(*try_result_);                                                  \
  })

// The same for Result<void>, and with a word on what was being done.
#define TRY_VOID(expression)                                                  \
  do {                                                                        \
    auto try_result_ = (expression);                                          \
    if (!try_result_) return std::unexpected(std::move(try_result_).error()); \
  } while (false)
#define TRY_WITHIN(outer, expression)                                                       \
  ({                                                                                        \
    auto try_result_ = (expression);                                                        \
    if (!try_result_) return std::unexpected(std::move(try_result_).error().within(outer)); \
    std::move(*try_result_);                                                                \
  })
#define TRY_WITHIN_VOID(outer, expression)                                                  \
  do {                                                                                      \
    auto try_result_ = (expression);                                                        \
    if (!try_result_) return std::unexpected(std::move(try_result_).error().within(outer)); \
  } while (false)
