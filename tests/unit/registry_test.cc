// SPDX-License-Identifier: BSD-3-Clause
// registry_test: the modules of the build tree are found with what they declare, and one that does not fit is refused by its file's name.
#include "core/pipeline/registry.hh"
#include "core/pipeline/egress_config.hh"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "bpf/abi/mac_rewrite.h"
#include "core/base/fd.hh"
#include "core/control/load.hh"
#include "core/kernel/object.hh"
#include "core/pipeline/module_tag.hh"

namespace weir {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::IsSupersetOf;

// A folder of links to modules of this build, each under a name of the test's.
class Folder {
 public:
  Folder() : path_(fs::temp_directory_path() / "weir_registry_XXXXXX") {
    std::string name = path_;
    if (::mkdtemp(name.data()) == nullptr) broken("a test cannot make a temporary folder");
    path_ = name;
  }
  Folder(const Folder&) = delete;
  ~Folder() { fs::remove_all(path_); }

  std::string add(const char* module, const std::string& as) {
    fs::create_directories((path_ / as).parent_path());
    fs::create_symlink(fs::path(WEIR_TEST_MODULES) / (std::string(module) + ".so"), path_ / as);
    return path_ / as;
  }
  [[nodiscard]] const fs::path& path() const noexcept { return path_; }
  [[nodiscard]] Result<Registry> load() const { return Registry::load(path_); }
  [[nodiscard]] std::string refusal() const {
    const Result<Registry> registry = load();
    return registry ? "" : registry.error().what;
  }

 private:
  fs::path path_;
};

Registry built() {
  Result<Registry> registry = Registry::load();
  if (!registry) broken(registry.error().what.c_str());
  return std::move(*registry);
}

std::string registry_file(const std::string& plugin) {
  const Registry registry = built();
  return registry.file_of(*registry.plugin(plugin));
}

TEST(Registry, finds_the_modules_of_the_build_tree) {
  const Registry registry = built();
  EXPECT_THAT(registry.stages(), IsSupersetOf({"l2_switch", "patch"}));
  EXPECT_THAT(registry.egress_programs(), IsSupersetOf({"count", "mac_rewrite"}));
  EXPECT_TRUE(std::ranges::is_sorted(registry.stages()));
}

TEST(Registry, answers_what_a_plugin_declares) {
  const Registry registry = built();
  const Plugin* patch = registry.plugin("patch");
  ASSERT_NE(patch, nullptr);
  EXPECT_STREQ(patch->name, "patch");
  EXPECT_THAT(patch->drops, ElementsAre("unpaired"));
  EXPECT_FALSE(patch->kernel_half().empty());
  const Schema* keys = registry.stage("patch");
  ASSERT_NE(keys, nullptr);
  ASSERT_EQ(keys->size(), 1u);
  EXPECT_EQ(keys->front().name, "pairs");
  EXPECT_EQ(keys->front().type, Key::Type::list);
  EXPECT_TRUE(keys->front().required);
}

TEST(Registry, answers_what_an_egress_program_declares) {
  const Registry registry = built();
  const EgressModule* module = registry.egress_module("mac_rewrite");
  ASSERT_NE(module, nullptr);
  EXPECT_STREQ(module->host->drops[MAC_REWRITE_TRUNCATED], "truncated");
  EXPECT_EQ(module->host->drops[1], nullptr);
  EXPECT_FALSE(module->elf.empty());
  const Schema* keys = registry.egress("mac_rewrite");
  ASSERT_NE(keys, nullptr);
  ASSERT_EQ(keys->size(), 2u);
  for (const Key& key : *keys) {
    EXPECT_EQ(key.type, Key::Type::mac);
    EXPECT_FALSE(key.required);
    EXPECT_EQ(key.default_text, "") << "what the port fills in is no default of the file";
  }
  EXPECT_EQ(keys->at(0).name, "src");
  EXPECT_EQ(keys->at(1).name, "dst");
}

TEST(Registry, knows_no_name_that_no_module_has) {
  const Registry registry = built();
  EXPECT_EQ(registry.plugin("count"), nullptr) << "plugins and egress programs are named apart";
  EXPECT_EQ(registry.stage("mac_rewrite"), nullptr);
  EXPECT_EQ(registry.egress("patch"), nullptr);
  EXPECT_EQ(registry.egress_module(""), nullptr);
}

TEST(Registry, makes_schema_keys_of_egress_keys) {
  const egress_key keys[] = {
      {.name = "vid", .type = EGRESS_KEY_U32, .says = "the VLAN", .required = 1, .min = 1, .max = 4094},
      {.name = "priority", .type = EGRESS_KEY_U32, .says = "of the tag", .fallback = "3", .max = 7},
      {.type = EGRESS_KEY_END},
      {.name = "behind_the_end", .type = EGRESS_KEY_U32},
  };
  const Schema schema = egress_schema({.keys = keys});
  ASSERT_EQ(schema.size(), 2u);
  EXPECT_TRUE(schema[0].required);
  EXPECT_EQ(schema[0].type, Key::Type::integer);
  EXPECT_EQ(std::pair(schema[0].min, schema[0].max), std::pair(1ll, 4094ll));
  EXPECT_EQ(schema[0].says, "the VLAN");
  EXPECT_FALSE(schema[1].required);
  EXPECT_EQ(schema[1].default_text, "3");
}

TEST(Registry, makes_schema_keys_of_each_type_of_egress_key) {
  const char* const kinds[] = {"round", "square", nullptr};
  const egress_key inner[] = {{.name = "from", .type = EGRESS_KEY_U32, .says = "", .required = 1, .max = 63}, {.type = EGRESS_KEY_END}};
  const egress_key keys[] = {
      {.name = "kind", .type = EGRESS_KEY_CHOICE, .says = "", .fallback = "square", .choices = kinds},
      {.name = "mtu", .type = EGRESS_KEY_MTU, .says = ""},
      {.name = "map", .type = EGRESS_KEY_LIST, .says = "", .min = 1, .max = 3, .inner = inner},
      {.name = "remote", .type = EGRESS_KEY_ADDRESS, .says = "", .required = 1},
      {.name = "rate_bps", .type = EGRESS_KEY_U64, .says = "", .min = 1, .max = 1ll << 40},
      {.name = "net", .type = EGRESS_KEY_PREFIX, .says = ""},
      {.name = "port", .type = EGRESS_KEY_RANGE, .says = "", .max = 0xffff},
      {.name = "protocol", .type = EGRESS_KEY_PROTOCOL, .says = ""},
      {.type = EGRESS_KEY_END},
  };
  const Schema schema = egress_schema({.keys = keys});
  ASSERT_EQ(schema.size(), 8u);
  EXPECT_THAT(schema[0].choices, ElementsAre("round", "square"));
  EXPECT_EQ(schema[0].default_text, "\"square\"");
  EXPECT_FALSE(schema[1].required);
  EXPECT_EQ(schema[1].default_text, "") << "the port's own";
  EXPECT_EQ(std::pair(schema[2].min, schema[2].max), std::pair(1ll, 3ll));
  ASSERT_EQ(schema[2].inner.size(), 1u);
  EXPECT_EQ(schema[2].inner[0].inner.at(0).name, "from");
  EXPECT_EQ(schema[3].type, Key::Type::address);
  EXPECT_TRUE(schema[3].required);
  EXPECT_EQ(schema[4].type, Key::Type::integer);
  EXPECT_EQ(schema[4].max, 1ll << 40);
  EXPECT_EQ(schema[5].type, Key::Type::prefix);
  EXPECT_EQ(schema[6].type, Key::Type::range);
  EXPECT_EQ(schema[6].max, 0xffff);
  EXPECT_EQ(schema[7].type, Key::Type::protocol);
}

TEST(Registry, fills_a_struct_by_each_type_of_egress_key) {
  struct Filled {
    u64 rate;
    egress_prefix net;
    egress_range port;
    u32 protocol;
    u8 has_net, has_port;
  };
  const egress_key keys[] = {
      {.name = "rate_bps", .type = EGRESS_KEY_U64, .says = "", .offset = offsetof(Filled, rate)},
      {.name = "net", .type = EGRESS_KEY_PREFIX, .says = "", .offset = offsetof(Filled, net), .present = offsetof(Filled, has_net)},
      {.name = "port", .type = EGRESS_KEY_RANGE, .says = "", .offset = offsetof(Filled, port), .present = offsetof(Filled, has_port)},
      {.name = "protocol", .type = EGRESS_KEY_PROTOCOL, .says = "", .offset = offsetof(Filled, protocol)},
      {.type = EGRESS_KEY_END},
  };
  const ConfigNode node("x", {1, 1},
                        {{"rate_bps", {{}, i64{400'000'000'000}}}, {"net", {{}, Prefix{{4, {10, 1}}, 16}}}, {"protocol", {{}, i64{58}}}});
  Filled filled{};
  fill_egress_config({.keys = keys, .config_size = sizeof filled}, node, {}, reinterpret_cast<u8*>(&filled));
  EXPECT_EQ(filled.rate, 400'000'000'000u);
  EXPECT_EQ(std::pair(filled.net.version, filled.net.length), std::pair(4u, 16u));
  EXPECT_THAT(filled.net.address, ElementsAre(10, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0));
  EXPECT_EQ(filled.protocol, 58u);
  EXPECT_EQ(std::pair(filled.has_net, filled.has_port), std::pair(u8{1}, u8{0}));
}

TEST(Registry, looks_into_every_folder_for_modules_and_at_nothing_else) {
  Folder folder;
  folder.add("plugin", "deep/below/fine.so");
  folder.add("no_abi", "module.so.txt");
  const Result<Registry> registry = folder.load();
  ASSERT_TRUE(registry) << registry.error().what;
  EXPECT_THAT(registry->stages(), ElementsAre("module"));
  EXPECT_TRUE(registry->egress_programs().empty());
}

TEST(Registry, takes_an_egress_program_and_a_plugin_of_one_name) {
  Folder folder;
  folder.add("plugin", "a.so");
  folder.add("egress", "b.so");
  const Result<Registry> registry = folder.load();
  ASSERT_TRUE(registry) << registry.error().what;
  EXPECT_NE(registry->plugin("module"), nullptr);
  EXPECT_NE(registry->egress_module("module"), nullptr);
}

TEST(Registry, refuses_a_module_that_is_none_of_ours) {
  Folder folder;
  folder.add("plugin", "a.so");
  const std::string file = folder.add("no_abi", "b.so");
  EXPECT_THAT(folder.refusal(), HasSubstr(file + ": load plugin: it is not a weir plugin"));
}

TEST(Registry, refuses_a_file_that_is_no_shared_object) {
  Folder folder;
  const fs::path file = folder.path() / "text.so";
  std::ofstream(file) << "water";
  EXPECT_THAT(folder.refusal(), HasSubstr(file.string() + ": load plugin: it is no shared object"));
}

TEST(Registry, finds_no_version_beyond_the_end_of_a_file) {
  const Result<std::vector<u8>> whole = read_file(std::string(WEIR_TEST_MODULES) + "/plugin.so");
  ASSERT_TRUE(whole);
  EXPECT_EQ(module_tag(*whole).value_or("?"), WEIR_PLUGIN_ABI);
  for (std::size_t size = 0; size < whole->size(); size += 1 + size / 64) {
    const std::vector<u8> cut(whole->begin(), whole->begin() + static_cast<std::ptrdiff_t>(size));
    EXPECT_THAT(module_tag(cut).value_or(""), testing::AnyOf("", WEIR_PLUGIN_ABI)) << size;
  }
  std::vector<u8> damaged = *whole;
  for (std::size_t at = 0; at < damaged.size(); at += 3) damaged[at] = static_cast<u8>(~damaged[at]);
  std::copy_n(whole->begin(), 64, damaged.begin());
  EXPECT_NE(module_tag(damaged).value_or(""), WEIR_PLUGIN_ABI);
}

TEST(Registry, refuses_a_module_of_another_version_and_names_both) {
  Folder folder;
  const std::string file = folder.add("other_abi", "old.so");
  const std::string why = folder.refusal();
  EXPECT_THAT(why, HasSubstr(file));
  EXPECT_THAT(why, HasSubstr("built for weir-of-old"));
  EXPECT_THAT(why, HasSubstr(WEIR_PLUGIN_ABI));
}

TEST(Registry, refuses_two_modules_of_one_name_and_names_both_files) {
  for (const auto& [module, twin] :
       {std::pair("plugin", "plugin_twin"), std::pair("egress", "egress_twin"), std::pair("driver", "driver_twin")}) {
    Folder folder;
    const std::string first = folder.add(module, "a.so"), second = folder.add(twin, "b.so");
    const std::string why = folder.refusal();
    EXPECT_THAT(why, HasSubstr("are named module: " + first + " and " + second));
  }
}

TEST(Registry, refuses_a_module_that_throws_when_it_is_loaded) {
  Folder folder;
  const std::string file = folder.add("plugin_throws", "throws.so");
  EXPECT_THAT(folder.refusal(), HasSubstr(file + ": load plugin: its constructors threw an exception: no water"));
}

TEST(Registry, refuses_a_module_that_crashes_when_it_is_loaded) {
  Folder folder;
  folder.add("plugin", "a.so");
  const std::string file = folder.add("plugin_crashes", "crashes.so");
  folder.add("egress", "z.so");
  EXPECT_THAT(folder.refusal(), HasSubstr(file + ": load plugin: its constructors ended the process"));
}

TEST(Registry, refuses_a_plugin_that_does_not_say_what_it_is) {
  Folder folder;
  const std::string file = folder.add("plugin_nothing", "nothing.so");
  EXPECT_THAT(folder.refusal(), HasSubstr(file + ": load plugin: its WEIR_PLUGIN lacks"));
}

TEST(Registry, refuses_a_driver_that_lacks_something_or_demands_settings_or_is_called_xdp) {
  for (const auto& [module, why] :
       {std::pair("driver_nothing", ": load port driver: its WEIR_PORT_DRIVER lacks .name, .says, .queues or .open"),
        std::pair("driver_demands", ": load port driver demands: deep of its settings cannot be left out"),
        std::pair("driver_xdp", ": load port driver: xdp is the name of libweir's own")}) {
    Folder folder;
    const std::string file = folder.add(module, "driver.so");
    EXPECT_EQ(folder.refusal(), file + why);
  }
}

// The keys of a module's driver are checked as those of libweir's own, and what it says of them together has the port's place.
TEST(Registry, checks_ports_by_what_a_driver_of_a_module_declares) {
  Folder folder;
  folder.add("driver", "driver.so");
  const Result<Registry> registry = folder.load();
  ASSERT_TRUE(registry);
  EXPECT_THAT(registry->drivers(), IsSupersetOf({"module", "null"}));
  const auto problems = [&](const std::string& text) {
    std::vector<std::string> found;
    if (const auto config = parse_config(text, "f", *registry); !config)
      for (const Problem& problem : config.error()) found.push_back(problem.text());
    return found;
  };
  const std::string port = "[[port]]\nname = \"p\"\ndriver = \"module\"\n";
  EXPECT_THAT(problems(port + "depth = 3\n[module]\ndeep = true\n"), IsEmpty());
  EXPECT_THAT(problems(port), ElementsAre("f:1:1: port[0].depth: is missing"));
  EXPECT_THAT(problems(port + "depth = 7\n"), ElementsAre("f:1:1: port[0]: 7 is too deep"));
  EXPECT_THAT(problems(port + "depth = 3\n[module]\ndeep = 3\n"), ElementsAre("f:6:8: module.deep: is 3, must be true or false"));
  const auto config = parse_config(port + "depth = 3\n[module]\ndeep = true\n", "f", *registry);
  ASSERT_TRUE(config);
  EXPECT_EQ(config->ports.at(0).keys.integer("depth"), 3);
  EXPECT_TRUE(config->settings.at("module").boolean("deep"));
}

TEST(Registry, adds_the_modules_of_further_folders) {
  Folder one, other;
  const std::string first = one.add("plugin", "a.so");
  other.add("plugin_full", "b.so");
  Result<Registry> registry = one.load();
  ASSERT_TRUE(registry);
  const Result<> added = registry->add_folder(other.path());
  ASSERT_TRUE(added) << added.error().what;
  EXPECT_THAT(registry->stages(), ElementsAre("full", "module"));
  EXPECT_EQ(registry->file_of(*registry->plugin("module")), first);
}

TEST(Registry, names_both_files_of_one_name_in_two_folders) {
  Folder one, other;
  const std::string first = one.add("plugin", "a.so"), second = other.add("plugin_twin", "a.so");
  Result<Registry> registry = one.load();
  ASSERT_TRUE(registry);
  const Result<> added = registry->add_folder(other.path());
  ASSERT_FALSE(added);
  EXPECT_EQ(added.error().what, "two plugins are named module: " + first + " and " + second + "; remove one");
}

TEST(Registry, takes_a_file_once_however_often_it_is_found) {
  Folder folder;
  folder.add("plugin", "below/a.so");
  Result<Registry> registry = folder.load();
  ASSERT_TRUE(registry);
  EXPECT_TRUE(registry->add_folder(folder.path() / "below"));
  EXPECT_THAT(registry->stages(), ElementsAre("module"));
}

TEST(Registry, refuses_a_folder_that_is_not_there) {
  Registry registry;
  const Result<> added = registry.add_folder("/nowhere/at/all");
  ASSERT_FALSE(added);
  EXPECT_EQ(added.error().what, "look for plugins in folder /nowhere/at/all: No such file or directory");
}

TEST(Registry, has_a_plugin_of_the_program_itself_beside_those_of_modules_and_after_a_reload) {
  const Plugin own{
      .name = "own", .says = "of this program", .make = [](const ConfigNode&, StageContext&) -> Result<std::unique_ptr<Stage>> {
        return fail("nobody asks for one here");
      }};
  Registry registry = built();
  const Result<> added = registry.add(own);
  ASSERT_TRUE(added) << added.error().what;
  const Result<Registry> again = Registry::load(&registry);
  ASSERT_TRUE(again) << again.error().what;
  for (const Registry* each : {static_cast<const Registry*>(&registry), &*again}) {
    EXPECT_EQ(each->plugin("own"), &own);
    EXPECT_NE(each->plugin("patch"), nullptr);
    EXPECT_EQ(each->file_of(own), "this program");
  }
}

TEST(Registry, refuses_a_plugin_of_the_program_itself_that_is_named_as_that_of_a_module) {
  Folder folder;
  const std::string file = folder.add("plugin", "b.so");
  Result<Registry> registry = folder.load();
  ASSERT_TRUE(registry) << registry.error().what;
  Plugin twin = *registry->plugin("module");
  const Result<> added = registry->add(twin);
  ASSERT_FALSE(added);
  EXPECT_EQ(added.error().what, "two plugins are named module: " + file + " and this program; remove one");
}

TEST(Registry, tells_what_has_changed_in_a_folder_since) {
  Folder folder;
  const std::string first = folder.add("plugin", "b.so");
  Registry registry;
  ASSERT_TRUE(registry.add_folder(folder.path()));
  EXPECT_EQ(registry.changed_since(), "");
  const std::string fresh = folder.add("plugin_full", "a.so");
  EXPECT_EQ(registry.changed_since(), fresh) << "a new one";
  fs::remove(fresh);
  fs::remove(first);
  EXPECT_EQ(registry.changed_since(), first) << "it is gone";
  folder.add("plugin_twin", "b.so");
  EXPECT_EQ(registry.changed_since(), first) << "another in its place";
}

// What `weir check` says of a file beside a folder "plugins".
class PluginDirs : public testing::Test {
 protected:
  std::string refusal(const std::string& dirs, const char* plugin = "module") {
    file = folder.path() / "edge.toml";
    std::ofstream(file) << "[weir]\nplugin_dirs = " << dirs << "\n[[port]]\nname = \"p\"\ndriver = \"null\"\npipeline = \"m\"\n"
                        << "[[pipeline]]\nname = \"m\"\n[[pipeline.stage]]\nplugin = \"" << plugin << "\"\n";
    const Result<Registry> registry = load_registry(file);
    if (!registry) return said(registry.error());
    const auto topology = load_topology(file, *registry);
    return topology ? "" : said(topology.error());
  }
  static std::string said(const Error& error) {
    EXPECT_TRUE(error.of_file && error.failure == Failure::invalid) << error.what;
    return error.what;
  }
  Folder folder;
  std::string file;
};

TEST_F(PluginDirs, are_relative_to_the_file) {
  folder.add("plugin", "plugins/a.so");
  EXPECT_EQ(refusal("[\"plugins\"]"), "it is of no use") << "the plugin's own constructor was reached";
  EXPECT_EQ(refusal(fmt::format("[\"{}/plugins\"]", folder.path().string())), "it is of no use");
  EXPECT_THAT(refusal("[\"nothing\"]"),
              testing::StartsWith(fmt::format("{}:2:16: weir.plugin_dirs[0]: look for plugins in folder {}/nothing: No such file", file,
                                              fs::canonical(folder.path()).string())));
}

TEST_F(PluginDirs, tell_every_folder_that_does_not_fit_at_its_place) {
  folder.add("other_abi", "one/old.so");
  folder.add("plugin", "two/a.so");
  folder.add("plugin_twin", "three/b.so");
  const std::string why = refusal("[\"one\", \"two\", \"three\"]");
  EXPECT_THAT(why, HasSubstr(file + ":2:16: weir.plugin_dirs[0]: "));
  EXPECT_THAT(why, HasSubstr("/one/old.so: load plugin: it was built for weir-of-old, this is " WEIR_PLUGIN_ABI "; build it again\n"));
  EXPECT_THAT(why, HasSubstr(file + ":2:30: weir.plugin_dirs[2]: two plugins are named module: "));
  EXPECT_EQ(std::ranges::count(why, '\n'), 1);
}

TEST_F(PluginDirs, refuse_the_name_of_a_plugin_that_came_with_weir) {
  fs::create_directories(folder.path() / "mine");
  fs::copy(registry_file("patch"), folder.path() / "mine" / "patch.so");
  const std::string why = refusal("[\"mine\"]", "patch");
  EXPECT_THAT(why, HasSubstr("two plugins are named patch: " + registry_file("patch") + " and "));
  EXPECT_THAT(why, HasSubstr("/mine/patch.so; remove one"));
}

TEST_F(PluginDirs, name_the_plugin_whose_constructor_throws) {
  const std::string module = folder.add("plugin_make_throws", "plugins/late.so");
  const std::string why = refusal("[\"plugins\"]", "throws_late");
  EXPECT_THAT(why, HasSubstr(file + ":9:1: pipeline[0].stage[0]: construct plugin throws_late of "));
  EXPECT_THAT(why, HasSubstr("/plugins/late.so: it threw an exception: no water"));
}

TEST(Registry, refuses_more_reasons_or_counters_than_the_accounts_hold) {
  for (const char* module : {"plugin_drops", "plugin_counters", "egress_drops"}) {
    Folder folder;
    const std::string file = folder.add(module, "much.so");
    EXPECT_THAT(folder.refusal(), HasSubstr(file + ": load ")) << module;
    EXPECT_THAT(folder.refusal(), HasSubstr(fmt::format("more than {} drop reasons", WEIR_DROP_UNNAMED - WEIR_DROP_OWN))) << module;
  }
}

TEST(Registry, takes_as_many_reasons_and_counters_as_the_accounts_hold) {
  Folder folder;
  folder.add("plugin_full", "plugin.so");
  folder.add("egress_full", "egress.so");
  EXPECT_EQ(folder.refusal(), "");
}

}  // namespace
}  // namespace weir
