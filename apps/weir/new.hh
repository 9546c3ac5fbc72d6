// SPDX-License-Identifier: BSD-3-Clause
// new: write the folder of a plugin that builds and whose test passes.
#pragma once

#include <string>
#include <vector>

#include "core/pipeline/registry.hh"

struct NewPlugin {
  std::string name;
  bool kernel = false;  // with a kernel half
  bool egress = false;  // and an egress program, NAME_egress
  bool flows = false;   // whose user half offloads flows; with a kernel half
};

// Writes NAME/ into the current folder, whole or not at all; the names of its files. `registry`: whose names are taken.
weir::Result<std::vector<std::string>> write_plugin(const NewPlugin& plugin, const weir::Registry& registry);
