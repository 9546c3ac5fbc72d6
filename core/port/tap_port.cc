// SPDX-License-Identifier: BSD-3-Clause
// tap_port: queues of /dev/net/tun, each frame a read or a write of its own. No offloads: the kernel computes checksums and cuts segments
// before a frame comes in.
//   [[port]]  driver = "tap"  device = "tap0"  mtu = 1500
#include "core/port/tap_port.hh"

#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/base/fd.hh"

namespace weir {
namespace {

constexpr u32 vlan_tag = 4;
constexpr i64 most_queues = 64, least_mtu = 68, most_mtu = 4096 - FramePool::front - ETH_HLEN - vlan_tag - 1;

class TapQueue final : public Queue {
 public:
  TapQueue(const PortContext& context, Fd tun, const Fd& never)
      : pool_(context.pool), slot_(context.slot), tun_(std::move(tun)), never_(never) {}

  u32 receive(Burst& burst, FrameCache& cache) noexcept override {
    u32 got = 0;
    u64 chunk = 0;
    bool taken = false;
    while (burst.room() > 0) {
      if (!taken && cache.take(&chunk, 1) != 1) break;  // the device's queue holds them, and counts those that it has no room for
      taken = true;
      u8* data = pool_.base() + chunk + FramePool::front;
      const u32 room = pool_.size() - FramePool::front;
      const ssize_t length = ::read(tun_.get(), data, room);
      if (length < 0) {
        note_error(errno);
        break;
      }
      if (length == room) {  // or longer: the kernel gives as much as there is room for
        ++unread_.too_long;
        unread_.bytes += room;
        continue;
      }
      burst.push({.data = data, .length = static_cast<u32>(length), .port = slot_});
      taken = false;
      ++got;
    }
    if (taken) cache.release(chunk);
    return got;
  }

  u32 transmit(const Frame* frames, u32 number, FrameCache& cache) noexcept override {
    for (u32 i = 0; i < number; ++i) {
      const ssize_t sent = ::write(tun_.get(), frames[i].data, frames[i].length);
      if (sent < 0) {
        note_error(errno);
        ++refused_;
      }
      cache.release(frames[i]);
    }
    return number;
  }
  bool reclaim(FrameCache&) noexcept override { return false; }
  [[nodiscard]] u32 held() const noexcept override { return 0; }
  [[nodiscard]] int descriptor() const noexcept override { return tun_.get(); }
  [[nodiscard]] const Fd& tun() const noexcept { return tun_; }

 private:
  // The descriptor of a device that has gone says without end that there is an error, and would let no worker sleep: another one takes its
  // place, at which nothing ever happens and every call fails.
  void note_error(int error) noexcept {
    if (error == EBADFD) static_cast<void>(::dup3(never_.get(), tun_.get(), O_CLOEXEC));
  }
  FramePool& pool_;
  PortSlot slot_;
  Fd tun_;
  const Fd& never_;
};

ifreq request_of(const std::string& device) {
  ifreq request{};
  device.copy(request.ifr_name, IFNAMSIZ - 1);
  return request;
}

class TapPort final : public Port {
 public:
  static Result<std::unique_ptr<Port>> open(const ConfigNode& keys, const PortContext& context) {
    const std::string& device = keys.string("device");
    const std::string who = "tap device " + device;
    const u32 queues = static_cast<u32>(keys.integer("queues")), mtu = static_cast<u32>(keys.integer("mtu"));
    if (mtu + ETH_HLEN + vlan_tag >= context.pool.size() - FramePool::front)
      return invalid("mtu = {} does not fit into a frame; set [frames] size = 4096, or mtu = {}", mtu,
                     context.pool.size() - FramePool::front - ETH_HLEN - vlan_tag - 1);
    std::unique_ptr<TapPort> made(new TapPort(device, mtu));
    if (!made->never_) return fail_errno(errno, who + ": create an epoll descriptor");
    for (u32 queue = 0; queue < queues; ++queue) {
      Fd tun(::open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC));
      if (!tun) return fail_errno(errno, who + ": open /dev/net/tun");
      ifreq request = request_of(device);
      request.ifr_flags = static_cast<short>(IFF_TAP | IFF_NO_PI | (queues > 1 ? IFF_MULTI_QUEUE : 0));
      if (::ioctl(tun.get(), TUNSETIFF, &request) != 0) return std::unexpected(refused(errno, who, queues));
      if (::ioctl(tun.get(), TUNSETOFFLOAD, 0) != 0) return fail_errno(errno, who + ": switch offloads off");
      made->queues_.push_back(std::make_unique<TapQueue>(context, std::move(tun), made->never_));
    }
    TRY_VOID(set_up(keys, who, device, mtu));
    return made;
  }

  [[nodiscard]] u32 queues() const noexcept override { return static_cast<u32>(queues_.size()); }
  [[nodiscard]] Queue& queue(u32 index) noexcept override { return *queues_[index]; }
  [[nodiscard]] u32 longest() const noexcept override { return mtu_ + ETH_HLEN + vlan_tag; }
  [[nodiscard]] std::vector<std::pair<std::string, std::string>> facts() const override { return {{"device", device_}}; }

  [[nodiscard]] std::vector<std::string> warnings() const override {
    ifreq request{};
    // Of the descriptor's own device, whatever its name is now.
    if (::ioctl(queues_.front()->tun().get(), TUNGETIFF, &request) != 0)
      return {fmt::format("tap device {} is gone; nothing is received or sent until weir is started again", device_)};
    const Fd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    const std::string name = request.ifr_name;
    if (::ioctl(socket.get(), SIOCGIFFLAGS, &request) != 0 || (request.ifr_flags & IFF_UP) != 0) return {};
    return {fmt::format("tap device {0} is down; nothing is received or sent until: ip link set dev {0} up", name)};
  }

 private:
  TapPort(std::string device, u32 mtu) : device_(std::move(device)), mtu_(mtu) {}

  // What is as it should be is not set: a device that was made for a user without privileges is set up by who made it.
  static Result<> set_up(const ConfigNode& keys, const std::string& who, const std::string& device, u32 mtu) {
    const Fd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    ifreq request = request_of(device);
    if (keys.has("mac")) {
      const Mac mac = keys.mac("mac");
      request.ifr_hwaddr.sa_family = ARPHRD_ETHER;
      std::copy(mac.begin(), mac.end(), reinterpret_cast<u8*>(request.ifr_hwaddr.sa_data));
      if (::ioctl(socket.get(), SIOCSIFHWADDR, &request) != 0) return fail_errno(errno, who + ": set its mac");
    }
    request = request_of(device);
    if (::ioctl(socket.get(), SIOCGIFMTU, &request) != 0) return fail_errno(errno, who + ": ask for its mtu");
    if (std::exchange(request.ifr_mtu, static_cast<int>(mtu)) != static_cast<int>(mtu) && ::ioctl(socket.get(), SIOCSIFMTU, &request) != 0)
      return fail_errno(errno, fmt::format("{}: set its mtu to {}", who, mtu));
    if (::ioctl(socket.get(), SIOCGIFFLAGS, &request) != 0) return fail_errno(errno, who + ": ask for its flags");
    if ((request.ifr_flags & IFF_UP) != 0) return {};
    request.ifr_flags = static_cast<short>(request.ifr_flags | IFF_UP);
    if (::ioctl(socket.get(), SIOCSIFFLAGS, &request) != 0) return fail_errno(errno, who + ": set it up");
    return {};
  }

  static Error refused(int error, const std::string& who, u32 queues) {
    const char* why = "";
    if (error == EPERM) why = " (it needs CAP_NET_ADMIN, or a persistent device of this user: ip tuntap add mode tap user NAME)";
    if (error == EBUSY) why = " (another program has it open)";
    if (error == EINVAL)
      why = queues > 1 ? " (there is a device of this name that is no tap, or one without multi_queue)"
                       : " (there is a device of this name that is no tap, or one with multi_queue)";
    return std::move(fail_errno(error, fmt::format("{}: make or open it{}", who, why))).error();
  }

  Fd never_{::epoll_create1(EPOLL_CLOEXEC)};  // which has nothing to wait for
  std::vector<std::unique_ptr<TapQueue>> queues_;
  std::string device_;
  u32 mtu_;
};

std::string refuse(const ConfigNode& keys) {
  const std::string& device = keys.string("device");
  const bool bad = device.empty() || device.size() >= IFNAMSIZ || device == "." || device == ".." ||
                   device.find_first_of("/:% \t\n\v\f\r") != std::string::npos;
  return bad ? fmt::format("device is \"{}\", must be the name of a netdev: 1 to 15 characters without '/', ':', '%' or space", device)
             : "";
}

}  // namespace

const PortDriver tap_driver{
    .name = "tap",
    .says = "a tap device: what the host sends by it comes in",
    .keys = {Key::string("device").as("made with the port and removed with it; one that is there and persistent stays"),
             Key::integer("queues", 1, most_queues).otherwise("1"), Key::integer("mtu", least_mtu, most_mtu).otherwise("1500"),
             Key::station("mac").optional().as("address of the host's side; left out: the kernel's choice")},
    .refuse = refuse,
    .queues = [](const ConfigNode& keys) -> u32 { return static_cast<u32>(keys.integer("queues")); },
    .open = TapPort::open,
};

}  // namespace weir
