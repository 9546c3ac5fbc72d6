// SPDX-License-Identifier: BSD-3-Clause
// egress_config: egress programs are written in C, and say where in their struct each key goes.
#include "core/pipeline/egress_config.hh"

#include <algorithm>
#include <cstring>

namespace weir {
namespace {

bool is_of_port(const egress_key& key) noexcept {
  return key.type == EGRESS_KEY_MTU || (key.fallback != nullptr && std::string_view(key.fallback) == "port");
}

std::vector<std::string> choices_of(const egress_key& key) {
  std::vector<std::string> names;
  for (const char* const* name = key.choices; *name != nullptr; ++name) names.emplace_back(*name);
  return names;
}

Schema schema_of(const egress_key* keys);

Key of_type(const egress_key& key) {
  switch (key.type) {
    case EGRESS_KEY_MAC:
      return Key::mac(key.name);
    case EGRESS_KEY_STATION:
      return Key::station(key.name);
    case EGRESS_KEY_MTU:
      return Key::integer(key.name, 68, 0xffff);  // the least that IPv4 allows, RFC 791
    case EGRESS_KEY_CHOICE:
      return Key::string(key.name, choices_of(key));
    case EGRESS_KEY_ADDRESS:
      return Key::address(key.name);
    case EGRESS_KEY_PREFIX:
      return Key::prefix(key.name);
    case EGRESS_KEY_RANGE:
      return Key::range(key.name, key.min, key.max);
    case EGRESS_KEY_PROTOCOL:
      return Key::protocol(key.name);
    case EGRESS_KEY_FLAG:
      return Key::boolean(key.name);
    case EGRESS_KEY_LIST:
      return Key::list(key.name, Key::table("", schema_of(key.inner)), key.min, key.max);
    default:
      return Key::integer(key.name, key.min, key.max);
  }
}

Key key_of(const egress_key& key) {
  Key made = of_type(key).as(key.says);
  if (key.required) return made;
  // What the port fills in is not known yet: to the schema the key has no value then.
  if (key.fallback == nullptr || is_of_port(key)) return std::move(made).optional();
  return std::move(made).otherwise(key.type == EGRESS_KEY_CHOICE ? '"' + std::string(key.fallback) + '"' : key.fallback);
}

Schema schema_of(const egress_key* keys) {
  Schema schema;
  for (const egress_key* key = keys; key->type != EGRESS_KEY_END; ++key) schema.push_back(key_of(*key));
  return schema;
}

template <typename T>
void put(const T& value, u8* at) {
  std::memcpy(at, &value, sizeof value);
}

void fill(const egress_key* keys, const ConfigNode& node, const EgressDevice& device, u8* config);

void fill_key(const egress_key& key, const ConfigNode& node, const EgressDevice& device, u8* config) {
  const bool given = node.has(key.name);
  u8* at = config + key.offset;
  switch (key.type) {
    case EGRESS_KEY_MAC:
    case EGRESS_KEY_STATION:
      std::ranges::copy(given ? node.mac(key.name) : device.mac, at);
      break;
    case EGRESS_KEY_MTU:
      put(given ? static_cast<u32>(node.integer(key.name)) : device.mtu, at);
      break;
    case EGRESS_KEY_CHOICE: {
      const std::vector<std::string> names = choices_of(key);
      put(static_cast<u32>(std::ranges::find(names, node.string(key.name)) - names.begin()), at);
      break;
    }
    case EGRESS_KEY_ADDRESS: {
      const Address address = node.address(key.name);
      std::ranges::copy(address.bytes, at);
      put(address.version, config + key.number);
      break;
    }
    case EGRESS_KEY_PREFIX: {
      const Prefix prefix = node.prefix(key.name);
      egress_prefix made{.address = {}, .version = prefix.address.version, .length = prefix.length};
      std::ranges::copy(prefix.address.bytes, made.address);
      put(made, at);
      break;
    }
    case EGRESS_KEY_RANGE: {
      const Range range = node.range(key.name);
      put(egress_range{static_cast<u32>(range.first), static_cast<u32>(range.last)}, at);
      break;
    }
    case EGRESS_KEY_U64:
      put(static_cast<u64>(node.integer(key.name)), at);
      break;
    case EGRESS_KEY_FLAG:
      put(static_cast<u32>(node.boolean(key.name)), at);
      break;
    case EGRESS_KEY_LIST: {
      const std::vector<ConfigNode> tables = node.tables(key.name);
      put(static_cast<u32>(tables.size()), config + key.number);
      for (std::size_t i = 0; i < tables.size(); ++i) fill(key.inner, tables[i], device, at + i * key.stride);
      break;
    }
    default:
      put(static_cast<u32>(node.integer(key.name)), at);
  }
  if (key.present != 0) config[key.present] = 1;
}

void fill(const egress_key* keys, const ConfigNode& node, const EgressDevice& device, u8* config) {
  for (const egress_key* key = keys; key->type != EGRESS_KEY_END; ++key)
    if (node.has(key->name) || is_of_port(*key)) fill_key(*key, node, device, config);
}

const char* make(const egress_program& program, const ConfigNode& keys, const EgressDevice& device, std::vector<u8>& config) {
  config.assign(program.config_size, 0);  // an earlier run's keys are in what it will be written to
  fill(program.keys, keys, device, config.data());
  return program.prepare != nullptr ? program.prepare(config.data()) : nullptr;
}

}  // namespace

Schema egress_schema(const egress_program& program) { return schema_of(program.keys); }

const char* refuse_egress_config(const egress_program& program, const ConfigNode& keys) {
  std::vector<u8> config;
  return make(program, keys, {}, config);
}

void fill_egress_config(const egress_program& program, const ConfigNode& keys, const EgressDevice& device, u8* into) {
  std::vector<u8> config;
  make(program, keys, device, config);
  std::ranges::copy(config, into);
}

}  // namespace weir
