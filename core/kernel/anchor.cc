// SPDX-License-Identifier: BSD-3-Clause
// anchor: the tap that a program stands on.
#include "core/kernel/anchor.hh"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>

#include <thread>

namespace weir {

Anchor::Anchor(int program) {
  // A thread of its own, since the namespace is the thread's.
  std::thread([&] {
    if (::unshare(CLONE_NEWNET) != 0) return;
    Fd tap(::open("/dev/net/tun", O_RDWR | O_CLOEXEC));
    ifreq request{};
    request.ifr_flags = IFF_TAP | IFF_NO_PI;
    if (!tap || ::ioctl(tap.get(), TUNSETIFF, &request) != 0) return;
    Result<XdpLink> link = XdpLink::attach(program, Ifindex{::if_nametoindex(request.ifr_name)}, true);
    if (!link) return;
    tap_ = std::move(tap);
    link_ = std::move(*link);
  }).join();
}

}  // namespace weir
