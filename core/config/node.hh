// SPDX-License-Identifier: BSD-3-Clause
// node: one table of the configuration, already checked against its schema, as a plugin's constructor reads it.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/base/result.hh"
#include "core/base/types.hh"

namespace weir {

struct Position {
  u32 line = 0, column = 0;  // both from 1; 0: not from a file
};

using Mac = std::array<u8, 6>;

// Of IPv4, in the first four bytes, or of IPv6; in network order.
struct Address {
  u32 version = 0;  // 4 or 6
  std::array<u8, 16> bytes{};
  friend bool operator==(const Address&, const Address&) = default;
};
std::string text_of(const Address& address);

// The network of an address: all addresses with the same first `length` bits. Behind these, `address` has zeroes.
struct Prefix {
  Address address;
  u32 length = 0;
  friend bool operator==(const Prefix&, const Prefix&) = default;
};

struct Range {
  i64 first = 0, last = 0;  // both are in it
  friend bool operator==(const Range&, const Range&) = default;
};

struct ConfigEntry;
using ConfigTable = std::vector<ConfigEntry>;

struct ConfigValue {
  Position at;
  std::variant<bool, i64, std::string, Mac, Address, Prefix, Range, std::vector<ConfigValue>, ConfigTable> value;
};

struct ConfigEntry {
  std::string key;
  ConfigValue value;
};

// Keys are asked for by the name and the type that the schema declares; anything else is a mistake of the program and aborts.
class ConfigNode {
 public:
  ConfigNode() = default;
  ConfigNode(std::string path, Position at, ConfigTable values);

  [[nodiscard]] bool has(std::string_view key) const noexcept;
  [[nodiscard]] bool boolean(std::string_view key) const;
  [[nodiscard]] i64 integer(std::string_view key) const;                // also the number of a protocol
  [[nodiscard]] const std::string& string(std::string_view key) const;  // also the name of a port
  [[nodiscard]] Mac mac(std::string_view key) const;
  [[nodiscard]] Address address(std::string_view key) const;
  [[nodiscard]] Prefix prefix(std::string_view key) const;
  [[nodiscard]] Range range(std::string_view key) const;
  [[nodiscard]] const std::vector<ConfigValue>& list(std::string_view key) const;  // empty when left out
  [[nodiscard]] std::vector<ConfigNode> tables(std::string_view key) const;        // a list of tables, or one; empty when left out
  [[nodiscard]] Position at(std::string_view key) const noexcept;                  // of the key's value, else of the table
  [[nodiscard]] Position at() const noexcept { return at_; }
  [[nodiscard]] std::string text() const;   // all keys and values: equal for tables that say the same
  [[nodiscard]] std::string given() const;  // what the file or command gave, in the form of keys_given()

  // A file that a value names, from the folder of the configuration that it stands in.
  [[nodiscard]] std::string beside(const std::string& name) const;

  // The error of a constructor that refuses a key's value, with its position: "FILE:LINE:COL: path.key: what".
  [[nodiscard]] std::unexpected<Error> refuse(std::string_view key, std::string_view what) const;

 private:
  std::string path_;  // "edge.toml" + '\0' + "pipeline[0].stage[1]"; see refuse()
  Position at_;
  ConfigTable values_;  // defaults filled in
};

// What a file names, from the folder that it is in.
std::string beside(const std::string& file, const std::string& name);

}  // namespace weir
