// SPDX-License-Identifier: BSD-3-Clause
// eal: DPDK's environment, for modules that use DPDK. A library of its own (weir-eal): libweir does not need DPDK.
#pragma once

#include <string>
#include <vector>

#include "core/base/result.hh"
#include "core/base/types.hh"

namespace weir {

// Megabytes of memory that DPDK's tables of a process may take together: 4096, or half of what the machine has. The kernel gives a page
// when it is first written.
u32 eal_memory_mb() noexcept;

// Starts DPDK's environment once in a process, whichever module asks first: without hugepages, devices and files of its own. The calling
// thread keeps the CPUs that it may run on. To be called from Stage::bind() or later, never from make().
Result<> ensure_eal();

struct EalNeeds {
  std::vector<std::string> words;    // options of DPDK's, which come before weir's own of the same name
  std::vector<std::string> devices;  // PCI addresses, and others that are not virtual
  u64 bytes = 0;                     // of memory beside that of tables
};
// The same with options. Where it has been started already, these come too late, and it stays as it is.
Result<> ensure_eal(const EalNeeds& needs);

// What DPDK has to say of what the calling thread does, while this lives. Else its lines go to stderr.
class EalLines {
 public:
  EalLines() noexcept;
  EalLines(const EalLines&) = delete;
  ~EalLines();
  // As one line, as the end of a sentence: ": this; that", or nothing.
  [[nodiscard]] std::string tail() const;
  void add(const char* text, std::size_t size) { said_.append(text, size); }

 private:
  std::string said_;
  EalLines* before_;
};

}  // namespace weir
