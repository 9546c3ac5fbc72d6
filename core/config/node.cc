// SPDX-License-Identifier: BSD-3-Clause
// node: read a checked table.
#include "core/config/node.hh"

#include <arpa/inet.h>
#include <fmt/ranges.h>

#include "core/config/checker.hh"

namespace weir {
namespace {

const ConfigValue* find(const ConfigTable& values, std::string_view key) noexcept {
  for (const auto& [name, value] : values)
    if (name == key) return &value;
  return nullptr;
}

template <typename T>
const T& get(const ConfigTable& values, std::string_view key) {
  const ConfigValue* value = find(values, key);
  if (value == nullptr) broken("a constructor asks for a key that its schema does not declare, or that may be left out");
  const T* typed = std::get_if<T>(&value->value);
  if (typed == nullptr) broken("a constructor asks for a key by another type than its schema declares");
  return *typed;
}

// The path of a key in a table whose path is that of a ConfigNode: the table of the whole file has none.
std::string joined(const std::string& path, std::string_view key) {
  return fmt::format("{}{}{}", path, path.empty() || path.back() == '\0' ? "" : ".", key);
}

struct Writer {
  std::string text;
  void operator()(bool value) { text += value ? "true" : "false"; }
  void operator()(i64 value) { text += std::to_string(value); }
  void operator()(const std::string& value) { text += fmt::format("\"{}\"", value); }
  void operator()(const Mac& value) { text += fmt::format("{:02x}", fmt::join(value, ":")); }
  void operator()(const Address& value) { text += fmt::format("{}/{:02x}", value.version, fmt::join(value.bytes, "")); }
  void operator()(const Prefix& value) { (*this)(value.address), text += fmt::format("/{}", value.length); }
  void operator()(const Range& value) { text += fmt::format("{}-{}", value.first, value.last); }
  void operator()(const std::vector<ConfigValue>& values) {
    text += "[";
    for (const ConfigValue& each : values) std::visit(*this, each.value), text += ",";
    text += "]";
  }
  void operator()(const ConfigTable& table) {
    text += "{";
    for (const auto& [key, value] : table) text += key + "=", std::visit(*this, value.value), text += ",";
    text += "}";
  }
};

// As TOML, but for strings at the top, which need no quotes there.
struct Giver {
  std::string text;
  bool top = true;
  void string(const std::string& value) { text += top && is_plain(value) ? value : quoted(value); }
  void operator()(bool value) { text += value ? "true" : "false"; }
  void operator()(i64 value) { text += std::to_string(value); }
  void operator()(const std::string& value) { string(value); }
  void operator()(const Mac& value) { string(fmt::format("{:02x}", fmt::join(value, ":"))); }
  void operator()(const Address& value) { string(text_of(value)); }
  void operator()(const Prefix& value) { string(fmt::format("{}/{}", text_of(value.address), value.length)); }
  void operator()(const Range& value) {
    if (value.first == value.last) (*this)(value.first);
    else string(fmt::format("{}-{}", value.first, value.last));
  }
  void operator()(const std::vector<ConfigValue>& values) { enclosed("[", values, "]"); }
  void operator()(const ConfigTable& table) { enclosed("{", table, "}"); }
  void element(const ConfigValue& value) { std::visit(*this, value.value); }
  void element(const ConfigEntry& entry) {
    text += entry.key + "=";
    element(entry.value);
  }
  static bool given(const ConfigValue& value) { return value.at.line != 0; }
  static bool given(const ConfigEntry& entry) { return given(entry.value); }
  template <typename Elements>
  void all(const Elements& elements) {
    bool first = true;
    for (const auto& each : elements) {
      if (!given(each)) continue;
      if (!std::exchange(first, false)) text += ",";
      element(each);
    }
  }
  template <typename Elements>
  void enclosed(const char* open, const Elements& elements, const char* close) {
    const bool before = std::exchange(top, false);
    text += open;
    all(elements);
    text += close;
    top = before;
  }
};

}  // namespace

std::string text_of(const Address& address) {
  std::array<char, INET6_ADDRSTRLEN> text{};
  ::inet_ntop(address.version == 4 ? AF_INET : AF_INET6, address.bytes.data(), text.data(), text.size());
  return text.data();
}

std::string ConfigNode::given() const {
  Giver giver;
  giver.all(values_);
  return giver.text;
}

std::string ConfigNode::text() const {
  Writer writer;
  writer(values_);
  return writer.text;
}

ConfigNode::ConfigNode(std::string path, Position at, ConfigTable values) : path_(std::move(path)), at_(at), values_(std::move(values)) {}

bool ConfigNode::has(std::string_view key) const noexcept {
  const ConfigValue* value = find(values_, key);
  const auto* elements = value != nullptr ? std::get_if<std::vector<ConfigValue>>(&value->value) : nullptr;
  return value != nullptr && (elements == nullptr || !elements->empty() || value->at.line != 0);
}
bool ConfigNode::boolean(std::string_view key) const { return get<bool>(values_, key); }
i64 ConfigNode::integer(std::string_view key) const { return get<i64>(values_, key); }
const std::string& ConfigNode::string(std::string_view key) const { return get<std::string>(values_, key); }
Mac ConfigNode::mac(std::string_view key) const { return get<Mac>(values_, key); }
Address ConfigNode::address(std::string_view key) const { return get<Address>(values_, key); }
Prefix ConfigNode::prefix(std::string_view key) const { return get<Prefix>(values_, key); }
Range ConfigNode::range(std::string_view key) const { return get<Range>(values_, key); }

const std::vector<ConfigValue>& ConfigNode::list(std::string_view key) const { return get<std::vector<ConfigValue>>(values_, key); }

std::vector<ConfigNode> ConfigNode::tables(std::string_view key) const {
  std::vector<ConfigNode> nodes;
  const ConfigValue* found = find(values_, key);
  if (const auto* one = found != nullptr ? std::get_if<ConfigTable>(&found->value) : nullptr) {
    nodes.emplace_back(joined(path_, key), found->at, *one);
    return nodes;
  }
  for (const ConfigValue& element : list(key)) {
    const auto* values = std::get_if<ConfigTable>(&element.value);
    if (values == nullptr) broken("a constructor asks for tables where its schema declares another list");
    nodes.emplace_back(fmt::format("{}[{}]", joined(path_, key), nodes.size()), element.at, *values);
  }
  return nodes;
}

Position ConfigNode::at(std::string_view key) const noexcept {
  const ConfigValue* value = find(values_, key);
  return value != nullptr && value->at.line != 0 ? value->at : at_;
}

std::string ConfigNode::beside(const std::string& name) const {
  const std::size_t split = path_.find('\0');
  return weir::beside(split == std::string::npos ? "" : path_.substr(0, split), name);
}

std::string beside(const std::string& file, const std::string& name) {
  const std::size_t slash = file.rfind('/');
  return name.starts_with('/') || slash == std::string::npos ? name : file.substr(0, slash + 1) + name;
}

std::unexpected<Error> ConfigNode::refuse(std::string_view key, std::string_view what) const {
  const std::string path = joined(path_, key);
  const std::size_t split = path.find('\0');
  const Problem problem{split == std::string::npos ? "" : path.substr(0, split), at(key), path.substr(split + 1), std::string(what)};
  return std::unexpected(Error{Failure::invalid, problem.text(), 0, true});
}

}  // namespace weir
