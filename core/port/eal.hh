// SPDX-License-Identifier: BSD-3-Clause
// eal: DPDK's environment, for modules that use DPDK's tables. A library of its own (weir-eal): libweir does not need DPDK.
#pragma once

#include "core/base/result.hh"
#include "core/base/types.hh"

namespace weir {

// Megabytes of memory that DPDK's tables of a process may take together: 4096, or half of what the machine has. The kernel gives a page
// when it is first written.
u32 eal_memory_mb() noexcept;

// Starts DPDK's environment once in a process, whichever module asks first: without hugepages, devices and files of its own. The calling
// thread keeps the CPUs that it may run on. To be called from Stage::bind() or later, never from make().
Result<> ensure_eal();

}  // namespace weir
