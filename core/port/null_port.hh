// SPDX-License-Identifier: BSD-3-Clause
// null_port: nothing comes in, and what goes out is released. For measuring and for pipelines that end here.
#pragma once

#include "core/port/driver.hh"

namespace weir {

class NullPort final : public Port {
 public:
  [[nodiscard]] u32 queues() const noexcept override { return 1; }
  [[nodiscard]] Queue& queue(u32) noexcept override { return drain_; }

 private:
  class Drain final : public Queue {
   public:
    u32 receive(Burst&, FrameCache&) noexcept override { return 0; }
    u32 transmit(const Frame* frames, u32 number, FrameCache& cache) noexcept override {
      for (u32 i = 0; i < number; ++i) cache.release(frames[i]);
      return number;
    }
    bool reclaim(FrameCache&) noexcept override { return false; }
    [[nodiscard]] u32 held() const noexcept override { return 0; }
    [[nodiscard]] bool silent() const noexcept override { return true; }
  };
  Drain drain_;
};

extern const PortDriver null_driver;  // and a source of given frames

}  // namespace weir
