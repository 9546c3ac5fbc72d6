// SPDX-License-Identifier: BSD-3-Clause
// weir: the command line. Exit codes: 0 done, 1 failed while running, 2 bad usage or configuration.
#include <poll.h>
#include <unistd.h>
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <span>

#include "apps/weir/new.hh"
#include "apps/weir/show.hh"
#include "core/control/control_socket.hh"
#include "core/control/load.hh"
#include "core/control/serve.hh"

namespace {

using nlohmann::json;
using weir::Result;

struct Arguments {
  std::string file, read, write, instance, plugin, port, group, how = "any";
  std::string stage, from, to, protocol;
  std::uint64_t limit = 1000;
  std::vector<std::string> chain, dirs;
  bool user_only = false, keep = false, detach_on_exit = false, as_json = false, watch = false, kernel = false, egress = false,
       flows = false;
};

// From a file, or from the words behind --read, which are stages then.
Result<std::unique_ptr<weir::Topology>> topology_of(const Arguments& arguments, const weir::Registry& registry) {
  if (arguments.read.empty()) return weir::load_topology(arguments.file, registry);
  return weir::capture_topology(fmt::format("run{}", ::getpid()), arguments.read, arguments.write, arguments.chain, registry);
}

Result<> run(const Arguments& arguments) {
  if (arguments.read.empty() && arguments.chain.size() != 1)
    return weir::invalid("run takes one FILE, or --read and stages; see: weir run --help");
  Arguments given = arguments;
  if (arguments.read.empty()) given.file = arguments.chain.front();
  const weir::Fd stop = TRY(weir::catch_stop_signals());
  const weir::Registry registry = given.file.empty() ? TRY(weir::Registry::load()) : TRY(weir::load_registry(given.file));
  auto topology = TRY(topology_of(given, registry));
  const auto instance =
      TRY(weir::Instance::prepare(std::move(topology), registry, {.user_only = arguments.user_only, .keep = arguments.keep}));
  return weir::serve(*instance, stop);
}

Result<> check(const Arguments& arguments) {
  const weir::Registry registry = TRY(weir::load_registry(arguments.file));
  const auto topology = TRY(weir::load_topology(arguments.file, registry));
  const weir::Config& config = topology->config();
  fmt::print("{}: valid: {} ports, {} groups, {} pipelines\n", arguments.file, config.ports.size(), config.groups.size(),
             config.pipelines.size());
  return {};
}

// A live view on a terminal, one table after the other elsewhere, or one line of JSON; until SIGINT, or until the instance ends.
Result<> watch(const std::string& instance, bool as_json) {
  const weir::Fd stop = TRY(weir::catch_stop_signals());
  const bool terminal = ::isatty(STDOUT_FILENO) == 1;
  json before = TRY(weir::ask(instance, {{"ask", "stats"}}));
  while (true) {
    pollfd wait{stop.get(), POLLIN, 0};
    if (::poll(&wait, 1, 1000) > 0) return {};
    json now = TRY(weir::ask(instance, {{"ask", "stats"}}));
    if (as_json) fmt::print("{}\n", now.dump());
    else
      fmt::print("{}{}: up {:.0f} s\n\n{}\n", terminal ? "\033[H\033[2J" : "", instance, now["uptime_s"].get<double>(),
                 show_rates(before, now));
    if (std::fflush(stdout) != 0) return {};  // whoever read has gone
    before = std::move(now);
  }
}

Result<> stats(const Arguments& arguments) {
  const std::string instance = TRY(weir::find_instance(arguments.instance));
  if (arguments.watch) return watch(instance, arguments.as_json);
  const json answer = TRY(weir::ask(instance, {{"ask", "stats"}}));
  fmt::print("{}", arguments.as_json ? answer.dump(2) + "\n" : show_stats(answer));
  return {};
}

// Asks, and shows the answer.
Result<> put(const Arguments& arguments, json question, std::string (*show)(const json&)) {
  const std::string instance = TRY(weir::find_instance(arguments.instance));
  const json answer = TRY(weir::ask(instance, question));
  fmt::print("{}", arguments.as_json ? answer.dump(2) + "\n" : show(answer));
  return {};
}

Result<> devmap(const Arguments& arguments) { return put(arguments, {{"ask", "devmap"}}, show_devmap); }
Result<> devmap_set(const Arguments& arguments) {
  return put(arguments, {{"ask", "devmap set"}, {"port", arguments.port}, {"how", arguments.how}}, show_devmap);
}
Result<> devmap_delete(const Arguments& arguments) {
  return put(arguments, {{"ask", "devmap delete"}, {"port", arguments.port}}, show_devmap);
}
Result<> groups(const Arguments& arguments) { return put(arguments, {{"ask", "devmap"}}, show_groups); }
Result<> group_join(const Arguments& arguments) {
  return put(arguments, {{"ask", "group join"}, {"group", arguments.group}, {"port", arguments.port}}, show_groups);
}
Result<> group_leave(const Arguments& arguments) {
  return put(arguments, {{"ask", "group leave"}, {"group", arguments.group}, {"port", arguments.port}}, show_groups);
}
Result<> egress(const Arguments& arguments) { return put(arguments, {{"ask", "egress"}}, show_egress); }
Result<> egress_samples(const Arguments& arguments) { return put(arguments, {{"ask", "samples"}}, show_samples); }
Result<> egress_set(const Arguments& arguments) {
  return put(
      arguments,
      {{"ask", "egress set"}, {"port", arguments.port}, {"chain", arguments.chain}, {"folder", std::filesystem::current_path().string()}},
      show_egress);
}

json of_flows(const char* ask, const Arguments& arguments) {
  return {{"ask", ask},         {"port", arguments.port},         {"stage", arguments.stage}, {"from", arguments.from},
          {"to", arguments.to}, {"protocol", arguments.protocol}, {"limit", arguments.limit}};
}
Result<> flows(const Arguments& arguments) { return put(arguments, of_flows("flows", arguments), show_flows); }
Result<> flows_flush(const Arguments& arguments) {
  return put(arguments, of_flows("flows flush", arguments), [](const json& answer) {
    return answer["cache"] ? fmt::format("flushed {} flows\n", answer["flushed"].get<std::uint64_t>()) : no_flow_cache;
  });
}

// In the form that the stage gives it, with --json or without.
Result<> ask_stage(const Arguments& arguments) {
  return put(arguments, {{"ask", "stage"}, {"stage", arguments.stage}, {"words", arguments.chain}}, [](const json& answer) {
    const json& given = answer["answer"];
    return (given.is_string() ? given.get<std::string>() : given.dump(2)) + "\n";
  });
}

// The running instance reads the file, and may stand in another folder.
Result<> reload(const Arguments& arguments) {
  json question{{"ask", "reload"}};
  if (!arguments.file.empty()) question["file"] = std::filesystem::absolute(arguments.file).string();
  return put(arguments, question, [](const json& answer) {
    const std::vector<std::string> changed = answer["changed"];
    return fmt::format("{}: {}\n", answer["file"].get<std::string>(),
                       changed.empty() ? "nothing to change" : fmt::format("changed {}", fmt::join(changed, ", ")));
  });
}

std::unexpected<weir::Error> no_plugin(const std::string& name, const weir::Registry& registry) {
  return weir::invalid("there is no plugin, egress program or port driver {}; there are: {}; {}; {}", name,
                       fmt::join(registry.stages(), ", "), fmt::join(registry.egress_programs(), ", "),
                       fmt::join(registry.drivers(), ", "));
}

Result<> plugins(const Arguments& arguments) {
  weir::Registry registry = TRY(weir::Registry::load());
  for (const std::string& dir : arguments.dirs) TRY_VOID(registry.add_folder(dir));
  if (arguments.as_json) {
    json all = plugins_json(registry);
    if (arguments.plugin.empty()) {
      fmt::print("{}\n", all.dump(2));
      return {};
    }
    for (json& kind : all) {
      json one = json::array();
      for (json& each : kind)
        if (each["name"] == arguments.plugin) one.push_back(std::move(each));
      kind = std::move(one);
    }
    if (all["plugins"].empty() && all["egress"].empty() && all["drivers"].empty()) return no_plugin(arguments.plugin, registry);
    fmt::print("{}\n", all.dump(2));
    return {};
  }
  if (arguments.plugin.empty()) {
    fmt::print("{}", show_plugins(registry));
    return {};
  }
  const std::string text = show_plugin(registry, arguments.plugin);
  if (text.empty()) return no_plugin(arguments.plugin, registry);
  fmt::print("{}", text);
  return {};
}

Result<> new_plugin(const Arguments& arguments) {
  const weir::Registry registry = TRY(weir::Registry::load());
  const NewPlugin plugin{arguments.plugin, arguments.kernel || arguments.flows, arguments.egress, arguments.flows};
  const std::vector<std::string> files = TRY(write_plugin(plugin, registry));
  fmt::print("{0}/: {1}\nnext: cd {0} && meson setup build && ninja -C build && meson test -C build\n", arguments.plugin,
             fmt::join(files, ", "));
  return {};
}

// "weir: " in front of a message, but not of "FILE:LINE:COL: …", which editors read from the first column.
void complain(const weir::Error& error) {
  for (std::size_t start = 0; start <= error.what.size();) {
    const std::size_t end = std::min(error.what.find('\n', start), error.what.size());
    std::fputs(fmt::format("{}{}\n", error.of_file ? "" : "weir: ", error.what.substr(start, end - start)).c_str(), stderr);
    start = end + 1;
  }
}

// The command that was begun, as " devmap list".
std::string words_of(const CLI::App& app) {
  const std::vector<CLI::App*> chosen = app.get_subcommands();
  return chosen.empty() ? "" : " " + chosen.front()->get_name() + words_of(*chosen.front());
}

// What is wrong with the words that name the command; empty: nothing, or what follows them.
std::string wrong_command(const CLI::App& app, std::span<char* const> words) {
  const CLI::App* level = &app;
  std::string before;
  for (std::size_t at = 0; true; ++at) {
    std::vector<std::string> names;
    for (const CLI::App* each : level->get_subcommands([](const CLI::App*) { return true; })) names.push_back(before + each->get_name());
    if (names.empty() || (at < words.size() && words[at][0] == '-')) return "";
    const std::string word = at < words.size() ? before + words[at] : "";
    if (std::ranges::find(names, word) == names.end())
      return fmt::format("{}; there are: {}", word.empty() ? "no command" : fmt::format("unknown command \"{}\"", word),
                         fmt::join(names, ", "));
    level = level->get_subcommand(words[at]);
    before = word + " ";
  }
}

// Whether the command that was begun asks a running instance.
bool takes_instance(const CLI::App& app) {
  const std::vector<CLI::App*> chosen = app.get_subcommands();
  if (!chosen.empty()) return takes_instance(*chosen.front());
  return app.get_parent() != nullptr && app.get_option_no_throw("--instance") != nullptr;
}

}  // namespace

int main(int count, char** words) {
  CLI::App app{"weir: packet processing in the kernel and in user space, one pipeline for both"};
  app.require_subcommand(1);
  app.set_version_flag("--version", "weir " WEIR_VERSION);
  Arguments arguments;
  app.add_option("--instance", arguments.instance, "which of several running instances, also behind the command");
  Result<> (*command)(const Arguments&) = nullptr;
  const auto add = [&](const char* name, const char* says, Result<> (*what)(const Arguments&), CLI::App* to) {
    CLI::App* made = to->add_subcommand(name, says);
    made->callback([&command, what] { command = what; });
    return made;
  };
  const auto to_instance = [&](CLI::App* to) {
    to->add_option("--instance", arguments.instance, "which of several running instances");
    to->add_flag("--json", arguments.as_json, "for programs");
    return to;
  };

  CLI::App* to_run = add("run", "check, apply, forward until SIGINT, SIGTERM or SIGHUP", run, &app);
  to_run->add_option("FILE", arguments.chain, "configuration; with --read: stages, each NAME or NAME,KEY=VALUE,…");
  CLI::Option* read = to_run->add_option("--read", arguments.read, "instead of a configuration: the capture that goes through the stages");
  to_run->add_option("--write", arguments.write, "and the one that what they let through goes into")->needs(read);
  to_run->add_flag("--user-only", arguments.user_only, "kernel halves off: every frame goes to user space");
  CLI::Option* keep = to_run->add_flag("--keep", arguments.keep, "at the end, leave the kernel path forwarding; the next run adopts it");
  to_run->add_flag("--detach-on-exit", arguments.detach_on_exit, "at the end, take the programs off the devices (default)")->excludes(keep);
  add("check", "check a configuration; needs no privileges", check, &app)->add_option("FILE", arguments.file, "configuration")->required();
  CLI::App* to_count = to_instance(add("stats", "counters of a running instance", stats, &app));
  to_count->add_flag("--watch", arguments.watch, "rates, every second; with --json the counters, a line each time");
  CLI::App* maps = app.add_subcommand("devmap", "device entries and groups of a running instance");
  maps->require_subcommand(1);
  const auto with_port = [&](CLI::App* to) {
    to->add_option("PORT", arguments.port, "name of a port")->required();
    return to;
  };
  to_instance(add("list", "each entry with the program on it", devmap, maps));
  CLI::App* to_set = with_port(to_instance(add("set", "make the entry of a port whose entry was deleted", devmap_set, maps)));
  to_set->add_flag_callback(
      "--noexist", [&] { arguments.how = "noexist"; }, "only make it: refused where there is one");
  to_set->add_flag_callback(
      "--exist", [&] { arguments.how = "exist"; }, "only replace it: refused where there is none");
  with_port(to_instance(add("delete", "delete the entry of a port: frames for it are a miss", devmap_delete, maps)));
  CLI::App* group = maps->add_subcommand("group", "groups that frames are flooded to");
  group->require_subcommand(1);
  const auto with_group = [&](CLI::App* to) {
    to->add_option("GROUP", arguments.group, "name or number of a group")->required();
    return with_port(to);
  };
  to_instance(add("list", "members of each group", groups, group));
  with_group(to_instance(add("join", "floods to the group reach the port", group_join, group)));
  with_group(to_instance(add("leave", "floods to the group no longer reach the port", group_leave, group)));
  CLI::App* chains = app.add_subcommand("egress", "egress chains of a running instance");
  chains->require_subcommand(1);
  to_instance(add("list", "the programs of each port's chain", egress, chains));
  to_instance(add("samples", "the last frames that the program sample has shown", egress_samples, chains));
  with_port(to_instance(add("set", "replace a port's chain, without losing a frame", egress_set, chains)))
      ->add_option("PROGRAM", arguments.chain, "NAME, NAME,KEY=VALUE,… or a table as in a file; none: an empty chain");
  CLI::App* cached = app.add_subcommand("flows", "the flow cache of a running instance: flows whose frames stay in the kernel");
  cached->require_subcommand(1);
  const auto with_filter = [&](CLI::App* to) {
    to->add_option("--port", arguments.port, "of flows that come in by this port");
    to->add_option("--stage", arguments.stage, "that this stage has offloaded: PIPELINE.STAGE");
    to->add_option("--from", arguments.from, "whose source is this address, or in this prefix");
    to->add_option("--to", arguments.to, "the same of the destination");
    to->add_option("--protocol", arguments.protocol, "icmp, tcp, udp, icmpv6, sctp, or a number");
    return to;
  };
  with_filter(to_instance(add("list", "flows, with their hits, age and action", flows, cached)))
      ->add_option("--limit", arguments.limit, "so many of them")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  with_filter(to_instance(add("flush", "take flows back: their next frames go through user space", flows_flush, cached)));
  CLI::App* stages = app.add_subcommand("stage", "stages of a running instance");
  stages->require_subcommand(1);
  CLI::App* to_ask =
      to_instance(add("ask", "what a stage tells of itself, as JSON; without a word, which words it knows", ask_stage, stages));
  to_ask->add_option("STAGE", arguments.stage, "PIPELINE.STAGE")->required();
  to_ask->add_option("WORD", arguments.chain, "what is asked");
  to_instance(add("reload", "apply what a file changes to the running instance, or change nothing", reload, &app))
      ->add_option("FILE", arguments.file, "configuration (default: the one that runs)");
  CLI::App* to_list =
      add("plugins", "plugins, egress programs and port drivers; of one: its keys, drop reasons and counters", plugins, &app);
  to_list->add_option("NAME", arguments.plugin, "plugin, egress program or port driver");
  to_list->add_option("--dir", arguments.dirs, "a folder of plugin modules, as in plugin_dirs; may be given again")
      ->allow_extra_args(false);
  to_list->add_flag("--json", arguments.as_json, "for programs");
  CLI::App* to_begin = app.add_subcommand("new", "begin something new");
  to_begin->require_subcommand(1);
  CLI::App* to_write =
      add("plugin", "write the folder of a plugin, which builds outside of weir's tree and whose test passes", new_plugin, to_begin);
  to_write->add_option("NAME", arguments.plugin, "of the plugin and of its folder")->required();
  to_write->add_flag("--kernel", arguments.kernel, "with a kernel half");
  to_write->add_flag("--flows", arguments.flows, "with a kernel half, and a user half that offloads flows");
  to_write->add_flag("--egress", arguments.egress, "with an egress program, NAME_egress");

  if (const std::string what = wrong_command(app, std::span(words, static_cast<std::size_t>(count)).subspan(1)); !what.empty()) {
    complain({weir::Failure::invalid, what});
    return 2;
  }
  try {
    app.parse(count, words);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    complain({weir::Failure::invalid, fmt::format("{}; see: weir{} --help", error.what(), words_of(app))});
    return 2;
  }
  if (app.count("--instance") > 0 && !takes_instance(app)) {
    complain({weir::Failure::invalid, fmt::format("{} takes no --instance", words_of(app).substr(1))});
    return 2;
  }
  try {
    if (const Result<> done = command(arguments); !done) {
      complain(done.error());
      return done.error().failure == weir::Failure::invalid ? 2 : 1;
    }
  } catch (const std::exception& error) {  // of a library: memory, threads, or a terminal that has gone
    complain({weir::Failure::failed, error.what()});
    return 1;
  }
  return 0;
}
