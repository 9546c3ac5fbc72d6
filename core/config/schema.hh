// SPDX-License-Identifier: BSD-3-Clause
// schema: which keys a table may have. Declared once: `weir check` refuses by it, constructors read by it, `weir plugins` prints it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/base/types.hh"
#include "core/config/node.hh"

namespace weir {

struct Key {
  enum class Type { boolean, integer, string, mac, address, prefix, range, protocol, port, list, table };

  std::string name;
  Type type = Type::string;
  std::string says;                  // one sentence for people
  bool required = true;              // made optional by otherwise() or optional()
  std::string default_text;          // as it would stand in the file; empty: nothing
  i64 min = 0, max = 0;              // integer, range: the value; list: the number of its elements
  std::vector<std::string> choices;  // string: the allowed ones; empty: any
  bool of_station = false;           // mac: neither a group's nor zero
  std::vector<Key> inner;            // list: the one element type; table: its keys

  static Key boolean(std::string name);
  static Key integer(std::string name, i64 min, i64 max);
  static Key string(std::string name, std::vector<std::string> choices = {});
  static Key mac(std::string name);                      // "02:00:00:00:00:01"
  static Key station(std::string name);                  // the same, of one station
  static Key address(std::string name);                  // "192.0.2.1", "2001:db8::1"
  static Key prefix(std::string name);                   // "192.0.2.0/24", "2001:db8::/32"; an address: itself alone
  static Key range(std::string name, i64 min, i64 max);  // "1024-65535"; an integer: itself alone
  static Key protocol(std::string name);                 // of IP: "tcp", 6; read as its number
  static Key port(std::string name);                     // the name of a [[port]] of this file
  static Key list(std::string name, Key element, i64 min_elements, i64 max_elements);
  static Key table(std::string name, std::vector<Key> keys);

  Key&& otherwise(std::string toml_value) &&;  // optional, with this default: "300", "\"auto\"", "true"
  Key&& optional() &&;                         // may be left out; has no value then
  Key&& as(std::string sentence) &&;
};

using Schema = std::vector<Key>;

// What the configuration may name: the stages' plugins, the egress programs and the drivers of ports, with their keys.
class Catalog {
 public:
  virtual ~Catalog() = default;
  [[nodiscard]] virtual const Schema* stage(const std::string& plugin) const = 0;    // null: there is no such plugin
  [[nodiscard]] virtual const Schema* egress(const std::string& program) const = 0;  // null: there is no such egress program
  // What is wrong with the keys of an egress program together; empty: nothing.
  [[nodiscard]] virtual std::string refuse_egress(const std::string& program, const ConfigNode& keys) const = 0;
  // What is wrong with a program of a foreign object as an egress program; empty: nothing. `frags`: it has to take frames in several
  // buffers.
  [[nodiscard]] virtual std::string refuse_object(const std::string& file, const std::string& program, bool frags) const = 0;
  // The places of a chain of known egress programs that make no sense behind others of it, and why.
  [[nodiscard]] virtual std::vector<std::pair<std::size_t, std::string>> refuse_order(const std::vector<std::string>& programs) const = 0;
  [[nodiscard]] virtual std::vector<std::string> stages() const = 0;
  [[nodiscard]] virtual std::vector<std::string> egress_programs() const = 0;
  // The keys of a port of a driver beside "xdp"; null: there is no such driver.
  [[nodiscard]] virtual const Schema* driver(const std::string& name) const = 0;
  // Of the driver's own table, [NAME]; empty: it has none.
  [[nodiscard]] virtual const Schema& driver_settings(const std::string& name) const = 0;
  // What is wrong with the keys of a port together; empty: nothing.
  [[nodiscard]] virtual std::string refuse_port(const std::string& driver, const ConfigNode& keys) const = 0;
  [[nodiscard]] virtual std::vector<std::string> drivers() const = 0;  // but "xdp"
};

}  // namespace weir
