// SPDX-License-Identifier: BSD-3-Clause
// new: fill in templates. A line "WORD|text" of a template is there only where the word is true of what is wanted.
#include "apps/weir/new.hh"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string_view>

namespace {

namespace fs = std::filesystem;
using weir::Result;

struct Template {
  std::string_view file;  // NAME stands for the plugin's; one of flows/ takes the place of that without
  std::string_view text;
};
#include "templates.inc"

constexpr std::string_view of_flows = "flows/";
constexpr std::size_t longest_name = 24;  // NAME_egress is the name of an egress program

// What a plugin cannot be called, since its class, its variables or its targets of the build would be: words of C++, of builds, and of the
// headers that a plugin includes.
constexpr std::string_view taken[] = {
    "alignas",   "alignof",  "and",         "asm",     "auto",     "bitand",   "bitor",     "bool",      "break",     "case",
    "catch",     "char",     "class",       "compl",   "concept",  "const",    "consteval", "constexpr", "constinit", "continue",
    "decltype",  "default",  "delete",      "do",      "double",   "else",     "enum",      "explicit",  "export",    "extern",
    "false",     "float",    "for",         "friend",  "goto",     "if",       "inline",    "int",       "long",      "mutable",
    "namespace", "new",      "noexcept",    "not",     "nullptr",  "operator", "or",        "private",   "protected", "public",
    "register",  "requires", "return",      "short",   "signed",   "sizeof",   "static",    "struct",    "switch",    "template",
    "this",      "throw",    "true",        "try",     "typedef",  "typeid",   "typename",  "union",     "unsigned",  "using",
    "virtual",   "void",     "volatile",    "while",   "xor",      "all",      "clean",     "dist",      "install",   "main",
    "linux",     "std",      "test",        "unix",    "account",  "address",  "agreement", "broken",    "burst",     "catalog",
    "drop",      "egress",   "error",       "fail",    "failure",  "fd",       "flood",     "frame",     "guarded",   "invalid",
    "kernel",    "key",      "kit",         "mac",     "mapping",  "missing",  "next",      "outcome",   "packet",    "plugin",
    "position",  "prefix",   "punt",        "range",   "redirect", "registry", "result",    "schema",    "scratch",   "stage",
    "station",   "traffic",  "unsupported", "verdict", "weir"};
// And what weir calls so.
constexpr std::string_view names_of_weir[] = {
    "be16",          "be32",         "big_endian",    "config_entry", "config_node",     "config_table", "config_value", "counter",
    "ended_flow",    "flow_end",     "flow_action",   "flow_key",     "flow_times",      "flows",        "group_slot",   "ifindex",
    "port_slot",     "queue_id",     "strong",        "arp_packet",   "ethernet_header", "icmp_header",  "ipv4_header",  "ipv6_header",
    "stage_context", "stage_memory", "stage_remains", "vlan_tag",     "tcp_header",      "udp_header",   "fake_context", "fake_flows",
    "frame_builder", "kernel_half",  "plain_memory",  "user_half"};

bool is_plugin_name(std::string_view name) {
  if (name.empty() || name.size() > longest_name || name.front() < 'a' || name.front() > 'z' || name.back() == '_') return false;
  return name.find("__") == std::string_view::npos && std::ranges::all_of(name, [](char letter) {
           return (letter >= 'a' && letter <= 'z') || (letter >= '0' && letter <= '9') || letter == '_';
         });
}

Result<> expect_free(const NewPlugin& plugin, const weir::Registry& registry) {
  const std::string& name = plugin.name;
  if (!is_plugin_name(name))
    return weir::invalid("new plugin \"{}\": a name is 1 to {} of a-z, 0-9 and single '_' between them, with a letter first", name,
                         longest_name);
  if (std::ranges::find(taken, name) != std::end(taken) || std::ranges::find(names_of_weir, name) != std::end(names_of_weir) ||
      name.starts_with("weir_") || name.starts_with("bpf_") || name.starts_with("co_"))
    return weir::invalid("new plugin {}: the name means something to C++ or to weir; choose another", name);
  if (const weir::Plugin* known = registry.plugin(name))
    return weir::invalid("new plugin {}: there is one of that name, {}; choose another", name, registry.file_of(*known));
  if (fs::exists(fs::symlink_status(name)))
    return weir::invalid("new plugin {0}: {0} is here already; choose another name, or another folder", name);
  return {};
}

std::string replaced(std::string text, std::string_view what, std::string_view by) {
  for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + by.size())) text.replace(at, what.size(), by);
  return text;
}

// "vlan_pop": "VlanPop".
std::string class_name(std::string_view name) {
  std::string made;
  for (std::size_t i = 0; i < name.size(); ++i)
    if (name[i] != '_') made += i == 0 || name[i - 1] == '_' ? static_cast<char>(std::toupper(name[i])) : name[i];
  return made;
}

std::string filled(std::string_view text, const NewPlugin& plugin) {
  const std::pair<std::string_view, bool> words[] = {{"kernel|", plugin.kernel},
                                                     {"plain|", !plugin.kernel},
                                                     {"flows|", plugin.flows},
                                                     {"noflows|", !plugin.flows},
                                                     {"egress|", plugin.egress},
                                                     {"bpf|", plugin.kernel || plugin.egress},
                                                     {"both|", plugin.kernel && plugin.egress},
                                                     {"onlykernel|", plugin.kernel && !plugin.egress},
                                                     {"onlyegress|", plugin.egress && !plugin.kernel}};
  std::string made;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = text.find('\n', at);
    std::string_view line = text.substr(at, end - at + 1);
    at += line.size();
    const auto word = std::ranges::find_if(words, [&](const auto& each) { return line.starts_with(each.first); });
    if (word != std::end(words)) line.remove_prefix(word->first.size());
    if (word == std::end(words) || word->second) made += line;
  }
  std::string upper = plugin.name;
  for (char& letter : upper) letter = static_cast<char>(std::toupper(letter));
  return replaced(replaced(replaced(made, "@name@", plugin.name), "@Name@", class_name(plugin.name)), "@NAME@", upper);
}

bool is_wanted(std::string_view file, const NewPlugin& plugin) {
  const auto is_of_flows = [&](const Template& each) { return each.file == std::string(of_flows) + std::string(file); };
  if (file.starts_with(of_flows)) return plugin.flows;
  if (plugin.flows && std::ranges::any_of(templates, is_of_flows)) return false;
  if (file.starts_with("NAME_egress")) return plugin.egress;
  return file != "NAME.bpf.c" || plugin.kernel;
}

// A folder that goes with this object, unless it has got its name.
class Draft {
 public:
  static Result<Draft> create(const std::string& name) {
    std::string path = fmt::format(".{}.XXXXXX", name);
    if (::mkdtemp(path.data()) == nullptr) return weir::fail_errno(errno, fmt::format("new plugin {}: make a folder here", name));
    return Draft(path);
  }
  Draft(Draft&& other) noexcept : path_(std::exchange(other.path_, "")) {}
  ~Draft() {
    std::error_code ignored;
    if (!path_.empty()) fs::remove_all(path_, ignored);
  }
  [[nodiscard]] Result<> write(const std::string& file, const std::string& text) const {
    std::ofstream out(fs::path(path_) / file, std::ios::binary);
    out << text << std::flush;
    if (!out) return weir::fail_errno(errno, fmt::format("new plugin: write {}", file));
    return {};
  }
  // Replaces nothing.
  Result<> become(const std::string& name) {
    const mode_t mask = ::umask(0);
    ::umask(mask);
    if (::chmod(path_.c_str(), 0777 & ~mask) != 0 || ::renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, name.c_str(), RENAME_NOREPLACE) != 0)
      return weir::fail_errno(errno, fmt::format("new plugin {0}: give the folder {1} the name {0}", name, path_));
    path_.clear();
    return {};
  }

 private:
  explicit Draft(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

}  // namespace

Result<std::vector<std::string>> write_plugin(const NewPlugin& plugin, const weir::Registry& registry) {
  TRY_VOID(expect_free(plugin, registry));
  Draft draft = TRY(Draft::create(plugin.name));
  std::vector<std::string> files;
  for (const Template& each : templates) {
    if (!is_wanted(each.file, plugin)) continue;
    const std::size_t start = each.file.starts_with(of_flows) ? of_flows.size() : 0;
    files.push_back(replaced(std::string(each.file.substr(start)), "NAME", plugin.name));
    TRY_VOID(draft.write(files.back(), filled(each.text, plugin)));
  }
  TRY_VOID(draft.become(plugin.name));
  return files;
}
