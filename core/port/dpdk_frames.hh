// SPDX-License-Identifier: BSD-3-Clause
// dpdk_frames: the frames of an instance as DPDK's drivers see them: a mempool whose mbufs are headers, each of one frame for good.
#pragma once

#include <rte_mbuf.h>
#include <rte_mempool.h>

#include <atomic>
#include <memory>

#include "core/frame/pool.hh"

namespace weir {

// What a driver takes out of the mempool are free frames of the FramePool, and what it puts back is free there: there is one pool. So a
// frame goes from one port to another, whatever their drivers are, without a copy, and its header stays behind.
class DpdkFrames {
 public:
  static constexpr u32 headroom = 256;                            // in front of a frame that comes in, as the kernel has it
  static constexpr u32 margin = headroom - RTE_PKTMBUF_HEADROOM;  // of it, that no mbuf reaches

  // That of all ports over one pool; it goes with the last of them.
  static Result<std::shared_ptr<DpdkFrames>> over(FramePool& pool);
  DpdkFrames(const DpdkFrames&) = delete;
  ~DpdkFrames();

  // The calling thread's cache of free frames, for what drivers take and put back meanwhile.
  class Caller {
   public:
    Caller(DpdkFrames& frames, FrameCache& cache) noexcept;
    Caller(const Caller&) = delete;
    ~Caller();
    i64 held = 0;  // frames that drivers got, less those that they gave

   private:
    friend class DpdkFrames;
    DpdkFrames& frames_;
    FrameCache& cache_;
  };

  [[nodiscard]] rte_mempool* pool() const noexcept { return mempool_; }
  // Frames that drivers hold. They travel between the rings of devices, so that only the sum of all ports tells anything.
  [[nodiscard]] u32 held() const noexcept { return static_cast<u32>(held_.load(std::memory_order_relaxed)); }
  // Whether it is the header of a frame, whole and nobody else's.
  [[nodiscard]] bool owns(const rte_mbuf* header) const noexcept {
    const u64 offset = static_cast<u64>(static_cast<const u8*>(header->buf_addr) - frames_.base()) - margin;
    return offset < frames_.bytes() && header == header_of(offset) && header->nb_segs == 1 && rte_mbuf_refcnt_read(header) == 1;
  }
  // The header of a frame that is to leave.
  // Puts the bytes of a frame that was dressed, and that nobody took, back to where it says.
  void undress(const Frame& frame) const noexcept;
  [[nodiscard]] rte_mbuf* dress(const Frame& frame) const noexcept {
    const u64 offset = frames_.of(frame.data);
    rte_mbuf* header = header_of(offset);
    header->data_off = static_cast<u16>(bytes_within(frame, offset) - static_cast<u8*>(header->buf_addr));
    header->data_len = static_cast<u16>(frame.length);
    header->pkt_len = frame.length;
    header->ol_flags = RTE_MBUF_F_EXTERNAL;
    return header;
  }

 private:
  explicit DpdkFrames(FramePool& pool) noexcept : frames_(pool) {}
  Result<> make();
  void fill_in(rte_mbuf* header, u64 offset) noexcept;
  [[nodiscard]] rte_mbuf* header_of(u64 offset) const noexcept {
    return reinterpret_cast<rte_mbuf*>(first_ + (offset >> shift_) * stride_);
  }
  // See dress().
  [[nodiscard]] u8* bytes_within(const Frame& frame, u64 offset) const noexcept;

  // Of struct rte_mempool_ops.
  static int give(rte_mempool* mempool, void** headers, unsigned number) noexcept;
  static int take_back(rte_mempool* mempool, void* const* headers, unsigned number) noexcept;
  static unsigned count(const rte_mempool* mempool) noexcept;
  static Result<> register_ops();

  FramePool& frames_;
  rte_mempool* mempool_ = nullptr;
  u8* first_ = nullptr;  // header
  std::size_t stride_ = 0;
  u32 shift_ = 0;      // of a frame's size
  bool open_ = false;  // between its making and its end, when mbufs go to and fro that stand for nothing
  std::atomic<i64> held_{0};
};

}  // namespace weir
