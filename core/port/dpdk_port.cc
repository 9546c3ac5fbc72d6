// SPDX-License-Identifier: BSD-3-Clause
// dpdk_port: a device from its name to bursts. Where its driver can take mbufs that are headers of frames, none is copied.
#include "core/port/dpdk_port.hh"

#include <rte_dev.h>
#include <rte_errno.h>
#include <signal.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <mutex>

#include "core/port/eal.hh"

namespace weir {
namespace {

constexpr u32 vlan_tag = 4;
constexpr u32 quiet_turns = 64;  // after so many without a frame to send, what the device has sent is asked back

// What a driver does otherwise than the others.
struct Peculiar {
  const char* driver;
  const char* copies;  // why it cannot take headers of frames; null: it can
  u16 least_rx;        // places of its receive ring, with fewer of which it loses frames that it does not count
  bool loses;          // a frame for which there is no mbuf is lost; with others it waits in the device
};
constexpr Peculiar peculiars[] = {
    {"net_af_xdp", "its driver wants the bytes behind their mbuf", 4096,
     false},  // it asks the kernel for what finds no frame, not no place
    {"net_pcap", nullptr, 0, true},
    {"net_tap", nullptr, 0, true},
};

const Peculiar& peculiar(const char* driver) noexcept {
  static constexpr Peculiar none{"", nullptr, 0, false};
  const auto* at = std::ranges::find(peculiars, std::string_view(driver), &Peculiar::driver);
  return at == std::end(peculiars) ? none : *at;
}

// Devices that are ports, with the names of these.
std::mutex claims_mutex;
std::map<std::string, std::string> claims;

// As rte_pktmbuf_pool_create() does, without a gap between mbufs where one would lie across pages: net_af_xdp tells the kernel of as many
// bytes as mbufs without gaps take, and loses those of the others.
rte_mempool* make_copies(const std::string& name, u32 number, u16 room) {
  rte_mempool* made = rte_mempool_create_empty(name.c_str(), number, sizeof(rte_mbuf) + room, 0, sizeof(rte_pktmbuf_pool_private),
                                               SOCKET_ID_ANY, RTE_MEMPOOL_F_NO_IOVA_CONTIG);
  if (made == nullptr) return nullptr;
  rte_pktmbuf_pool_private shape{.mbuf_data_room_size = room, .mbuf_priv_size = 0, .flags = 0};
  rte_pktmbuf_pool_init(made, &shape);
  const int why = rte_mempool_set_ops_byname(made, "ring_mp_mc", nullptr);
  if (const int done = why != 0 ? why : rte_mempool_populate_default(made); done < 0) {
    rte_mempool_free(made);
    rte_errno = -done;
    return nullptr;
  }
  rte_mempool_obj_iter(made, rte_pktmbuf_init, nullptr);
  return made;
}

// net_tap hears of frames by a signal of its own. It is to come to DPDK's thread, and not between two steps of the calling one or of the
// workers that this starts.
void leave_signals_to_dpdk() noexcept {
  sigset_t set;
  ::sigemptyset(&set);
  for (int signal = SIGRTMIN; signal <= SIGRTMAX; ++signal) ::sigaddset(&set, signal);
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

}  // namespace

Frame DpdkQueue::frame_of(u8* data, u32 length) const noexcept {
  return {.data = data, .length = length, .port = place_.port, .stage = 0, .reason = 0, .verdict = WEIR_NEXT, .argument = 0};
}

u32 DpdkQueue::receive(Burst& burst, FrameCache& cache) noexcept {
  rte_mbuf* headers[Burst::capacity];
  DpdkFrames::Caller caller(frames_, cache);
  const u32 before = burst.size();
  const u32 got = rte_eth_rx_burst(place_.device, place_.number, headers, static_cast<u16>(burst.room()));
  for (u32 i = 0; i < got; ++i) __builtin_prefetch(rte_pktmbuf_mtod(headers[i], u8*));
  for (u32 i = 0; i < got; ++i) {
    if (!frames_.owns(headers[i])) {
      copy_in(burst, headers[i], cache);
      continue;
    }
    burst.push(frame_of(rte_pktmbuf_mtod(headers[i], u8*), headers[i]->data_len));
    --caller.held;
  }
  return burst.size() - before;
}

// Of another mempool, or in several pieces, or held by somebody else too.
void DpdkQueue::copy_in(Burst& burst, rte_mbuf* first, FrameCache& cache) noexcept {
  const u32 length = first->pkt_len;
  u64 offset = 0;
  if (length > pool_.size() - DpdkFrames::headroom) {
    ++unread_.too_long;
    unread_.bytes += length;
  } else if (cache.take(&offset, 1) != 1) {
    ++unread_.no_frame;
    unread_.bytes += length;
  } else {
    u8* to = pool_.base() + offset + DpdkFrames::headroom;
    burst.push(frame_of(to, length));
    for (const rte_mbuf* piece = first; piece != nullptr; to += piece->data_len, piece = piece->next)
      std::memcpy(to, rte_pktmbuf_mtod(piece, const u8*), piece->data_len);
  }
  rte_pktmbuf_free(first);
}

u32 DpdkQueue::copy_out(const Frame* frames, u32 number, rte_mbuf** headers) noexcept {
  u32 made = 0;
  for (; made < number && (headers[made] = rte_pktmbuf_alloc(copies_)) != nullptr; ++made) {
    std::memcpy(rte_pktmbuf_mtod(headers[made], u8*), frames[made].data, frames[made].length);
    headers[made]->data_len = static_cast<u16>(frames[made].length);
    headers[made]->pkt_len = frames[made].length;
  }
  return made;
}

u32 DpdkQueue::transmit(const Frame* frames, u32 number, FrameCache& cache) noexcept {
  rte_mbuf* headers[Burst::capacity];
  DpdkFrames::Caller caller(frames_, cache);
  quiet_ = 0;
  u32 ready = std::min(number, Burst::capacity);
  if (copies_ != nullptr) ready = copy_out(frames, ready, headers);
  else
    for (u32 i = 0; i < ready; ++i) headers[i] = frames_.dress(frames[i]);
  const u32 sent = rte_eth_tx_burst(place_.device, place_.number, headers, static_cast<u16>(ready));
  taken_.store(taken_.load(std::memory_order_relaxed) + sent, std::memory_order_relaxed);
  if (copies_ == nullptr) {
    for (u32 i = sent; i < ready; ++i) frames_.undress(frames[i]);
    caller.held += sent;
    return sent;
  }
  for (u32 i = 0; i < sent; ++i) cache.release(frames[i]);
  if (sent < ready) rte_pktmbuf_free_bulk(headers + sent, ready - sent);
  return sent;
}

// A device gives frames back when it needs their places for others, so that the last ones would stay with it.
bool DpdkQueue::reclaim(FrameCache& cache) noexcept {
  if (!cleans_ || quiet_ > quiet_turns || ++quiet_ <= quiet_turns) return false;
  const DpdkFrames::Caller caller(frames_, cache);
  rte_eth_tx_done_cleanup(place_.device, place_.number, 0);
  return false;
}

Result<std::unique_ptr<Port>> DpdkPort::open(const ConfigNode& keys, const PortContext& context) {
  const std::string& device = keys.string("device");
  std::unique_ptr<DpdkPort> port(new DpdkPort(device.substr(0, device.find(',')), context.pool));
  const EalLines lines;
  leave_signals_to_dpdk();
  const auto done = [&]() -> Result<> {
    TRY_VOID(port->claim(context.name));
    TRY_VOID(port->find(device));
    TRY_VOID(port->configure(keys));
    TRY_VOID(port->set_up(keys, context));
    return port->go(keys, context);
  }();
  if (!done) {
    Error error = done.error();
    error.what = fmt::format("device {}: {}{}", device, error.what, error.failure == Failure::invalid ? "" : lines.tail());
    return std::unexpected(std::move(error));
  }
  return port;
}

Result<> DpdkPort::claim(const std::string& port) {
  const std::scoped_lock hold(claims_mutex);
  const auto [at, fresh] = claims.emplace(name_, port);
  if (!fresh) return invalid("it is port {}'s; a device is one port", at->second);
  claimed_ = true;
  return {};
}

Result<> DpdkPort::find(const std::string& device) {
  if (rte_eth_dev_get_port_by_name(name_.c_str(), &device_) != 0) {
    const int why = rte_dev_probe(device.c_str());
    if (why != 0 && why != -EEXIST)
      return fail("bring it into DPDK, which wants a PCI address (dpdk-devbind.py --status lists them) or a driver's name and a number: {}",
                  rte_strerror(-why));
    brought_ = why == 0;
    if (rte_eth_dev_get_port_by_name(name_.c_str(), &device_) != 0) {
      rte_dev_iterator at;
      RTE_ETH_FOREACH_MATCHING_DEV(device_, device.c_str(), &at) break;
      rte_eth_iterator_cleanup(&at);
    }
  }
  if (device_ == RTE_MAX_ETHPORTS) return fail("DPDK finds no network device there; see: dpdk-devbind.py --status-dev net");
  if (const int why = rte_eth_dev_info_get(device_, &info_); why != 0) return fail("ask what it can: {}", rte_strerror(-why));
  return {};
}

Result<> DpdkPort::configure(const ConfigNode& keys) {
  const u32 queues = static_cast<u32>(keys.integer("queues")), most = std::min(info_.max_rx_queues, info_.max_tx_queues);
  const u32 mtu = static_cast<u32>(keys.integer("mtu")), room = pool_.size() - DpdkFrames::headroom;
  if (queues > most) return invalid("queues = {}: it has at most {}", queues, most);
  // Frames that lie in several pieces are not taken.
  if (mtu + RTE_ETHER_HDR_LEN + vlan_tag > room)
    return invalid("mtu = {}: with [frames] size = {} it is at most {}", mtu, pool_.size(), room - RTE_ETHER_HDR_LEN - vlan_tag);
  rte_eth_conf wanted{};
  wanted.rxmode.mtu = mtu;
  const u64 fields = info_.flow_type_rss_offloads & (RTE_ETH_RSS_IP | RTE_ETH_RSS_TCP | RTE_ETH_RSS_UDP);
  spread_ = queues == 1 ? "one queue" : fields != 0 ? "by RSS" : "as the device does";
  if (queues > 1 && fields != 0) {
    wanted.rxmode.mq_mode = RTE_ETH_MQ_RX_RSS;
    wanted.rx_adv_conf.rss_conf.rss_hf = fields;
  }
  // All mbufs of a queue are of one mempool, and nobody else holds them.
  wanted.txmode.offloads = info_.tx_offload_capa & RTE_ETH_TX_OFFLOAD_MBUF_FAST_FREE;
  if (const int why = rte_eth_dev_configure(device_, static_cast<u16>(queues), static_cast<u16>(queues), &wanted); why != 0)
    return fail("give it {} queues and MTU {}: {}", queues, mtu, rte_strerror(-why));
  configured_ = true;
  mtu_ = mtu;
  longest_ = std::min(mtu + RTE_ETHER_HDR_LEN + vlan_tag, pool_.size() - DpdkFrames::margin);
  return {};
}

Result<> DpdkPort::set_up(const ConfigNode& keys, const PortContext& context) {
  const Peculiar& its = peculiar(info_.driver_name);
  u16 rx = static_cast<u16>(keys.has("rx_ring") ? keys.integer("rx_ring") : std::max<i64>(std::min<i64>(context.fill, 1024), its.least_rx));
  if (rx < its.least_rx)
    return invalid("rx_ring = {}: its driver does not count what a ring of less than {} has no room for", rx, its.least_rx);
  u16 tx = static_cast<u16>(keys.has("tx_ring") ? keys.integer("tx_ring") : 1024);
  if (const int why = rte_eth_dev_adjust_nb_rx_tx_desc(device_, &rx, &tx); why != 0) return fail("its rings: {}", rte_strerror(-why));
  if (rx > context.fill && its.copies == nullptr)
    return invalid("rx_ring = {}: there are {} frames for each queue; raise [frames] count", rx, context.fill);
  frames_ = TRY(DpdkFrames::over(pool_));
  if (its.copies != nullptr) {
    // Its rings, and as much again for what is on its way; net_af_xdp fills rings of the kernel's that nobody asks it for.
    const u32 number = static_cast<u32>(keys.integer("queues")) * (2u * rx + 2u * tx + 8192u);
    copies_ =
        make_copies(("weir-" + name_).substr(0, RTE_MEMPOOL_NAMESIZE - 1), number, static_cast<u16>(pool_.size() + RTE_PKTMBUF_HEADROOM));
    if (copies_ == nullptr)
      return fail("make {} mbufs for it: {}; give DPDK more memory, by -m in [dpdk] eal", number, rte_strerror(rte_errno));
  }
  const u32 socket = static_cast<u32>(rte_eth_dev_socket_id(device_));
  for (u16 queue = 0; queue < static_cast<u16>(keys.integer("queues")); ++queue) {
    rte_eth_rxconf of_rx = info_.default_rxconf;
    of_rx.offloads = 0;
    if (const int why = rte_eth_rx_queue_setup(device_, queue, rx, socket, &of_rx, copies_ != nullptr ? copies_ : frames_->pool());
        why != 0)
      return fail("queue {}: receive by a ring of {}: {}", queue, rx, rte_strerror(-why));
    rte_eth_txconf of_tx = info_.default_txconf;
    of_tx.offloads = info_.tx_offload_capa & RTE_ETH_TX_OFFLOAD_MBUF_FAST_FREE;
    if (const int why = rte_eth_tx_queue_setup(device_, queue, tx, socket, &of_tx); why != 0)
      return fail("queue {}: send by a ring of {}: {}", queue, tx, rte_strerror(-why));
  }
  return {};
}

Result<> DpdkPort::go(const ConfigNode& keys, const PortContext& context) {
  if (const int why = rte_eth_dev_start(device_); why != 0) return fail("start it: {}", rte_strerror(-why));
  const bool tells = frames_.use_count() == 1;
  for (u16 queue = 0; queue < static_cast<u16>(keys.integer("queues")); ++queue)
    queues_.push_back(std::make_unique<DpdkQueue>(DpdkQueue::Place{device_, queue, context.slot, context.receives}, pool_, *frames_,
                                                  copies_, tells && queue == 0, rte_eth_tx_done_cleanup(device_, queue, 0) != -ENOTSUP));
  promiscuous_ = keys.boolean("promiscuous") ? "yes" : "no";
  if (!keys.boolean("promiscuous")) return {};
  if (const int why = rte_eth_promiscuous_enable(device_); why == -ENOTSUP) promiscuous_ = "no: its driver cannot";
  else if (why != 0) return fail("take the frames of all stations: {}; or set promiscuous = false", rte_strerror(-why));
  return {};
}

DpdkPort::~DpdkPort() {
  const EalLines unheard;  // of what went wrong before, or no longer matters
  rte_device* device = info_.device;
  if (configured_) {
    rte_eth_dev_stop(device_);
    rte_eth_dev_close(device_);
  }
  if (brought_ && device != nullptr) rte_dev_remove(device);
  queues_.clear();
  rte_mempool_free(copies_);
  if (!claimed_) return;
  const std::scoped_lock hold(claims_mutex);
  claims.erase(name_);
}

Mac DpdkPort::mac() const noexcept {
  rte_ether_addr own{};
  rte_eth_macaddr_get(device_, &own);
  return std::to_array(own.addr_bytes);
}

std::vector<std::pair<std::string, std::string>> DpdkPort::facts() const {
  rte_eth_link link{};
  const bool known = rte_eth_link_get_nowait(device_, &link) == 0;
  const char* copies = peculiar(info_.driver_name).copies;
  return {{"device", name_},
          {"mode", info_.driver_name},
          {"queues", std::to_string(queues_.size())},
          {"spread", spread_},
          {"copied", copies != nullptr ? fmt::format("yes: {}", copies) : "no"},
          {"promiscuous", promiscuous_},
          {"link", !known                                ? "unknown"
                   : link.link_status == RTE_ETH_LINK_UP ? "up"
                                                         : "down"},
          {"numa", std::to_string(rte_eth_dev_socket_id(device_))}};
}

std::vector<std::string> DpdkPort::warnings() const {
  std::vector<std::string> all;
  rte_eth_link link{};
  if (rte_eth_link_get_nowait(device_, &link) == 0 && link.link_status == RTE_ETH_LINK_DOWN)
    all.push_back(fmt::format("device {} has no link; look at what it is joined to", name_));
  if (promiscuous_.starts_with("no: "))
    all.push_back(fmt::format("device {} brings frames of its own station alone; {}", name_, promiscuous_));
  return all;
}

// Some drivers count what they have refused to take among what they could not send.
Port::Lost DpdkPort::take_lost() {
  rte_eth_stats counted{};
  if (rte_eth_stats_get(device_, &counted) != 0) return {};
  u64 taken = 0;
  for (const auto& queue : queues_) taken += queue->taken();
  const u64 unread = counted.imissed + counted.ierrors + (peculiar(info_.driver_name).loses ? counted.rx_nombuf : 0);
  const u64 refused = std::min<u64>(counted.oerrors, taken - std::min<u64>(taken, counted.opackets));
  const auto since = [](u64& before, u64 now) { return now > before ? now - std::exchange(before, now) : 0; };
  return {.unread = since(told_.unread, unread), .refused = since(told_.refused, refused)};
}

}  // namespace weir
