// SPDX-License-Identifier: BSD-3-Clause
// show: tables of text.
#include "apps/weir/show.hh"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <ctime>
#include <vector>

namespace {

using nlohmann::json;

// A word, or a number: that is so for all of a column, also where there is none and a dash stands.
struct Cell {
  Cell(const json& word) : text(word.get<std::string>()) {}
  Cell(std::string word) : text(std::move(word)) {}
  Cell(const char* word) : text(word) {}
  Cell(std::string given, bool is_number) : text(std::move(given)), number(is_number) {}
  std::string text;
  bool number = false;
};

std::string digits(const json& of, const char* key) { return std::to_string(of.value(key, std::uint64_t{0})); }
Cell number(const json& of, const char* key) { return {digits(of, key), true}; }
Cell number_if_any(const json& of, const char* key) { return of.contains(key) ? number(of, key) : Cell("-", true); }

// Rows of cells, the first one is the head; numbers stand right.
class Table {
 public:
  explicit Table(std::vector<Cell> head) { rows_.push_back(std::move(head)); }
  void add(std::vector<Cell> row) { rows_.push_back(std::move(row)); }
  [[nodiscard]] bool empty() const { return rows_.size() == 1; }
  [[nodiscard]] std::string text() const {
    std::vector<std::size_t> width(rows_.front().size());
    for (const auto& row : rows_)
      for (std::size_t i = 0; i < row.size(); ++i) width[i] = std::max(width[i], row[i].text.size());
    std::string text;
    for (const auto& row : rows_) {
      std::string line;
      for (std::size_t i = 0; i < row.size(); ++i)
        line += rows_.back()[i].number ? fmt::format("{:>{}}  ", row[i].text, width[i]) : fmt::format("{:<{}}  ", row[i].text, width[i]);
      line.erase(line.find_last_not_of(' ') + 1);
      text += line + "\n";
    }
    return text;
  }

 private:
  std::vector<std::vector<Cell>> rows_;
};

std::string ports_table(const json& stats) {
  Table table({"port", "device", "mode", "rx", "redirect", "flood", "punt", "to_stack", "drop", "tx_kernel", "tx_user"});
  for (const json& port : stats["ports"])
    table.add({port["name"], port.value("device", "-"), port.value("mode", "-"), number(port, "rx"), number(port, "redirect"),
               number(port, "flood"), number(port, "punt"), number(port, "to_stack"), number(port, "drop"), number(port, "tx_kernel"),
               number(port, "tx_user")});
  return table.text();
}

// A part of a whole that may be nothing yet.
Cell ratio(double part, double whole, int digits = 1) {
  return whole <= 0 ? Cell("-", true) : Cell(fmt::format("{:.{}f}", part / whole, digits), true);
}

// In user space, of the bursts that were timed.
Cell frame_ns(const json& stage, const json& before = json::object()) {
  const json none{{"frames", 0}, {"ns", 0}};
  const json now = stage.value("timed", none), then = before.value("timed", none);
  return ratio(now["ns"].get<double>() - then["ns"].get<double>(), now["frames"].get<double>() - then["frames"].get<double>(), 0);
}

// Ports whose frames of user space have two ways out.
std::string ways_table(const json& stats) {
  Table table({"tx of", "by", "pump", "af_xdp", "why"});
  for (const json& port : stats["ports"]) {
    const json tx = port.value("tx", json::object()), frames = tx.value("frames", json{{"pump", 0}, {"af_xdp", port["tx_user"]}});
    if (tx.contains("why")) table.add({port["name"], tx["by"], number(frames, "pump"), number(frames, "af_xdp"), tx["why"]});
  }
  return table.empty() ? "" : "\n" + table.text();
}

std::string stages_table(const json& stats) {
  Table table({"stage", "plugin", "half", "in", "next", "redirect", "flood", "punt", "to_stack", "drop", "ns/frame"});
  for (const json& stage : stats["stages"])
    for (const char* half : {"kernel", "user"}) {
      const json& of = stage[half];
      table.add({stage["pipeline"].get<std::string>() + "." + stage["stage"].get<std::string>(), stage["plugin"], half, number(of, "in"),
                 number(of, "next"), number(of, "redirect"), number(of, "flood"), number(of, "punt"), number(of, "to_stack"),
                 number(of, "drop"), half == std::string("user") ? frame_ns(stage) : Cell("-", true)});
    }
  return table.empty() ? "" : "\n" + table.text();
}

std::string named(const json& numbers) {
  std::string text;
  for (const auto& [name, value] : numbers.items())
    if (value != 0) text += fmt::format("{}{} {}", text.empty() ? "" : ", ", name, value.get<std::uint64_t>());
  return text;
}

std::string extras(const json& stats) {
  std::string text;
  for (const json& stage : stats["stages"]) {
    json all = stage["counters"];
    all.update(stage["gauges"]);
    if (std::string line = named(all); !line.empty())
      text += fmt::format("{}.{}: {}\n", stage["pipeline"].get<std::string>(), stage["stage"].get<std::string>(), line);
  }
  return text.empty() ? "" : "\n" + text;
}

std::string flows_line(const json& stats) {
  const json& flows = stats["flows"];
  return flows["places"] == 0 ? "" : fmt::format("\nflows: {}\n", named(flows));
}

// How busy the threads of user space are: of their polls, how many found frames, and how many they found; what they took from lanes.
// `before`: an earlier answer, or nothing.
std::string workers_table(const json& stats, const json& before = json::object()) {
  Table table({"thread", "is a", "cpu", "polls", "found_%", "frames", "frames/burst", "from_lanes", "frames/burst"});
  const json none = json::array(), was = before.value("workers", none);
  for (std::size_t i = 0; i < stats["workers"].size(); ++i) {
    const json& row = stats["workers"][i];
    const auto grown = [&](const char* key) { return row.value(key, 0.0) - (i < was.size() ? was[i].value(key, 0.0) : 0.0); };
    const auto count = [&](const char* key) { return Cell(fmt::format("{:.0f}", grown(key)), true); };
    table.add({digits(row, "thread"), row["kind"], number(row, "cpu"), count("polls"), ratio(100 * grown("found"), grown("polls")),
               count("frames"), ratio(grown("frames"), grown("found")), count("drained"), ratio(grown("drained"), grown("drains"))});
  }
  return table.empty() ? "" : "\n" + table.text();
}

std::string lanes_table(const json& stats) {
  Table table({"parallel stage", "lanes", "in use", "frames", "deepest", "room", "overflow"});
  for (const json& lanes : stats["lanes"])
    table.add({lanes["pipeline"].get<std::string>() + "." + lanes["stage"].get<std::string>(), number(lanes, "lanes"),
               lanes["spread"] == true ? "yes" : "no", number(lanes, "frames"), number(lanes, "deepest"), number(lanes, "room"),
               number(lanes, "overflow")});
  return table.empty() ? "" : "\n" + table.text();
}

// Where frames lie in rings of AF_XDP sockets: those that wait to be taken, by queue.
std::string rings_line(const json& stats) {
  std::string text;
  for (const json& port : stats["ports"]) {
    const json none = json::array(), rings = port.value("rings", none);
    for (std::size_t queue = 0; queue < rings.size(); ++queue)
      if (const auto waiting = rings[queue]["waiting"].get<std::uint64_t>(); waiting > 0)
        text += fmt::format("{}{} queue {}: {}", text.empty() ? "" : ", ", port["name"].get<std::string>(), queue, waiting);
  }
  return text.empty() ? "" : fmt::format("\nwaiting in rings: {}\n", text);
}

std::string egress_table(const json& stats) {
  Table table({"egress of", "program", "kernel", "user", "drop", "counted"});
  for (const json& program : stats["egress"])
    table.add({program["port"], program["program"], number(program, "kernel"), number(program, "user"), number(program, "drop"),
               named(program["counters"])});
  return table.empty() ? "" : "\n" + table.text();
}

std::string drops_table(const json& stats) {
  Table table({"dropped at", "reason", "frames"});
  for (const json& drop : stats["drops"])
    if (drop["frames"] != 0) table.add({drop["where"], drop["reason"], number(drop, "frames")});
  return table.empty() ? "" : "\n" + table.text();
}

std::string keys_text(const weir::Schema& keys, int indent = 2);

std::string type_text(const weir::Key& key) {
  using Type = weir::Key::Type;
  switch (key.type) {
    case Type::boolean:
      return "true or false";
    case Type::integer:
      return fmt::format("{} to {}", key.min, key.max);
    case Type::string:
      return key.choices.empty() ? "a string" : fmt::format("{}", fmt::join(key.choices, " | "));
    case Type::mac:
      return key.of_station ? "the MAC address of a station" : "a MAC address";
    case Type::address:
      return "an IPv4 or IPv6 address";
    case Type::prefix:
      return "an IPv4 or IPv6 prefix, or an address";
    case Type::range:
      return fmt::format("{} to {}, or \"FIRST-LAST\"", key.min, key.max);
    case Type::protocol:
      return "tcp | udp | icmp | icmpv6, or 0 to 255";
    case Type::port:
      return "the name of a port";
    case Type::list:
      return fmt::format("a list of {}, each {}", key.min == key.max ? std::to_string(key.min) : fmt::format("{} to {}", key.min, key.max),
                         type_text(key.inner.front()));
    case Type::table:
      return "a table";
  }
  return "";
}

std::string keys_text(const weir::Schema& keys, int indent) {
  std::string text;
  for (const weir::Key& key : keys) {
    const std::string rule = key.required ? "required" : key.default_text.empty() ? "optional" : "default " + key.default_text;
    text += fmt::format("{:{}}{}: {}; {}{}{}\n", "", indent, key.name, type_text(key), rule, key.says.empty() ? "" : ". ", key.says);
    const weir::Key& inner = key.type == weir::Key::Type::list ? key.inner.front() : key;
    if (inner.type == weir::Key::Type::table) text += keys_text(inner.inner, indent + 4);
  }
  return text;
}

std::vector<std::string> strings(const char* const* names) {
  std::vector<std::string> all;
  for (; names != nullptr && *names != nullptr; ++names) all.emplace_back(*names);
  return all;
}

std::string line_of(const char* what, const std::vector<std::string>& names) {
  return names.empty() ? "" : fmt::format("{}: {}\n", what, fmt::join(names, ", "));
}

json key_names(const weir::Schema& keys) {
  json all = json::array();
  for (const weir::Key& key : keys)
    all.push_back(
        {{"name", key.name}, {"type", type_text(key)}, {"required", key.required}, {"default", key.default_text}, {"says", key.says}});
  return all;
}

}  // namespace

std::string show_stats(const json& stats) {
  std::string text = fmt::format("{}: up {:.0f} s{}\n\n", stats["instance"].get<std::string>(), stats["uptime_s"].get<double>(),
                                 stats["user_only"] == true ? ", kernel halves off" : "");
  text += ports_table(stats) + ways_table(stats) + stages_table(stats) + extras(stats) + flows_line(stats) + egress_table(stats) +
          drops_table(stats);
  text += workers_table(stats) + lanes_table(stats) + rings_line(stats);
  const json& frames = stats["frames"];
  const json& sum = stats["account"];
  text += fmt::format("\nframes: {} = {} free + {} in rings + {} in bursts + {} in lanes\n", digits(frames, "total"),
                      digits(frames, "free"), digits(frames, "rings"), digits(frames, "bursts"), digits(frames, "lanes"));
  text += fmt::format("account: {} rx + {} copies = {} tx + {} to_stack + {} drop + {} held, difference {}\n", digits(sum, "rx"),
                      digits(sum, "copies"), digits(sum, "tx"), digits(sum, "to_stack"), digits(sum, "drop"), digits(sum, "held"),
                      sum["difference"].get<std::int64_t>());
  for (const json& warning : stats["warnings"]) text += fmt::format("warning: {}\n", warning.get<std::string>());
  return text;
}

std::string show_rates(const json& before, const json& now) {
  const double seconds = std::max(0.001, now["uptime_s"].get<double>() - before["uptime_s"].get<double>());
  const auto rate = [&](const json& then, const json& after, const char* key) {
    return Cell(fmt::format("{:.0f}", std::max(0.0, after.value(key, 0.0) - then.value(key, 0.0)) / seconds), true);
  };
  Table ports({"port", "rx/s", "redirect/s", "flood/s", "punt/s", "to_stack/s", "drop/s", "tx_kernel/s", "tx_user/s"});
  for (std::size_t i = 0; i < now["ports"].size() && i < before["ports"].size(); ++i) {
    std::vector<Cell> row{now["ports"][i]["name"]};
    for (const char* key : {"rx", "redirect", "flood", "punt", "to_stack", "drop", "tx_kernel", "tx_user"})
      row.push_back(rate(before["ports"][i], now["ports"][i], key));
    ports.add(std::move(row));
  }
  Table egress({"egress of", "program", "kernel/s", "user/s", "drop/s"});
  for (std::size_t i = 0; i < now["egress"].size() && i < before["egress"].size(); ++i) {
    const json &then = before["egress"][i], &program = now["egress"][i];
    if (then["port"] != program["port"] || then["program"] != program["program"]) continue;  // a chain was replaced between the two
    egress.add(
        {program["port"], program["program"], rate(then, program, "kernel"), rate(then, program, "user"), rate(then, program, "drop")});
  }
  Table drops({"dropped at", "reason", "frames/s", "frames in all"});
  for (const json& drop : now["drops"]) {
    const auto then = std::ranges::find_if(
        before["drops"], [&](const json& each) { return each["where"] == drop["where"] && each["reason"] == drop["reason"]; });
    if (drop["frames"] == 0) continue;
    drops.add({drop["where"], drop["reason"], rate(then != before["drops"].end() ? *then : json::object(), drop, "frames"),
               number(drop, "frames")});
  }
  Table stages({"stage", "in user space/s", "ns/frame"});
  for (std::size_t i = 0; i < now["stages"].size() && i < before["stages"].size(); ++i) {
    const json &then = before["stages"][i], &stage = now["stages"][i];
    stages.add({stage["pipeline"].get<std::string>() + "." + stage["stage"].get<std::string>(), rate(then["user"], stage["user"], "in"),
                frame_ns(stage, then)});
  }
  std::string text = ports.text() + extras(now);
  if (!stages.empty()) text += "\n" + stages.text();
  text += workers_table(now, before) + lanes_table(now) + rings_line(now);
  if (!egress.empty()) text += "\n" + egress.text();
  if (!drops.empty()) text += "\n" + drops.text();
  for (const json& warning : now["warnings"]) text += fmt::format("\nwarning: {}", warning.get<std::string>());
  return text;
}

std::string show_devmap(const json& devmap) {
  const auto add = [](Table& table, const std::string& map, const json& entry) {
    std::vector<std::string> chain;
    for (const json& step : entry["chain"])
      chain.push_back(fmt::format("{} ({})", step["program"].get<std::string>(), step["id"].get<unsigned>()));
    std::string drops;
    const json by_reason = entry.value("drops", json::object());  // a temporary would be gone before the first turn
    for (const auto& [reason, frames] : by_reason.items())
      if (frames != 0) drops += fmt::format("{}{} {}", drops.empty() ? "" : ", ", reason, frames.get<std::uint64_t>());
    const json none = json::object(), &on_entry = entry.contains("program") ? entry["program"] : none;
    table.add({map, number(entry, "key"), entry["port"], entry["device"], number(entry, "ifindex"), number_if_any(on_entry, "id"),
               on_entry.value("name", "-"), entry.value("placement", "-"), chain.empty() ? "-" : fmt::format("{}", fmt::join(chain, " > ")),
               number_if_any(entry, "frames"), drops.empty() ? "-" : drops});
  };
  Table table({"map", "key", "port", "device", "ifindex", "prog_id", "prog_name", "runs", "egress chain", "frames", "drops"});
  std::string notes;
  for (const json& entry : devmap["ports"]) add(table, entry.value("placement", "") == "fused" ? "bare_ports" : "ports", entry);
  for (const json& group : devmap["groups"]) {
    const std::string name = group["name"].get<std::string>();
    for (const json& entry : group["entries"])
      add(table, fmt::format("group {}{}{}", group["group"].get<unsigned>(), name.empty() ? "" : " ", name), entry);
    if (group["flooded_by"] != "kernel") notes += fmt::format("group {}: floods go through user space\n", group["group"].get<unsigned>());
  }
  return table.text() + notes;
}

std::string show_groups(const json& devmap) {
  Table table({"group", "name", "members", "flooded by"});
  for (const json& group : devmap["groups"]) {
    const std::string name = group["name"];
    table.add({number(group, "group"), name.empty() ? "-" : name,
               fmt::format("{}", fmt::join(group["members"].get<std::vector<std::string>>(), " ")), group["flooded_by"]});
  }
  return table.text();
}

std::string show_egress(const json& egress) {
  Table table({"port", "place", "program", "keys", "prog_id", "runs", "frames", "drop"});
  for (const json& program : egress["egress"]) {
    const std::string keys = program["keys"];
    table.add({program["port"], number(program, "place"), program["program"], keys.empty() ? "-" : keys, number_if_any(program, "prog_id"),
               program["placement"], number(program, "frames"), number(program, "drop")});
  }
  return table.text();
}

const std::string no_flow_cache = "no flow cache: no stage may offload, or [weir] flows = 0, or it runs with --user-only\n";

std::string show_flows(const json& answer) {
  Table table({"port", "vlan", "protocol", "from", "to", "hits", "bytes", "age_s", "idle_s", "stage", "action"});
  const auto end = [](const json& flow, const char* address, const char* port) {
    const std::string at = flow[address];
    if (!flow.contains(port)) return at;
    return fmt::format(fmt::runtime(at.find(':') != std::string::npos ? "[{}]:{}" : "{}:{}"), at, flow[port].get<unsigned>());
  };
  for (const json& flow : answer["flows"]) {
    std::string action = flow["action"];
    for (const char* where : {"out", "reason"})
      if (flow.contains(where)) action += " " + flow[where].get<std::string>();
    if (flow.contains("group")) action += " " + digits(flow, "group");
    for (const auto& [name, value] : flow["changes"].items()) {
      action += ", " + name;
      if (name == "mac") action += " " + value["to"].get<std::string>();
      else if (name == "nat") action += fmt::format(" {} > {}", end(value, "from", "from_port"), end(value, "to", "to_port"));
      else if (value.is_number()) action += fmt::format(" {}", value.get<int>());
    }
    std::string protocol = flow["protocol"];
    if (flow.contains("identifier")) protocol += " " + digits(flow, "identifier");
    table.add({flow["port"], flow.contains("vlan") ? digits(flow, "vlan") : "-", protocol, end(flow, "from", "from_port"),
               end(flow, "to", "to_port"), number(flow, "hits"), number(flow, "bytes"), number(flow, "age_s"), number(flow, "idle_s"),
               flow["stage"], action});
  }
  if (!answer["cache"]) return no_flow_cache;
  if (table.empty()) return "no flows\n";
  return table.text() + (answer["more"] > 0 ? fmt::format("and {} more; see --limit\n", answer["more"].get<std::uint64_t>()) : "");
}

// The first bytes of each, the headers of most frames. The time is of UTC.
std::string show_samples(const json& samples) {
  constexpr std::size_t digits = 2 * 42;
  Table table({"number", "time", "in", "out", "length", "bytes"});
  for (const json& sample : samples["samples"]) {
    const auto side = [&](const char* key) { return sample[key]["port"].is_string() ? sample[key]["port"].get<std::string>() : "-"; };
    const std::uint64_t ns = sample["time_ns"];
    const auto second = static_cast<std::time_t>(ns / 1'000'000'000);
    std::tm day{};
    ::gmtime_r(&second, &day);
    const std::string bytes = sample["bytes"];
    table.add({number(sample, "number"), fmt::format("{:02}:{:02}:{:02}.{:06}", day.tm_hour, day.tm_min, day.tm_sec, ns / 1000 % 1'000'000),
               side("in"), side("out"), number(sample, "length"), bytes.size() > digits ? bytes.substr(0, digits) + "…" : bytes});
  }
  return table.text();
}

std::string show_plugins(const weir::Registry& registry) {
  Table table({"name", "kind", "halves", "what it does"});
  for (const std::string& name : registry.stages()) {
    const weir::Plugin& plugin = *registry.plugin(name);
    table.add({name, "plugin", plugin.kernel_half != nullptr && !plugin.kernel_half().empty() ? "kernel, user" : "user", plugin.says});
  }
  for (const std::string& name : registry.egress_programs())
    table.add({name, "egress program", "kernel, user", registry.egress_module(name)->host->says});
  for (const std::string& name : registry.drivers()) table.add({name, "port driver", "user", registry.port_driver(name)->says});
  return table.text();
}

std::string show_plugin(const weir::Registry& registry, const std::string& name) {
  if (const weir::Plugin* plugin = registry.plugin(name))
    return fmt::format("{}: {}\nkeys:{}\n{}{}{}{}{}", name, plugin->says, plugin->keys.empty() ? " none" : "", keys_text(plugin->keys),
                       line_of("drops", plugin->drops), line_of("counters", plugin->counters), line_of("punts", plugin->punts),
                       plugin->per_flow ? "" : "flows: it is to see every frame, so that neither it nor a stage behind it offloads\n");
  if (const weir::EgressModule* module = registry.egress_module(name)) {
    const weir::Schema& keys = *registry.egress(name);
    return fmt::format("{}: {} (egress program)\nkeys:{}\n{}{}{}", name, module->host->says, keys.empty() ? " none" : "", keys_text(keys),
                       line_of("drops", strings(module->host->drops)), line_of("counters", strings(module->host->counters)));
  }
  if (const weir::PortDriver* driver = registry.port_driver(name))
    return fmt::format("{}: {} (port driver)\nkeys:{}\n{}{}", name, driver->says, driver->keys.empty() ? " none" : "",
                       keys_text(driver->keys),
                       driver->settings.empty() ? "" : fmt::format("keys of [{}]:\n{}", name, keys_text(driver->settings)));
  return "";
}

json plugins_json(const weir::Registry& registry) {
  json all{{"plugins", json::array()}, {"egress", json::array()}, {"drivers", json::array()}};
  for (const std::string& name : registry.stages()) {
    const weir::Plugin& plugin = *registry.plugin(name);
    all["plugins"].push_back({{"name", name},
                              {"says", plugin.says},
                              {"keys", key_names(plugin.keys)},
                              {"drops", plugin.drops},
                              {"counters", plugin.counters},
                              {"punts", plugin.punts},
                              {"per_flow", plugin.per_flow},
                              {"file", registry.file_of(plugin)}});
  }
  for (const std::string& name : registry.egress_programs()) {
    const egress_program& host = *registry.egress_module(name)->host;
    all["egress"].push_back({{"name", name},
                             {"says", host.says},
                             {"keys", key_names(*registry.egress(name))},
                             {"drops", strings(host.drops)},
                             {"counters", strings(host.counters)},
                             {"file", registry.file_of(*registry.egress_module(name))}});
  }
  for (const std::string& name : registry.drivers()) {
    const weir::PortDriver& driver = *registry.port_driver(name);
    all["drivers"].push_back({{"name", name},
                              {"says", driver.says},
                              {"keys", key_names(driver.keys)},
                              {"settings", key_names(driver.settings)},
                              {"file", registry.file_of(driver)}});
  }
  return all;
}
