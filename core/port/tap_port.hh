// SPDX-License-Identifier: BSD-3-Clause
// tap_port: a tap device of the kernel: what the host sends by it comes in, and what goes out the host receives.
#pragma once

#include "core/port/driver.hh"

namespace weir {

extern const PortDriver tap_driver;

}  // namespace weir
