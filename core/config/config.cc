// SPDX-License-Identifier: BSD-3-Clause
// config: the file's own tables, what they refer to, and what may not be twice.
#include "core/config/config.hh"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "bpf/abi/link.h"
#include "core/config/checker.hh"

namespace weir {
namespace {

constexpr std::size_t longest_name = 32;     // names become pins, sockets and counters
constexpr std::size_t longest_device = 15;   // IFNAMSIZ - 1

Schema weir_schema() {
  return {Key::string("name").otherwise("\"weir\"").as("instance: names its pins and its control socket"),
          Key::integer("workers", 0, 64).otherwise("0").as("poll loops; 0: one per CPU")};
}

Schema frames_schema() {
  return {Key::integer("size", 2048, 4096).otherwise("2048").as("bytes, 2048 or 4096"),
          Key::integer("count", 64, 1 << 20).otherwise("16384").as("frames in the shared umem")};
}

// Keys that every driver has, and those of a netdev.
Schema port_schema(Driver driver) {
  Schema schema{Key::string("name").as("what the other tables call it"), Key::string("driver", {"xdp", "null"}).otherwise("\"xdp\""),
                Key::string("pipeline").otherwise("\"\"").as("left out: frames only leave here; what comes in goes to the host stack")};
  if (driver != Driver::xdp) return schema;
  schema.push_back(Key::string("device").as("the netdev"));
  schema.push_back(Key::string("mode", {"auto", "native", "generic"}).otherwise("\"auto\""));
  schema.push_back(Key::string("attach", {"exclusive"}).otherwise("\"exclusive\""));
  schema.push_back(Key::string("zero_copy", {"auto", "on", "off"}).otherwise("\"auto\""));
  return schema;
}

const Schema& group_schema() {
  static const Schema schema{Key::string("name"), Key::list("ports", Key::port(""), 1, static_cast<i64>(max_ports))};
  return schema;
}

template <typename T>
T choice(const std::string& name, std::initializer_list<std::pair<const char*, T>> all) {
  for (const auto& [text, value] : all)
    if (name == text) return value;
  broken("a string outside of its choices went through the check");
}

std::vector<std::string> names_in(const toml::table& root, std::string_view tables) {
  std::vector<std::string> names;
  if (const toml::array* all = root[tables].as_array())
    for (const toml::node& each : *all)
      if (const toml::table* table = each.as_table())
        if (const auto name = (*table)["name"].value<std::string>()) names.push_back(*name);
  return names;
}

// Reads one file. A table that has a problem yields what can be told of it, so that one mistake hides no other.
class Reader {
 public:
  Reader(const toml::table& root, std::string file, const Catalog& catalog)
      : root_(root), catalog_(catalog), check_(file, names_in(root, "port")), pipelines_(names_in(root, "pipeline")) {
    config_.file = std::move(file);
  }
  std::expected<Config, Problems> read() &&;

 private:
  void top_level();
  void settings();
  void ports();
  void port(const toml::table& table, const std::string& path);
  void egress(const toml::node& given, const std::string& path, PortConfig& port);
  void egress_step(const toml::node& given, const std::string& path, PortConfig& port);
  void queues(const toml::node& given, const std::string& path, PortConfig& port);
  void device(const ConfigNode& node, const std::string& path, PortConfig& port);
  void groups();
  void pipelines();
  void stages(const toml::table& table, const std::string& path, PipelineConfig& pipeline);
  void stage(const toml::table& table, const std::string& path, PipelineConfig& pipeline);
  std::string name(const ConfigNode& node, const std::string& path, const char* what, std::map<std::string, Position>& taken);
  const toml::table& section(const char* name);
  // The tables of [[name]].
  template <typename Each>
  void each_table(const toml::table& parent, const std::string& name, const std::string& path, std::size_t most, Each each);

  const toml::table& root_;
  const Catalog& catalog_;
  Checker check_;
  std::vector<std::string> pipelines_;
  Config config_;
  std::map<std::string, Position> port_names_, group_names_, pipeline_names_;
  std::map<std::string, std::pair<std::string, Position>> devices_;  // the port on each
  std::size_t stage_count_ = 0;
  static inline const toml::table none_;
};

std::expected<Config, Problems> Reader::read() && {
  top_level();
  settings();
  ports();
  groups();
  pipelines();
  if (check_.clean()) return std::move(config_);
  return std::unexpected(std::move(check_).problems());
}

void Reader::top_level() { check_.node(root_, {}, "", {"weir", "frames", "port", "group", "pipeline"}); }

const toml::table& Reader::section(const char* name) {
  const toml::node* found = root_.get(name);
  if (found == nullptr) return none_;
  if (const toml::table* table = found->as_table()) return *table;
  check_.note(position_of(*found), name, fmt::format("must be one table: [{}]", name));
  return none_;
}

void Reader::settings() {
  const ConfigNode weir = check_.node(section("weir"), weir_schema(), "weir");
  const ConfigNode frames = check_.node(section("frames"), frames_schema(), "frames");
  std::map<std::string, Position> taken;
  config_.name = name(weir, "weir", "instance", taken);
  if (weir.has("workers")) config_.workers = static_cast<u32>(weir.integer("workers"));
  if (frames.has("count")) config_.frame_count = static_cast<u32>(frames.integer("count"));
  if (!frames.has("size")) return;
  config_.frame_size = static_cast<u32>(frames.integer("size"));
  if (config_.frame_size != 2048 && config_.frame_size != 4096)
    check_.note(frames.at("size"), "frames.size", fmt::format("is {}, must be 2048 or 4096", config_.frame_size));
}

// A name that may stand in a path, and that no other of its kind has.
std::string Reader::name(const ConfigNode& node, const std::string& path, const char* what, std::map<std::string, Position>& taken) {
  if (!node.has("name")) return "";
  const std::string& given = node.string("name");
  const Position at = node.at("name");
  const bool right = std::ranges::all_of(given, [](unsigned char c) { return std::isalnum(c) || c == '_' || c == '-'; });
  if (given.empty() || given.size() > longest_name || !right)
    check_.note(at, path + ".name", fmt::format("is \"{}\", must be 1 to {} letters, digits, '_' or '-'", given, longest_name));
  else if (auto [first, fresh] = taken.emplace(given, at); !fresh)
    check_.note(at, path + ".name", fmt::format("{} \"{}\" is already defined in line {}", what, given, first->second.line));
  return given;
}

template <typename Each>
void Reader::each_table(const toml::table& parent, const std::string& key, const std::string& path, std::size_t most, Each each) {
  const toml::node* found = parent.get(key);
  if (found == nullptr) return;
  const toml::array* all = found->as_array();
  if (all == nullptr || !std::all_of(all->begin(), all->end(), [](const toml::node& node) { return node.is_table(); })) {
    check_.note(position_of(*found), path, fmt::format("must be a list of tables: [[{}]]", path.substr(0, path.find('['))));
    return;
  }
  if (all->size() > most) check_.note(position_of(*all->get(most)), path, fmt::format("there are {}, must be at most {}", all->size(), most));
  for (std::size_t i = 0; i < std::min(all->size(), most); ++i) each(*all->get(i)->as_table(), fmt::format("{}[{}]", path, i));
}

void Reader::ports() {
  each_table(root_, "port", "port", max_ports, [&](const toml::table& table, const std::string& path) { port(table, path); });
  if (!root_.contains("port")) check_.note({}, "port", "there is no [[port]]; frames need one to come in by");
}

void Reader::port(const toml::table& table, const std::string& path) {
  const auto driver = table["driver"].value<std::string>();
  for (const char* known : {"dpdk", "pcap", "tap"})
    if (driver == known) {
      check_.note(position_of(*table.get("driver")), path + ".driver", fmt::format("\"{}\" is not in this version; allowed: xdp, null", *driver));
      return;  // its keys are those of another driver
    }
  PortConfig port;
  port.at = position_of(table);
  port.driver = driver == "null" ? Driver::null : Driver::xdp;
  std::vector<std::string> elsewhere{"egress"};
  if (port.driver == Driver::xdp) elsewhere.emplace_back("queues");
  const ConfigNode node = check_.node(table, port_schema(port.driver), path, elsewhere);
  port.name = name(node, path, "port", port_names_);
  if (node.has("pipeline")) port.pipeline = node.string("pipeline");
  if (!port.pipeline.empty() && std::ranges::find(pipelines_, port.pipeline) == pipelines_.end())
    check_.note_unknown(node.at("pipeline"), path + ".pipeline", "pipeline", port.pipeline, pipelines_);
  if (port.driver == Driver::xdp) device(node, path, port);
  if (const toml::node* given = table.get("queues"); given != nullptr && port.driver == Driver::xdp) queues(*given, path + ".queues", port);
  if (const toml::node* given = table.get("egress")) egress(*given, path + ".egress", port);
  config_.ports.push_back(std::move(port));
}

// Rules for a device's name: net/core/dev.c, dev_valid_name().
void Reader::device(const ConfigNode& node, const std::string& path, PortConfig& port) {
  if (node.has("mode"))
    port.mode = choice<Mode>(node.string("mode"), {{"auto", Mode::automatic}, {"native", Mode::native}, {"generic", Mode::generic}});
  if (node.has("zero_copy"))
    port.zero_copy = choice<ZeroCopy>(node.string("zero_copy"), {{"auto", ZeroCopy::automatic}, {"on", ZeroCopy::on}, {"off", ZeroCopy::off}});
  if (!node.has("device")) return;
  port.device = node.string("device");
  const bool right = !port.device.empty() && port.device.size() <= longest_device && port.device != "." && port.device != ".." &&
                     std::ranges::none_of(port.device, [](unsigned char c) { return c == '/' || c == ':' || std::isspace(c) != 0; });
  if (!right) {
    check_.note(node.at("device"), path + ".device", fmt::format("is \"{}\", must be the name of a netdev: 1 to {} characters without '/', ':' or space", port.device, longest_device));
    return;
  }
  auto [first, fresh] = devices_.emplace(port.device, std::pair(port.name, node.at("device")));
  if (!fresh)
    check_.note(node.at("device"), path + ".device",
                fmt::format("\"{}\" is already the device of port \"{}\" in line {}; a device is one port", port.device, first->second.first, first->second.second.line));
}

void Reader::queues(const toml::node& given, const std::string& path, PortConfig& port) {
  if (given.value<std::string>() == "all") return;
  const auto* number = given.as_integer();
  if (number != nullptr && number->get() >= 1 && number->get() <= 64) port.queues = static_cast<u32>(number->get());
  else check_.note(position_of(given), path, "must be \"all\" or an integer from 1 to 64");
}

void Reader::egress(const toml::node& given, const std::string& path, PortConfig& port) {
  const toml::array* chain = given.as_array();
  if (chain == nullptr) {
    check_.note(position_of(given), path, "must be a list of egress programs, such as [\"count\", { program = \"mac_rewrite\" }]");
    return;
  }
  if (chain->size() > max_egress_chain)
    check_.note(position_of(given), path, fmt::format("has {} programs, must have at most {}", chain->size(), max_egress_chain));
  for (std::size_t i = 0; i < chain->size(); ++i) egress_step(*chain->get(i), fmt::format("{}[{}]", path, i), port);
}

void Reader::egress_step(const toml::node& given, const std::string& path, PortConfig& port) {
  const toml::table& table = given.is_table() ? *given.as_table() : none_;
  const toml::node* named = given.is_string() ? &given : table.get("program");
  if (named == nullptr || !named->is_string()) {
    check_.note(position_of(given), path, "must be the name of an egress program, or a table with the key program");
    return;
  }
  const std::string program = **named->as_string();
  const Position at = position_of(*named);
  const Schema* schema = catalog_.egress(program);
  if (schema == nullptr) {
    check_.note_unknown(at, path, "egress program", program, catalog_.egress_programs());
    return;
  }
  port.egress.push_back({program, check_.node(table, *schema, path, {"program"}, at), at});
}

void Reader::groups() {
  each_table(root_, "group", "group", WEIR_MAX_GROUPS, [&](const toml::table& table, const std::string& path) {
    const ConfigNode node = check_.node(table, group_schema(), path);
    GroupConfig group{name(node, path, "group", group_names_), {}, position_of(table)};
    std::set<std::string> members;
    for (const ConfigValue& member : node.list("ports")) {
      group.ports.push_back(std::get<std::string>(member.value));
      if (!members.insert(group.ports.back()).second)
        check_.note(member.at, fmt::format("{}.ports[{}]", path, group.ports.size() - 1), fmt::format("port \"{}\" is in the group twice", group.ports.back()));
    }
    config_.groups.push_back(std::move(group));
  });
}

void Reader::pipelines() {
  each_table(root_, "pipeline", "pipeline", WEIR_MAX_STAGES, [&](const toml::table& table, const std::string& path) {
    const ConfigNode node = check_.node(table, {Key::string("name")}, path, {"stage"});
    PipelineConfig pipeline{name(node, path, "pipeline", pipeline_names_), {}, position_of(table)};
    stages(table, path, pipeline);
    config_.pipelines.push_back(std::move(pipeline));
  });
}

void Reader::stages(const toml::table& table, const std::string& path, PipelineConfig& pipeline) {
  if (!table.contains("stage")) check_.note(position_of(table), path + ".stage", "there is no [[pipeline.stage]]; a pipeline has at least one");
  each_table(table, "stage", path + ".stage", WEIR_MAX_STAGES, [&](const toml::table& inner, const std::string& inner_path) {
    if (++stage_count_ == WEIR_MAX_STAGES + 1)
      check_.note(position_of(inner), inner_path, fmt::format("is one stage too many: an instance has at most {}", WEIR_MAX_STAGES));
    stage(inner, inner_path, pipeline);
  });
}

void Reader::stage(const toml::table& table, const std::string& path, PipelineConfig& pipeline) {
  const toml::node* named = table.get("plugin");
  if (named == nullptr || !named->is_string()) {
    check_.note(named != nullptr ? position_of(*named) : position_of(table), path + ".plugin", "must be the name of a plugin; see: weir plugins");
    return;
  }
  const std::string plugin = **named->as_string();
  const Schema* own = catalog_.stage(plugin);
  if (own == nullptr) {
    check_.note_unknown(position_of(*named), path + ".plugin", "plugin", plugin, catalog_.stages());
    return;
  }
  Schema schema{Key::string("plugin"), Key::string("name").otherwise(fmt::format("\"{}\"", plugin))};
  schema.insert(schema.end(), own->begin(), own->end());
  StageConfig made{plugin, "", check_.node(table, schema, path), position_of(table)};
  std::map<std::string, Position> unused;
  made.name = name(made.keys, path, "stage", unused);
  for (const StageConfig& other : pipeline.stages)
    if (other.name == made.name)
      check_.note(made.keys.at("name"), path + ".name",
                  fmt::format("stage \"{}\" is already in this pipeline in line {}; give this one a name of its own", made.name, other.at.line));
  pipeline.stages.push_back(std::move(made));
}

}  // namespace

std::string Problem::text() const {
  std::string text = file;
  if (at.line != 0) text += fmt::format(":{}:{}", at.line, at.column);
  if (!path.empty()) text += ": " + path;
  return text + ": " + what;
}

std::expected<Config, Problems> parse_config(std::string_view text, const std::string& file, const Catalog& catalog) {
  const toml::parse_result parsed = toml::parse(text, file);
  if (!parsed) {
    const toml::source_region& at = parsed.error().source();
    return std::unexpected(Problems{{file, {at.begin.line, at.begin.column}, "", fmt::format("not TOML: {}", parsed.error().description())}});
  }
  return Reader(parsed.table(), file, catalog).read();
}

std::expected<Config, Problems> load_config(const std::string& file, const Catalog& catalog) {
  std::ifstream stream(file, std::ios::binary);
  std::ostringstream text;
  if (stream) text << stream.rdbuf();
  if (!stream || stream.bad() || !text)
    return std::unexpected(Problems{{file, {}, "", fmt::format("cannot be read: {}; give the path of a configuration file", std::strerror(errno))}});
  return parse_config(text.str(), file, catalog);
}

}  // namespace weir
