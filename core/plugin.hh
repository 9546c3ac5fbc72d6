// SPDX-License-Identifier: BSD-3-Clause
// plugin: all that a user half includes.
#pragma once

#include "bpf/abi/link.h"
#include "core/frame/wire.hh"
#include "core/pipeline/stage.hh"
#include "core/pipeline/state.hh"

// Changed whenever a plugin built against an earlier libweir would not fit.
#define WEIR_PLUGIN_ABI "weir-0.5"

// Ends a user half: WEIR_PLUGIN(.name = "patch", .says = "…", .keys = {…}, .drops = {…}, …, .make = …, .kernel_half = …)
#define WEIR_PLUGIN(...)                                                            \
  extern "C" __attribute__((visibility("default"))) const char weir_plugin_abi[];   \
  const char weir_plugin_abi[] = WEIR_PLUGIN_ABI;                                   \
  extern "C" __attribute__((visibility("default"))) const weir::Plugin weir_plugin; \
  const weir::Plugin weir_plugin{__VA_ARGS__};

// kernel_half for the skeleton that bpftool makes of NAME.bpf.c: include "NAME.skel.h" first.
#define WEIR_KERNEL_HALF(skeleton)                      \
  []() -> std::span<const weir::u8> {                   \
    std::size_t size = 0;                               \
    const void* bytes = skeleton::elf_bytes(&size);     \
    return {static_cast<const weir::u8*>(bytes), size}; \
  }
