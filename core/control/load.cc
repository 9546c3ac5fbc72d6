// SPDX-License-Identifier: BSD-3-Clause
// load: parse, check, construct.
#include "core/control/load.hh"

namespace weir {

Result<std::unique_ptr<Topology>> load_topology(const std::string& file, const Registry& registry) {
  std::expected<Config, Problems> config = load_config(file, registry);
  if (config) return Topology::build(std::move(*config), registry);
  std::string lines;
  for (const Problem& problem : config.error()) lines += (lines.empty() ? "" : "\n") + problem.text();
  return std::unexpected(Error{Failure::invalid, std::move(lines), 0, true});
}

}  // namespace weir
