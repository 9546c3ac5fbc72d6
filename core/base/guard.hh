// SPDX-License-Identifier: BSD-3-Clause
// guard: call code that is not ours, such as a plugin's constructor, so that what it throws becomes an error.
#pragma once

#include <exception>

#include "core/base/result.hh"

namespace weir {

// What `call`, which returns a Result, returns; or that it threw. `who` names the code and says where it is.
template <typename Call>
auto guarded(std::string_view who, Call&& call) -> decltype(call()) {
  try {
    return call();
  } catch (const std::exception& error) {
    return fail("{}: it threw an exception: {}; report it to its author", who, error.what());
  } catch (...) {
    return fail("{}: it threw an exception of no standard type; report it to its author", who);
  }
}

}  // namespace weir
