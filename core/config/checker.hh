// SPDX-License-Identifier: BSD-3-Clause
// checker: TOML values against a schema, collecting every problem. Inside core/config only: the one home of toml++.
#pragma once

#define TOML_EXCEPTIONS 0
#include <toml++/toml.h>

#include "core/config/config.hh"

namespace weir {

class Checker {
 public:
  using Values = std::vector<std::pair<std::string, ConfigValue>>;

  Checker(std::string file, std::vector<std::string> ports) : file_(std::move(file)), ports_(std::move(ports)) {}

  // Keys of `elsewhere` may be there too, and are read by the caller. `at` stands for the position of a table that is not in the file.
  ConfigNode node(const toml::table& from, const Schema& schema, const std::string& path, const std::vector<std::string>& elsewhere = {},
                  Position at = {});
  void note(Position at, std::string path, std::string what);
  // Notes that `name` is none of `known`, and which ones there are.
  void note_unknown(Position at, std::string path, const std::string& what, const std::string& name, const std::vector<std::string>& known);

  [[nodiscard]] bool clean() const noexcept { return problems_.empty(); }
  // In the order of the file.
  [[nodiscard]] Problems problems() &&;

 private:
  // A table's values in the order of the schema, defaults filled in. A key that is wrong is left out, and noted.
  Values table(const toml::table& from, const Schema& schema, const std::string& path, const std::vector<std::string>& elsewhere, Position at);
  std::optional<ConfigValue> value(const toml::node& from, const Key& key, const std::string& path);
  std::optional<ConfigValue> integer(const toml::node& from, const Key& key, const std::string& path);
  std::optional<ConfigValue> string(const toml::node& from, const Key& key, const std::string& path);
  std::optional<ConfigValue> mac(const toml::node& from, const std::string& path);
  std::optional<ConfigValue> list(const toml::node& from, const Key& key, const std::string& path);
  void note_type(const toml::node& from, const std::string& path, const std::string& wanted);
  std::string file_;
  std::vector<std::string> ports_;  // names that a key of type port may have
  Problems problems_;
};

Position position_of(const toml::node& node) noexcept;

}  // namespace weir
