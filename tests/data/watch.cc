// SPDX-License-Identifier: BSD-3-Clause
// watch: a stage that is to see every frame, and lets each go on; for tests of the flow cache.
#include "core/plugin.hh"

namespace {

using namespace weir;

class Watch final : public Stage {
 public:
  static Result<std::unique_ptr<Stage>> make(const ConfigNode&, StageContext&) { return std::make_unique<Watch>(); }
  void process(Burst&) noexcept override {}
};

}  // namespace

WEIR_PLUGIN(.name = "watch", .says = "sees every frame", .make = Watch::make)
