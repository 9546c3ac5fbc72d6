// SPDX-License-Identifier: BSD-3-Clause
// checker: one function for each type that a key may have.
#include "core/config/checker.hh"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>

namespace weir {
namespace {

Position position_of(const toml::source_region& region) noexcept { return {region.begin.line, region.begin.column}; }

// Insertions, deletions and replacements between two words.
std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i);
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, replaced}));
    }
  }
  return row.back();
}

std::string did_you_mean(const std::string& name, const std::vector<std::string>& known) {
  auto nearest = std::ranges::min_element(known, {}, [&](const std::string& each) { return distance(name, each); });
  if (nearest == known.end() || distance(name, *nearest) > std::max<std::size_t>(1, name.size() / 3)) return "";
  return fmt::format("; did you mean \"{}\"?", *nearest);
}

std::string join_path(const std::string& path, std::string_view key) { return path.empty() ? std::string(key) : fmt::format("{}.{}", path, key); }

const char* type_name(toml::node_type type) {
  switch (type) {
    case toml::node_type::table:
      return "a table";
    case toml::node_type::array:
      return "a list";
    case toml::node_type::string:
      return "a string";
    case toml::node_type::integer:
      return "an integer";
    case toml::node_type::floating_point:
      return "a float";
    case toml::node_type::boolean:
      return "a boolean";
    default:
      return "a date or time";
  }
}

}  // namespace

Position position_of(const toml::node& node) noexcept { return position_of(node.source()); }

void Checker::note(Position at, std::string path, std::string what) { problems_.push_back({file_, at, std::move(path), std::move(what)}); }

void Checker::note_unknown(Position at, std::string path, const std::string& what, const std::string& name, const std::vector<std::string>& known) {
  note(at, std::move(path),
       fmt::format("{} \"{}\" does not exist{}; there are: {}", what, name, did_you_mean(name, known), known.empty() ? "none" : fmt::format("{}", fmt::join(known, ", "))));
}

void Checker::note_type(const toml::node& from, const std::string& path, const std::string& wanted) {
  note(position_of(from), path, fmt::format("is {}, must be {}", type_name(from.type()), wanted));
}

Problems Checker::problems() && {
  std::ranges::stable_sort(problems_, {}, [](const Problem& problem) { return std::pair(problem.at.line, problem.at.column); });
  return std::move(problems_);
}

ConfigNode Checker::node(const toml::table& from, const Schema& schema, const std::string& path, const std::vector<std::string>& elsewhere, Position at) {
  if (at.line == 0) at = position_of(from.source());
  return {file_ + '\0' + path, at, table(from, schema, path, elsewhere, at)};
}

Checker::Values Checker::table(const toml::table& from, const Schema& schema, const std::string& path, const std::vector<std::string>& elsewhere,
                               Position at) {
  std::vector<std::string> known = elsewhere;
  for (const Key& key : schema) known.push_back(key.name);
  for (const auto& [key, unused] : from) {
    const std::string name(key.str());
    if (std::ranges::find(known, name) != known.end()) continue;
    note(position_of(key.source()), join_path(path, name),
         fmt::format("unknown key{}; allowed: {}", did_you_mean(name, known), known.empty() ? "none" : fmt::format("{}", fmt::join(known, ", "))));
  }
  Values values;
  for (const Key& key : schema) {
    std::optional<ConfigValue> found;
    if (const toml::node* given = from.get(key.name)) {
      found = value(*given, key, join_path(path, key.name));
    } else if (key.required) {
      note(at, join_path(path, key.name), fmt::format("is missing{}", key.says.empty() ? "" : ": " + key.says));
    } else if (!key.default_text.empty()) {
      const toml::parse_result parsed = toml::parse(fmt::format("x = {}", key.default_text));
      if (!parsed) broken("the default of a key is not a TOML value");
      found = value(*parsed.table().get("x"), key, join_path(path, key.name));
      if (found) found->at = {};
    }
    if (found) values.emplace_back(key.name, std::move(*found));
  }
  return values;
}

std::optional<ConfigValue> Checker::value(const toml::node& from, const Key& key, const std::string& path) {
  switch (key.type) {
    case Key::Type::boolean:
      if (const auto* flag = from.as_boolean()) return ConfigValue{position_of(from), flag->get()};
      note_type(from, path, "true or false");
      return std::nullopt;
    case Key::Type::integer:
      return integer(from, key, path);
    case Key::Type::string:
    case Key::Type::port:
      return string(from, key, path);
    case Key::Type::mac:
      return mac(from, path);
    case Key::Type::list:
      return list(from, key, path);
    case Key::Type::table:
      if (const auto* inner = from.as_table()) return ConfigValue{position_of(from), table(*inner, key.inner, path, {}, position_of(from))};
      note_type(from, path, "a table");
      return std::nullopt;
  }
  return std::nullopt;
}

std::optional<ConfigValue> Checker::integer(const toml::node& from, const Key& key, const std::string& path) {
  const auto* number = from.as_integer();
  if (number == nullptr) {
    note_type(from, path, fmt::format("an integer from {} to {}", key.min, key.max));
    return std::nullopt;
  }
  if (number->get() < key.min || number->get() > key.max) {
    note(position_of(from), path, fmt::format("is {}, must be from {} to {}", number->get(), key.min, key.max));
    return std::nullopt;
  }
  return ConfigValue{position_of(from), i64{number->get()}};
}

std::optional<ConfigValue> Checker::string(const toml::node& from, const Key& key, const std::string& path) {
  const auto* text = from.as_string();
  if (text == nullptr) {
    note_type(from, path, key.type == Key::Type::port ? "the name of a port" : "a string");
    return std::nullopt;
  }
  const std::string& given = text->get();
  if (key.type == Key::Type::port && std::ranges::find(ports_, given) == ports_.end()) {
    note_unknown(position_of(from), path, "port", given, ports_);
    return std::nullopt;
  }
  if (!key.choices.empty() && std::ranges::find(key.choices, given) == key.choices.end()) {
    note(position_of(from), path, fmt::format("is \"{}\"{}; allowed: {}", given, did_you_mean(given, key.choices), fmt::join(key.choices, ", ")));
    return std::nullopt;
  }
  return ConfigValue{position_of(from), given};
}

std::optional<ConfigValue> Checker::mac(const toml::node& from, const std::string& path) {
  const auto* text = from.as_string();
  const std::string_view given = text != nullptr ? std::string_view(text->get()) : std::string_view();
  Mac mac{};
  bool right = given.size() == 17;
  for (std::size_t i = 0; right && i < mac.size(); ++i) {
    const char* start = given.data() + 3 * i;
    right = std::from_chars(start, start + 2, mac[i], 16).ptr == start + 2 && (i == 5 || start[2] == ':');
  }
  if (right) return ConfigValue{position_of(from), mac};
  note(position_of(from), path, fmt::format("{}must be a MAC address such as \"02:00:00:00:00:01\"", text != nullptr ? fmt::format("is \"{}\", ", given) : ""));
  return std::nullopt;
}

std::optional<ConfigValue> Checker::list(const toml::node& from, const Key& key, const std::string& path) {
  const auto* array = from.as_array();
  if (array == nullptr) {
    note_type(from, path, "a list");
    return std::nullopt;
  }
  if (const auto size = static_cast<i64>(array->size()); size < key.min || size > key.max) {
    note(position_of(from), path, fmt::format("has {} elements, must have {}", size, key.min == key.max ? fmt::format("{}", key.min) : fmt::format("from {} to {}", key.min, key.max)));
    return std::nullopt;
  }
  std::vector<ConfigValue> values;
  for (std::size_t i = 0; i < array->size(); ++i)
    if (auto found = value(*array->get(i), key.inner.front(), fmt::format("{}[{}]", path, i))) values.push_back(std::move(*found));
  if (values.size() != array->size()) return std::nullopt;
  return ConfigValue{position_of(from), std::move(values)};
}

}  // namespace weir
