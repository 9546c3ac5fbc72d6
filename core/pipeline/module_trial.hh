// SPDX-License-Identifier: BSD-3-Clause
// module_trial: load modules in a child first: what their constructors throw cannot be caught around dlopen(), and a crash ends a process.
#pragma once

#include <string>
#include <vector>

#include "core/base/result.hh"

namespace weir {

// That a child could load all of these, or which one ended it, and how. One that the dynamic linker refuses ends nothing.
Result<> try_modules(const std::vector<std::string>& files);

}  // namespace weir
