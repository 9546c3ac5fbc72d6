// SPDX-License-Identifier: BSD-3-Clause
// module_tag: the version that a module was built for, read from its file: none of its code runs before that has been compared.
#pragma once

#include <span>
#include <string>

#include "core/base/result.hh"
#include "core/base/types.hh"

namespace weir {

// The text of `weir_plugin_abi` in a shared object, empty when there is none. Of any other file: an error that says what it is not.
Result<std::string> module_tag(std::span<const u8> file);

}  // namespace weir
