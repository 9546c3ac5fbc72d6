// SPDX-License-Identifier: BSD-3-Clause
// devmap: the kernel's two forms under one contract, and what its few error numbers mean.
#include "core/kernel/devmap.hh"

#include <bpf/bpf.h>
#include <linux/bpf.h>
#include <net/if.h>

#include <algorithm>
#include <cerrno>

namespace weir {
namespace {

constexpr u32 flags_of(DevmapUpdate how) noexcept {
  return how == DevmapUpdate::noexist ? BPF_NOEXIST : how == DevmapUpdate::exist ? BPF_EXIST : BPF_ANY;
}

bool is_there(Ifindex device) noexcept {
  char name[IF_NAMESIZE];
  return ::if_indextoname(device.value, name) != nullptr;
}

}  // namespace

Result<Devmap> Devmap::create(std::string_view name, DevmapForm form, u32 entries, DevmapValue value) {
  const u32 type = form == DevmapForm::array ? BPF_MAP_TYPE_DEVMAP : BPF_MAP_TYPE_DEVMAP_HASH;
  const u32 size = value == DevmapValue::device ? sizeof(u32) : sizeof(bpf_devmap_val);
  Devmap made;
  made.map_ = TRY(BpfMap::create(name, {type, sizeof(u32), size, entries, 0}));
  return made;
}

DevmapForm Devmap::form() const noexcept { return map_.shape().type == BPF_MAP_TYPE_DEVMAP ? DevmapForm::array : DevmapForm::hash; }

DevmapValue Devmap::value() const noexcept {
  return map_.shape().value_size == sizeof(u32) ? DevmapValue::device : DevmapValue::device_and_program;
}

Result<> Devmap::set(u32 key, Ifindex device, int program, DevmapUpdate how) const {
  if (device.value == 0) return invalid("device entry {}: interface index 0 is no device", key);  // an array would take it
  if (program == 0) return invalid("device entry {}: the kernel takes descriptor 0 for no program", key);
  if (program > 0 && value() == DevmapValue::device) return invalid("device entry {}: the map holds devices alone, and no programs", key);
  if (form() == DevmapForm::array && key >= map_.shape().entries)
    return invalid("device entry {}: the map has keys 0 to {}", key, map_.shape().entries - 1);
  const bool there = how != DevmapUpdate::any && get(key);
  if (how == DevmapUpdate::noexist && there) return invalid("device entry {}: there is one already", key);
  if (how == DevmapUpdate::exist && !there) return missing("device entry {}: there is none to replace", key);
  // An array refuses every BPF_NOEXIST (kernel/bpf/devmap.c, __dev_map_update_elem).
  const u32 flags = form() == DevmapForm::array ? flags_of(DevmapUpdate::any) : flags_of(how);
  bpf_devmap_val entry{};
  entry.ifindex = device.value;
  entry.bpf_prog.fd = program;  // a plain value is the first member alone
  if (::bpf_map_update_elem(map_.fd(), &key, &entry, flags) == 0) return {};
  return explain(errno, key, device, program);
}

// The kernel says EINVAL of a device that is not there, and of every program that may not stand on an entry.
Result<> Devmap::explain(int err, u32 key, Ifindex device, int program) const {
  if (err == EEXIST) return invalid("device entry {}: there is one already", key);
  if (err == E2BIG) return invalid("device entry {}: the map is full with {} entries", key, map_.shape().entries);
  if (err != EINVAL) return fail_errno(err, fmt::format("set device entry {}", key));
  if (!is_there(device)) return invalid("device entry {}: there is no device with index {}", key, device.value);
  if (program < 0) return fail_errno(err, fmt::format("set device entry {} to interface {}", key, device.value));
  return invalid(
      "device entry {}: the kernel does not take program {} for an entry: it must be loaded from a section \"xdp/devmap\", and with "
      "frags support (\"xdp.frags/devmap\") exactly where the programs that redirect have it",
      key, program_id(program));
}

std::optional<DeviceEntry> Devmap::get(u32 key) const noexcept {
  bpf_devmap_val entry{};
  if (!map_.get(key, &entry) || entry.ifindex == 0) return std::nullopt;
  return DeviceEntry{Ifindex{entry.ifindex}, entry.bpf_prog.id};  // a write takes a descriptor, a read gives back the id
}

Result<> Devmap::remove(u32 key) const {
  const bool there = get(key).has_value();
  if (::bpf_map_delete_elem(map_.fd(), &key) != 0 && errno != ENOENT && errno != EINVAL)
    return fail_errno(errno, fmt::format("remove device entry {}", key));
  if (!there) return missing("device entry {}: there is none", key);
  return {};
}

std::vector<std::pair<u32, DeviceEntry>> Devmap::all() const {
  std::vector<std::pair<u32, DeviceEntry>> entries;
  u32 key = 0;
  for (const u32* before = nullptr; ::bpf_map_get_next_key(map_.fd(), before, &key) == 0; before = &key)
    if (const auto entry = get(key)) entries.emplace_back(key, *entry);
  std::ranges::sort(entries, {}, &std::pair<u32, DeviceEntry>::first);
  return entries;
}

}  // namespace weir
