// SPDX-License-Identifier: BSD-3-Clause
// acl_rules: what a rule of acl says, and how one is read from the configuration or from a file of rules.
#pragma once

#include <compare>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/config/node.hh"
#include "core/config/schema.hh"

namespace weir::acl {

struct Ports {
  u16 first = 0, last = 0xffff;  // both are in it
  friend auto operator<=>(const Ports&, const Ports&) = default;
};

// What it leaves out it does not ask for.
struct Rule {
  bool drops = false, logs = false;
  bool keeps = false;      // it permits, and its flow is established
  bool picks_up = false;   // of such a rule: it matches also what begins no flow
  bool fragments = false;  // later fragments alone
  std::optional<Prefix> src, dst;
  std::optional<u8> protocol;
  std::optional<Ports> sport, dport;
  u8 flags = 0, flags_mask = 0;  // of TCP
  std::optional<u16> vlan, type;
  std::string name;
  u32 line = 0;  // of a file of rules, from 1

  // All that decides: equal for rules that say the same, whatever they are called.
  [[nodiscard]] std::string text() const;
  // Of rules with the same text and name the same.
  [[nodiscard]] u64 id() const { return std::hash<std::string>()(text() + ' ' + name); }
  // Its name, else its number, from 1.
  [[nodiscard]] std::string called(std::size_t number) const { return name.empty() ? std::to_string(number + 1) : name; }
  [[nodiscard]] bool has_ports() const noexcept { return sport || dport; }
  // Whether it asks for a frame that may begin a flow.
  [[nodiscard]] bool asks_for_first() const noexcept { return keeps && !picks_up; }
  // Whether a frame of that EtherType could match.
  [[nodiscard]] bool may_be(u16 of_type) const noexcept;

 private:
  [[nodiscard]] bool asks_for_ip() const noexcept;
};

// In their order; the first that matches decides, else `otherwise`.
struct RuleSet {
  std::vector<Rule> rules;
  bool otherwise_drops = false;
  friend bool operator==(const RuleSet& one, const RuleSet& other);  // do the same, under the same names
};

// Why no frame can match a rule, and the key that is to be changed; no key: some can.
struct Misfit {
  std::string key, what;
};
std::vector<Misfit> misfits(const Rule& rule);

// The keys of a rule in the configuration, and one of them read. Its mistakes are appended to `lines`.
Schema rule_keys();
Rule read_rule(const ConfigNode& keys, std::string& lines);

// "syn,!ack": those that must be set, and those that must not.
struct Flags {
  u8 value = 0, mask = 0;
};
// What is wrong, in place of the flags.
std::expected<Flags, std::string> parse_flags(std::string_view text);

// A name of few letters, digits, '_' and '-', or what is wrong with it.
std::expected<std::string, std::string> parse_name(std::string_view text);

// A file of rules, one a line: an action, and keys with their values, as in the configuration; `fragments`, `state` and `log` have no
// value.
//   permit src 192.0.2.0/24 protocol tcp dport 443 flags syn,!ack name web   # a comment
// The mistakes are appended to `lines`, each with "FILE:LINE:COL: ".
std::vector<Rule> parse_rules(std::string_view text, const std::string& file, std::size_t most, std::string& lines);
Result<std::string> read_rules_file(const std::string& file);

}  // namespace weir::acl
