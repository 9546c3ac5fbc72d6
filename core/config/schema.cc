// SPDX-License-Identifier: BSD-3-Clause
// schema: the makers of keys.
#include "core/config/schema.hh"

#include <utility>

namespace weir {
namespace {

Key made(std::string name, Key::Type type) {
  Key key;
  key.name = std::move(name);
  key.type = type;
  return key;
}

}  // namespace

Key Key::boolean(std::string name) { return made(std::move(name), Type::boolean); }

Key Key::integer(std::string name, i64 min, i64 max) {
  Key key = made(std::move(name), Type::integer);
  key.min = min;
  key.max = max;
  return key;
}

Key Key::string(std::string name, std::vector<std::string> choices) {
  Key key = made(std::move(name), Type::string);
  key.choices = std::move(choices);
  return key;
}

Key Key::mac(std::string name) { return made(std::move(name), Type::mac); }

Key Key::station(std::string name) {
  Key key = mac(std::move(name));
  key.of_station = true;
  return key;
}

Key Key::address(std::string name) { return made(std::move(name), Type::address); }

Key Key::prefix(std::string name) { return made(std::move(name), Type::prefix); }

Key Key::range(std::string name, i64 min, i64 max) {
  Key key = made(std::move(name), Type::range);
  key.min = min;
  key.max = max;
  return key;
}

Key Key::protocol(std::string name) { return made(std::move(name), Type::protocol); }

Key Key::port(std::string name) { return made(std::move(name), Type::port); }

Key Key::list(std::string name, Key element, i64 min_elements, i64 max_elements) {
  Key key = made(std::move(name), Type::list);
  key.min = min_elements;
  key.max = max_elements;
  key.inner.push_back(std::move(element));
  return key;
}

Key Key::table(std::string name, std::vector<Key> keys) {
  Key key = made(std::move(name), Type::table);
  key.inner = std::move(keys);
  return key;
}

Key&& Key::otherwise(std::string toml_value) && {
  required = false;
  default_text = std::move(toml_value);
  return std::move(*this);
}

Key&& Key::optional() && {
  required = false;
  return std::move(*this);
}

Key&& Key::as(std::string sentence) && {
  says = std::move(sentence);
  return std::move(*this);
}

}  // namespace weir
