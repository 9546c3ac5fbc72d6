// SPDX-License-Identifier: BSD-3-Clause
// result: the parts of error reporting that need no template.
#include "core/base/result.hh"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace weir {

std::unexpected<Error> fail_errno(int err, std::string what) {
  return std::unexpected(Error{Failure::failed, fmt::format("{}: {}", what, std::strerror(err)), err});
}

void broken(const char* sentence) noexcept {
  std::fprintf(stderr, "weir: internal error: %s\n", sentence);
  std::abort();
}

}  // namespace weir
