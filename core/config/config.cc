// SPDX-License-Identifier: BSD-3-Clause
// config: the file's own tables, what they refer to, and what may not be twice.
#include "core/config/config.hh"

#include <fcntl.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <span>

#include "bpf/abi/link.h"
#include "core/base/fd.hh"
#include "core/config/checker.hh"

namespace weir {
namespace {

static_assert(max_ports == WEIR_MAX_PORTS);
constexpr std::size_t longest_name = 32;  // names become pins, sockets and counters
constexpr i64 most_plugin_dirs = 16;
constexpr u32 least_flows = 64, most_flows = 1u << 23;
constexpr std::size_t longest_device = 15;  // IFNAMSIZ - 1

Schema weir_schema() {
  return {Key::string("name").otherwise("\"weir\"").as("instance: names its pins and its control socket"),
          Key::string("devmap", {"auto", "array", "hash"})
              .otherwise("\"auto\"")
              .as("form of the map of device entries; auto: what the keys need"),
          Key::boolean("frags").otherwise("false").as("frames of several buffers, such as jumbo frames, through the kernel"),
          Key::integer("flows", 0, most_flows)
              .otherwise("65536")
              .as("places of the flow cache, for IPv4 and again for IPv6, rounded up to a power of two; 0: no cache"),
          Key::list("plugin_dirs", Key::string(""), 1, most_plugin_dirs)
              .optional()
              .as("folders of plugin modules, relative to this file, beside those that came with weir"),
          Key::string("idle", {"sleep", "spin"}).otherwise("\"sleep\"").as("what workers do without frames"),
          Key::integer("workers", 0, 64).otherwise("0").as("poll loops; 0: one for each CPU, as far as there are receive queues")};
}

// And "size", which is not a range.
Schema frames_schema() { return {Key::integer("count", 64, 1 << 20).otherwise("16384").as("frames in the shared umem")}; }

// Keys of a port under any driver.
Schema port_schema() {
  return {Key::string("name").as("what the other tables call it"),
          Key::string("pipeline").optional().as("left out: frames only leave here; what comes in goes to the host stack")};
}

// Drivers that not every weir has.
const std::vector<std::string> of_modules{"dpdk", "pcap", "tap"};

Key driver_key(const Catalog& catalog) {
  std::vector<std::string> drivers = catalog.drivers();
  drivers.insert(drivers.begin(), "xdp");
  return Key::string("driver", std::move(drivers)).otherwise("\"xdp\"");
}

// Keys of a port that is a netdev.
Schema device_schema() {
  return {Key::string("device").as("the netdev"),
          Key::string("mode", {"auto", "native", "generic"}).otherwise("\"auto\""),
          Key::string("attach", {"exclusive"}).otherwise("\"exclusive\""),
          Key::string("zero_copy", {"auto", "on", "off"}).otherwise("\"auto\""),
          Key::integer("busy_poll", 0, 1024)
              .otherwise("0")
              .as("frames that workers have the driver take at most at once, instead of interrupts; 0: interrupts"),
          Key::string("tx", {"af_xdp", "pump", "auto"}).otherwise("\"af_xdp\"").as("how frames leave from user space"),
          Key::integer("key", 0, 0xfffffffe).optional().as("of the device entry; left out: the port's place in the file, from 0"),
          Key::string("placement", {"auto", "entry", "fused"}).otherwise("\"auto\"").as("where the egress chain runs in the kernel")};
}

Schema group_schema() {
  return {Key::string("name").as("what plugins call it"),
          Key::list("ports", Key::port(""), 1, static_cast<i64>(max_ports)).as("its members")};
}

Schema pipeline_schema() {
  return {Key::string("name").as("what ports call it"), Key::string("miss", {"to_stack", "drop", "aborted"})
                                                            .otherwise("\"drop\"")
                                                            .as("what becomes of a redirect to a port without a device entry")};
}

// Keys of a stage of any plugin. The default name is the plugin's.
Schema stage_schema(const std::string& plugin, const Catalog& catalog) {
  return {Key::string("plugin").as("one of " + listed(catalog.stages())),
          Key::boolean("parallel").otherwise("false").as("its frames are spread over CPUs by their flows"),
          Key::string("name").otherwise(quoted(plugin))};
}

template <typename T>
T choice(const std::string& name, std::initializer_list<std::pair<const char*, T>> all) {
  for (const auto& [text, value] : all)
    if (name == text) return value;
  broken("a string outside of its choices went through the check");
}

bool is_name(std::string_view name) {
  return !name.empty() && name.size() <= longest_name &&
         std::ranges::all_of(name, [](unsigned char c) { return std::isalnum(c) || c == '_' || c == '-'; });
}

// The kernel's rules: net/core/dev.c, dev_valid_name(), whose isspace() is that of Latin-1 (lib/ctype.c).
bool is_device(std::string_view name) {
  return !name.empty() && name.size() <= longest_device && name != "." && name != ".." &&
         std::ranges::none_of(name, [](unsigned char c) { return c == '\0' || c == '/' || c == ':' || std::isspace(c) || c == 0xa0; });
}

// From the folder of the file; absolute, so that they are the same ones for whoever reads the file from elsewhere.
std::vector<PluginDir> plugin_dirs_in(const toml::table& root, const std::string& file) {
  std::vector<PluginDir> found;
  const toml::array* all = root["weir"]["plugin_dirs"].as_array();
  for (std::size_t i = 0; all != nullptr && i < all->size(); ++i) {
    const auto folder = (*all)[i].value<std::string>();
    if (!folder || folder->empty()) continue;
    const std::string whole = beside(file, *folder);
    const std::unique_ptr<char, decltype(&std::free)> real(::realpath(whole.c_str(), nullptr), &std::free);
    found.push_back({real ? real.get() : whole, position_of((*all)[i])});
  }
  return found;
}

std::vector<std::string> names_in(const toml::table& root, std::string_view tables) {
  std::vector<std::string> names;
  if (const toml::array* all = root[tables].as_array())
    for (const toml::node& each : *all)
      if (const toml::table* table = each.as_table())
        if (const auto name = (*table)["name"].value<std::string>(); name && std::ranges::find(names, *name) == names.end())
          names.push_back(*name);
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
  // Of a table that holds `egress` alone.
  std::expected<std::vector<EgressConfig>, Problems> chain(const std::string& folder, bool frags) &&;

 private:
  struct Device {
    std::string port;
    Position at;
  };
  void settings();
  void driver_settings();
  void ports();
  void port(const toml::table& table, const std::string& path);
  ConfigNode port_keys(const toml::table& table, const std::string& path, PortConfig& port);
  void pipeline_of(const ConfigNode& keys, const std::string& path, PortConfig& port);
  void device(const ConfigNode& keys, const std::string& path, PortConfig& port);
  void queues(const toml::node& given, const std::string& path, PortConfig& port);
  void egress(const toml::node& given, const std::string& path, PortConfig& port);
  void foreign_step(const toml::table& table, const toml::node& object, const std::string& program, const std::string& path,
                    PortConfig& port);
  void entry_keys();
  void egress_step(const toml::node& given, const std::string& path, PortConfig& port);
  void groups();
  void twice(const toml::array& members, const std::string& path);
  void pipelines();
  void stages(const toml::table& table, const std::string& path, PipelineConfig& pipeline);
  StageConfig stage(const toml::table& table, const std::string& path);
  std::string name(const ConfigNode& keys, const std::string& path, const char* what, std::map<std::string, Position>& taken,
                   const char* remedy = "");
  const toml::table& section(const char* name);
  // The tables of [[header]]; none is a problem when `wanted` says why there must be one.
  std::vector<const toml::table*> tables(const toml::table& parent, const char* key, const std::string& path, const char* header,
                                         const char* wanted = nullptr);
  // Of more than `most`, the first that is too many is noted.
  void limit(std::size_t count, std::size_t most, const toml::table& table, const std::string& path, const char* what);

  const toml::table& root_;
  const Catalog& catalog_;
  Checker check_;
  std::vector<std::string> pipelines_;
  Config config_;
  std::map<std::string, Position> port_names_, group_names_, pipeline_names_;
  std::map<std::string, Device> devices_;  // by name
  std::size_t stage_count_ = 0;
  bool of_command_ = false;
  static inline const toml::table none_;
};

std::expected<std::vector<EgressConfig>, Problems> Reader::chain(const std::string& folder, bool frags) && {
  PortConfig port;
  of_command_ = true;
  config_.file = folder.empty() ? "" : folder + "/";
  config_.frags = frags;
  egress(*root_.get("egress"), "egress", port);
  if (check_.clean()) return std::move(port.egress);
  Problems problems = std::move(check_).problems();
  for (Problem& problem : problems) problem.at = {};  // of no file
  return std::unexpected(std::move(problems));
}

std::expected<Config, Problems> Reader::read() && {
  std::vector<std::string> read{"weir", "frames", "port", "group", "pipeline"};
  for (const std::string& driver : catalog_.drivers())
    if (!catalog_.driver_settings(driver).empty()) read.push_back(driver);
  check_.node(root_, {}, "", {.read = std::move(read)});
  settings();
  driver_settings();
  ports();
  entry_keys();
  groups();
  pipelines();
  if (check_.clean()) return std::move(config_);
  return std::unexpected(std::move(check_).problems());
}

const toml::table& Reader::section(const char* name) {
  const toml::node* found = root_.get(name);
  if (found == nullptr) return none_;
  if (const toml::table* table = found->as_table()) return *table;
  check_.refuse(*found, name, fmt::format("one table: [{}]", name));
  return none_;
}

// The keys of all ports, those of the file and those that are places, in one map.
void Reader::entry_keys() {
  std::map<u32, std::string> taken;
  for (std::size_t slot = 0; slot < config_.ports.size(); ++slot) {
    const PortConfig& port = config_.ports[slot];
    if (!port.is_xdp()) continue;
    const u32 key = port.key.value_or(static_cast<u32>(slot));
    const std::string path = fmt::format("port[{}].key", slot);
    if (const auto [first, fresh] = taken.emplace(key, port.name); !fresh)
      check_.note(port.at, path, fmt::format("is {}, as that of port {} is; give each a key of its own", key, quoted(first->second)));
    if (config_.devmap == DevmapKind::array && key >= max_ports)
      check_.note(port.at, path, fmt::format("is {}, must be below {} in an array; set [weir] devmap = \"hash\"", key, max_ports));
  }
}

std::vector<const toml::table*> Reader::tables(const toml::table& parent, const char* key, const std::string& path, const char* header,
                                               const char* wanted) {
  const toml::node* found = parent.get(key);
  const toml::array* all = found != nullptr ? found->as_array() : nullptr;
  std::vector<const toml::table*> tables;
  if (found != nullptr && all == nullptr) check_.refuse(*found, path, fmt::format("a list of tables: {}", header));
  else if (wanted != nullptr && (found == nullptr || all->empty()))
    check_.note(position_of(found != nullptr ? *found : parent), path, fmt::format("there is no {}; {}", header, wanted));
  for (std::size_t i = 0; all != nullptr && i < all->size(); ++i) {
    const toml::table* table = (*all)[i].as_table();
    if (table == nullptr) {
      check_.refuse((*all)[i], fmt::format("{}[{}]", path, i), fmt::format("a table: {}", header));
      break;
    }
    tables.push_back(table);
  }
  return tables;
}

void Reader::limit(std::size_t count, std::size_t most, const toml::table& table, const std::string& path, const char* what) {
  if (count == most + 1) check_.note(position_of(table), path, fmt::format("is one {} too many; an instance has at most {}", what, most));
}

std::string Reader::name(const ConfigNode& keys, const std::string& path, const char* what, std::map<std::string, Position>& taken,
                         const char* remedy) {
  if (!keys.has("name")) return "";
  const std::string& given = keys.string("name");
  const Position at = keys.at("name");
  if (!is_name(given))
    check_.note(at, path + ".name", fmt::format("is {}, must be 1 to {} letters, digits, '_' or '-'", quoted(given), longest_name));
  else if (auto [first, fresh] = taken.emplace(given, at); !fresh)
    check_.note(at, path + ".name", fmt::format("{} \"{}\" is already defined in line {}{}", what, given, first->second.line, remedy));
  return given;
}

void Reader::settings() {
  const ConfigNode weir = check_.node(section("weir"), weir_schema(), "weir");
  const toml::table& table = section("frames");
  const ConfigNode frames = check_.node(table, frames_schema(), "frames", {.read = {"size"}});
  std::map<std::string, Position> taken;
  config_.name = name(weir, "weir", "instance", taken);
  if (weir.has("devmap"))
    config_.devmap = choice<DevmapKind>(weir.string("devmap"),
                                        {{"auto", DevmapKind::automatic}, {"array", DevmapKind::array}, {"hash", DevmapKind::hash}});
  if (weir.has("frags")) config_.frags = weir.boolean("frags");
  if (weir.has("flows")) config_.flows = static_cast<u32>(weir.integer("flows"));
  if (config_.flows > 0) config_.flows = std::bit_ceil(std::max(config_.flows, least_flows));
  config_.plugin_dirs = plugin_dirs_in(root_, config_.file);
  for (std::size_t i = 0; const ConfigValue& folder : weir.list("plugin_dirs"))
    if (const std::string path = fmt::format("weir.plugin_dirs[{}]", i++); std::get<std::string>(folder.value).empty())
      check_.note(folder.at, path, "is \"\", must be the name of a folder");
  if (weir.has("idle")) config_.spin = weir.string("idle") == "spin";
  if (weir.has("workers")) config_.workers = static_cast<u32>(weir.integer("workers"));
  if (frames.has("count")) config_.frame_count = static_cast<u32>(frames.integer("count"));
  const toml::node* size = table.get("size");
  if (size == nullptr) return;
  if (size->is_integer() && (*size->as_integer() == 2048 || *size->as_integer() == 4096))
    config_.frame_size = static_cast<u32>(size->as_integer()->get());
  else check_.refuse(*size, "frames.size", "2048 or 4096");
}

void Reader::driver_settings() {
  for (const std::string& driver : catalog_.drivers())
    if (const Schema& schema = catalog_.driver_settings(driver); !schema.empty())
      config_.settings[driver] = check_.node(section(driver.c_str()), schema, driver);
}

void Reader::ports() {
  for (const toml::table* table : tables(root_, "port", "port", "[[port]]", "frames need one to come in by")) {
    const std::string path = fmt::format("port[{}]", config_.ports.size());
    limit(config_.ports.size() + 1, max_ports, *table, path, "port");
    port(*table, path);
  }
}

void Reader::port(const toml::table& table, const std::string& path) {
  PortConfig port;
  port.at = position_of(table);
  const ConfigNode keys = port_keys(table, path, port);
  port.name = name(keys, path, "port", port_names_);
  pipeline_of(keys, path, port);
  if (port.is_xdp()) device(keys, path, port);
  if (const toml::node* given = table.get("queues"); given != nullptr && port.is_xdp()) queues(*given, path + ".queues", port);
  if (const toml::node* given = table.get("egress")) egress(*given, path + ".egress", port);
  config_.ports.push_back(std::move(port));
}

// A port without a driver that can be told is taken for a netdev.
ConfigNode Reader::port_keys(const toml::table& table, const std::string& path, PortConfig& port) {
  const auto driver = table["driver"].value<std::string>();
  Schema schema = port_schema();
  schema.insert(schema.begin() + 1, driver_key(catalog_));
  Schema of_device = device_schema();
  const Schema* own = driver ? catalog_.driver(*driver) : nullptr;
  if (own == nullptr && driver && std::ranges::find(of_modules, *driver) != of_modules.end()) {
    port.driver = *driver;  // its keys are not known here
    std::vector<std::string> noted = keys_of(table);
    check_.note(position_of(*table.get("driver")), path + ".driver",
                fmt::format("driver {} is not there: this weir was built without it; there are: xdp, {}", quoted(*driver),
                            fmt::join(catalog_.drivers(), ", ")));
    return check_.node(table, port_schema(), path, {.noted = std::move(noted)});
  }
  if (own == nullptr) {
    schema.insert(schema.end(), std::make_move_iterator(of_device.begin()), std::make_move_iterator(of_device.end()));
    return check_.node(table, schema, path, {.read = {"queues", "egress"}});
  }
  port.driver = *driver;
  schema.insert(schema.end(), own->begin(), own->end());
  std::vector<std::string> foreign{"queues"};
  for (const Key& key : of_device) foreign.push_back(key.name);
  std::erase_if(foreign, [&](const std::string& key) { return std::ranges::find(*own, key, &Key::name) != own->end(); });
  for (const std::string& key : foreign)
    if (table.contains(key))
      check_.note(position_of(table.find(key)->first.source()), path + "." + key,
                  fmt::format("driver {} takes no {}; leave it out", quoted(port.driver), key));
  const std::size_t problems = check_.noted();
  port.keys = check_.node(table, schema, path, {.read = {"egress"}, .noted = foreign});
  if (check_.noted() == problems)
    if (const std::string what = catalog_.refuse_port(port.driver, port.keys); !what.empty()) check_.note(port.at, path, what);
  return port.keys;
}

void Reader::pipeline_of(const ConfigNode& keys, const std::string& path, PortConfig& port) {
  if (!keys.has("pipeline")) return;
  port.pipeline = keys.string("pipeline");
  if (std::ranges::find(pipelines_, port.pipeline) == pipelines_.end())
    check_.note_unknown(keys.at("pipeline"), path + ".pipeline", "pipeline", port.pipeline, pipelines_);
}

void Reader::device(const ConfigNode& keys, const std::string& path, PortConfig& port) {
  if (keys.has("mode"))
    port.mode = choice<Mode>(keys.string("mode"), {{"auto", Mode::automatic}, {"native", Mode::native}, {"generic", Mode::generic}});
  if (keys.has("zero_copy"))
    port.zero_copy =
        choice<ZeroCopy>(keys.string("zero_copy"), {{"auto", ZeroCopy::automatic}, {"on", ZeroCopy::on}, {"off", ZeroCopy::off}});
  if (keys.has("tx")) port.tx = choice<Tx>(keys.string("tx"), {{"af_xdp", Tx::af_xdp}, {"pump", Tx::pump}, {"auto", Tx::automatic}});
  if (keys.has("placement"))
    port.placement = choice<Placement>(keys.string("placement"),
                                       {{"auto", Placement::automatic}, {"entry", Placement::entry}, {"fused", Placement::fused}});
  if (keys.has("busy_poll")) port.busy_poll = static_cast<u32>(keys.integer("busy_poll"));
  if (keys.has("key")) port.key = static_cast<u32>(keys.integer("key"));
  if (!keys.has("device")) return;
  port.device = keys.string("device");
  const Position at = keys.at("device");
  if (!is_device(port.device)) {
    check_.note(at, path + ".device",
                fmt::format("is {}, must be the name of a netdev: 1 to {} characters without '/', ':' or space, not \".\" or \"..\"",
                            quoted(port.device), longest_device));
    return;
  }
  const std::string who = port.name.empty() ? path : "port " + quoted(port.name);
  if (auto [first, fresh] = devices_.emplace(port.device, Device{who, at}); !fresh)
    check_.note(at, path + ".device",
                fmt::format("{} is on device {}, as {} in line {} is; a device is one port", who, quoted(port.device), first->second.port,
                            first->second.at.line));
}

void Reader::queues(const toml::node& given, const std::string& path, PortConfig& port) {
  if (given.value<std::string>() == "all") return;
  const auto* number = given.as_integer();
  if (number != nullptr && number->get() >= 1 && number->get() <= 64) port.queues = static_cast<u32>(number->get());
  else check_.refuse(given, path, "\"all\" or an integer from 1 to 64");
}

void Reader::egress(const toml::node& given, const std::string& path, PortConfig& port) {
  const toml::array* chain = given.as_array();
  if (chain == nullptr) {
    check_.refuse(given, path, "a list of egress programs, such as [\"count\", { program = \"mac_rewrite\" }]");
    return;
  }
  if (chain->size() > max_egress_chain)
    check_.note(position_of(given), path, fmt::format("has {} programs, must have at most {}", chain->size(), max_egress_chain));
  for (std::size_t i = 0; i < chain->size(); ++i) egress_step(*chain->get(i), fmt::format("{}[{}]", path, i), port);
  if (port.egress.size() != chain->size()) return;  // one of them is not known
  std::vector<std::string> programs;
  for (const EgressConfig& step : port.egress) {
    if (step.object.empty()) programs.push_back(step.program);
    else if (&step != &port.egress.back())
      check_.note(step.at, fmt::format("{}[{}]", path, &step - port.egress.data()),
                  "a foreign program calls no other behind it; put it last");
  }
  for (const auto& [place, why] : catalog_.refuse_order(programs))
    check_.note(port.egress[place].at, fmt::format("{}[{}]", path, place), why);
}

void Reader::egress_step(const toml::node& given, const std::string& path, PortConfig& port) {
  const toml::table& table = given.is_table() ? *given.as_table() : none_;
  const toml::node* named = given.is_string() ? &given : table.get("program");
  if (given.is_table() && named == nullptr) {
    check_.note(position_of(given), path + ".program", "is missing");
    return;
  }
  if (named == nullptr || !named->is_string()) {
    check_.refuse(named != nullptr ? *named : given, path, "the name of an egress program, or a table with the key program");
    return;
  }
  const std::string program = **named->as_string();
  const Position at = position_of(*named);
  if (const toml::node* object = table.get("object")) {
    foreign_step(table, *object, program, path, port);
    return;
  }
  const Schema* schema = catalog_.egress(program);
  if (schema == nullptr) {
    check_.note_unknown(at, path, "egress program", program, catalog_.egress_programs(),
                        of_command_ ? "; the instance has loaded its modules at its start: a newer one takes a new start" : "");
    return;
  }
  const std::size_t problems = check_.noted();
  const EgressConfig& made =
      port.egress.emplace_back(EgressConfig{program, "", check_.node(table, *schema, path, {.read = {"program", "object"}}, at), at});
  if (check_.noted() > problems) return;
  if (const std::string what = catalog_.refuse_egress(program, made.keys); !what.empty()) check_.note(at, path, what);
}

// A program of the user's own object. It does not call the next one, has no host build, and stands on an entry alone.
void Reader::foreign_step(const toml::table& table, const toml::node& object, const std::string& program, const std::string& path,
                          PortConfig& port) {
  const auto file = object.value<std::string>();
  if (!file || file->empty()) {
    check_.refuse(object, path + ".object", "the name of a BPF object file");
    return;
  }
  const std::string whole = beside(config_.file, *file);
  const ConfigNode keys = check_.node(table, {}, path, {.read = {"program", "object"}});
  const Position at = position_of(object);
  port.egress.push_back({program, whole, keys, at});
  if (const std::string what = catalog_.refuse_object(whole, program, config_.frags); !what.empty()) check_.note(at, path, what);
  if (!port.is_xdp())
    check_.note(at, path, fmt::format("driver {} has no device entry, which is where a foreign program runs", quoted(port.driver)));
  if (port.placement == Placement::fused)
    check_.note(at, path, "a foreign program runs on the device entry alone; set placement = \"entry\", or \"auto\"");
}

void Reader::groups() {
  for (const toml::table* table : tables(root_, "group", "group", "[[group]]")) {
    const std::string path = fmt::format("group[{}]", config_.groups.size());
    limit(config_.groups.size() + 1, WEIR_MAX_GROUPS, *table, path, "group");
    const ConfigNode keys = check_.node(*table, group_schema(), path);
    GroupConfig group{name(keys, path, "group", group_names_), {}, position_of(*table)};
    for (const ConfigValue& member : keys.list("ports")) group.ports.push_back(std::get<std::string>(member.value));
    if (const toml::array* members = (*table)["ports"].as_array()) twice(*members, path + ".ports");
    config_.groups.push_back(std::move(group));
  }
}

// From the file's own list, since one wrong member leaves no checked one.
void Reader::twice(const toml::array& members, const std::string& path) {
  std::map<std::string, Position> taken;
  for (std::size_t i = 0; i < members.size(); ++i)
    if (const auto member = members[i].value<std::string>(); member && !taken.emplace(*member, position_of(members[i])).second)
      check_.note(position_of(members[i]), fmt::format("{}[{}]", path, i), fmt::format("port {} is in the group twice", quoted(*member)));
}

void Reader::pipelines() {
  for (const toml::table* table : tables(root_, "pipeline", "pipeline", "[[pipeline]]")) {
    const std::string path = fmt::format("pipeline[{}]", config_.pipelines.size());
    const ConfigNode keys = check_.node(*table, pipeline_schema(), path, {.read = {"stage"}});
    PipelineConfig pipeline{name(keys, path, "pipeline", pipeline_names_), Miss::drop, {}, position_of(*table)};
    if (keys.has("miss"))
      pipeline.miss = choice<Miss>(keys.string("miss"), {{"to_stack", Miss::to_stack}, {"drop", Miss::drop}, {"aborted", Miss::aborted}});
    stages(*table, path + ".stage", pipeline);
    config_.pipelines.push_back(std::move(pipeline));
  }
}

void Reader::stages(const toml::table& table, const std::string& path, PipelineConfig& pipeline) {
  std::map<std::string, Position> names;
  for (const toml::table* each : tables(table, "stage", path, "[[pipeline.stage]]", "a pipeline has at least one stage")) {
    const std::string at = fmt::format("{}[{}]", path, pipeline.stages.size());
    limit(++stage_count_, WEIR_MAX_STAGES, *each, at, "stage");
    StageConfig made = stage(*each, at);
    made.name = name(made.keys, at, "stage", names, "; give this one a name of its own");
    pipeline.stages.push_back(std::move(made));
  }
}

StageConfig Reader::stage(const toml::table& table, const std::string& path) {
  const auto plugin = table["plugin"].value<std::string>();
  const Schema* own = plugin ? catalog_.stage(*plugin) : nullptr;
  Schema schema = stage_schema(plugin.value_or(""), catalog_);
  if (own != nullptr) {
    schema.insert(schema.end(), own->begin(), own->end());
    StageConfig made{*plugin, "", check_.node(table, schema, path), position_of(table)};
    if (made.keys.has("parallel")) made.parallel = made.keys.boolean("parallel");
    return made;
  }
  if (plugin) check_.note_unknown(position_of(*table.get("plugin")), path + ".plugin", "plugin", *plugin, catalog_.stages());
  schema.back().default_text.clear();  // no plugin to be named after
  return {"", "", check_.node(table, schema, path, {.noted = keys_of(table)}), position_of(table)};
}

}  // namespace

std::string Problem::text() const {
  std::string text = file;
  if (at.line != 0) text += fmt::format("{}{}:{}", text.empty() ? "" : ":", at.line, at.column);
  for (const std::string* part : {&path, &what})
    if (!part->empty()) text += (text.empty() ? "" : ": ") + *part;
  return text;
}

std::expected<Config, Problems> parse_config(std::string_view text, const std::string& file, const Catalog& catalog) {
  const toml::parse_result parsed = toml::parse(text, file);
  if (parsed) return Reader(parsed.table(), file, catalog).read();
  const toml::source_position at = parsed.error().source().begin;
  return std::unexpected(Problems{{file, {at.line, at.column}, "", fmt::format("not TOML: {}", one_line(parsed.error().description()))}});
}

namespace {

// The parts between the commas that are in no quotes, brackets or braces.
std::vector<std::string_view> parts_of(std::string_view word) {
  std::vector<std::string_view> parts;
  std::size_t start = 0;
  int depth = 0;
  char quote = 0;
  for (std::size_t at = 0; at < word.size(); ++at) {
    const char c = word[at];
    if (quote != 0) {
      if (c == '\\' && quote == '"') ++at;
      else if (c == quote) quote = 0;
    } else if (c == '"' || c == '\'') {
      quote = c;
    } else if (c == '[' || c == '{') {
      ++depth;
    } else if (c == ']' || c == '}') {
      --depth;
    } else if (c == ',' && depth == 0) {
      parts.push_back(word.substr(start, at - start));
      start = at + 1;
    }
  }
  parts.push_back(word.substr(start));
  return parts;
}

// Whether a key's value is a string in TOML. So is that of a key that nobody knows, so that its name is what is complained of.
bool is_text(const Schema* schema, std::string_view name, std::string_view value) {
  const bool number = std::ranges::all_of(value, [](unsigned char c) { return std::isdigit(c); });
  const auto key = schema != nullptr ? std::ranges::find(*schema, name, &Key::name) : Schema::const_iterator();
  if (schema == nullptr || key == schema->end()) return true;
  switch (key->type) {
    case Key::Type::range:
    case Key::Type::protocol:
      return !number;
    case Key::Type::boolean:
    case Key::Type::integer:
    case Key::Type::list:
    case Key::Type::table:
      return false;
    default:
      return true;
  }
}

// NAME,KEY=VALUE,… as the table that it stands for, in which the name is the value of `name_key`. `find`: whose schema it is.
std::string table_of(const std::string& word, const char* name_key, const Catalog& catalog,
                     const Schema* (Catalog::*find)(const std::string&) const) {
  const std::vector<std::string_view> parts = parts_of(word);
  const Schema* schema = (catalog.*find)(std::string(parts.front()));
  std::string text = fmt::format("{{ {} = {}", name_key, quoted(parts.front()));
  for (const std::string_view part : std::span(parts).subspan(1)) {
    const std::size_t sign = part.find('=');
    const auto key = sign == std::string_view::npos ? std::string_view() : part.substr(0, sign), value = part.substr(key.size());
    const std::string_view bare = key.empty() ? std::string_view() : value.substr(1);
    const bool plain = is_plain(bare) && is_text(schema, key, bare);
    text += plain ? fmt::format(", {}={}", key, quoted(bare)) : fmt::format(", {}", part);
  }
  return text + " }";
}

}  // namespace

std::string keys_given(const EgressConfig& step) {
  if (step.object.empty()) return step.keys.given();
  return "object=" + (is_plain(step.object) ? step.object : quoted(step.object));
}

std::expected<std::vector<EgressConfig>, Problems> parse_egress(const std::vector<std::string>& words, const std::string& folder,
                                                                bool frags, const Catalog& catalog) {
  toml::array steps;
  for (const std::string& word : words) {
    const std::string text = word.starts_with('{') ? word : table_of(word, "program", catalog, &Catalog::egress);
    toml::parse_result parsed = toml::parse(std::string_view("step = " + text), std::string_view());
    if (!parsed)
      return std::unexpected(Problems{
          {"",
           {},
           fmt::format("egress[{}]", steps.size()),
           fmt::format("{} is neither NAME, NAME,KEY=VALUE nor a table: {}", quoted(word), one_line(parsed.error().description()))}});
    steps.push_back(std::move(*parsed.table().get("step")));  // a copy would have no positions, which tell what was given
  }
  toml::table root;
  root.insert("egress", std::move(steps));
  return Reader(root, "", catalog).chain(folder, frags);
}

std::expected<Config, Problems> capture_config(const std::string& name, const std::string& read, const std::string& write,
                                               const std::vector<std::string>& stages, const Catalog& catalog) {
  std::string list;
  bool forwards = false;
  for (const std::string& word : stages) {
    forwards |= parts_of(word).front() == "patch";
    list += (word.starts_with('{') ? word : table_of(word, "plugin", catalog, &Catalog::stage)) + ", ";
  }
  if (!forwards) list += R"({ plugin = "patch", pairs = [["in", "out"]] })";
  const std::string out = write.empty() ? R"(driver = "null")" : fmt::format(R"(driver = "pcap", write = {})", quoted(write));
  const std::string text = fmt::format(
      "weir = {{ name = {} }}\nport = [{{ name = \"in\", driver = \"pcap\", read = {}, pipeline = \"main\" }}, {{ name = \"out\", {}, "
      "pipeline = \"main\" }}]\npipeline = [{{ name = \"main\", stage = [{}] }}]\n",
      quoted(name), quoted(read), out, list);
  std::expected<Config, Problems> config = parse_config(text, "", catalog);
  if (!config)
    for (Problem& problem : config.error()) problem.at = {};  // of no file
  return config;
}

namespace {

std::expected<std::string, Problems> text_of(const std::string& file) {
  const Fd opened(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
  std::string text;
  char block[4096];
  ssize_t got = opened ? 1 : -1;
  while (got > 0) {
    got = ::read(opened.get(), block, sizeof(block));
    if (got > 0) text.append(block, static_cast<std::size_t>(got));
  }
  if (got < 0) return std::unexpected(Problems{{file, {}, "", fmt::format("cannot read: {}", std::strerror(errno))}});
  return text;
}

}  // namespace

std::expected<Config, Problems> load_config(const std::string& file, const Catalog& catalog) {
  std::expected<std::string, Problems> text = text_of(file);
  if (!text) return std::unexpected(std::move(text).error());
  return parse_config(*text, file, catalog);
}

std::optional<std::vector<PluginDir>> plugin_dirs_of(const std::string& file) {
  const std::expected<std::string, Problems> text = text_of(file);
  if (!text) return std::nullopt;
  const toml::parse_result parsed = toml::parse(*text, file);
  if (!parsed) return std::nullopt;
  return plugin_dirs_in(parsed.table(), file);
}

}  // namespace weir
