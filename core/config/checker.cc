// SPDX-License-Identifier: BSD-3-Clause
// checker: one function for each type that a key may have.
#include "core/config/checker.hh"

#include <arpa/inet.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <charconv>

namespace weir {
namespace {

// Insertions, deletions, replacements, and swaps of two neighbours, between two words.
std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> before, above, row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    before = std::exchange(above, std::exchange(row, std::vector<std::size_t>(b.size() + 1, i)));
    for (std::size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({above[j] + 1, row[j - 1] + 1, above[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) row[j] = std::min(row[j], before[j - 2] + 1);
    }
  }
  return row.back();
}

// One letter in three may be wrong.
std::string did_you_mean(const std::string& name, const std::vector<std::string>& known) {
  std::size_t least = std::max<std::size_t>(1, name.size() / 3) + 1;
  const std::string* nearest = nullptr;
  for (const std::string& each : known)
    if (const std::size_t far = distance(name, each); far < std::min(least, each.size())) least = far, nearest = &each;
  return nearest == nullptr ? "" : fmt::format(" (did you mean {}?)", quoted(*nearest));
}

std::string join_path(const std::string& path, std::string_view key) {
  return path.empty() ? std::string(key) : fmt::format("{}.{}", path, key);
}

std::string described(const toml::node& node) {
  if (const auto* number = node.as_integer()) return fmt::format("{}", number->get());
  if (const auto* flag = node.as_boolean()) return flag->get() ? "true" : "false";
  if (const auto* text = node.as_string()) return quoted(text->get());
  switch (node.type()) {
    case toml::node_type::table:
      return "a table";
    case toml::node_type::array:
      return "a list";
    case toml::node_type::floating_point:
      return "a float";
    default:
      return "a date or time";
  }
}

bool has(const std::vector<std::string>& names, std::string_view name) { return std::ranges::find(names, name) != names.end(); }

// inet_pton() reads up to a zero byte, which a string of TOML may have.
std::optional<Address> address_of(const std::string& text) {
  Address address;
  if (text.find('\0') != std::string::npos) return std::nullopt;
  if (::inet_pton(AF_INET, text.c_str(), address.bytes.data()) == 1) address.version = 4;
  else if (::inet_pton(AF_INET6, text.c_str(), address.bytes.data()) == 1) address.version = 6;
  else return std::nullopt;
  return address;
}

// The address with zeroes behind its first `length` bits.
Address network_of(Address address, u32 length) {
  for (u32 i = 0; i < address.bytes.size(); ++i)
    address.bytes[i] &= static_cast<u8>(i * 8 >= length ? 0 : 0xff00u >> std::min(length - i * 8, 8u));
  return address;
}

// A number of nothing but digits.
template <typename T>
std::optional<T> number_of(std::string_view text) {
  T number = 0;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), number);
  const bool whole = failure == std::errc() && end == text.data() + text.size() && text.front() != '-';
  return whole ? std::optional(number) : std::nullopt;
}

// Assigned Internet Protocol Numbers, IANA.
constexpr std::array<std::pair<const char*, i64>, 4> protocols{{{"tcp", 6}, {"udp", 17}, {"icmp", 1}, {"icmpv6", 58}}};

// What comes from a default has no place in the file.
void forget_positions(ConfigValue& value) {
  value.at = {};
  if (auto* elements = std::get_if<std::vector<ConfigValue>>(&value.value)) std::ranges::for_each(*elements, forget_positions);
  if (auto* keys = std::get_if<ConfigTable>(&value.value))
    for (auto& [name, each] : *keys) forget_positions(each);
}

}  // namespace

Position position_of(const toml::source_region& region) noexcept { return {region.begin.line, region.begin.column}; }
Position position_of(const toml::node& node) noexcept { return position_of(node.source()); }

std::string one_line(std::string_view text) {
  std::string line;
  for (const char c : text) {
    const bool control = static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
    if (control) line += fmt::format("\\u{:04X}", static_cast<unsigned>(c));
    else line += c;
  }
  return line;
}

std::string quoted(std::string_view text) {
  std::string quoted;
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c;
  }
  return '"' + one_line(quoted) + '"';
}

bool is_plain(std::string_view text) {
  return !text.empty() && std::ranges::all_of(text, [](unsigned char c) {
    return std::isalnum(c) || std::string_view("_-.:/+@%~").contains(static_cast<char>(c));
  });
}

std::string listed(const std::vector<std::string>& names) { return names.empty() ? "none" : fmt::format("{}", fmt::join(names, ", ")); }

std::vector<std::string> keys_of(const toml::table& table) {
  std::vector<std::string> keys;
  for (const auto& [key, unused] : table) keys.emplace_back(key.str());
  return keys;
}

void Checker::note(Position at, std::string path, const std::string& what) {
  problems_.push_back({file_, at, std::move(path), one_line(what)});
}

void Checker::note_unknown(Position at, std::string path, const std::string& what, const std::string& name,
                           const std::vector<std::string>& known, const char* besides) {
  note(at, std::move(path),
       fmt::format("{} {} does not exist{}; {}{}", what, quoted(name), did_you_mean(name, known),
                   known.empty() ? "there is none" : "there are: " + listed(known), besides));
}

void Checker::refuse(const toml::node& from, const std::string& path, const std::string& wanted) {
  note(position_of(from), path, fmt::format("is {}, must be {}", described(from), wanted));
}

Problems Checker::problems() && {
  std::ranges::stable_sort(problems_, {}, [](const Problem& problem) { return std::pair(problem.at.line, problem.at.column); });
  return std::move(problems_);
}

ConfigNode Checker::node(const toml::table& from, const Schema& schema, const std::string& path, const Beside& beside, Position at) {
  if (at.line == 0) at = position_of(from.source());
  return {file_ + '\0' + path, at, table(from, schema, path, beside, at)};
}

ConfigTable Checker::table(const toml::table& from, const Schema& schema, const std::string& path, const Beside& beside, Position at) {
  unknown_keys(from, schema, path, beside);
  ConfigTable values;
  for (const Key& key : schema) {
    std::optional<ConfigValue> found;
    if (const toml::node* given = from.get(key.name)) found = value(*given, key, join_path(path, key.name));
    else if (key.required) note(at, join_path(path, key.name), fmt::format("is missing{}", key.says.empty() ? "" : ": " + key.says));
    else if (!key.default_text.empty()) found = default_of(key, join_path(path, key.name), at);
    // A list that is left out is empty, so that to read it is no mistake, and to read what no schema declares is one.
    if (!found && (key.type == Key::Type::list || key.type == Key::Type::table)) found = ConfigValue{{}, std::vector<ConfigValue>{}};
    if (found) values.push_back({key.name, std::move(*found)});
  }
  return values;
}

void Checker::unknown_keys(const toml::table& from, const Schema& schema, const std::string& path, const Beside& beside) {
  std::vector<std::string> allowed;
  for (const Key& key : schema) allowed.push_back(key.name);
  allowed.insert(allowed.end(), beside.read.begin(), beside.read.end());
  for (const auto& [key, unused] : from) {
    const std::string name(key.str());
    if (has(allowed, name) || has(beside.noted, name)) continue;
    const bool bare = std::ranges::all_of(name, [](unsigned char c) { return std::isalnum(c) || c == '_' || c == '-'; });
    note(position_of(key.source()), join_path(path, bare && !name.empty() ? name : quoted(name)),
         fmt::format("unknown key{}; allowed: {}", did_you_mean(name, allowed), listed(allowed)));
  }
}

std::optional<ConfigValue> Checker::default_of(const Key& key, const std::string& path, Position at) {
  const toml::parse_result parsed = toml::parse(fmt::format("x = {}", key.default_text));
  if (!parsed || !parsed.table().contains("x")) broken("the default of a key is not a TOML value");
  const std::size_t before = problems_.size();
  std::optional<ConfigValue> found = value(*parsed.table().get("x"), key, path);
  for (std::size_t i = before; i < problems_.size(); ++i) problems_[i].at = at;
  if (found) forget_positions(*found);
  return found;
}

std::optional<ConfigValue> Checker::value(const toml::node& from, const Key& key, const std::string& path) {
  switch (key.type) {
    case Key::Type::boolean:
      if (const auto* flag = from.as_boolean()) return ConfigValue{position_of(from), flag->get()};
      refuse(from, path, "true or false");
      return std::nullopt;
    case Key::Type::integer:
      return integer(from, key, path);
    case Key::Type::string:
    case Key::Type::port:
      return string(from, key, path);
    case Key::Type::mac:
      return mac(from, key, path);
    case Key::Type::address:
      return address(from, path);
    case Key::Type::prefix:
      return prefix(from, path);
    case Key::Type::range:
      return range(from, key, path);
    case Key::Type::protocol:
      return protocol(from, path);
    case Key::Type::list:
      return list(from, key, path);
    case Key::Type::table:
      if (const auto* inner = from.as_table()) return ConfigValue{position_of(from), table(*inner, key.inner, path, {}, position_of(from))};
      refuse(from, path, "a table");
      return std::nullopt;
  }
  return std::nullopt;
}

std::optional<ConfigValue> Checker::integer(const toml::node& from, const Key& key, const std::string& path) {
  const auto* number = from.as_integer();
  if (number != nullptr && number->get() >= key.min && number->get() <= key.max) return ConfigValue{position_of(from), i64{number->get()}};
  refuse(from, path, fmt::format("an integer from {} to {}", key.min, key.max));
  return std::nullopt;
}

std::optional<ConfigValue> Checker::string(const toml::node& from, const Key& key, const std::string& path) {
  const auto* text = from.as_string();
  if (text == nullptr) {
    refuse(from, path, key.type == Key::Type::port ? "the name of a port" : "a string");
    return std::nullopt;
  }
  const std::string& given = text->get();
  if (key.type == Key::Type::port && !has(ports_, given)) {
    note_unknown(position_of(from), path, "port", given, ports_);
    return std::nullopt;
  }
  if (!key.choices.empty() && !has(key.choices, given)) {
    note(position_of(from), path,
         fmt::format("is {}{}; allowed: {}", quoted(given), did_you_mean(given, key.choices), listed(key.choices)));
    return std::nullopt;
  }
  return ConfigValue{position_of(from), given};
}

std::optional<ConfigValue> Checker::mac(const toml::node& from, const Key& key, const std::string& path) {
  const auto* text = from.as_string();
  const std::string given = text != nullptr ? text->get() : "";
  Mac mac{};
  bool right = given.size() == 17;
  for (std::size_t i = 0; right && i < mac.size(); ++i) {
    const char* start = given.data() + 3 * i;
    right = std::from_chars(start, start + 2, mac[i], 16).ptr == start + 2 && (i == 5 || start[2] == ':');
  }
  if (right && key.of_station && ((mac[0] & 1) != 0 || mac == Mac{})) {
    note(position_of(from), path, "is not the address of one station");
    return std::nullopt;
  }
  if (right) return ConfigValue{position_of(from), mac};
  refuse(from, path, "a MAC address such as \"02:00:00:00:00:01\"");
  return std::nullopt;
}

std::optional<ConfigValue> Checker::address(const toml::node& from, const std::string& path) {
  const auto* text = from.as_string();
  if (const auto address = text != nullptr ? address_of(text->get()) : std::nullopt) return ConfigValue{position_of(from), *address};
  refuse(from, path, "an IPv4 or IPv6 address such as \"192.0.2.1\" or \"2001:db8::1\"");
  return std::nullopt;
}

std::optional<ConfigValue> Checker::prefix(const toml::node& from, const std::string& path) {
  const auto* text = from.as_string();
  const std::string given = text != nullptr ? text->get() : "";
  const std::size_t slash = given.find('/');
  if (const auto address = address_of(given.substr(0, slash))) {
    const u32 all = address->version == 4 ? 32 : 128;
    const auto length = slash == std::string::npos ? all : number_of<u32>(std::string_view(given).substr(slash + 1));
    if (length && *length <= all) {
      const Address network = network_of(*address, *length);
      if (network == *address) return ConfigValue{position_of(from), Prefix{network, *length}};
      note(position_of(from), path,
           fmt::format("is {}, which is not zero behind its first {} bit{}; the network is \"{}/{}\", the host alone \"{}\"", quoted(given),
                       *length, *length == 1 ? "" : "s", text_of(network), *length, text_of(*address)));
      return std::nullopt;
    }
  }
  refuse(from, path, "a prefix such as \"192.0.2.0/24\" or \"2001:db8::/32\", or an address");
  return std::nullopt;
}

std::optional<ConfigValue> Checker::range(const toml::node& from, const Key& key, const std::string& path) {
  const auto* number = from.as_integer();
  const auto* text = from.as_string();
  std::optional<i64> first, last;
  if (number != nullptr) first = last = number->get();
  if (text != nullptr) {
    const std::string_view given = text->get();
    const std::size_t dash = given.find('-');
    if (dash != std::string_view::npos) first = number_of<i64>(given.substr(0, dash)), last = number_of<i64>(given.substr(dash + 1));
  }
  if (first && last && key.min <= *first && *first <= *last && *last <= key.max)
    return ConfigValue{position_of(from), Range{*first, *last}};
  refuse(from, path, fmt::format("an integer from {0} to {1}, or a range of them such as \"{0}-{1}\"", key.min, key.max));
  return std::nullopt;
}

std::optional<ConfigValue> Checker::protocol(const toml::node& from, const std::string& path) {
  std::vector<std::string> names;
  for (const auto& [name, number] : protocols) {
    if (const auto* text = from.as_string(); text != nullptr && text->get() == name) return ConfigValue{position_of(from), number};
    names.emplace_back(name);
  }
  if (const auto* number = from.as_integer(); number != nullptr && number->get() >= 0 && number->get() <= 255)
    return ConfigValue{position_of(from), i64{number->get()}};
  const auto* text = from.as_string();
  note(position_of(from), path,
       fmt::format("is {}{}; allowed: {}, or a number from 0 to 255", described(from),
                   text != nullptr ? did_you_mean(text->get(), names) : "", listed(names)));
  return std::nullopt;
}

std::optional<ConfigValue> Checker::list(const toml::node& from, const Key& key, const std::string& path) {
  const auto* array = from.as_array();
  if (array == nullptr) {
    refuse(from, path, "a list");
    return std::nullopt;
  }
  const auto size = static_cast<i64>(array->size());
  const bool fits = size >= key.min && size <= key.max;
  if (!fits) {
    const std::string wanted = key.min == key.max ? fmt::format("{}", key.min) : fmt::format("from {} to {}", key.min, key.max);
    note(position_of(from), path, fmt::format("has {} element{}, must have {}", size, size == 1 ? "" : "s", wanted));
  }
  std::vector<ConfigValue> values;
  for (std::size_t i = 0; i < array->size(); ++i)
    if (auto found = value(*array->get(i), key.inner.front(), fmt::format("{}[{}]", path, i))) values.push_back(std::move(*found));
  if (!fits || values.size() != array->size()) return std::nullopt;
  return ConfigValue{position_of(from), std::move(values)};
}

}  // namespace weir
