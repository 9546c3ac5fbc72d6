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

namespace weir {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
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
  EXPECT_THAT(folder.refusal(), HasSubstr(file.string() + ": load plugin: "));
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
  for (const auto& [module, twin] : {std::pair("plugin", "plugin_twin"), std::pair("egress", "egress_twin")}) {
    Folder folder;
    const std::string first = folder.add(module, "a.so"), second = folder.add(twin, "b.so");
    const std::string why = folder.refusal();
    EXPECT_THAT(why, HasSubstr("are named module: " + first + " and " + second));
  }
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
