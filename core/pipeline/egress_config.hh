// SPDX-License-Identifier: BSD-3-Clause
// egress_config: from the keys of an egress program to the configuration struct that both of its builds read.
#pragma once

#include "bpf/abi/egress.h"
#include "core/config/node.hh"
#include "core/config/schema.hh"

namespace weir {

// What of a port's device keys take that are left out.
struct EgressDevice {
  Mac mac{};
  u32 mtu = 0xffff;  // a port without a device sets no limit
};

// The keys as the configuration file has them.
Schema egress_schema(const egress_program& program);

// What is wrong with the keys together, though each is right; null: nothing.
const char* refuse_egress_config(const egress_program& program, const ConfigNode& keys);

// Writes the keys into `into`, program.config_size bytes that programs may be reading.
void fill_egress_config(const egress_program& program, const ConfigNode& keys, const EgressDevice& device, u8* into);

}  // namespace weir
