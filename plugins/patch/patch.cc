// SPDX-License-Identifier: BSD-3-Clause
// patch: what comes in on one port goes out on its partner, both ways. Frames of a port without a partner are dropped as "unpaired".
//   [[pipeline.stage]]
//   plugin = "patch"
//   pairs = [["a", "b"], ["c", "d"]]
#include "core/plugin.hh"

#include "plugins/patch/patch.h"

#include "patch.skel.h"

namespace {

using namespace weir;

class Patch final : public Stage {
 public:
  static Result<std::unique_ptr<Stage>> make(const ConfigNode& keys, StageContext& context) {
    std::unique_ptr<Patch> made(new Patch);
    for (const ConfigValue& pair : keys.list("pairs")) {
      const auto& ends = std::get<std::vector<ConfigValue>>(pair.value);
      const std::string &left = std::get<std::string>(ends[0].value), &right = std::get<std::string>(ends[1].value);
      const u16 a = context.port(left)->value, b = context.port(right)->value;
      if (a == b) return keys.refuse("pairs", fmt::format("port \"{}\" is its own partner; name two ports", left));
      for (const auto& [slot, name] : {std::pair(a, left), std::pair(b, right)})
        if (made->partner_[slot] != PATCH_NO_PARTNER)
          return keys.refuse("pairs", fmt::format("port \"{}\" is in two pairs; it may have one partner", name));
      made->partner_[a] = static_cast<u8>(b);
      made->partner_[b] = static_cast<u8>(a);
    }
    return made;
  }

  Result<> bind(StageMemory& memory) override {
    std::ranges::copy(partner_, TRY(memory.array<patch_config>(".data.config", 1)).front().partner);
    return {};
  }

  void process(Burst& burst) noexcept override {
    for (Frame& frame : burst) {
      const u8 partner = partner_[frame.port.value];
      if (partner == PATCH_NO_PARTNER) burst.drop(frame, PATCH_UNPAIRED);
      else burst.transmit(frame, PortSlot{partner});
    }
  }

 private:
  Patch() { partner_.fill(PATCH_NO_PARTNER); }
  std::array<u8, WEIR_MAX_PORTS> partner_;
};

}  // namespace

WEIR_PLUGIN(.name = "patch", .says = "what comes in on one port goes out on its partner",
            .keys = {Key::list("pairs", Key::list("", Key::port(""), 2, 2), 1, WEIR_MAX_PORTS / 2)
                         .as("pairs of ports, each port in at most one")},
            .drops = {"unpaired"}, .make = Patch::make, .kernel_half = WEIR_KERNEL_HALF(patch))
