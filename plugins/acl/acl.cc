// SPDX-License-Identifier: BSD-3-Clause
// acl: permit or drop frames by ordered rules; the first that matches decides. What is permitted goes on to the next stage. It keeps no
// connections: answers need rules of their own.
//   [[pipeline.stage]]
//   plugin = "acl"
//   otherwise = "permit"         # what becomes of a frame that no rule matches; or "drop"
//   file = "rules.acl"           # rules, one a line, behind those of `rules`; from the folder of this file
//   log_rate = 100               # samples a second that a CPU's kernel half has noted; what is beyond counts as "unlogged"
//   offload = true               # a later stage may hand permitted flows to the flow cache; their first frames alone are hits then
//   [[pipeline.stage.rules]]     # up to 100000 with those of the file; what a rule leaves out, it does not ask for
//   action = "permit"            # or "drop"
//   src = "10.0.0.0/8"           # prefix or address of IPv4 or IPv6; src and dst of one rule are of one family
//   dst = "2001:db8::1"
//   protocol = "tcp"             # tcp, udp, icmp, icmpv6, or a number
//   sport = 53                   # ports of TCP, UDP, UDP-Lite, DCCP and SCTP; of any of these where the rule has no protocol
//   dport = "6000-6063"
//   flags = "syn,!ack"           # of TCP: those that are set, and those that are not
//   vlan = 100                   # of the tag in front; 0: there is none, or priority alone
//   type = 0x0806                # EtherType behind the tags, here of ARP
//   fragments = true             # later fragments alone
//   log = true                   # keep a sample of the frame: weir stage ask PIPELINE.acl samples, of the last 256
//   name = "web"                 # what its hits are called, else its number, from 1: weir stats, weir stage ask PIPELINE.acl hits
// A line of a file says the same, `fragments` and `log` without a value:
//   permit src 10.0.0.0/8 protocol tcp dport 6000-6063 flags syn,!ack log name web   # and this is a comment
//
// Headers are looked for behind up to two VLAN tags. A frame that is not IPv4 or IPv6, ARP too, matches only a rule that asks for nothing
// but vlan and type, so that `otherwise = "drop"` wants a rule for ARP. The protocol of IPv6 is the first header behind up to 16 of:
// hop-by-hop options, routing, destination options, fragment; with more it is dropped as "bad_header". Authentication and ESP headers are
// protocols, and not looked behind. A later fragment has no ports and no flags, so that no rule with these matches it, and rules without
// do. A rule that drops the first is enough: without it the rest is never put together. Where `otherwise` is "drop", later fragments want
// a rule that permits them. Whatever the rules: a frame that ends before its headers do, or before the end that they tell, is dropped as
// "truncated"; one whose headers contradict themselves (version, header lengths) as "bad_header".
//
// The kernel half has as many rules, from the first on, as its tables hold (gauge "kernel_rules" of "rules"); a frame that none of these
// matches is punted where there are more. It punts what is to be logged, and a chain of more than 4 extension headers. A reload replaces
// all rules while frames flow: a frame sees the old ones or the new ones. Rules that stay keep their hits. The flow cache looks at no
// flags: where a rule asks for some, no flow of TCP is handed to it; and none that a rule with `log` matches.
#include "core/plugin.hh"

#include <time.h>

#include <algorithm>
#include <bit>
#include <map>
#include <nlohmann/json.hpp>

#include "core/port/eal.hh"
#include "plugins/acl/acl_log.hh"
#include "plugins/acl/acl_store.hh"
#include "plugins/acl/acl_user.hh"

#include "acl.skel.h"

namespace weir::acl {
namespace {

constexpr std::size_t most_hits_shown = 256;

class Acl final : public Stage {
 public:
  static Result<std::unique_ptr<Stage>> make(const ConfigNode& keys, StageContext& context);
  Result<> bind(StageMemory& memory) override;
  void take_state(const StageRemains& before) override { store_.take(before); }
  void process(Burst& burst) noexcept override;
  void tick(u32 now_s) noexcept override;
  [[nodiscard]] std::vector<std::pair<std::string, u64>> gauges() const override;
  Result<std::string> answer(std::span<const std::string> words) override;
  [[nodiscard]] bool does_as(const Stage& next) const noexcept override { return set_ == static_cast<const Acl&>(next).set_; }

 private:
  Result<> read_rules(const ConfigNode& keys);
  static void refuse_names_given_twice(const ConfigNode& keys, const std::string& file, const std::vector<Rule>& rules, std::string& lines);
  void judge(Burst& burst, Frame& frame, u32 number) noexcept;
  [[nodiscard]] nlohmann::json hits() const;
  [[nodiscard]] nlohmann::json samples() const;

  explicit Acl(const StageContext& context) : context_(context) {}
  const StageContext& context_;
  RuleSet set_;
  u32 log_rate_ = 0;
  bool offload_ = true;
  bool flags_ = false;  // a rule asks for some
  std::unique_ptr<Classifier> classifier_;
  Store store_;
  u32 ticks_ = 0;
  Log log_;
};

Result<std::unique_ptr<Stage>> Acl::make(const ConfigNode& keys, StageContext& context) {
  std::unique_ptr<Acl> made(new Acl(context));
  made->set_.otherwise_drops = keys.string("otherwise") == "drop";
  made->log_rate_ = static_cast<u32>(keys.integer("log_rate"));
  made->offload_ = keys.boolean("offload");
  TRY_VOID(made->read_rules(keys));
  made->flags_ = std::ranges::any_of(made->set_.rules, [](const Rule& rule) { return rule.flags_mask != 0; });
  return made;
}

// All mistakes at once, of the configuration and of the file that it names.
Result<> Acl::read_rules(const ConfigNode& keys) {
  std::string lines, file;
  for (const ConfigNode& rule : keys.tables("rules")) set_.rules.push_back(read_rule(rule, lines));
  if (keys.has("file")) {
    file = keys.beside(keys.string("file"));
    if (const Result<std::string> text = read_rules_file(file)) {
      std::vector<Rule> more = parse_rules(*text, file, ACL_MAX_RULES - set_.rules.size(), lines);
      std::ranges::move(more, std::back_inserter(set_.rules));
    } else {
      lines += (lines.empty() ? "" : "\n") + keys.refuse("file", text.error().what).error().what;
    }
  }
  if (lines.empty() && set_.rules.empty()) return keys.refuse("rules", "there is no rule; give rules, or a file of them");
  refuse_names_given_twice(keys, file, set_.rules, lines);
  if (lines.empty()) return {};
  return std::unexpected(Error{Failure::invalid, std::move(lines), 0, true});
}

// Hits are told by name.
void Acl::refuse_names_given_twice(const ConfigNode& keys, const std::string& file, const std::vector<Rule>& rules, std::string& lines) {
  std::map<std::string_view, std::size_t> first{{"otherwise", 0}};
  const std::vector<ConfigNode> tables = keys.tables("rules");
  for (std::size_t i = 0; i < rules.size(); ++i) {
    if (rules[i].name.empty()) continue;
    const auto [known, fresh] = first.emplace(rules[i].name, i);
    if (fresh) continue;
    const std::string what = rules[i].name == "otherwise" ? "is \"otherwise\", as the hits of no rule are called; choose another"
                                                          : fmt::format("is that of rule {} too; choose another", known->second + 1);
    lines += lines.empty() ? "" : "\n";
    if (rules[i].line == 0) lines += tables[i].refuse("name", what).error().what;
    else lines += fmt::format("{}:{}:1: name {}", file, rules[i].line, what);
  }
}

Result<> Acl::bind(StageMemory& memory) {
  // A power of two, so that a run with some rules more finds its maps.
  const u32 room = std::bit_ceil(std::max<u32>(static_cast<u32>(set_.rules.size()), ACL_UNIT));
  TRY_VOID(ensure_eal());
  classifier_ = TRY(Classifier::make(set_));
  TRY_VOID(store_.bind(memory, room, log_rate_, offload_, flags_));
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  store_.clock(static_cast<u64>(now.tv_sec));
  store_.put(set_, make_kernel_tables(set_, room));
  return {};
}

void Acl::process(Burst& burst) noexcept {
  std::array<acl_key, Burst::capacity> keys;
  std::array<Frame*, Burst::capacity> frames;
  std::array<u32, Burst::capacity> rules;
  u32 count = 0;
  for (Frame& frame : burst) {
    const acl_bytes bytes{frame.data, frame.length};
    keys[count] = {};
    switch (acl_read(&bytes, ACL_USER_EXTENSIONS, &keys[count])) {
      case ACL_READ:
        frames[count++] = &frame;
        break;
      case ACL_IS_BAD:
      case ACL_IS_DEEP:
        burst.drop(frame, ACL_BAD_HEADER);
        break;
      default:
        burst.drop(frame, ACL_TRUNCATED);
    }
  }
  classifier_->classify(std::span(keys).first(count), rules);
  for (u32 i = 0; i < count; ++i) {
    if (!offload_ || (flags_ && acl_is_tcp(&keys[i]) != 0)) Burst::keep(*frames[i]);
    judge(burst, *frames[i], rules[i]);
  }
}

void Acl::judge(Burst& burst, Frame& frame, u32 number) noexcept {
  if (number == ACL_NO_RULE) {
    burst.count(ACL_COUNT_OTHERWISE);
    store_.hit(static_cast<u32>(set_.rules.size()));
    if (set_.otherwise_drops) burst.drop(frame, ACL_DENIED);
    return;
  }
  const Rule& rule = set_.rules[number];
  burst.count(rule.drops ? ACL_COUNT_DENIED : ACL_COUNT_PERMITTED);
  store_.hit(number);
  if (rule.logs) {
    Burst::keep(frame);
    burst.count(ACL_COUNT_LOGGED);
    log_.note(frame, number, rule.drops);
  }
  if (rule.drops) burst.drop(frame, ACL_DENIED);
}

void Acl::tick(u32 now_s) noexcept {
  store_.clock(now_s);
  if (++ticks_ == 2) store_.settle();  // a second and more after the last frame that saw the set of an earlier run
}

Result<std::string> Acl::answer(std::span<const std::string> words) {
  if (words.size() == 1 && words[0] == "hits") return hits().dump();
  if (words.size() == 1 && words[0] == "samples") return samples().dump();
  return invalid("it tells: hits (of all rules), samples (the last frames that rules with `log` matched)");
}

nlohmann::json Acl::hits() const {
  nlohmann::json all = nlohmann::json::array();
  for (u32 i = 0; i < set_.rules.size(); ++i)
    all.push_back({{"number", i + 1}, {"name", set_.rules[i].name}, {"rule", set_.rules[i].text()}, {"hits", store_.hits(i)}});
  all.push_back({{"name", "otherwise"},
                 {"rule", set_.otherwise_drops ? "drop" : "permit"},
                 {"hits", store_.hits(static_cast<u32>(set_.rules.size()))}});
  return all;
}

nlohmann::json Acl::samples() const {
  nlohmann::json all = nlohmann::json::array();
  for (const Sample& sample : log_.samples()) {
    std::string bytes;
    for (const u8 byte : std::span(sample.bytes).first(sample.kept)) bytes += fmt::format("{:02x}", byte);
    all.push_back({{"number", sample.number},
                   {"time_ns", sample.time_ns},
                   {"rule", set_.rules[sample.rule].called(sample.rule)},
                   {"action", sample.drops ? "drop" : "permit"},
                   {"in", context_.name(sample.port)},
                   {"length", sample.length},
                   {"bytes", bytes}});
  }
  return all;
}

// Of many rules, those with most hits.
std::vector<std::pair<std::string, u64>> Acl::gauges() const {
  const acl_set& now = store_.current();
  const std::vector<Rule>& rules = set_.rules;
  std::vector<std::pair<u64, u32>> hits;
  for (u32 i = 0; i < rules.size(); ++i) hits.emplace_back(store_.hits(i), i);
  if (hits.size() > most_hits_shown) {
    std::ranges::partial_sort(hits, hits.begin() + most_hits_shown, [](const auto& a, const auto& b) { return a.first > b.first; });
    hits.resize(most_hits_shown);
    std::ranges::sort(hits, {}, [](const auto& each) { return each.second; });
  }
  std::vector<std::pair<std::string, u64>> all{{"rules", rules.size()}, {"kernel_rules", now.decided}, {"kernel_tables", now.tables}};
  for (const auto& [number, rule] : hits) all.emplace_back("hits." + rules[rule].called(rule), number);
  all.emplace_back("hits.otherwise", store_.hits(static_cast<u32>(rules.size())));
  return all;
}

}  // namespace
}  // namespace weir::acl

WEIR_PLUGIN(.name = "acl", .says = "permit or drop by ordered rules; the first that matches decides",
            .keys = {weir::Key::list("rules", weir::Key::table("", weir::acl::rule_keys()), 0, ACL_MAX_RULES)
                         .optional()
                         .as("the first that matches decides"),
                     weir::Key::string("file").optional().as("rules, one a line, behind those of `rules`; from the folder of this file"),
                     weir::Key::string("otherwise", {"permit", "drop"})
                         .otherwise("\"permit\"")
                         .as("what becomes of a frame that no rule matches"),
                     weir::Key::boolean("offload").otherwise("true").as(
                         "a later stage may hand permitted flows to the flow cache; their first frames alone are hits then"),
                     weir::Key::integer("log_rate", 0, 1000000)
                         .otherwise("100")
                         .as("samples a second that a CPU's kernel half has noted; what is beyond counts as unlogged")},
            .drops = {"denied", "truncated", "bad_header"}, .counters = {"permitted", "denied", "otherwise", "logged", "unlogged"},
            .punts = {"rules", "log", "extensions", "hidden", "swapped"}, .make = weir::acl::Acl::make,
            .kernel_half = WEIR_KERNEL_HALF(acl), .per_flow = true)
