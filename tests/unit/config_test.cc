// SPDX-License-Identifier: BSD-3-Clause
// config_test: what a configuration file may say, and what is said of one that may not be.
#include "core/config/config.hh"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <sstream>

namespace weir {
namespace {

namespace fs = std::filesystem;

// Two plugins, three egress programs and three drivers of ports; the keys of "everything" are of every type.
class FakeCatalog final : public Catalog {
 public:
  [[nodiscard]] const Schema* stage(const std::string& plugin) const override { return find(stages_, plugin); }
  [[nodiscard]] const Schema* egress(const std::string& program) const override {
    return program == "typed" ? &typed_ : find(egress_, program);
  }
  [[nodiscard]] std::string refuse_object(const std::string& file, const std::string& program, bool) const override {
    return file.ends_with("good.bpf.o") && program == "mine" ? "" : "it is not good";
  }
  [[nodiscard]] std::vector<std::pair<std::size_t, std::string>> refuse_order(const std::vector<std::string>&) const override { return {}; }
  [[nodiscard]] std::string refuse_egress(const std::string& program, const ConfigNode& keys) const override {
    return program == "vlan_push" && keys.has("vid") && keys.integer("vid") == 13 ? "13 brings bad luck" : "";
  }
  [[nodiscard]] std::vector<std::string> stages() const override { return names(stages_); }
  [[nodiscard]] std::vector<std::string> egress_programs() const override { return names(egress_); }
  [[nodiscard]] const Schema* driver(const std::string& name) const override { return find(drivers_, name); }
  [[nodiscard]] const Schema& driver_settings(const std::string& name) const override {
    static const Schema none, of_dpdk{Key::list("eal", Key::string(""), 0, 8).otherwise("[]")};
    return name == "dpdk" ? of_dpdk : none;
  }
  [[nodiscard]] std::string refuse_port(const std::string& driver, const ConfigNode& keys) const override {
    return driver == "pcap" && !keys.has("read") && !keys.has("write") ? "neither reads nor writes" : "";
  }
  [[nodiscard]] std::vector<std::string> drivers() const override { return names(drivers_); }

 private:
  using Schemas = std::map<std::string, Schema>;
  static const Schema* find(const Schemas& all, const std::string& name) {
    auto at = all.find(name);
    return at == all.end() ? nullptr : &at->second;
  }
  static std::vector<std::string> names(const Schemas& all) {
    std::vector<std::string> names;
    for (const auto& [name, schema] : all) names.push_back(name);
    return names;
  }

  const Schemas stages_{
      {"everything",
       {Key::integer("count", 1, 100).as("how many"), Key::boolean("flag").otherwise("true"),
        Key::string("kind", {"round", "square"}).otherwise("\"round\""), Key::string("text").optional(), Key::mac("mac").optional(),
        Key::mac("own").otherwise("\"02:00:00:00:00:01\""), Key::address("address").optional(),
        Key::address("gateway").otherwise("\"192.0.2.1\""), Key::prefix("net").optional(),
        Key::range("range", 1, 65535).otherwise("\"5-9\""), Key::protocol("protocol").optional(), Key::port("to").optional(),
        Key::integer("timeout_us", 0, 1000000).otherwise("300"), Key::list("pairs", Key::list("", Key::port(""), 2, 2), 1, 4).optional(),
        Key::list("numbers", Key::integer("", -5, 5), 0, 3).otherwise("[1, 2]"),
        Key::list("static", Key::table("", {Key::mac("mac"), Key::port("port"), Key::integer("vid", 1, 4094).otherwise("1")}), 0, 8)
            .optional(),
        Key::table("limit", {Key::integer("rate_bps", 1, 1000), Key::integer("burst", 1, 64).otherwise("32")})
            .otherwise("{ rate_bps = 7 }")}},
      {"nothing", {}}};
  const Schemas egress_{
      {"count", {}}, {"mac_rewrite", {Key::station("src").optional(), Key::mac("dst")}}, {"vlan_push", {Key::integer("vid", 1, 4094)}}};
  const Schemas drivers_{{"dpdk", {Key::string("device"), Key::integer("queues", 1, 64).otherwise("1")}},
                         {"null", {}},
                         {"pcap", {Key::string("read").optional(), Key::string("write").optional()}}};
  // Not among egress_programs(), which the errors of wrong names list.
  const Schema typed_{
      Key::string("kind", {"round", "square"}).optional(),
      Key::address("address").optional(),
      Key::prefix("net").optional(),
      Key::range("range", 1, 65535).otherwise("\"5-9\""),
      Key::protocol("protocol").optional(),
      Key::boolean("flag").otherwise("true"),
      Key::list("rules", Key::table("", {Key::address("to").optional(), Key::range("ports", 1, 65535).optional()}), 0, 8).optional()};
};

std::string read(const fs::path& file) {
  std::ostringstream text;
  text << std::ifstream(file, std::ios::binary).rdbuf();
  return text.str();
}

std::vector<fs::path> files_in(const char* folder) {
  std::vector<fs::path> files;
  for (const fs::directory_entry& entry : fs::directory_iterator(fs::path(WEIR_TEST_DATA) / folder))
    if (entry.path().extension() == ".toml") files.push_back(entry.path());
  std::ranges::sort(files);
  return files;
}

// The problems as the comments at the top of a file of config_errors have them, and as load_config() has them.
std::vector<std::string> expected_in(const fs::path& file) {
  const std::string mark = "# expect: ";
  std::vector<std::string> lines;
  std::istringstream text(read(file));
  for (std::string line; std::getline(text, line);)
    if (line.starts_with(mark)) lines.push_back(line.substr(mark.size()));
  return lines;
}

std::vector<std::string> found_in(const fs::path& file) {
  const auto config = load_config(file, FakeCatalog());
  std::vector<std::string> lines;
  if (config) return lines;
  for (const Problem& problem : config.error()) {
    const std::string text = problem.text();
    EXPECT_TRUE(text.starts_with(file.string() + ":")) << text;
    lines.push_back(text.substr(file.string().size() + 1));
  }
  return lines;
}

std::string lines_of(const Problems& problems) {
  std::string lines;
  for (const Problem& problem : problems) lines += problem.text() + "\n";
  return lines;
}

Config valid(const char* name) {
  auto config = load_config(fs::path(WEIR_TEST_DATA) / "config_valid" / name, FakeCatalog());
  if (config) return std::move(*config);
  ADD_FAILURE() << lines_of(config.error());
  return {};
}

class ConfigErrors : public testing::TestWithParam<fs::path> {};

std::string stem(const testing::TestParamInfo<fs::path>& info) { return info.param.stem().string(); }

TEST_P(ConfigErrors, are_all_told_in_the_order_of_the_file) {
  const std::vector<std::string> expected = expected_in(GetParam());
  EXPECT_FALSE(expected.empty()) << "the file has no line '# expect: ' at its top";
  EXPECT_EQ(found_in(GetParam()), expected);
}

INSTANTIATE_TEST_SUITE_P(File, ConfigErrors, testing::ValuesIn(files_in("config_errors")), stem);

TEST(Config, defaults_fill_what_is_left_out) {
  const Config config = valid("smallest.toml");
  EXPECT_EQ(config.name, "weir");
  EXPECT_EQ(config.workers, 0u);
  EXPECT_EQ(config.frame_size, 2048u);
  EXPECT_EQ(config.frame_count, 16384u);
  EXPECT_TRUE(config.groups.empty());
  EXPECT_TRUE(config.pipelines.empty());
  ASSERT_EQ(config.ports.size(), 1u);
  const PortConfig& port = config.ports[0];
  EXPECT_EQ(port.name, "wan");
  EXPECT_EQ(port.device, "eth0");
  EXPECT_TRUE(port.is_xdp());
  EXPECT_EQ(port.mode, Mode::automatic);
  EXPECT_EQ(port.zero_copy, ZeroCopy::automatic);
  EXPECT_EQ(port.tx, Tx::af_xdp);
  EXPECT_EQ(port.queues, 0u);
  EXPECT_EQ(port.pipeline, "");
  EXPECT_TRUE(port.egress.empty());
}

TEST(Config, every_key_reaches_its_place) {
  const Config config = valid("full.toml");
  EXPECT_EQ(config.name, "edge-1");
  ASSERT_EQ(config.plugin_dirs.size(), 2u);
  EXPECT_EQ(config.plugin_dirs[0].folder, (fs::path(WEIR_TEST_DATA) / "config_valid" / "plugins").string()) << "there is none";
  EXPECT_EQ(config.plugin_dirs[1].folder, "/");
  EXPECT_EQ(config.workers, 4u);
  EXPECT_EQ(config.frame_size, 4096u);
  EXPECT_EQ(config.frame_count, 100u);
  ASSERT_EQ(config.ports.size(), 3u);
  const PortConfig& wan = config.ports[0];
  EXPECT_EQ(wan.mode, Mode::native);
  EXPECT_EQ(wan.zero_copy, ZeroCopy::off);
  EXPECT_EQ(wan.tx, Tx::automatic);
  EXPECT_EQ(wan.queues, 8u);
  EXPECT_EQ(wan.pipeline, "router");
  EXPECT_EQ(config.ports[1].mode, Mode::generic);
  EXPECT_EQ(config.ports[1].zero_copy, ZeroCopy::on);
  EXPECT_EQ(config.ports[1].queues, 0u);
  EXPECT_EQ(config.ports[2].driver, "null");
  EXPECT_EQ(config.ports[2].device, "");
  ASSERT_EQ(config.groups.size(), 1u);
  EXPECT_EQ(config.groups[0].name, "all");
  EXPECT_EQ(config.groups[0].ports, (std::vector<std::string>{"wan", "lan", "sink"}));
  ASSERT_EQ(config.pipelines.size(), 2u);
  ASSERT_EQ(config.pipelines[0].stages.size(), 3u);
  EXPECT_EQ(config.pipelines[0].stages[0].plugin, "nothing");
  EXPECT_EQ(config.pipelines[0].stages[0].name, "nothing");
  EXPECT_EQ(config.pipelines[0].stages[1].name, "second");
  EXPECT_EQ(config.pipelines[1].name, "unused");
}

TEST(Config, an_egress_chain_keeps_its_order_and_keys) {
  const Config config = valid("full.toml");
  ASSERT_EQ(config.ports.size(), 3u);
  const std::vector<EgressConfig>& chain = config.ports[0].egress;
  ASSERT_EQ(chain.size(), 3u);
  EXPECT_EQ(chain[0].program, "count");
  EXPECT_EQ(chain[1].program, "vlan_push");
  EXPECT_EQ(chain[1].keys.integer("vid"), 100);
  EXPECT_FALSE(chain[1].keys.has("program"));
  EXPECT_EQ(chain[2].keys.mac("dst"), (Mac{0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54}));
  EXPECT_FALSE(chain[2].keys.has("src"));
  EXPECT_LT(chain[0].at.column, chain[1].at.column);
}

TEST(Config, a_plugin_reads_each_type_of_key) {
  const Config config = valid("full.toml");
  ASSERT_EQ(config.pipelines.size(), 2u);
  const ConfigNode& keys = config.pipelines[0].stages.at(2).keys;
  EXPECT_EQ(keys.integer("count"), 42);
  EXPECT_FALSE(keys.boolean("flag"));
  EXPECT_EQ(keys.string("kind"), "square");
  EXPECT_EQ(keys.string("text"), "tab\there");
  EXPECT_EQ(keys.mac("mac"), (Mac{2, 0, 0, 0, 0, 0xff}));
  EXPECT_EQ(keys.address("address"), (Address{6, {0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff}}));
  EXPECT_EQ(keys.address("gateway"), (Address{4, {10, 0, 0, 255}}));
  EXPECT_EQ(keys.prefix("net"), (Prefix{{6, {0x20, 0x01, 0x0d, 0xb8, 0x80}}, 33}));
  EXPECT_EQ(keys.range("range"), (Range{1024, 65535}));
  EXPECT_EQ(keys.integer("protocol"), 17);
  EXPECT_EQ(keys.string("to"), "sink");
  ASSERT_EQ(keys.list("pairs").size(), 1u);
  const auto& pair = std::get<std::vector<ConfigValue>>(keys.list("pairs")[0].value);
  EXPECT_EQ(std::get<std::string>(pair.at(1).value), "lan");
  EXPECT_TRUE(keys.list("numbers").empty());
  const std::vector<ConfigNode> fixed = keys.tables("static");
  ASSERT_EQ(fixed.size(), 2u);
  EXPECT_EQ(fixed[0].integer("vid"), 1);
  EXPECT_EQ(fixed[1].integer("vid"), 9);
  EXPECT_EQ(fixed[1].string("port"), "lan");
  ASSERT_EQ(keys.tables("limit").size(), 1u);
  EXPECT_EQ(keys.tables("limit")[0].integer("rate_bps"), 1000);
  EXPECT_EQ(keys.tables("limit")[0].integer("burst"), 32);
}

TEST(Config, defaults_of_a_plugin_fill_what_is_left_out) {
  const Config config = valid("full.toml");
  ASSERT_EQ(config.pipelines.size(), 2u);
  const ConfigNode& keys = config.pipelines[1].stages.at(0).keys;
  EXPECT_TRUE(keys.boolean("flag"));
  EXPECT_EQ(keys.string("kind"), "round");
  EXPECT_EQ(keys.mac("own"), (Mac{2, 0, 0, 0, 0, 1}));
  EXPECT_EQ(keys.address("gateway"), (Address{4, {192, 0, 2, 1}}));
  EXPECT_FALSE(keys.has("address"));
  EXPECT_FALSE(keys.has("net"));
  EXPECT_EQ(keys.range("range"), (Range{5, 9}));
  EXPECT_FALSE(keys.has("protocol"));
  EXPECT_EQ(keys.integer("timeout_us"), 300);
  EXPECT_FALSE(keys.has("text"));
  EXPECT_FALSE(keys.has("to"));
  EXPECT_TRUE(keys.list("pairs").empty());
  EXPECT_TRUE(keys.tables("static").empty());
  ASSERT_EQ(keys.list("numbers").size(), 2u);
  EXPECT_EQ(std::get<i64>(keys.list("numbers")[1].value), 2);
  EXPECT_EQ(keys.tables("limit").at(0).integer("burst"), 32);
  EXPECT_EQ(keys.at("flag").line, keys.at().line) << "a default stands where its table stands";
  EXPECT_EQ(keys.list("numbers")[1].at.line, 0u);
}

TEST(Config, one_value_stands_for_a_prefix_and_a_range) {
  const auto keys_with = [](const std::string& keys) {
    const auto config = parse_config(
        "[[port]]\nname = \"a\"\ndriver = \"null\"\n[[pipeline]]\nname = \"p\"\n[[pipeline.stage]]\nplugin = \"everything\"\ncount = 1\n" +
            keys,
        "one.toml", FakeCatalog());
    if (config) return config->pipelines[0].stages[0].keys;
    ADD_FAILURE() << lines_of(config.error());
    return ConfigNode();
  };
  EXPECT_EQ(keys_with("net = \"10.0.0.1\"").prefix("net"), (Prefix{{4, {10, 0, 0, 1}}, 32}));
  EXPECT_EQ(keys_with("net = \"::1\"").prefix("net"), (Prefix{{6, {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}}, 128}));
  EXPECT_EQ(keys_with("net = \"0.0.0.0/0\"").prefix("net"), (Prefix{{4, {}}, 0}));
  EXPECT_EQ(keys_with("net = \"10.0.0.254/31\"").prefix("net"), (Prefix{{4, {10, 0, 0, 254}}, 31}));
  EXPECT_EQ(keys_with("range = 7").range("range"), (Range{7, 7}));
  EXPECT_EQ(keys_with("range = \"7-7\"").range("range"), (Range{7, 7}));
  EXPECT_EQ(keys_with("protocol = 255").integer("protocol"), 255);
  EXPECT_NE(keys_with("net = \"10.0.0.0/8\"").text(), keys_with("net = \"10.0.0.0/9\"").text());
  EXPECT_NE(keys_with("range = \"7-8\"").text(), keys_with("range = \"7-9\"").text());
}

TEST(Config, every_valid_file_is_valid) {
  for (const fs::path& file : files_in("config_valid")) {
    const auto config = load_config(file, FakeCatalog());
    EXPECT_TRUE(config) << lines_of(config.error());
  }
}

TEST(Config, limits_are_reached_without_a_problem) {
  std::string text;
  for (int i = 0; i < 64; ++i) {
    text += fmt::format("[[port]]\nname = \"p{}\"\ndriver = \"null\"\n", i);
    text += fmt::format("[[group]]\nname = \"g{0}\"\nports = [\"p{0}\"]\n", i);
  }
  for (int i = 0; i < 2; ++i) {
    text += fmt::format("[[pipeline]]\nname = \"x{}\"\n", i);
    for (int j = 0; j < 32; ++j) text += fmt::format("[[pipeline.stage]]\nplugin = \"nothing\"\nname = \"s{}\"\n", j);
  }
  const auto config = parse_config(text, "limits.toml", FakeCatalog());
  ASSERT_TRUE(config) << lines_of(config.error());
  EXPECT_EQ(config->ports.size(), max_ports);
}

TEST(Config, a_file_that_cannot_be_read_is_a_problem_without_a_position) {
  const fs::path absent = fs::path(WEIR_TEST_DATA) / "there_is_no_such_file.toml";
  const auto config = load_config(absent, FakeCatalog());
  ASSERT_FALSE(config);
  EXPECT_EQ(lines_of(config.error()), absent.string() + ": cannot read: No such file or directory\n");
  const auto folder = load_config(WEIR_TEST_DATA, FakeCatalog());
  ASSERT_FALSE(folder);
  EXPECT_EQ(lines_of(folder.error()), std::string(WEIR_TEST_DATA) + ": cannot read: Is a directory\n");
}

TEST(Problem, leaves_out_what_it_does_not_know) {
  EXPECT_EQ((Problem{"a.toml", {3, 7}, "port[1].mode", "is wrong"}.text()), "a.toml:3:7: port[1].mode: is wrong");
  EXPECT_EQ((Problem{"a.toml", {3, 7}, "", "is wrong"}.text()), "a.toml:3:7: is wrong");
  EXPECT_EQ((Problem{"a.toml", {}, "port", "is wrong"}.text()), "a.toml: port: is wrong");
  EXPECT_EQ((Problem{"", {}, "", "is wrong"}.text()), "is wrong");
}

TEST(ConfigNode, refuses_a_key_where_it_stands) {
  const Config config = valid("full.toml");
  ASSERT_EQ(config.pipelines.size(), 2u);
  const ConfigNode& keys = config.pipelines[0].stages.at(2).keys;
  const auto prefix = [&](Position at) { return fmt::format("{}:{}:{}: ", config.file, at.line, at.column); };
  const auto refused = keys.refuse("count", "is odd");
  EXPECT_EQ(refused.error().failure, Failure::invalid);
  EXPECT_EQ(refused.error().what, prefix(keys.at("count")) + "pipeline[0].stage[2].count: is odd");
  EXPECT_GT(keys.at("count").line, keys.at().line);
  EXPECT_EQ(keys.refuse("own", "is odd").error().what, prefix(keys.at()) + "pipeline[0].stage[2].own: is odd");
  const ConfigNode inner = keys.tables("static").at(1);
  EXPECT_EQ(inner.refuse("port", "is odd").error().what, prefix(inner.at("port")) + "pipeline[0].stage[2].static[1].port: is odd");
  const ConfigNode limit = keys.tables("limit").at(0);
  EXPECT_EQ(limit.refuse("burst", "is odd").error().what, prefix(limit.at()) + "pipeline[0].stage[2].limit.burst: is odd");
}

TEST(ConfigNodeDeathTest, aborts_on_a_key_that_the_schema_does_not_declare) {
  const ConfigNode node("x", {1, 1}, {{"count", {{}, i64{1}}}});
  EXPECT_EQ(node.integer("count"), 1);
  EXPECT_DEATH((void)node.integer("absent"), "does not declare");
  EXPECT_DEATH((void)node.list("absent"), "does not declare");
  EXPECT_DEATH((void)node.string("count"), "another type");
}

// Damages a text, by bytes and by lines.
class Mutator {
 public:
  explicit Mutator(u64 seed) : random_(seed) {}

  std::string operator()(std::string text) {
    for (std::size_t n = 1 + below(4); n > 0 && !text.empty(); --n) text = below(2) == 0 ? bytes(std::move(text)) : lines(text);
    return text;
  }
  std::size_t below(std::size_t limit) { return std::uniform_int_distribution<std::size_t>(0, limit - 1)(random_); }

 private:
  template <typename Sequence>
  void damage(Sequence& sequence) {
    const std::size_t at = below(sequence.size()), other = below(sequence.size());
    switch (below(3)) {
      case 0:
        sequence.erase(sequence.begin() + static_cast<std::ptrdiff_t>(at));
        break;
      case 1: {
        const auto copy = sequence[at];
        sequence.insert(sequence.begin() + static_cast<std::ptrdiff_t>(other), copy);
        break;
      }
      default:
        std::swap(sequence[at], sequence[other]);
    }
  }
  std::string bytes(std::string text) {
    if (below(8) == 0) text[below(text.size())] = static_cast<char>(below(256));
    else damage(text);
    return text;
  }
  std::string lines(const std::string& text) {
    std::vector<std::string> all;
    std::istringstream stream(text);
    for (std::string line; std::getline(stream, line);) all.push_back(line + "\n");
    if (!all.empty()) damage(all);
    std::string joined;
    for (const std::string& line : all) joined += line;
    return joined;
  }
  std::mt19937_64 random_;
};

bool in_order(const Problems& problems) {
  return std::ranges::is_sorted(problems, {}, [](const Problem& problem) { return std::pair(problem.at.line, problem.at.column); });
}

// What `egress list` would show of the words of a command.
std::vector<std::string> listed_of(const std::vector<std::string>& words) {
  const auto chain = parse_egress(words, "/lab", false, FakeCatalog());
  std::vector<std::string> listed;
  for (const EgressConfig& step : chain ? *chain : std::vector<EgressConfig>()) {
    const std::string keys = keys_given(step);
    listed.push_back(step.program + (keys.empty() ? "" : ",") + keys);
  }
  for (const Problem& problem : chain ? Problems() : chain.error()) listed.push_back(problem.text());
  return listed;
}

TEST(Config, a_word_of_a_command_needs_no_quotes_where_toml_does) {
  using Words = std::vector<std::string>;
  const Words words{"count", "mac_rewrite,src=02:00:00:00:00:08,dst=02:00:00:00:00:09", "vlan_push,vid=7", "mine,object=/lab/good.bpf.o"};
  EXPECT_EQ(listed_of(words), words);
  EXPECT_EQ(listed_of({"mac_rewrite,dst='02:00:00:00:00:09'"}), Words{"mac_rewrite,dst=02:00:00:00:00:09"});
  EXPECT_EQ(listed_of({R"(mac_rewrite, dst = "02:00:00:00:00:09")"}), Words{"mac_rewrite,dst=02:00:00:00:00:09"});
  EXPECT_EQ(listed_of({"mine,object=good.bpf.o"}), Words{"mine,object=/lab/good.bpf.o"});
  EXPECT_EQ(listed_of({R"(mine,object="a, b/good.bpf.o")"}), Words{R"(mine,object="/lab/a, b/good.bpf.o")"});
  const Words of_every_type{"typed,kind=round,address=2001:db8::1,net=192.0.2.0/24,range=5-9,protocol=6,flag=true",
                            R"(typed,rules=[{to="10.0.0.1",ports="1-2"},{}])"};
  EXPECT_EQ(listed_of(of_every_type), of_every_type);
  EXPECT_EQ(listed_of({"typed,range=5,protocol=tcp"}), Words{"typed,range=5,protocol=6"});
  EXPECT_EQ(listed_of({"count,colour=red"}), Words{"egress[0].colour: unknown key; allowed: program, object"});
  EXPECT_EQ(listed_of({"{ object = \"good.bpf.o\" }"}), Words{"egress[0].program: is missing"});
}

TEST(Config, any_damaged_file_is_read_or_refused_with_reasons) {
  const char* given = std::getenv("WEIR_TEST_SEED");
  const u64 seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  std::printf("WEIR_TEST_SEED=%llu\n", seed);
  Mutator mutate(seed);
  std::vector<std::string> texts;
  for (const char* folder : {"config_valid", "config_errors"})
    for (const fs::path& file : files_in(folder)) texts.push_back(read(file));
  std::size_t refused = 0;
  for (int round = 0; round < 2000; ++round) {
    const std::string text = mutate(texts[mutate.below(texts.size())]);
    const auto config = parse_config(text, "damaged.toml", FakeCatalog());
    if (config) continue;
    ++refused;
    ASSERT_FALSE(config.error().empty()) << text;
    EXPECT_TRUE(in_order(config.error())) << text;
    for (const Problem& problem : config.error()) {
      EXPECT_EQ(problem.file, "damaged.toml") << text;
      EXPECT_FALSE(problem.what.empty()) << text;
      EXPECT_EQ(problem.text().find_first_of("\n\r\t"), std::string::npos) << "not one line: " << problem.text() << "\n" << text;
    }
  }
  EXPECT_GT(refused, 0u);
}

}  // namespace
}  // namespace weir
