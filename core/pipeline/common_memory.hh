// SPDX-License-Identifier: BSD-3-Clause
// common_memory: memory that stages of an instance have in common, by name: of user space alone, or maps that their kernel halves share.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/mapping.hh"
#include "core/kernel/bpffs.hh"
#include "core/kernel/object.hh"

namespace weir {

class CommonMemory {
 public:
  // Ordinary memory; or maps, of which an earlier run's of the same name and shape is adopted when `adopt`.
  CommonMemory() = default;
  CommonMemory(const PinFolder& pins, bool adopt) : pins_(&pins), adopt_(adopt) {}

  struct Piece {
    u8* bytes;
    bool first;  // nobody has asked for it before
    int fd;      // of the map; -1: it is none
  };
  // Fails for one that is there in another shape. `map`: what a kernel half calls it; an object that uses a map takes its name over.
  Result<Piece> get(const std::string& name, std::string_view map, std::size_t entry, u32 count);

  [[nodiscard]] std::vector<std::string> pin_names() const;
  Result<> prepare_pins() const;
  Result<> commit_pins() const;

 private:
  struct Held {
    std::optional<BpfMap> map;
    Mapping memory;
    std::size_t entry;
    u32 count;
  };
  const PinFolder* pins_ = nullptr;
  bool adopt_ = false;
  std::map<std::string, Held> held_;
};

}  // namespace weir
