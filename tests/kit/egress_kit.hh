// SPDX-License-Identifier: BSD-3-Clause
// egress_kit: run the host build and the kernel build of an egress program frame by frame, without devices. A verdict is transmitted() or
// drop().
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/egress.hh"
#include "core/kernel/accounts_map.hh"
#include "core/kernel/object.hh"
#include "core/pipeline/accounts.hh"
#include "kit/table.hh"

// Of the egress program that is linked into the test.
extern "C" const weir::EgressModule weir_egress;

namespace weir::kit {

inline Verdict transmitted() { return {WEIR_NEXT, 0}; }

// The host build, which runs over the frames that user space sends.
class EgressHost {
 public:
  // `keys`: as in the table of a file, "bytes = 1000, other = true". The port is that of a device with the address station(77) and an MTU
  // of 1500.
  static Result<EgressHost> make(const EgressModule& module, std::string_view keys);
  Outcome run(const Packet& bytes);
  [[nodiscard]] u64 counter(std::string_view name) const;

 private:
  explicit EgressHost(const egress_program& program) : program_(&program) {}
  const egress_program* program_;
  std::vector<u64> config_, state_, shared_;
};

// The build for the device entry, by BPF_PROG_TEST_RUN.
class EgressKernel {
 public:
  static Result<std::unique_ptr<EgressKernel>> load(const EgressModule& module, std::string_view keys);
  Result<Outcome> run(const Packet& bytes);
  [[nodiscard]] u64 counter(std::string_view name) const;

 private:
  EgressKernel(const egress_program& program, BpfObject object) : program_(program), object_(std::move(object)) {}
  Result<> set_up(const std::vector<u64>& config);
  const egress_program& program_;
  BpfObject object_;
  AccountsMap accounts_map_;
  std::vector<BpfMap> maps_;
  Mapping config_memory_, state_memory_;
  Accounts accounts_{Mapping(), 0, 0, 0};
};

std::string differences(EgressHost& build, const std::vector<Case>& cases);
std::string differences(EgressKernel& build, const std::vector<Case>& cases);
// The traffic through both builds; ports do not matter.
Result<std::size_t> both_builds_agree(const EgressModule& module, std::string_view keys, const Traffic& traffic);

}  // namespace weir::kit
