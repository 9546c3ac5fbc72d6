// SPDX-License-Identifier: BSD-3-Clause
// load: plugins, then parse, check, construct.
#include "core/control/load.hh"

namespace weir {
namespace {

std::unexpected<Error> of_file(const Problems& problems) {
  std::string lines;
  for (const Problem& problem : problems) lines += (lines.empty() ? "" : "\n") + problem.text();
  return std::unexpected(Error{Failure::invalid, std::move(lines), 0, true});
}

}  // namespace

Result<Registry> load_registry(const std::string& file, const Registry* before) {
  Registry registry = TRY(Registry::load(before));
  Problems problems;
  for (std::size_t i = 0; const PluginDir& dir : plugin_dirs_of(file).value_or(std::vector<PluginDir>())) {
    const std::string path = fmt::format("weir.plugin_dirs[{}]", i++);
    if (const Result<> added = registry.add_folder(dir.folder); !added) problems.push_back({file, dir.at, path, added.error().what});
  }
  if (!problems.empty()) return of_file(problems);
  return registry;
}

Result<std::unique_ptr<Topology>> load_topology(const std::string& file, const Registry& registry, const Topology* before) {
  std::expected<Config, Problems> config = load_config(file, registry);
  if (config) return Topology::build(std::move(*config), registry, before);
  return of_file(config.error());
}

Result<std::unique_ptr<Topology>> capture_topology(const std::string& name, const std::string& read, const std::string& write,
                                                   const std::vector<std::string>& stages, const Registry& registry) {
  std::expected<Config, Problems> config = capture_config(name, read, write, stages, registry);
  Result<std::unique_ptr<Topology>> built = config ? Topology::build(std::move(*config), registry) : of_file(config.error());
  if (!built) {
    Error error = std::move(built).error();
    error.of_file = false;
    return std::unexpected(std::move(error));
  }
  return built;
}

}  // namespace weir
