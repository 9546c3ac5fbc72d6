// SPDX-License-Identifier: BSD-3-Clause
// xsk: rings of AF_XDP sockets. Ring indices and memory order are libxdp's; who owns which frame is decided here.
#include "core/port/xsk.hh"

#include <linux/if_xdp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "bpf/abi/link.h"

namespace weir {
namespace {

constexpr int attempts =
    4;  // one wake-up sends at most 32 frames in copy mode, where the kernel knows no other budget: a burst of 64 needs two
constexpr int most_a_kick = 256;

// Newer than Debian 12's headers (linux/if_xdp.h, 6.18).
constexpr int xdp_max_tx_skb_budget = 9;

void add(std::atomic<u32>& to, u32 number) noexcept { to.store(to.load(std::memory_order_relaxed) + number, std::memory_order_relaxed); }

}  // namespace

Result<std::unique_ptr<Umem>> Umem::create(FramePool& pool) {
  std::unique_ptr<Umem> umem(new Umem(pool));
  const xsk_umem_config config{
      .fill_size = XskSocket::ring_size, .comp_size = XskSocket::ring_size, .frame_size = pool.size(), .frame_headroom = 0, .flags = 0};
  int err = ::xsk_umem__create(&umem->umem_, pool.base(), pool.bytes(), &umem->first_fill_, &umem->first_completion_, &config);
  if (err == 0) return umem;
  const char* remedy = err == -EPERM || err == -EACCES ? " (weir needs CAP_NET_RAW: run it as root)"
                       : err == -ENOBUFS               ? " (locked memory: raise ulimit -l, give CAP_IPC_LOCK, or lower [frames] count)"
                                                       : "";
  return fail_errno(-err, fmt::format("register a umem of {} frames of {} bytes{}", pool.count(), pool.size(), remedy));
}

Umem::~Umem() {
  if (umem_ != nullptr) ::xsk_umem__delete(umem_);
}

Result<std::unique_ptr<XskSocket>> XskSocket::bind(Umem& umem, const std::string& device, QueueId queue, PortSlot port,
                                                   const XskOptions& wanted) {
  const ZeroCopy zero_copy = wanted.zero_copy;
  std::unique_ptr<XskSocket> socket(new XskSocket(umem, port));
  const bool first = !umem.first_taken_;
  socket->fill_ = first ? &umem.first_fill_ : &socket->own_fill_;
  socket->completion_ = first ? &umem.first_completion_ : &socket->own_completion_;
  xsk_socket_config config{};
  config.rx_size = ring_size;
  config.tx_size = ring_size;
  config.libxdp_flags = XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD;  // the ingress program is ours
  config.bind_flags = XDP_USE_NEED_WAKEUP;
  if (zero_copy == ZeroCopy::on) config.bind_flags |= XDP_ZEROCOPY;
  if (zero_copy == ZeroCopy::off) config.bind_flags |= XDP_COPY;
  int err = ::xsk_socket__create_shared(&socket->socket_, device.c_str(), queue.value, umem.get(), &socket->rx_, &socket->tx_,
                                        socket->fill_, socket->completion_, &config);
  if (err != 0) {
    const char* remedy = err == -EBUSY ? " (another program has a socket on this queue; ss --xdp lists them)"
                         : err == -EOPNOTSUPP && zero_copy == ZeroCopy::on ? " (the driver has no zero-copy: set zero_copy = \"auto\")"
                         : err == -EOPNOTSUPP
                             ? " (another port of the same umem works without copies and this device cannot: set zero_copy = "
                               "\"off\" for all ports)"
                         : err == -EPERM ? " (weir needs CAP_NET_RAW: run it as root)"
                                         : "";
    return fail_errno(-err, fmt::format("queue {}: bind AF_XDP socket{}", queue.value, remedy));
  }
  umem.first_taken_ = true;
  xdp_options options{};
  socklen_t size = sizeof options;
  if (::getsockopt(::xsk_socket__fd(socket->socket_), SOL_XDP, XDP_OPTIONS, &options, &size) == 0)
    socket->zero_copy_ = (options.flags & XDP_OPTIONS_ZEROCOPY) != 0;
  // What shares a umem is bound as the first socket was (net/xdp/xsk_buff_pool.c, xp_assign_dev_shared), whatever is asked for.
  if (zero_copy != ZeroCopy::automatic && socket->zero_copy_ != (zero_copy == ZeroCopy::on))
    return fail(
        "queue {}: bind AF_XDP socket: zero_copy = \"{}\", but the first port of the umem works {} copies; give all ports one value",
        queue.value, zero_copy == ZeroCopy::on ? "on" : "off", socket->zero_copy_ ? "without" : "with");
  if (::setsockopt(socket->descriptor(), SOL_XDP, xdp_max_tx_skb_budget, &most_a_kick, sizeof most_a_kick) == 0)
    socket->tx_budget_ = most_a_kick;
  if (wanted.busy_poll > 0) TRY_WITHIN_VOID(fmt::format("queue {}", queue.value), socket->poll_busily(wanted.busy_poll));
  socket->fill_target_ = std::min(wanted.fill, ring_size);
  FrameCache cache(umem.pool());
  socket->refill(cache);
  return socket;
}

// Documentation/networking/napi.rst, "IRQ mitigation".
Result<> XskSocket::poll_busily(u32 budget) {
  const auto set = [&](int option, int value) { return ::setsockopt(descriptor(), SOL_SOCKET, option, &value, sizeof value) == 0; };
  constexpr int us = 20;  // as there; whoever calls receive() comes again by itself
  if (!set(SO_PREFER_BUSY_POLL, 1) || !set(SO_BUSY_POLL, us) || !set(SO_BUSY_POLL_BUDGET, static_cast<int>(budget)))
    return fail_errno(errno, fmt::format("poll the driver busily, {} frames at once{}", budget,
                                         errno == EPERM ? " (it needs CAP_NET_ADMIN)" : " (kernels from 5.11 on can; set busy_poll = 0)"));
  busy_ = true;
  return {};
}

XskSocket::~XskSocket() {
  if (socket_ != nullptr) ::xsk_socket__delete(socket_);
}

// Keep the kernel supplied: what it does not find in the fill ring it drops.
void XskSocket::refill(FrameCache& cache) noexcept {
  u64 frames[Burst::capacity];
  u32 missing = fill_target_ - std::min(fill_target_, receiving_.load(std::memory_order_relaxed));
  while (missing > 0) {
    const u32 got = cache.take(frames, std::min(missing, Burst::capacity));
    u32 at = 0;
    if (got == 0) return;
    if (::xsk_ring_prod__reserve(fill_, got, &at) != got) {
      for (u32 i = 0; i < got; ++i) cache.release(frames[i]);
      return;
    }
    for (u32 i = 0; i < got; ++i) *::xsk_ring_prod__fill_addr(fill_, at + i) = frames[i];
    ::xsk_ring_prod__submit(fill_, got);
    add(receiving_, got);
    missing -= got;
  }
}

// The metadata in front of the bytes says where the kernel half stopped. It is cleared, because a driver without metadata would
// leave an old frame's there.
Frame XskSocket::frame_of(const xdp_desc& descriptor) const noexcept {
  Frame frame{.data = pool_.base() + descriptor.addr,
              .length = descriptor.len,
              .port = port_,
              .stage = 0,
              .reason = 0,
              .verdict = WEIR_NEXT,
              .argument = 0};
  if ((descriptor.addr & (pool_.size() - 1)) < sizeof(punt_meta)) return frame;
  auto* meta = reinterpret_cast<punt_meta*>(frame.data - sizeof(punt_meta));
  if (meta->magic != WEIR_PUNT_MAGIC || meta->port != port_.value) return frame;
  frame.stage = meta->stage;
  frame.reason = meta->reason;
  frame.kept = meta->kept;
  meta->magic = 0;
  return frame;
}

u32 XskSocket::receive(Burst& burst, FrameCache& cache) noexcept {
  u32 at = 0;
  const u32 got = ::xsk_ring_cons__peek(&rx_, burst.room(), &at);
  if (got == 0) {
    if (receiving_.load(std::memory_order_relaxed) < fill_target_) refill(cache);
    // Zero-copy drivers ask to be woken when the fill ring ran dry; and a busy poll of the driver is such a call.
    if (busy_ || ::xsk_ring_prod__needs_wakeup(fill_)) ::recvfrom(descriptor(), nullptr, 0, MSG_DONTWAIT, nullptr, nullptr);
    return 0;
  }
  for (u32 i = 0; i < got; ++i) __builtin_prefetch(pool_.base() + ::xsk_ring_cons__rx_desc(&rx_, at + i)->addr);
  for (u32 i = 0; i < got; ++i) burst.push(frame_of(*::xsk_ring_cons__rx_desc(&rx_, at + i)));
  ::xsk_ring_cons__release(&rx_, got);
  receiving_.store(receiving_.load(std::memory_order_relaxed) - got, std::memory_order_relaxed);
  refill(cache);
  return got;
}

u32 XskSocket::waiting() const noexcept {
  return __atomic_load_n(rx_.producer, __ATOMIC_ACQUIRE) - __atomic_load_n(rx_.consumer, __ATOMIC_RELAXED);
}

u32 XskSocket::transmit(const Frame* frames, u32 number, FrameCache& cache) noexcept {
  u32 at = 0;
  u32 room = ::xsk_prod_nb_free(&tx_, number);
  if (room < number) {
    reclaim(cache);
    room = ::xsk_prod_nb_free(&tx_, number);
  }
  const u32 taken = std::min(room, number);
  if (taken == 0 || ::xsk_ring_prod__reserve(&tx_, taken, &at) != taken) return 0;
  for (u32 i = 0; i < taken; ++i) {
    xdp_desc* descriptor = ::xsk_ring_prod__tx_desc(&tx_, at + i);
    descriptor->addr = static_cast<u64>(frames[i].data - pool_.base());
    descriptor->len = frames[i].length;
    descriptor->options = 0;
  }
  ::xsk_ring_prod__submit(&tx_, taken);
  add(transmitting_, taken);
  kick();
  return taken;
}

// EAGAIN means "not all of it yet". EBUSY too, and in copy mode also that the device did not take the last frame, which is completed all
// the same (net/xdp/xsk.c, xsk_generic_xmit: NET_XMIT_DROP). Anything else (ENETDOWN) means that it will be tried again when asked to.
void XskSocket::kick() noexcept {
  kick_again_ = false;
  if (!::xsk_ring_prod__needs_wakeup(&tx_)) return;
  for (u32 i = 0, refused = 0; i < attempts && refused < Burst::capacity;) {
    if (::sendto(descriptor(), nullptr, 0, MSG_DONTWAIT, nullptr, 0) >= 0) return;
    if (errno == EBUSY && !zero_copy_) ++refused, ++refused_;
    else if (errno == EAGAIN || errno == EBUSY || errno == EINTR) ++i;
    else break;
  }
  kick_again_ = true;
}

bool XskSocket::reclaim(FrameCache& cache) noexcept {
  u32 at = 0;
  while (const u32 done = ::xsk_ring_cons__peek(completion_, Burst::capacity, &at)) {
    for (u32 i = 0; i < done; ++i) cache.release(*::xsk_ring_cons__comp_addr(completion_, at + i) & ~static_cast<u64>(pool_.size() - 1));
    ::xsk_ring_cons__release(completion_, done);
    transmitting_.store(transmitting_.load(std::memory_order_relaxed) - done, std::memory_order_relaxed);
  }
  if (kick_again_) kick();
  return kick_again_;
}

XskSocket::Remains XskSocket::take_back() noexcept {
  const auto at = [](const u32* index) { return __atomic_load_n(index, __ATOMIC_ACQUIRE); };
  FrameCache cache(pool_);
  Remains remains;
  reclaim(cache);
  for (u32 i = at(rx_.consumer); i != at(rx_.producer); ++i, ++remains.unread) {
    const xdp_desc& descriptor = *::xsk_ring_cons__rx_desc(&rx_, i);
    remains.unread_bytes += descriptor.len;
    cache.release(pool_.of(pool_.base() + descriptor.addr));
  }
  u32 unfilled = 0;
  for (u32 i = at(fill_->consumer); i != at(fill_->producer); ++i, ++unfilled)
    cache.release(pool_.of(pool_.base() + *::xsk_ring_prod__fill_addr(fill_, i)));
  for (u32 i = at(tx_.consumer); i != at(tx_.producer); ++i, ++remains.unsent)
    cache.release(pool_.of(pool_.base() + ::xsk_ring_prod__tx_desc(&tx_, i)->addr));
  receiving_.fetch_sub(remains.unread + unfilled);
  transmitting_.fetch_sub(remains.unsent);
  return remains;
}

}  // namespace weir
