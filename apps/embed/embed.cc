// SPDX-License-Identifier: BSD-3-Clause
// embed: a program of your own with libweir in it, and a stage of its own beside the plugins that came with weir.
//   embed FILE    checks, attaches and forwards by the configuration FILE until SIGINT or SIGTERM; then prints what its stage has counted
#include <linux/if_ether.h>
#include <netinet/in.h>
#include <algorithm>
#include <cstdio>

#include "core/control/load.hh"
#include "core/control/serve.hh"
#include "core/plugin.hh"

namespace {
using namespace weir;

enum Kind { icmp, tcp, udp, other, kinds };
enum Drop { refused };
const std::vector<std::string> names{"icmp", "tcp", "udp", "other"};

// The stage: counts frames by their kind, drops those that the file refuses, and lets the others go on to the next stage.
//   [[pipeline.stage]]  plugin = "census"  refuse = ["udp"]
class Census final : public Stage {
 public:
  static Result<std::unique_ptr<Stage>> make(const ConfigNode& keys, StageContext&) {
    auto made = std::make_unique<Census>();
    for (const ConfigValue& each : keys.list("refuse"))
      made->refuses_[std::ranges::find(names, std::get<std::string>(each.value)) - names.begin()] = true;
    return made;
  }

  void process(Burst& burst) noexcept override {
    for (Frame& frame : burst) {
      const Kind kind = kind_of(frame);
      burst.count(kind);
      if (refuses_[kind]) burst.drop(frame, refused);
    }
  }

 private:
  static Kind kind_of(const Frame& frame) noexcept {
    const auto* eth = frame.header<ethhdr>();
    const u16 type = eth != nullptr ? ntohs(eth->h_proto) : 0;
    if (type != ETH_P_IP && type != ETH_P_IPV6) return other;
    const u8* protocol = frame.header<u8>(ETH_HLEN + (type == ETH_P_IP ? 9 : 6));
    constexpr std::pair<u8, Kind> known[] = {{IPPROTO_ICMP, icmp}, {IPPROTO_ICMPV6, icmp}, {IPPROTO_TCP, tcp}, {IPPROTO_UDP, udp}};
    for (const auto& [number, kind] : known)
      if (protocol != nullptr && *protocol == number) return kind;
    return other;
  }
  std::array<bool, kinds> refuses_{};
};

const Plugin census{.name = "census",
                    .says = "count frames by their kind, and drop some kinds",
                    .keys = {Key::list("refuse", Key::string("", names), 0, kinds).optional().as("kinds of frames to drop")},
                    .drops = {"refused"},
                    .counters = names,
                    .make = Census::make};

Result<> run(const std::string& file) {
  const Fd stop = TRY(catch_stop_signals());  // before any thread is made
  Registry registry = TRY(load_registry(file));
  TRY_VOID(registry.add(census));
  auto topology = TRY(load_topology(file, registry));
  const auto instance = TRY(Instance::prepare(std::move(topology), registry, {}));
  TRY_VOID(serve(*instance, stop));
  const nlohmann::json stats = TRY(instance->answer({{"ask", "stats"}}));
  for (const nlohmann::json& stage : stats["stages"])
    if (stage["plugin"] == census.name) std::puts(stage["counters"].dump().c_str());
  return {};
}

}  // namespace

int main(int count, char** words) {
  const Result<> done = count == 2 ? run(words[1]) : Result<>(invalid("usage: embed FILE"));
  if (!done) std::fputs((done.error().what + '\n').c_str(), stderr);
  return done ? 0 : done.error().failure == Failure::invalid ? 2 : 1;
}
