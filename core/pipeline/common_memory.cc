// SPDX-License-Identifier: BSD-3-Clause
// common_memory: made when it is first asked for, and kept until the instance ends.
#include "core/pipeline/common_memory.hh"

#include <linux/bpf.h>

namespace weir {

Result<CommonMemory::Piece> CommonMemory::get(const std::string& name, std::string_view map_name, std::size_t entry, u32 count) {
  const auto at = held_.find(name);
  if (at != held_.end()) {
    const Held& held = at->second;
    if (held.entry != entry || held.count != count)
      return fail("{}: has {} entries of {} bytes, and {} of {} are asked for; another size takes a new start", name, held.count,
                  held.entry, count, entry);
    return Piece{held.memory.data(), false, held.map ? held.map->fd() : -1};
  }
  if (pins_ == nullptr) {
    Held& held = held_.emplace(name, Held{std::nullopt, TRY(Mapping::anonymous(entry * count)), entry, count}).first->second;
    return Piece{held.memory.data(), true, -1};
  }
  const MapShape shape{BPF_MAP_TYPE_ARRAY, 4, static_cast<u32>(entry), count, BPF_F_MMAPABLE};
  Result<BpfMap> map = fail("not adopted");
  if (adopt_) {
    if (Fd fd = TRY(pins_->get(name))) map = BpfMap::adopt(std::move(fd), shape);
  }
  if (!map) map = BpfMap::create(map_name, shape);
  BpfMap made = TRY(std::move(map));
  Mapping memory = TRY(made.map_memory());
  Held& held = held_.emplace(name, Held{std::move(made), std::move(memory), entry, count}).first->second;
  return Piece{held.memory.data(), true, held.map->fd()};
}

std::vector<std::string> CommonMemory::pin_names() const {
  std::vector<std::string> names;
  for (const auto& [name, held] : held_)
    if (held.map) names.push_back(name);
  return names;
}

Result<> CommonMemory::prepare_pins() const {
  for (const auto& [name, held] : held_)
    if (held.map) TRY_VOID(pins_->prepare(name, held.map->fd()));
  return {};
}

Result<> CommonMemory::commit_pins() const {
  for (const std::string& name : pin_names()) TRY_VOID(pins_->commit(name));
  return {};
}

}  // namespace weir
