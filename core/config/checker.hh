// SPDX-License-Identifier: BSD-3-Clause
// checker: TOML values against a schema, collecting every problem. Inside core/config only: the one home of toml++.
#pragma once

#define TOML_EXCEPTIONS 0
// Input such as "[[[a]]]" breaks assertions of toml++ 3.3, which without them tells what is wrong with it (marzer/tomlplusplus, pull
// request 301). Under NDEBUG the compiler would take them for granted.
#undef NDEBUG
#define TOML_ASSERT(expression) static_assert(true)
#include <toml++/toml.h>

#include "core/config/config.hh"

namespace weir {

class Checker {
 public:
  using Values = std::vector<std::pair<std::string, ConfigValue>>;

  Checker(std::string file, std::vector<std::string> ports) : file_(std::move(file)), ports_(std::move(ports)) {}

  // What a table may have beside the keys of its schema.
  struct Beside {
    std::vector<std::string> read;   // by the caller
    std::vector<std::string> noted;  // by the caller, or not to be judged: nothing is said of them here
  };

  // `at` stands for the position of a table that is not in the file.
  ConfigNode node(const toml::table& from, const Schema& schema, const std::string& path, const Beside& beside = {}, Position at = {});
  void note(Position at, std::string path, const std::string& what);
  // Notes that the value of `from` is not what is wanted.
  void refuse(const toml::node& from, const std::string& path, const std::string& wanted);
  // Notes that `name` is none of `known`, and which ones there are.
  void note_unknown(Position at, std::string path, const std::string& what, const std::string& name, const std::vector<std::string>& known);

  [[nodiscard]] bool clean() const noexcept { return problems_.empty(); }
  // In the order of the file.
  [[nodiscard]] Problems problems() &&;

 private:
  // A table's values in the order of the schema, defaults filled in. A key that is wrong is left out, and noted.
  Values table(const toml::table& from, const Schema& schema, const std::string& path, const Beside& beside, Position at);
  void unknown_keys(const toml::table& from, const Schema& schema, const std::string& path, const Beside& beside);
  std::optional<ConfigValue> default_of(const Key& key, const std::string& path, Position at);
  std::optional<ConfigValue> value(const toml::node& from, const Key& key, const std::string& path);
  std::optional<ConfigValue> integer(const toml::node& from, const Key& key, const std::string& path);
  std::optional<ConfigValue> string(const toml::node& from, const Key& key, const std::string& path);
  std::optional<ConfigValue> mac(const toml::node& from, const std::string& path);
  std::optional<ConfigValue> list(const toml::node& from, const Key& key, const std::string& path);

  std::string file_;
  std::vector<std::string> ports_;  // names that a key of type port may have
  Problems problems_;
};

Position position_of(const toml::source_region& region) noexcept;
Position position_of(const toml::node& node) noexcept;
// With control characters written out.
std::string one_line(std::string_view text);
// In double quotes, and on one line.
std::string quoted(std::string_view text);
std::string listed(const std::vector<std::string>& names);
std::vector<std::string> keys_of(const toml::table& table);

}  // namespace weir
