// SPDX-License-Identifier: BSD-3-Clause
// load: from a file to a checked topology, as `weir check` and `weir run` do it. Touches nothing but the file.
#pragma once

#include "core/control/topology.hh"

namespace weir {

// Every problem is in the error, one a line, each "FILE:LINE:COL: path: what, and what is allowed".
Result<std::unique_ptr<Topology>> load_topology(const std::string& file, const Registry& registry);

}  // namespace weir
