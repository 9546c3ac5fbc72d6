// SPDX-License-Identifier: BSD-3-Clause
// shortcut: a wire between two ports that offloads every flow at its first frame; for tests of the flow cache.
#include "core/plugin.hh"

#ifndef BUILD  // of tests/variants
#define BUILD 1
#define DROPS "closed"
#endif
#ifndef NAME
#define NAME "shortcut"
#define PER_FLOW true
#endif

namespace {

using namespace weir;

enum Drop { closed };
enum Counter { offloaded };

class Shortcut final : public Stage {
 public:
  static Result<std::unique_ptr<Stage>> make(const ConfigNode& keys, StageContext& context) {
    std::unique_ptr<Shortcut> made(new Shortcut(context));
    made->times_ = {.idle_s = static_cast<u32>(keys.integer("idle_s")), .hard_s = static_cast<u32>(keys.integer("hard_s"))};
    made->closed_ = static_cast<u16>(keys.integer("closed"));
    made->kept_ = static_cast<u16>(keys.integer("kept"));
    return made;
  }

  void process(Burst& burst) noexcept override {
    for (Frame& frame : burst) {
      const PortSlot out{static_cast<u16>(frame.port.value ^ 1)};
      FlowKey key = flow_key_of(frame);
      if (key && kept_ != 0 && key.destination_port() == kept_) Burst::keep(frame);
      const bool refused = key && closed_ != 0 && key.destination_port() == closed_;
      key = flows_.key_of(frame);
      if (key && flows_.offload(key, refused ? FlowAction::drop(closed) : FlowAction::transmit(out), times_, 7)) burst.count(offloaded);
      if (refused) burst.drop(frame, closed);
      else burst.transmit(frame, out);
    }
  }

  void flow_ended(const EndedFlow& flow) noexcept override {
    ++ended_;
    frames_ += flow.frames;
  }
  [[nodiscard]] std::vector<std::pair<std::string, u64>> gauges() const override {
    return {{"build", BUILD}, {"ended", ended_}, {"ended_frames", frames_}};
  }

 private:
  explicit Shortcut(StageContext& context) : flows_(context.flows()) {}
  Flows& flows_;
  FlowTimes times_;
  u16 closed_ = 0, kept_ = 0;
  u64 ended_ = 0, frames_ = 0;
};

}  // namespace

WEIR_PLUGIN(.name = NAME, .says = "a wire between the first two ports that offloads every flow",
            .keys = {Key::integer("idle_s", 0, 3600).otherwise("60").as("FlowTimes"),
                     Key::integer("hard_s", 0, 3600).otherwise("0").as("FlowTimes"),
                     Key::integer("closed", 0, 65535).otherwise("0").as("a port whose flows are dropped; 0: none"),
                     Key::integer("kept", 0, 65535).otherwise("0").as("a port whose flows stay here; 0: none")},
            .drops = {DROPS}, .counters = {"offloaded"}, .make = Shortcut::make, .per_flow = PER_FLOW)
