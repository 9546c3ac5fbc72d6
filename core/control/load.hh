// SPDX-License-Identifier: BSD-3-Clause
// load: from a file to a checked topology, as `weir check` and `weir run` do it. Touches nothing but the file and the plugins that it
// names.
#pragma once

#include "core/control/topology.hh"

namespace weir {

// The plugins that came with libweir, and those of the file's plugin_dirs. `before`: see Registry::load(). A folder or a module that does
// not fit is an error as below.
Result<Registry> load_registry(const std::string& file, const Registry* before = nullptr);

// `before`: what runs; see Topology::build(). Every problem is in the error, one a line, each "FILE:LINE:COL: path: what, and what is
// allowed".
Result<std::unique_ptr<Topology>> load_topology(const std::string& file, const Registry& registry, const Topology* before = nullptr);

// The same from the words of a command: see capture_config().
Result<std::unique_ptr<Topology>> capture_topology(const std::string& name, const std::string& read, const std::string& write,
                                                   const std::vector<std::string>& stages, const Registry& registry);

}  // namespace weir
