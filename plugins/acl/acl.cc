// SPDX-License-Identifier: BSD-3-Clause
// acl: permit or drop frames by ordered rules; the first that matches decides. What is permitted goes on to the next stage. Answers need
// rules of their own, unless a rule with `state` has let their question through.
//   [[pipeline.stage]]
//   plugin = "acl"
//   otherwise = "permit"         # what becomes of a frame that no rule matches; or "drop"
//   file = "rules.acl"           # rules, one a line, behind those of `rules`; from the folder of this file
//   log_rate = 100               # samples a second that a CPU's kernel half has noted; what is beyond counts as "unlogged"
//   offload = true               # a later stage may hand permitted flows to the flow cache; their first frames alone are hits then
//   states = "edge"              # table of established flows; stages of one name share it, in all pipelines of the instance
//   max_states = 65536           # of the table, 64 to 1048576; this and what follows are the same in all stages that share it
//   tcp_idle_s = 7440            # seconds without a frame, behind which a connection is forgotten,
//   tcp_transitory_s = 240       # before it is answered, and behind its first FIN; behind the second one or RST, whatever comes
//   udp_idle_s = 300             # the same of UDP and UDP-Lite,
//   icmp_idle_s = 60             # of echo,
//   other_idle_s = 600           # and of other protocols
//   pick_up = false              # a rule with `state` also matches frames in the middle of a connection
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
//   state = true                 # with permit, and `states`: the flow is established
//   log = true                   # keep a sample of the frame: weir stage ask PIPELINE.acl samples, of the last 256
//   name = "web"                 # what its hits are called, else its number, from 1: weir stats, weir stage ask PIPELINE.acl hits
// A line of a file says the same, `fragments`, `state` and `log` without a value:
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
// With `states`, a frame of an established flow is permitted without the rules, in both directions, by every stage that shares the table.
// - A flow is two addresses, a protocol and the ports, whatever the VLAN; of ICMP echo the identifier, from the side that asks; of other
//   protocols the addresses alone. The frame that a rule with `state` permits establishes it. Such a rule matches only what may begin
//   one: of TCP a SYN without ACK, FIN and RST, of ICMP no answer and no error. Other ICMP and later fragments have no flow: they are
//   permitted alone.
// - Rules judge each SYN without ACK, whatever there was, and later fragments, also those of answers. ICMP errors (unreachable, too big,
//   time exceeded, parameter problem) about a frame of an established flow are permitted to the one who has sent that frame, of 1000 a
//   second that come to one CPU; those beyond rules judge, where there is a kernel half. Sequence numbers are not looked at.
// - Where a flow finds no room, its frame is dropped as "states_full". Before that one that has ended gives its place, or one that
//   nobody has answered and that has been silent for 2 seconds, in the flow cache too; up to 9 where max_states is above 131072.
// - It ends when it is idle, in the flow cache too; when a reload brings rules by which its first frame, with the VLAN and the flags
//   that it had, would not be permitted with `state`; within some seconds when the stage that has established it names the table no
//   more; by weir stage ask PIPELINE.acl flush.
//   What later stages have offloaded because of it is taken back. Else it outlives a reload and, with kernel halves, the process.
// - weir stage ask PIPELINE.acl states [ADDRESS] lists 1000 at most. Two stages of one pipeline do not share a table: the rules of the
//   second one would not be asked.
//
// The kernel half has as many rules, from the first on, as its tables hold (gauge "kernel_rules" of "rules"); a frame that none of these
// matches is punted where there are more. It punts what is to be logged, and a chain of more than 4 extension headers; with `states` what
// establishes a flow, its first answer, FIN, RST, and ICMP errors. A reload replaces all rules while frames flow: a frame sees the old ones
// or the new ones. Rules that stay keep their hits. The flow cache looks at no flags: where a rule asks for some, no flow of TCP is handed
// to it but an established one; and none that a rule with `log` matches.
#include "core/plugin.hh"

#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <time.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>

#include "core/port/eal.hh"
#include "plugins/acl/acl_log.hh"
#include "plugins/acl/acl_states.hh"
#include "plugins/acl/acl_store.hh"
#include "plugins/acl/acl_user.hh"

#include "acl.skel.h"

namespace weir::acl {
namespace {

constexpr std::size_t most_hits_shown = 256, most_states_shown = 1000;

class Acl final : public Stage {
 public:
  static Result<std::unique_ptr<Stage>> make(const ConfigNode& keys, StageContext& context);
  Result<> bind(StageMemory& memory) override;
  void take_state(const StageRemains& before) override;
  void in_place() noexcept override { judge_states(); }
  void process(Burst& burst) noexcept override;
  void tick(u32 now_s) noexcept override;
  [[nodiscard]] std::vector<std::pair<std::string, u64>> gauges() const override;
  Result<std::string> answer(std::span<const std::string> words) override;
  [[nodiscard]] bool does_as(const Stage& next) const noexcept override { return set_ == static_cast<const Acl&>(next).set_; }

 private:
  Result<> read_rules(const ConfigNode& keys);
  Result<> read_states(const ConfigNode& keys, StageContext& context);
  static void refuse_names_given_twice(const ConfigNode& keys, const std::string& file, const std::vector<Rule>& rules, std::string& lines);
  void judge(Burst& burst, Frame& frame, const acl_key& key, u32 number) noexcept;
  bool goes_by_state(Burst& burst, Frame& frame, const acl_key& key) noexcept;
  void judge_states() noexcept;
  [[nodiscard]] Result<std::string> states(const std::string& address) const;
  [[nodiscard]] nlohmann::json state_report(const acl_state& state) const;
  [[nodiscard]] nlohmann::json hits() const;
  [[nodiscard]] nlohmann::json samples() const;

  explicit Acl(StageContext& context) : context_(context) {}
  StageContext& context_;
  RuleSet set_;
  u32 log_rate_ = 0;
  bool offload_ = true;
  bool flags_ = false;  // a rule asks for some
  std::unique_ptr<Classifier> classifier_;
  Store store_;
  std::string table_;  // of established flows; empty: none
  u32 most_states_ = 0;
  StateTimes times_;
  States states_;
  bool judged_ = false;  // established flows, by the rules of now
  u32 ticks_ = 0;
  Log log_;
};

Result<std::unique_ptr<Stage>> Acl::make(const ConfigNode& keys, StageContext& context) {
  std::unique_ptr<Acl> made(new Acl(context));
  made->set_.otherwise_drops = keys.string("otherwise") == "drop";
  made->log_rate_ = static_cast<u32>(keys.integer("log_rate"));
  made->offload_ = keys.boolean("offload");
  TRY_VOID(made->read_rules(keys));
  TRY_VOID(made->read_states(keys, context));
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

Result<> Acl::read_states(const ConfigNode& keys, StageContext& context) {
  if (!keys.has("states")) {
    const auto keeps = std::ranges::find_if(set_.rules, &Rule::keeps);
    if (keeps == set_.rules.end()) return {};
    return keys.refuse("states", fmt::format("is missing, and rule {} has `state`; give the table of established flows a name",
                                             keeps->called(static_cast<std::size_t>(keeps - set_.rules.begin()))));
  }
  auto name = parse_name(keys.string("states"));
  if (!name) return keys.refuse("states", name.error());
  table_ = std::move(*name);
  const std::string who = "acl states " + table_;
  // Whoever else is in the pipeline is another one.
  const u64 one = reinterpret_cast<std::uintptr_t>(&context);
  if (context.first_said(fmt::format("{} in {}", who, context.pipeline()), one) != one)
    return keys.refuse("states",
                       fmt::format("is \"{}\", as of a stage before it in this pipeline, which would permit what this one denies; "
                                   "choose another name",
                                   table_));
  const std::pair<const char*, u32*> numbers[] = {
      {"max_states", &most_states_}, {"tcp_idle_s", &times_.tcp},   {"tcp_transitory_s", &times_.tcp_transitory},
      {"udp_idle_s", &times_.udp},   {"icmp_idle_s", &times_.icmp}, {"other_idle_s", &times_.other}};
  for (const auto& [key, number] : numbers) {
    *number = static_cast<u32>(keys.integer(key));
    const u64 first = context.first_said(fmt::format("{} {}", who, key), *number);
    if (first != *number)
      return keys.refuse(key,
                         fmt::format("is {}, and {} in another stage with the states \"{}\"; make them the same", *number, first, table_));
  }
  for (Rule& rule : set_.rules) rule.picks_up = keys.boolean("pick_up");
  return {};
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
  if (!table_.empty()) {
    TRY_VOID(states_.bind(memory, table_, most_states_, times_, context_.ports(), context_.flow_cache(), store_.keeper()));
    store_.keep(states_.seed(), states_.mask());
  }
  store_.put(set_, make_kernel_tables(set_, room));
  if (table_.empty()) store_.keep_none();
  return {};
}

void Acl::take_state(const StageRemains& before) {
  store_.take(before);
  if (states_.any()) states_.succeed(Store::keeper_of(before, states_.seed()), store_.keeper());
}

// A flow stands while a rule would establish it anew.
void Acl::judge_states() noexcept {
  judged_ = true;
  if (!states_.any()) return;
  states_.judge(store_.keeper(), [this](std::span<const acl_key> keys, std::span<u32> rules) {
    classifier_->classify(keys, rules);
    for (u32& rule : rules)
      if (rule != ACL_NO_RULE && !set_.rules[rule].keeps) rule = ACL_NO_RULE;
  });
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
        if (!goes_by_state(burst, frame, keys[count])) frames[count++] = &frame;
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
  bool opened = false;  // in this burst, perhaps by a frame before one of the same flow
  for (u32 i = 0; i < count; ++i) {
    if (opened && goes_by_state(burst, *frames[i], keys[i])) continue;
    if (!offload_ || (flags_ && acl_is_tcp(&keys[i]) != 0)) Burst::keep(*frames[i]);
    judge(burst, *frames[i], keys[i], rules[i]);
    opened |= rules[i] != ACL_NO_RULE && set_.rules[rules[i]].keeps;
  }
}

// The rules are not asked.
bool Acl::goes_by_state(Burst& burst, Frame& frame, const acl_key& key) noexcept {
  if (!states_.any()) return false;
  states_.decide_now(frame);
  if (states_.passes(key, frame)) burst.count(ACL_COUNT_ESTABLISHED);
  else if (states_.concerns(key, frame)) burst.count(ACL_COUNT_RELATED);
  else return false;
  if (!offload_) Burst::keep(frame);
  return true;
}

void Acl::judge(Burst& burst, Frame& frame, const acl_key& key, u32 number) noexcept {
  if (number == ACL_NO_RULE) {
    burst.count(ACL_COUNT_OTHERWISE);
    store_.hit(static_cast<u32>(set_.rules.size()));
    if (set_.otherwise_drops) burst.drop(frame, ACL_DENIED);
    return;
  }
  const Rule& rule = set_.rules[number];
  store_.hit(number);
  if (rule.keeps && !states_.open(key, frame, store_.keeper(), number)) return burst.drop(frame, ACL_STATES_FULL);
  burst.count(rule.drops ? ACL_COUNT_DENIED : ACL_COUNT_PERMITTED);
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
  if (!states_.any()) return;
  if (!judged_) judge_states();  // those of an earlier run
  states_.tick(now_s, store_.keeper());
}

Result<std::string> Acl::answer(std::span<const std::string> words) {
  if (words.size() == 1 && words[0] == "hits") return hits().dump();
  if (words.size() == 1 && words[0] == "samples") return samples().dump();
  if (states_.any() && words.size() == 1 && words[0] == "flush") return nlohmann::json{{"flushed", states_.flush()}}.dump();
  if (states_.any() && !words.empty() && words.size() <= 2 && words[0] == "states") return states(words.size() == 2 ? words[1] : "");
  return invalid("it tells: hits (of all rules), samples (the last frames that rules with `log` matched){}",
                 states_.any() ? ", states [ADDRESS] (established flows), flush (ends all of these)" : "");
}

nlohmann::json Acl::state_report(const acl_state& state) const {
  const acl_key key = first_frame(state);
  const u64 kind = key.word[ACL_KIND_WORD], ports = key.word[ACL_PORTS_WORD];
  const auto address = [&](u32 word) {
    Address made;
    made.version = kind >> ACL_TYPE == ETH_P_IPV6 ? 6 : 4;
    std::memcpy(made.bytes.data(), &key.word[word], made.bytes.size());
    return text_of(made);
  };
  const u32 idle_s = states_.idle_s(state), longest = states_.longest_idle(state);
  nlohmann::json report{{"from", address(0)},
                        {"to", address(2)},
                        {"protocol", kind >> ACL_PROTOCOL & 0xff},
                        {"answered", (state.phase & ACL_ANSWERED) != 0},
                        {"over", acl_is_over(state.phase) != 0},
                        {"age_s", store_.second() - std::min<u64>(store_.second(), state.since_s)},
                        {"idle_s", idle_s},
                        {"left_s", longest - std::min(longest, idle_s)}};
  if ((kind & ACL_HAS_PORTS) != 0) report["from_port"] = ports >> 16, report["to_port"] = ports & 0xffff;
  if ((kind & ACL_REQUEST) != 0) report["identifier"] = ports & 0xffff;
  if (state.keeper == store_.keeper() && state.rule < set_.rules.size()) report["rule"] = set_.rules[state.rule].called(state.rule);
  return report;
}

// "more": how many others there are.
Result<std::string> Acl::states(const std::string& of) const {
  std::array<u64, 2> address{};
  if (!of.empty() && ::inet_pton(AF_INET, of.c_str(), address.data()) != 1 && ::inet_pton(AF_INET6, of.c_str(), address.data()) != 1)
    return invalid("\"{}\" is no address of IPv4 or IPv6", of);
  nlohmann::json all = nlohmann::json::array();
  u64 more = 0;
  states_.visit([&](const acl_state& state) {
    const auto is = [&](u32 word) { return state.address[word] == address[0] && state.address[word + 1] == address[1]; };
    if (!of.empty() && !is(0) && !is(2)) return;
    if (all.size() < most_states_shown) all.push_back(state_report(state));
    else ++more;
  });
  return nlohmann::json{{"states", std::move(all)}, {"more", more}}.dump();
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
  if (states_.any()) {
    const StateCounts counts = states_.counts();
    for (const auto& [name, value] :
         {std::pair("states", counts.count), std::pair("max_states", counts.most), std::pair("states_opened", counts.opened),
          std::pair("states_refused", counts.refused), std::pair("states_idle", counts.idle), std::pair("states_evicted", counts.evicted),
          std::pair("states_judged", counts.judged), std::pair("states_flushed", counts.flushed)})
      all.emplace_back(name, value);
  }
  for (const auto& [number, rule] : hits) all.emplace_back("hits." + rules[rule].called(rule), number);
  all.emplace_back("hits.otherwise", store_.hits(static_cast<u32>(rules.size())));
  return all;
}

}  // namespace
}  // namespace weir::acl

WEIR_PLUGIN(
        .name = "acl", .says = "permit or drop by ordered rules; the first that matches decides",
        .keys =
            {weir::Key::list("rules", weir::Key::table("", weir::acl::rule_keys()), 0, ACL_MAX_RULES)
                 .optional()
                 .as("the first that matches decides"),
             weir::Key::string("file").optional().as("rules, one a line, behind those of `rules`; from the folder of this file"),
             weir::Key::string("otherwise", {"permit", "drop"}).otherwise("\"permit\"").as("what becomes of a frame that no rule matches"),
             weir::Key::string("states").optional().as("table of established flows; stages of one name share it"),
             weir::Key::integer("max_states", 64, 1 << 20).otherwise("65536").as("established flows of the table"),
             weir::Key::integer("tcp_idle_s", 1, 1000000).otherwise("7440").as("without a frame, a connection is forgotten"),
             weir::Key::integer("tcp_transitory_s", 1, 1000000)
                 .otherwise("240")
                 .as("the same before it is answered, and behind its first FIN; behind the second one or RST, whatever comes"),
             weir::Key::integer("udp_idle_s", 1, 1000000).otherwise("300").as("the same of UDP and UDP-Lite"),
             weir::Key::integer("icmp_idle_s", 1, 1000000).otherwise("60").as("the same of echo"),
             weir::Key::integer("other_idle_s", 1, 1000000).otherwise("600").as("the same of other protocols"),
             weir::Key::boolean("pick_up").otherwise("false").as("a rule with `state` also matches frames in the middle of a connection"),
             weir::Key::boolean("offload").otherwise("true").as(
                 "a later stage may hand permitted flows to the flow cache; their first frames alone are hits then"),
             weir::Key::integer("log_rate", 0, 1000000)
                 .otherwise("100")
                 .as("samples a second that a CPU's kernel half has noted; what is beyond counts as unlogged")},
        .drops = {"denied", "truncated", "bad_header", "states_full"},
        .counters = {"permitted", "denied", "otherwise", "logged", "unlogged", "established", "related"},
        .punts = {"rules", "log", "extensions", "hidden", "swapped", "opens", "changes", "error"}, .make = weir::acl::Acl::make,
        .kernel_half = WEIR_KERNEL_HALF(acl), .per_flow = true)
