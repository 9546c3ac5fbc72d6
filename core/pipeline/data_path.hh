// SPDX-License-Identifier: BSD-3-Clause
// data_path: everything that workers read while frames flow. Built on the control side, changed only while no worker is in it.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/config/config.hh"
#include "core/pipeline/accounts.hh"
#include "core/pipeline/egress_chain.hh"
#include "core/pipeline/stage.hh"
#include "core/port/port.hh"

namespace weir {

class Lanes;

struct StageEntry {
  std::string name;
  const Plugin* plugin = nullptr;
  std::unique_ptr<Stage> stage;
  u32 number = 0;          // in the instance, as the metadata of a punted frame names it
  u32 block = 0;           // in the accounts
  Lanes* lanes = nullptr;  // of a parallel stage
};

struct Pipeline {
  std::string name;
  Miss miss = Miss::drop;
  std::vector<StageEntry> stages;
  [[nodiscard]] u32 first() const noexcept { return stages.empty() ? 0 : stages.front().number; }
};

// The way of a frame from a worker to the host's own network stack, as if it had come in by `port`.
class StackEntry {
 public:
  virtual ~StackEntry() = default;
  // Nothing, or why it does not take the frame.
  virtual std::optional<weir_drop> submit(PortSlot port, std::span<const u8> bytes) noexcept = 0;
  [[nodiscard]] virtual u32 held() const noexcept = 0;
};

struct PortEntry {
  std::string name;
  std::unique_ptr<Port> port;
  const Pipeline* pipeline = nullptr;  // null: frames only leave here
  EgressChain egress;
  bool fused = false;        // the chain runs where the kernel checks what comes out of it, and not what goes in
  bool kernel_only = false;  // its chain has a program that is not here: what user space would send there is a miss
  bool deleted = false;      // frames for the port are a miss. Changes while workers are at rest
  u32 longest = ~0u;         // bytes of a frame that the device takes; 0: it is down. Changes while workers read: by atomic_ref
  u32 block = 0;             // in the accounts
};

struct DataPath {
  explicit DataPath(Accounts table) : accounts(std::move(table)) {}
  Accounts accounts;
  StackEntry* stack = nullptr;  // null: no port has one; frames for the host stack are dropped as "stack_failed"
  std::vector<std::unique_ptr<Pipeline>> pipelines;
  std::vector<std::vector<PortSlot>> groups;  // by slot
  std::vector<PortEntry> ports;               // by slot
};

}  // namespace weir
