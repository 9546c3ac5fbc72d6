// SPDX-License-Identifier: BSD-3-Clause
// egress: an egress program as a module: its host build and its BPF object.
#pragma once

#include <span>

#include "bpf/abi/egress.h"
#include "core/plugin.hh"

namespace weir {

struct EgressModule {
  const egress_program* host;
  std::span<const u8> elf;
};

}  // namespace weir

// One line makes a module of NAME.bpf.c: its host build defines weir_egress_NAME, its skeleton holds the object.
#define WEIR_EGRESS(program)                                                              \
  extern "C" const egress_program weir_egress_##program;                                  \
  extern "C" __attribute__((visibility("default"))) const char weir_plugin_abi[];         \
  const char weir_plugin_abi[] = WEIR_PLUGIN_ABI;                                         \
  extern "C" __attribute__((visibility("default"))) const weir::EgressModule weir_egress; \
  const weir::EgressModule weir_egress{&weir_egress_##program, WEIR_KERNEL_HALF(program)()};
