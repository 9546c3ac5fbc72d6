// SPDX-License-Identifier: BSD-3-Clause
// dpdk_port: any device that DPDK has a driver for, as a port.
#pragma once

#include <rte_ethdev.h>

#include "core/port/dpdk_frames.hh"
#include "core/port/driver.hh"

namespace weir {

class DpdkQueue final : public Queue {
 public:
  struct Place {
    u16 device, number;
    PortSlot port;
    bool receives;
  };
  // `copies`: mbufs that the device's driver takes in place of those that are headers of frames; null: it takes these. `tells`: of the port
  // that tells the frames that all of them hold.
  DpdkQueue(const Place& place, FramePool& pool, DpdkFrames& frames, rte_mempool* copies, bool tells, bool cleans) noexcept
      : place_(place), pool_(pool), frames_(frames), copies_(copies), tells_(tells), cleans_(cleans) {}

  u32 receive(Burst& burst, FrameCache& cache) noexcept override;
  u32 transmit(const Frame* frames, u32 number, FrameCache& cache) noexcept override;
  bool reclaim(FrameCache& cache) noexcept override;
  [[nodiscard]] u32 held() const noexcept override { return tells_ ? frames_.held() : 0; }
  [[nodiscard]] bool silent() const noexcept override { return !place_.receives; }
  // That the device has taken.
  [[nodiscard]] u64 taken() const noexcept { return taken_.load(std::memory_order_relaxed); }

 private:
  [[nodiscard]] Frame frame_of(u8* data, u32 length) const noexcept;
  void copy_in(Burst& burst, rte_mbuf* first, FrameCache& cache) noexcept;
  u32 copy_out(const Frame* frames, u32 number, rte_mbuf** headers) noexcept;

  Place place_;
  FramePool& pool_;
  DpdkFrames& frames_;
  rte_mempool* copies_;
  bool tells_, cleans_;
  u32 quiet_ = 0;  // turns since it last sent
  std::atomic<u64> taken_{0};
};

class DpdkPort final : public Port {
 public:
  static Result<std::unique_ptr<Port>> open(const ConfigNode& keys, const PortContext& context);
  // Stops the device, and takes it out of DPDK where that has brought it in.
  ~DpdkPort() override;

  [[nodiscard]] u32 queues() const noexcept override { return static_cast<u32>(queues_.size()); }
  [[nodiscard]] Queue& queue(u32 index) noexcept override { return *queues_[index]; }
  [[nodiscard]] u32 longest() const noexcept override { return longest_; }
  [[nodiscard]] Mac mac() const noexcept override;
  [[nodiscard]] u32 mtu() const noexcept override { return mtu_; }
  [[nodiscard]] std::vector<std::pair<std::string, std::string>> facts() const override;
  [[nodiscard]] std::vector<std::string> warnings() const override;
  Lost take_lost() override;

 private:
  DpdkPort(std::string name, FramePool& pool) : name_(std::move(name)), pool_(pool) {}
  // The steps of open(), in this order. What they take hold of the destructor gives back.
  Result<> claim(const std::string& port);
  Result<> find(const std::string& device);
  Result<> configure(const ConfigNode& keys);
  Result<> set_up(const ConfigNode& keys, const PortContext& context);
  Result<> go(const ConfigNode& keys, const PortContext& context);

  std::string name_;  // of the device: the words for DPDK up to the first comma
  FramePool& pool_;
  bool claimed_ = false;
  bool brought_ = false;     // into DPDK, by this port
  bool configured_ = false;  // and since then to be stopped and closed
  u16 device_ = RTE_MAX_ETHPORTS;
  rte_eth_dev_info info_{};
  std::shared_ptr<DpdkFrames> frames_;
  rte_mempool* copies_ = nullptr;
  u32 mtu_ = 0, longest_ = 0;
  std::string spread_, promiscuous_;  // how frames come to queues; whether it takes those of other stations
  std::vector<std::unique_ptr<DpdkQueue>> queues_;
  struct {
    u64 unread, refused;
  } told_{};  // by take_lost() before
};

}  // namespace weir
