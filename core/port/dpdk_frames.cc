// SPDX-License-Identifier: BSD-3-Clause
// dpdk_frames: mbufs in one row, in the order of the frames that they are headers of.
#include "core/port/dpdk_frames.hh"

#include <rte_errno.h>
#include <rte_malloc.h>
#include <rte_memory.h>

#include <bit>
#include <cstring>
#include <map>
#include <mutex>

namespace weir {
namespace {

constexpr const char* ops_name = "weir";

// Behind an mbuf in its object: what DPDK wants to know of memory that is not its own.
struct Object {
  rte_mbuf header;
  rte_mbuf_ext_shared_info shared;
};

thread_local DpdkFrames::Caller* caller = nullptr;

}  // namespace

DpdkFrames::Caller::Caller(DpdkFrames& frames, FrameCache& cache) noexcept : frames_(frames), cache_(cache) { caller = this; }

DpdkFrames::Caller::~Caller() {
  caller = nullptr;
  if (held != 0) frames_.held_.fetch_add(held, std::memory_order_relaxed);
}

Result<std::shared_ptr<DpdkFrames>> DpdkFrames::over(FramePool& pool) {
  static std::mutex mutex;
  static std::map<FramePool*, std::weak_ptr<DpdkFrames>> all;
  const std::scoped_lock hold(mutex);
  if (auto made = all[&pool].lock()) return made;
  std::shared_ptr<DpdkFrames> made(new DpdkFrames(pool));
  TRY_VOID(made->make());
  all[&pool] = made;
  return made;
}

DpdkFrames::~DpdkFrames() {
  open_ = false;
  rte_mempool_free(mempool_);
}

Result<> DpdkFrames::register_ops() {
  static rte_mempool_ops ops{.name = {},
                             .alloc = [](rte_mempool*) { return 0; },
                             .free = [](rte_mempool*) {},
                             .enqueue = take_back,
                             .dequeue = give,
                             .get_count = count};
  static const int registered = [] {
    std::strcpy(ops.name, ops_name);
    return rte_mempool_register_ops(&ops);
  }();
  if (registered < 0) return fail("give frames to DPDK: register a mempool: {}", rte_strerror(-registered));
  return {};
}

Result<> DpdkFrames::make() {
  TRY_VOID(register_ops());
  static u32 number = 0;  // a name is another one's until its mempool is gone
  // One row: headers are nothing that a device reads, so that they may lie across pages, and next to each other.
  constexpr unsigned flags = RTE_MEMPOOL_F_NO_IOVA_CONTIG | RTE_MEMPOOL_F_NO_SPREAD;
  mempool_ = rte_mempool_create_empty(fmt::format("weir-{}", number++).c_str(), frames_.count(), sizeof(Object), 0,
                                      sizeof(rte_pktmbuf_pool_private), SOCKET_ID_ANY, flags);
  const auto refuse = [&](int why) {
    return fail("give {} frames to DPDK: {}; give it more memory, by -m in [dpdk] eal, or lower [frames] count", frames_.count(),
                rte_strerror(why));
  };
  if (mempool_ == nullptr) return refuse(rte_errno);
  rte_pktmbuf_pool_private shape{
      .mbuf_data_room_size = static_cast<u16>(frames_.size() - margin), .mbuf_priv_size = 0, .flags = RTE_PKTMBUF_POOL_F_PINNED_EXT_BUF};
  if (const int why = rte_mempool_set_ops_byname(mempool_, ops_name, this); why != 0) return refuse(-why);
  rte_pktmbuf_pool_init(mempool_, &shape);
  if (const int made = rte_mempool_populate_default(mempool_); made < static_cast<int>(frames_.count()))
    return refuse(made < 0 ? -made : ENOMEM);
  stride_ = mempool_->header_size + mempool_->elt_size + mempool_->trailer_size;
  shift_ = static_cast<u32>(std::countr_zero(frames_.size()));
  bool in_row = true;
  std::pair<DpdkFrames*, bool*> to{this, &in_row};
  rte_mempool_obj_iter(
      mempool_,
      [](rte_mempool*, void* opaque, void* object, unsigned index) {
        auto& [self, row] = *static_cast<std::pair<DpdkFrames*, bool*>*>(opaque);
        if (index == 0) self->first_ = static_cast<u8*>(object);
        const u64 offset = u64{index} * self->frames_.size();
        if (object != self->header_of(offset)) *row = false;
        else self->fill_in(static_cast<rte_mbuf*>(object), offset);
      },
      &to);
  if (!in_row) return fail("give {} frames to DPDK: it has no memory in one piece; give it more, by -m in [dpdk] eal", frames_.count());
  open_ = true;
  return {};
}

void DpdkFrames::fill_in(rte_mbuf* header, u64 offset) noexcept {
  auto* object = reinterpret_cast<Object*>(header);
  std::memset(static_cast<void*>(object), 0, sizeof *object);
  header->buf_addr = frames_.base() + offset + margin;
  header->buf_iova = rte_mem_virt2iova(header->buf_addr);
  header->buf_len = static_cast<u16>(frames_.size() - margin);
  header->data_off = RTE_PKTMBUF_HEADROOM;
  header->pool = mempool_;
  header->nb_segs = 1;
  header->port = RTE_MBUF_PORT_INVALID;
  header->ol_flags = RTE_MBUF_F_EXTERNAL;
  header->shinfo = &object->shared;
  object->shared.free_cb = [](void*, void*) {};  // for DPDK's checks: what is pinned is never let go
  rte_mbuf_refcnt_set(header, 1);
  rte_mbuf_ext_refcnt_set(&object->shared, 1);
}

// Programs that make frames longer may have used more of the headroom than an mbuf can say.
u8* DpdkFrames::bytes_within(const Frame& frame, u64 offset) const noexcept {
  u8* least = frames_.base() + offset + margin;
  if (frame.data >= least) return frame.data;
  std::memmove(least, frame.data, frame.length);
  return least;
}

void DpdkFrames::undress(const Frame& frame) const noexcept {
  const u8* least = frames_.base() + frames_.of(frame.data) + margin;
  if (frame.data < least) std::memmove(frame.data, least, frame.length);
}

int DpdkFrames::give(rte_mempool* mempool, void** headers, unsigned number) noexcept {
  auto& self = *static_cast<DpdkFrames*>(mempool->pool_config);
  if (!self.open_) return -ENOENT;
  constexpr unsigned most = FrameCache::capacity;
  if (number > most) {  // of a driver that fills its ring at once; all or none
    for (unsigned at = 0; at < number; at += most)
      if (give(mempool, headers + at, std::min(most, number - at)) != 0) return take_back(mempool, headers, at), -ENOENT;
    return 0;
  }
  u64 offsets[most];
  FrameCache* cache = caller != nullptr && &caller->frames_ == &self ? &caller->cache_ : nullptr;
  if (const u32 got = cache != nullptr ? cache->take(offsets, number) : self.frames_.take(offsets, number); got < number) {
    for (u32 i = 0; i < got && cache != nullptr; ++i) cache->release(offsets[i]);
    if (cache == nullptr) self.frames_.release(offsets, got);
    return -ENOENT;
  }
  for (unsigned i = 0; i < number; ++i) headers[i] = self.header_of(offsets[i]);
  if (cache != nullptr) caller->held += number;
  else self.held_.fetch_add(number, std::memory_order_relaxed);
  return 0;
}

int DpdkFrames::take_back(rte_mempool* mempool, void* const* headers, unsigned number) noexcept {
  auto& self = *static_cast<DpdkFrames*>(mempool->pool_config);
  if (!self.open_) return 0;
  FrameCache* cache = caller != nullptr && &caller->frames_ == &self ? &caller->cache_ : nullptr;
  for (unsigned i = 0; i < number; ++i) {
    const u64 offset = static_cast<u64>(static_cast<u8*>(static_cast<rte_mbuf*>(headers[i])->buf_addr) - self.frames_.base()) - margin;
    if (cache != nullptr) cache->release(offset);
    else self.frames_.release(&offset, 1);
  }
  if (cache != nullptr) caller->held -= number;
  else self.held_.fetch_sub(number, std::memory_order_relaxed);
  return 0;
}

unsigned DpdkFrames::count(const rte_mempool* mempool) noexcept {
  const auto& self = *static_cast<const DpdkFrames*>(mempool->pool_config);
  return self.open_ ? self.frames_.free() : mempool->size;
}

}  // namespace weir
