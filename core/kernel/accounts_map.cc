// SPDX-License-Identifier: BSD-3-Clause
// accounts_map: rows as one value where that is small enough, else one by one.
#include "core/kernel/accounts_map.hh"

#include <fcntl.h>
#include <linux/bpf.h>

namespace weir {
namespace {

MapShape in_rows(u32 rows, u32 blocks) { return {BPF_MAP_TYPE_ARRAY, 4, static_cast<u32>(sizeof(account)) * blocks, rows, BPF_F_MMAPABLE}; }

MapShape whole(u32 rows, u32 blocks) {
  return {BPF_MAP_TYPE_ARRAY, 4, static_cast<u32>(sizeof(account)) * blocks * rows, 1, BPF_F_MMAPABLE};
}

}  // namespace

// Kernels before 6.0 take no value above KMALLOC_MAX_SIZE, 4 MiB (kernel/bpf/arraymap.c, array_map_alloc_check).
Result<AccountsMap> AccountsMap::create(u32 rows, u32 blocks, u64 largest) {
  if (u64{sizeof(account)} * blocks * rows <= largest)
    if (Result<BpfMap> made = BpfMap::create("accounts", whole(rows, blocks))) return AccountsMap(std::move(*made), blocks, true);
  return AccountsMap(TRY(BpfMap::create("accounts", in_rows(rows, blocks))), blocks, false);
}

Result<AccountsMap> AccountsMap::adopt(Fd fd, u32 rows, u32 blocks) {
  Fd again(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
  if (u64{sizeof(account)} * blocks * rows <= largest_value)
    if (Result<BpfMap> found = BpfMap::adopt(std::move(again), whole(rows, blocks))) return AccountsMap(std::move(*found), blocks, true);
  return AccountsMap(TRY(BpfMap::adopt(std::move(fd), in_rows(rows, blocks))), blocks, false);
}

}  // namespace weir
