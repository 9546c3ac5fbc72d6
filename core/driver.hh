// SPDX-License-Identifier: BSD-3-Clause
// driver: all that a port driver of a module includes.
#pragma once

#include "core/plugin.hh"
#include "core/port/driver.hh"

// Ends a module: WEIR_PORT_DRIVER(.name = "pcap", .says = "…", .keys = {…}, …, .queues = …, .open = …)
#define WEIR_PORT_DRIVER(...)                                                           \
  extern "C" __attribute__((visibility("default"))) const char weir_plugin_abi[];       \
  const char weir_plugin_abi[] = WEIR_PLUGIN_ABI;                                       \
  extern "C" __attribute__((visibility("default"))) const weir::PortDriver weir_driver; \
  const weir::PortDriver weir_driver{__VA_ARGS__};
