// SPDX-License-Identifier: BSD-3-Clause
// topology_test: what a configuration is numbered to, and when two of them mean the same.
#include "core/control/topology.hh"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

namespace weir {
namespace {

using testing::ElementsAre;

// A plugin that refuses one of its values, and makes a group of its ports where it is told to.
struct Choosy final : Stage {
  static Result<std::unique_ptr<Stage>> make(const ConfigNode& keys, StageContext& context) {
    if (keys.integer("size") == 13) return keys.refuse("size", "is 13");
    auto made = std::make_unique<Choosy>();
    made->ports = context.ports();
    for (u16 slot = 0; slot < 5; ++slot) made->devices.emplace_back(context.device(PortSlot{slot}));
    made->said = context.first_said("size", static_cast<u64>(keys.integer("size")));
    made->pipeline = context.pipeline();
    if (keys.boolean("grouped")) made->group = TRY(context.group(made->ports));
    return made;
  }
  void process(Burst&) noexcept override {}
  std::vector<PortSlot> ports;
  std::vector<std::string> devices;
  GroupSlot group{999};
  u64 said = 0;
  std::string pipeline;
};

Plugin choosy(std::vector<std::string> drops = {"one"}, std::vector<std::string> counters = {}) {
  return {.name = "choosy",
          .says = "choose",
          .keys = {Key::integer("size", 1, 99).otherwise("1"), Key::boolean("grouped").otherwise("false")},
          .drops = std::move(drops),
          .counters = std::move(counters),
          .make = Choosy::make};
}

const Plugin plugin = choosy();
const egress_key no_keys[] = {{.type = EGRESS_KEY_END}};
const char *const no_names[] = {nullptr}, *const a_name[] = {"colour", nullptr};
const egress_program counting{.name = "count", .keys = no_keys, .drops = no_names, .counters = no_names},
    painting{.name = "paint", .keys = no_keys, .drops = no_names, .counters = no_names},
    painting_more{.name = "paint", .keys = no_keys, .drops = a_name, .counters = no_names};
const EgressModule count_module{&counting, {}}, paint_module{&painting, {}}, other_paint_module{&painting_more, {}};

Result<std::unique_ptr<Topology>> build(const std::string& text, const Plugin& with = plugin, const EgressModule& paint = paint_module) {
  const Registry registry = Registry::of({&with}, {&count_module, &paint});
  auto config = parse_config(text, "test.toml", registry);
  if (!config) broken(config.error().front().text().c_str());
  return Topology::build(std::move(*config), registry);
}

std::unique_ptr<Topology> built(const std::string& text, const Plugin& with = plugin) {
  auto made = build(text, with);
  if (!made) broken(made.error().what.c_str());
  return std::move(*made);
}

// Three ports, two pipelines of two stages and one, one group. Each test replaces a part of it.
const std::string small = R"(
[weir]
name = "small"
[[port]]
name = "a"
device = "eth0"
pipeline = "second"
egress = ["count", "paint"]
[[port]]
name = "b"
driver = "null"
[[port]]
name = "c"
device = "eth2"
pipeline = "second"
egress = ["paint", "paint"]
[[group]]
name = "ab"
ports = ["b", "a"]
[[pipeline]]
name = "first"
[[pipeline.stage]]
plugin = "choosy"
name = "x"
[[pipeline]]
name = "second"
[[pipeline.stage]]
plugin = "choosy"
name = "y"
[[pipeline.stage]]
plugin = "choosy"
name = "z"
)";

std::string replaced(std::string text, std::string_view part, std::string_view by) {
  const std::size_t at = text.find(part);
  if (at == std::string::npos) broken("a test replaces what is not there");
  return text.replace(at, part.size(), by);
}

TEST(Topology, stages_hear_what_was_said_first) {
  const auto topology =
      built(replaced(replaced(small, "name = \"x\"", "name = \"x\"\nsize = 7"), "name = \"y\"", "name = \"y\"\nsize = 9"));
  std::vector<std::string> pipelines;
  for (const Topology::StagePlan& stage : topology->stages()) {
    const auto& made = static_cast<const Choosy&>(*stage.stage);
    EXPECT_EQ(made.said, 7u);
    pipelines.push_back(made.pipeline);
  }
  EXPECT_THAT(pipelines, ElementsAre("first", "second", "second"));
}

TEST(Topology, numbers_every_part_once) {
  const auto topology = built(small);
  EXPECT_EQ(topology->port("c"), PortSlot{2});
  EXPECT_EQ(topology->port("d"), std::nullopt);
  std::vector<u32> blocks;
  for (u16 slot = 0; slot < 3; ++slot) blocks.push_back(topology->block(PortSlot{slot}));
  ASSERT_EQ(topology->stages().size(), 3u);
  for (u32 number = 0; const Topology::StagePlan& stage : topology->stages()) {
    EXPECT_EQ(stage.number, number++);
    EXPECT_EQ(stage.config->name, std::string(1, static_cast<char>('x' + stage.number)));
    EXPECT_EQ(stage.last, stage.config->name != "y");
    blocks.push_back(stage.block);
  }
  for (u16 slot = 0; slot < 3; ++slot)
    for (u32 place = 0; place < 2 * max_egress_chain; ++place) blocks.push_back(topology->egress_block(PortSlot{slot}) + place);
  std::vector<u32> all(6 + 3 * 2 * max_egress_chain);
  std::iota(all.begin(), all.end(), 0);
  EXPECT_EQ(blocks, all) << "ports, stages, and the places of each port's chain and of the one that replaces it";
  EXPECT_EQ(topology->blocks(), all.size());
}

TEST(Topology, has_a_thread_for_each_cpu_where_a_stage_is_parallel) {
  const u32 cpus = static_cast<u32>(allowed_cpus().size());
  const auto plain = built(small), parallel = built(replaced(small, R"(name = "z")", "name = \"z\"\nparallel = true"));
  EXPECT_EQ(plain->crew(1).threads(), 1u);
  EXPECT_EQ(parallel->parallel_stages(), 1u);
  EXPECT_EQ(parallel->crew(1).workers, 1u);
  EXPECT_EQ(parallel->crew(1).helpers, std::min(cpus - 1, 8u)) << "of 16384 frames";
  EXPECT_TRUE(parallel->crew(1).guard);
  EXPECT_EQ(parallel->crew(1000).workers, cpus);
  EXPECT_EQ(parallel->crew(1000).helpers, 0u);
}

TEST(Topology, names_what_takes_a_new_start) {
  const auto moved = replaced(small, "device = \"eth2\"", "device = \"eth3\"\nplacement = \"entry\"");
  EXPECT_THAT(built(small)->differences(*built(moved)), ElementsAre("device of port c", "placement of port c"));
  EXPECT_THAT(built(small)->differences(*built(replaced(small, R"(["b", "a"])", R"(["b"])"))), ElementsAre());
  const auto parallel = replaced(small, R"(name = "z")", "name = \"z\"\nparallel = true");
  EXPECT_THAT(built(small)->differences(*built(parallel)), ElementsAre("pipeline second"));
  const auto flooded = replaced(replaced(small, R"(["b", "a"])", R"(["a", "c"])"), R"(name = "z")", "name = \"z\"\ngrouped = true");
  const auto quiet = replaced(flooded, R"(["a", "c"])", R"(["a"])");
  EXPECT_THAT(built(flooded)->differences(*built(quiet)),
              ElementsAre("group ab, which a stage floods to (for its members alone: weir devmap group join or leave)"));
  EXPECT_THAT(built(quiet)->differences(*built(flooded)), ElementsAre("group ab, which a stage would flood to"));
}

TEST(Topology, knows_which_ports_a_pipeline_serves) {
  const auto topology = built(small);
  const auto& pipelines = topology->config().pipelines;
  EXPECT_THAT(topology->ports_of(pipelines[0]), ElementsAre());
  EXPECT_THAT(topology->ports_of(pipelines[1]), ElementsAre(PortSlot{0}, PortSlot{2}));
  EXPECT_EQ(topology->first_stage(topology->config().ports[0]), &topology->stages()[1]);
  EXPECT_EQ(topology->first_stage(topology->config().ports[1]), nullptr);
}

TEST(Topology, tells_a_stage_the_device_of_each_port_of_the_instance) {
  const auto topology = built(small);
  for (const Topology::StagePlan& stage : topology->stages())
    EXPECT_THAT(static_cast<const Choosy&>(*stage.stage).devices, ElementsAre("eth0", "", "eth2", "", ""));
}

TEST(Topology, gives_the_same_ports_the_same_group) {
  const std::string grouped =
      replaced(replaced(small, "name = \"y\"", "name = \"y\"\ngrouped = true"), "name = \"z\"", "name = \"z\"\ngrouped = true");
  const auto topology = built(grouped);
  ASSERT_EQ(topology->groups().size(), 2u);
  EXPECT_EQ(topology->groups()[0].name, "ab");
  EXPECT_THAT(topology->groups()[0].ports, ElementsAre(PortSlot{1}, PortSlot{0})) << "in the order of the file";
  EXPECT_EQ(topology->groups()[1].name, "");
  EXPECT_THAT(topology->groups()[1].ports, ElementsAre(PortSlot{0}, PortSlot{2}));
  for (u32 stage : {1u, 2u}) EXPECT_EQ(static_cast<Choosy&>(*topology->stages()[stage].stage).group, GroupSlot{1});
  const auto of_file = built(replaced(grouped, R"(ports = ["b", "a"])", R"(ports = ["c", "a"])"));
  EXPECT_EQ(of_file->groups().size(), 1u) << "in whatever order the file names them";
}

TEST(Topology, tells_the_problems_of_all_stages_at_once) {
  const auto refused = build(replaced(replaced(small, "name = \"x\"", "size = 13"), "name = \"z\"", "name = \"z\"\nsize = 13"));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().failure, Failure::invalid);
  EXPECT_EQ(refused.error().what, "test.toml:24:8: pipeline[0].stage[0].size: is 13\ntest.toml:33:8: pipeline[1].stage[1].size: is 13");
}

TEST(Topology, has_one_fingerprint_for_runs_that_mean_the_same) {
  const std::string fingerprint = built(small)->fingerprint();
  EXPECT_EQ(built(small)->fingerprint(), fingerprint);
  for (const auto& [part, by] : {std::pair("[weir]", "[weir]\nworkers = 3"), std::pair("name = \"small\"", "name = \"other\""),
                                 std::pair("device = \"eth0\"", "device = \"eth0\"\nmode = \"native\""),
                                 std::pair("name = \"z\"", "grouped = false\nname = \"z\"\nsize = 1")})
    EXPECT_EQ(built(replaced(small, part, by))->fingerprint(), fingerprint) << by;
}

TEST(Topology, has_another_fingerprint_when_a_counter_or_a_table_would_mean_something_else) {
  const std::string without_b = replaced(small, "ports = [\"b\", \"a\"]", "ports = [\"a\"]");
  const std::string fingerprint = built(without_b)->fingerprint();
  for (const auto& [part, by] :
       {std::pair("[weir]", "[frames]\ncount = 999\n[weir]"), std::pair("[weir]", "[frames]\nsize = 4096\n[weir]"),
        std::pair("\"eth0\"", "\"eth1\""), std::pair("name = \"c\"", "name = \"d\""),
        std::pair("pipeline = \"second\"", "pipeline = \"first\""), std::pair("[\"count\", \"paint\"]", "[\"paint\", \"count\"]"),
        std::pair("[\"paint\", \"paint\"]", "[\"paint\"]"), std::pair("name = \"z\"", "name = \"w\""),
        std::pair("name = \"z\"", "name = \"z\"\nsize = 2"), std::pair("ports = [\"a\"]", "ports = [\"c\"]"),
        std::pair("[[port]]\nname = \"b\"\ndriver = \"null\"\n", "")})
    EXPECT_NE(built(replaced(without_b, part, by))->fingerprint(), fingerprint) << by;
  for (const Plugin& later : {choosy({"new", "one"}), choosy({"one"}, {"new"}), choosy({})})
    EXPECT_NE(built(without_b, later)->fingerprint(), fingerprint) << "a later version of the plugin, with other reasons or counters";
  EXPECT_NE((*build(without_b, plugin, other_paint_module))->fingerprint(), fingerprint) << "the same of an egress program";
}

}  // namespace
}  // namespace weir
