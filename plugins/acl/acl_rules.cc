// SPDX-License-Identifier: BSD-3-Clause
// acl_rules: read rules, and find those that no frame can match.
#include "plugins/acl/acl_rules.hh"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/ranges.h>
#include <linux/if_ether.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <functional>
#include <map>

#include "core/base/fd.hh"
#include "plugins/acl/acl.h"
#include "plugins/acl/acl_frame.h"

namespace weir::acl {
namespace {

constexpr std::array<std::pair<std::string_view, u8>, 8> flag_names{
    {{"fin", 0x01}, {"syn", 0x02}, {"rst", 0x04}, {"psh", 0x08}, {"ack", 0x10}, {"urg", 0x20}, {"ece", 0x40}, {"cwr", 0x80}}};
constexpr std::array<std::pair<std::string_view, u8>, 4> protocol_names{{{"tcp", 6}, {"udp", 17}, {"icmp", 1}, {"icmpv6", 58}}};
constexpr std::size_t most_bytes = 64 << 20;  // of a file of rules
constexpr std::size_t longest_name = 32;
constexpr std::size_t most_mistakes = 100;  // told of one file
constexpr u16 first_type = 0x600, last_vlan = 4094;

template <typename T>
std::optional<T> number_of(std::string_view text) {
  T value{};
  const bool hex = text.starts_with("0x");
  if (hex) text.remove_prefix(2);
  const auto [end, err] = std::from_chars(text.data(), text.data() + text.size(), value, hex ? 16 : 10);
  if (err != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::string quoted(std::string_view text) {
  std::string all = "\"";
  for (const char each : text)
    all += static_cast<unsigned char>(each) < 0x20 || each == 0x7f ? fmt::format("\\x{:02x}", each) : std::string(1, each);
  return all + "\"";
}

bool is_name(std::string_view text) {
  return !text.empty() && text.size() <= longest_name && std::isdigit(static_cast<unsigned char>(text.front())) == 0 &&
         std::ranges::all_of(text, [](unsigned char c) { return std::isalnum(c) != 0 || c == '_' || c == '-'; });
}
const std::string name_wanted = fmt::format("1 to {} letters, digits, '_' or '-', no digit in front", longest_name);

// A value, or what is wrong with the word: "is …, must be …".
template <typename T>
using Parsed = std::expected<T, std::string>;

std::unexpected<std::string> must_be(std::string_view word, std::string_view wanted) {
  return std::unexpected(fmt::format("is {}, must be {}", quoted(word), wanted));
}

Address network_of(Address address, u32 length) {
  for (u32 i = 0; i < address.bytes.size(); ++i)
    address.bytes[i] = static_cast<u8>(i * 8 >= length       ? 0
                                       : length - i * 8 >= 8 ? address.bytes[i]
                                                             : address.bytes[i] & 0xff00 >> (length - i * 8));
  return address;
}

Parsed<Prefix> parse_prefix(std::string_view word) {
  const auto wanted = [&] { return must_be(word, "a prefix such as \"192.0.2.0/24\" or \"2001:db8::/32\", or an address"); };
  const std::size_t slash = word.find('/');
  const std::string text(word.substr(0, slash));
  Prefix prefix;
  if (::inet_pton(AF_INET, text.c_str(), prefix.address.bytes.data()) == 1) prefix.address.version = 4;
  else if (::inet_pton(AF_INET6, text.c_str(), prefix.address.bytes.data()) == 1) prefix.address.version = 6;
  else return wanted();
  const u32 all = prefix.address.version == 4 ? 32 : 128;
  prefix.length = all;
  if (slash != std::string_view::npos) {
    const auto length = number_of<u32>(word.substr(slash + 1));
    if (!length || *length > all) return wanted();
    prefix.length = *length;
  }
  const Address network = network_of(prefix.address, prefix.length);
  if (network == prefix.address) return prefix;
  return std::unexpected(fmt::format("is {}, which is not zero behind its first {} bit{}; the network is \"{}/{}\", the host alone \"{}\"",
                                     quoted(word), prefix.length, prefix.length == 1 ? "" : "s", text_of(network), prefix.length,
                                     text_of(prefix.address)));
}

Parsed<Ports> parse_ports(std::string_view word) {
  const std::size_t dash = word.find('-');
  const auto first = number_of<u16>(word.substr(0, dash));
  const auto last = dash == std::string_view::npos ? first : number_of<u16>(word.substr(dash + 1));
  if (first && last && *first <= *last) return Ports{*first, *last};
  return must_be(word, "an integer from 0 to 65535, or a range of them such as \"0-65535\"");
}

Parsed<u8> parse_protocol(std::string_view word) {
  for (const auto& [name, number] : protocol_names)
    if (word == name) return number;
  if (const auto number = number_of<u8>(word)) return *number;
  return must_be(word, "tcp, udp, icmp, icmpv6, or a number from 0 to 255");
}

Parsed<u16> parse_number(std::string_view word, u16 min, u16 max) {
  if (const auto number = number_of<u16>(word); number && *number >= min && *number <= max) return *number;
  return must_be(word, fmt::format("an integer from {} to {}", min, max));
}

bool is_ip(u16 type) { return type == ETH_P_IP || type == ETH_P_IPV6; }

u16 type_of(const Prefix& prefix) { return prefix.address.version == 4 ? ETH_P_IP : ETH_P_IPV6; }

// One line of a file of rules.
class Line {
 public:
  Line(std::string_view text, std::function<void(std::size_t, std::string)> note) : text_(text), note_(std::move(note)) {}
  // Empty: there is none on the line.
  std::optional<Rule> rule();

 private:
  std::string_view word() {
    at_ = text_.find_first_not_of(" \t\r", end_);
    if (at_ == std::string_view::npos || text_[at_] == '#') return at_ = end_ = text_.size(), std::string_view();
    end_ = std::min(text_.find_first_of(" \t\r#", at_), text_.size());
    return text_.substr(at_, end_ - at_);
  }
  void key(Rule& rule, std::string_view name);
  template <typename T, typename Into>
  void take(std::string_view name, Parsed<T> parsed, Into& into) {
    if (parsed) into = std::move(*parsed);
    else note_(at_, fmt::format("{} {}", name, parsed.error()));
  }

  std::string_view text_;
  std::function<void(std::size_t, std::string)> note_;
  std::size_t at_ = 0, end_ = 0;
  std::map<std::string_view, std::size_t> seen_;  // keys, and where their values are
};

std::optional<Rule> Line::rule() {
  const std::string_view action = word();
  if (action.empty()) return std::nullopt;
  Rule rule;
  rule.drops = action == "drop";
  if (action != "permit" && action != "drop") note_(at_, fmt::format("action {}", must_be(action, "permit or drop").error()));
  bool clean = true;
  const auto note = std::exchange(note_, nullptr);
  note_ = [&](std::size_t at, std::string what) { clean = false, note(at, std::move(what)); };
  for (std::string_view name = word(); !name.empty(); name = word()) key(rule, name);
  if (clean)
    for (const Misfit& misfit : misfits(rule)) note(seen_.contains(misfit.key) ? seen_.at(misfit.key) : 0, misfit.key + ": " + misfit.what);
  return rule;
}

void Line::key(Rule& rule, std::string_view name) {
  static constexpr std::array valued{"src", "dst", "protocol", "sport", "dport", "flags", "vlan", "type", "name"};
  const std::size_t at = at_;
  if (name != "log" && name != "fragments" && name != "state" && std::ranges::find(valued, name) == valued.end())
    return note_(at, fmt::format("there is no key {}; allowed: {}, fragments, state, log", quoted(name), fmt::join(valued, ", ")));
  if (seen_.contains(name)) return note_(at, fmt::format("{} is given twice", name));
  seen_[name] = at;
  if (name == "log") return static_cast<void>(rule.logs = true);
  if (name == "fragments") return static_cast<void>(rule.fragments = true);
  if (name == "state") return static_cast<void>(rule.keeps = true);
  const std::string_view value = word();
  if (value.empty()) return note_(at, fmt::format("{} has no value behind it", name));
  seen_[name] = at_;
  if (name == "src") return take(name, parse_prefix(value), rule.src);
  if (name == "dst") return take(name, parse_prefix(value), rule.dst);
  if (name == "protocol") return take(name, parse_protocol(value), rule.protocol);
  if (name == "sport") return take(name, parse_ports(value), rule.sport);
  if (name == "dport") return take(name, parse_ports(value), rule.dport);
  if (name == "vlan") return take(name, parse_number(value, 0, last_vlan), rule.vlan);
  if (name == "type") return take(name, parse_number(value, first_type, 0xffff), rule.type);
  if (name == "name") return take(name, parse_name(value), rule.name);
  Flags flags;
  take(name, parse_flags(value), flags);
  rule.flags = flags.value, rule.flags_mask = flags.mask;
}

}  // namespace

bool Rule::asks_for_ip() const noexcept { return src || dst || protocol || has_ports() || flags_mask != 0 || fragments || keeps; }

bool Rule::may_be(u16 of_type) const noexcept {
  if (type && *type != of_type) return false;
  if (!is_ip(of_type)) return !asks_for_ip();
  return (!src || type_of(*src) == of_type) && (!dst || type_of(*dst) == of_type);
}

std::string Rule::text() const {
  std::string all = drops ? "drop" : "permit";
  const auto add = [&](const char* key, const auto& value, auto&& write) {
    if (value) all += fmt::format(" {} {}", key, write(*value));
  };
  const auto prefix = [](const Prefix& of) { return fmt::format("{}/{}", text_of(of.address), of.length); };
  const auto ports = [](const Ports& of) { return fmt::format("{}-{}", of.first, of.last); };
  const auto number = [](auto of) { return u32{of}; };
  add("src", src, prefix), add("dst", dst, prefix);
  add("protocol", protocol, number);
  add("sport", sport, ports), add("dport", dport, ports);
  if (flags_mask != 0) all += fmt::format(" flags {:02x}/{:02x}", flags, flags_mask);
  add("vlan", vlan, number), add("type", type, number);
  if (fragments) all += " fragments";
  if (keeps) all += " state";
  if (logs) all += " log";
  return all;
}

bool operator==(const RuleSet& one, const RuleSet& other) {
  return one.otherwise_drops == other.otherwise_drops &&
         std::ranges::equal(one.rules, other.rules, [](const Rule& a, const Rule& b) { return a.name == b.name && a.text() == b.text(); });
}

std::vector<Misfit> misfits(const Rule& rule) {
  std::vector<Misfit> found;
  const auto add = [&](const char* key, std::string what) { found.push_back({key, std::move(what)}); };
  const bool asks_for_ports = rule.has_ports() || rule.flags_mask != 0;
  const char* port_key = rule.sport ? "sport" : "dport";
  if (rule.src && rule.dst && rule.src->address.version != rule.dst->address.version)
    add("dst", "is not of the IP version of src, so that no frame matches; make two rules of it");
  if (rule.has_ports() && rule.protocol && !acl_has_ports(*rule.protocol))
    add(port_key,
        fmt::format("asks for ports of protocol {}, which has none; allowed: tcp, udp, 33 (DCCP), 132 (SCTP), 136 (UDP-Lite), or no "
                    "protocol for any of them",
                    *rule.protocol));
  if (rule.flags_mask != 0 && rule.protocol && *rule.protocol != IPPROTO_TCP)
    add("flags", fmt::format("asks for flags of TCP, and the protocol is {}; make it tcp, or leave it out", *rule.protocol));
  if (rule.fragments && asks_for_ports)
    add("fragments", "asks for later fragments, which have no ports and no flags; make two rules of it");
  if (rule.keeps && rule.drops) add("state", "would keep the flow of what the rule drops; make its action permit, or leave state out");
  if (rule.keeps && rule.fragments) add("state", "would keep the flow of later fragments, which have no ports that tell it; leave it out");
  if (rule.type && !is_ip(*rule.type) && !rule.may_be(*rule.type))
    add("type", fmt::format("is 0x{:04x}, and the rule asks for what only IP has; leave it out", *rule.type));
  for (const auto& [key, prefix] : {std::pair("src", &rule.src), std::pair("dst", &rule.dst)})
    if (rule.type && is_ip(*rule.type) && *prefix && type_of(**prefix) != *rule.type)
      add(key, fmt::format("is of IPv{}, and type is 0x{:04x}; leave that out", (*prefix)->address.version, *rule.type));
  return found;
}

std::expected<Flags, std::string> parse_flags(std::string_view text) {
  Flags flags;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t comma = std::min(text.find(',', at), text.size());
    std::string_view word = text.substr(at, comma - at);
    while (word.starts_with(' ')) word.remove_prefix(1);
    while (word.ends_with(' ')) word.remove_suffix(1);
    const bool unset = word.starts_with('!');
    if (unset) word.remove_prefix(1);
    const auto known = std::ranges::find(flag_names, word, [](const auto& each) { return each.first; });
    if (known == flag_names.end())
      return must_be(text, "a list such as \"syn,!ack\", of fin, syn, rst, psh, ack, urg, ece, cwr, with '!' those that are not to be set");
    if ((flags.mask & known->second) != 0) return std::unexpected(fmt::format("is {}, which names {} twice", quoted(text), word));
    flags.mask |= known->second;
    if (!unset) flags.value |= known->second;
    at = comma + 1;
  }
  return flags;
}

std::expected<std::string, std::string> parse_name(std::string_view text) {
  if (is_name(text)) return std::string(text);
  return must_be(text, name_wanted);
}

Schema rule_keys() {
  return {Key::string("action", {"permit", "drop"}).as("what becomes of a frame that matches"),
          Key::prefix("src").optional().as("source addresses"),
          Key::prefix("dst").optional().as("destination addresses"),
          Key::protocol("protocol").optional().as("protocol over IPv4 or IPv6"),
          Key::range("sport", 0, 0xffff).optional().as("source ports"),
          Key::range("dport", 0, 0xffff).optional().as("destination ports"),
          Key::string("flags").optional().as("of TCP: \"syn,!ack\", set and not set"),
          Key::integer("vlan", 0, last_vlan).optional().as("of the tag in front; 0: none, or priority alone"),
          Key::integer("type", first_type, 0xffff).optional().as("EtherType behind the tags; 0x0806: ARP"),
          Key::boolean("fragments").otherwise("false").as("later fragments alone, which have no ports"),
          Key::boolean("state").otherwise("false").as("of what it permits the flow is established: its answers need no rule"),
          Key::boolean("log").otherwise("false").as("keep a sample of the frame"),
          Key::string("name").optional().as("what its hits are called; left out, its number")};
}

Rule read_rule(const ConfigNode& keys, std::string& lines) {
  const auto refuse = [&](std::string_view key, const std::string& what) {
    lines += (lines.empty() ? "" : "\n") + keys.refuse(key, what).error().what;
  };
  const auto ports = [&](const char* key) -> std::optional<Ports> {
    if (!keys.has(key)) return std::nullopt;
    const Range range = keys.range(key);
    return Ports{static_cast<u16>(range.first), static_cast<u16>(range.last)};
  };
  const auto number = [&](const char* key) -> std::optional<u16> {
    return keys.has(key) ? std::optional(static_cast<u16>(keys.integer(key))) : std::nullopt;
  };
  Rule rule;
  rule.drops = keys.string("action") == "drop";
  rule.logs = keys.boolean("log");
  rule.fragments = keys.boolean("fragments");
  rule.keeps = keys.boolean("state");
  if (keys.has("src")) rule.src = keys.prefix("src");
  if (keys.has("dst")) rule.dst = keys.prefix("dst");
  if (keys.has("protocol")) rule.protocol = static_cast<u8>(keys.integer("protocol"));
  rule.sport = ports("sport"), rule.dport = ports("dport");
  rule.vlan = number("vlan"), rule.type = number("type");
  if (keys.has("flags")) {
    if (const auto flags = parse_flags(keys.string("flags"))) rule.flags = flags->value, rule.flags_mask = flags->mask;
    else refuse("flags", flags.error());
  }
  if (keys.has("name")) {
    if (auto name = parse_name(keys.string("name"))) rule.name = std::move(*name);
    else refuse("name", name.error());
  }
  for (const Misfit& misfit : misfits(rule)) refuse(misfit.key, misfit.what);
  return rule;
}

std::vector<Rule> parse_rules(std::string_view text, const std::string& file, std::size_t most, std::string& lines) {
  std::vector<Rule> rules;
  std::size_t mistakes = 0;
  for (std::size_t number = 1; !text.empty(); ++number) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const auto note = [&](std::size_t at, const std::string& what) {
      if (++mistakes <= most_mistakes) lines += fmt::format("{}{}:{}:{}: {}", lines.empty() ? "" : "\n", file, number, at + 1, what);
    };
    if (auto rule = Line(text.substr(0, end), note).rule()) {
      if (rules.size() == most)
        note(0, fmt::format("is one rule too many; a stage has at most {}, those of the configuration included", ACL_MAX_RULES));
      rule->line = static_cast<u32>(number);
      if (rules.size() <= most) rules.push_back(std::move(*rule));
    }
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  if (mistakes > most_mistakes) lines += fmt::format("\n{}:1:1: has {} mistakes more", file, mistakes - most_mistakes);
  return rules;
}

Result<std::string> read_rules_file(const std::string& file) {
  const Fd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat what {};
  if (!fd || ::fstat(fd.get(), &what) != 0) return fail_errno(errno, fmt::format("read the rules of {}", file));
  if (!S_ISREG(what.st_mode)) return fail("read the rules of {}: it is no regular file", file);
  if (static_cast<std::size_t>(what.st_size) > most_bytes)
    return fail("read the rules of {}: it has {} bytes, more than {}", file, what.st_size, most_bytes);
  std::string text(static_cast<std::size_t>(what.st_size), '\0');
  std::size_t have = 0;
  while (have < text.size()) {
    const ssize_t got = ::read(fd.get(), text.data() + have, text.size() - have);
    if (got < 0) return fail_errno(errno, fmt::format("read the rules of {}", file));
    if (got == 0) break;
    have += static_cast<std::size_t>(got);
  }
  text.resize(have);
  return text;
}

}  // namespace weir::acl
