// SPDX-License-Identifier: BSD-3-Clause
// devmap: where frames that a program redirects go: device entries by key, each with an egress program or none. The contract is that of
// Documentation/bpf/map_devmap.rst, over both forms of the map, where the kernel itself keeps less of it.
#pragma once

#include <optional>
#include <vector>

#include "core/kernel/object.hh"

namespace weir {

enum class DevmapForm {
  array,  // BPF_MAP_TYPE_DEVMAP: the key is the index
  hash,   // BPF_MAP_TYPE_DEVMAP_HASH, Linux 5.4: any 32-bit key
};

// What a value is: the device alone, or the device and a program (Linux 5.8).
enum class DevmapValue { device, device_and_program };

enum class DevmapUpdate {
  any,      // BPF_ANY: make the entry, or replace it in one step
  noexist,  // BPF_NOEXIST: only make it
  exist,    // BPF_EXIST: only replace it
};

struct DeviceEntry {
  Ifindex device{};
  u32 program = 0;  // id of the egress program; 0: none
  friend bool operator==(const DeviceEntry&, const DeviceEntry&) = default;
};

class Devmap {
 public:
  Devmap() = default;
  // `entries`: keys 0 to entries - 1 of an array; the number of entries that a hash holds.
  static Result<Devmap> create(std::string_view name, DevmapForm form, u32 entries, DevmapValue value = DevmapValue::device_and_program);

  [[nodiscard]] const BpfMap& map() const noexcept { return map_; }
  [[nodiscard]] DevmapForm form() const noexcept;
  [[nodiscard]] DevmapValue value() const noexcept;

  // `program`: descriptor of a loaded egress program, or -1. One writer at a time: of `noexist` over an array and of `exist`, the kernel
  // does not keep the condition, so that it is looked at first. Failure::missing: `exist`, and there is no entry. Failure::invalid: there
  // is one under `noexist`, no such device, a key past the end, a program that may not stand on an entry. Whether that has frags support as
  // the programs have that redirect, the kernel asks of an array alone (kernel/bpf/core.c, map_type_contains_progs; a hash took one
  // on 6.18).
  Result<> set(u32 key, Ifindex device, int program = -1, DevmapUpdate how = DevmapUpdate::any) const;
  // Nothing where there is no entry, never was one, or its device is gone.
  [[nodiscard]] std::optional<DeviceEntry> get(u32 key) const noexcept;
  // Failure::missing: there was none.
  Result<> remove(u32 key) const;
  // In the order of the keys.
  [[nodiscard]] std::vector<std::pair<u32, DeviceEntry>> all() const;

 private:
  Result<> explain(int err, u32 key, Ifindex device, int program) const;
  BpfMap map_;
};

}  // namespace weir
