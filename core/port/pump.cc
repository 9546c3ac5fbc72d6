// SPDX-License-Identifier: BSD-3-Clause
// pump: the ring, the run, and which way a burst goes.
#include "core/port/pump.hh"

#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "bpf/abi/pump.h"
#include "bpf/ingress/pump.skel.h"

namespace weir {
namespace {

constexpr u32 run_at = 256;               // frames that wait: as many as an empty ring of a veth holds
constexpr u32 trial = 32;                 // frames of a burst that a run is measured with
constexpr u64 most_call_ns = 1'000'000;   // above that a run is none that the dispatcher has, see Anchor
constexpr u64 quiet_ns = 1'000'000;       // in which a device sends what is in its ring
constexpr u64 fresh_ns = 1'000'000'000;   // how long a measurement is believed
constexpr u64 retry_ns = 10'000'000'000;  // of what was found to cost more
static_assert(run_at + Burst::capacity <= PUMP_SLOTS && longest_live == PUMP_LONGEST);

u64 now_ns() noexcept {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<u64>(now.tv_sec) * 1'000'000'000 + static_cast<u64>(now.tv_nsec);
}

void add(std::atomic<u64>& to, u64 number) noexcept { to.store(to.load(std::memory_order_relaxed) + number, std::memory_order_relaxed); }

}  // namespace

Result<std::unique_ptr<Pump>> Pump::create(FramePool& pool, const BpfMap& frames, Ifindex device, u32 key) {
  std::size_t size = 0;
  const void* elf = pump::elf_bytes(&size);
  BpfObject object = TRY(BpfObject::open("pump", {static_cast<const u8*>(elf), size}));
  std::unique_ptr<Pump> made(new Pump(pool, std::move(object)));
  const MapShape shape = TRY(made->object_.shape("ring"));
  made->ring_map_ = TRY(BpfMap::create("pump_ring", shape));
  made->memory_ = TRY(made->ring_map_.map_memory());
  made->ring_ = reinterpret_cast<pump_ring*>(made->memory_.data());
  made->ring_->key = key;
  made->longest_ = std::min<u32>(pool.size() - PUMP_HEADROOM, PUMP_LONGEST);
  made->out_ = TRY(Devmap::create("pump_out", DevmapForm::hash, 1, DevmapValue::device));
  TRY_VOID(made->out_.set(key, device));
  TRY_VOID(made->object_.use("ring", made->ring_map_.fd()));
  TRY_VOID(made->object_.use("frames", frames.fd()));
  TRY_VOID(made->object_.use("out", made->out_.map().fd()));
  const std::string program = fmt::format("pump_{}", pool.size());
  TRY_VOID(made->object_.load(program));
  made->program_ = made->object_.program_fd(program);
  made->anchor_.emplace(made->program_);
  TRY_VOID(made->measure());
  return made;
}

// Runs that find nothing to send.
Result<> Pump::measure() {
  call_ns_ = ~0ull;
  for (int i = 0; i < 5; ++i) {
    const u64 start = now_ns();
    if (!run_live(program_, Ifindex{0}, 2)) {
      if (errno == EINTR) continue;
      return unsupported("the kernel refuses a run over live frames: {}", std::strerror(errno));
    }
    call_ns_ = std::min(call_ns_, now_ns() - start);
    if (call_ns_ > most_call_ns && i == 1) break;
  }
  if (call_ns_ <= most_call_ns) return {};
  return unsupported("a run takes {} us here, since the program is in none of the 48 places of the kernel's XDP dispatcher: {}",
                     call_ns_ / 1000,
                     anchor_->holds() ? "other programs have them"
                                      : "weir may not make a network namespace with a tap (it needs CAP_SYS_ADMIN and /dev/net/tun)");
}

u32 Pump::waiting() const noexcept { return static_cast<u32>(ring_->head - ring_->tail); }

// A run makes room for what lies in front of the bytes too, where that is more than a frame has at first.
bool Pump::takes(const Frame& frame) const noexcept {
  const u32 at = static_cast<u32>(frame.data - pool_.base() - pool_.of(frame.data));
  return frame.length + (std::max(at, FramePool::front) - FramePool::front) <= longest_;
}

u32 Pump::push(const Frame* frames, u32 number) noexcept {
  const u32 taken = std::min(number, PUMP_SLOTS - waiting());
  for (u32 i = 0; i < taken; ++i)
    ring_->slots[ring_->head++ % PUMP_SLOTS] = {static_cast<u32>(pool_.of(frames[i].data) / pool_.size()),
                                                static_cast<u16>(frames[i].data - pool_.base() - pool_.of(frames[i].data)),
                                                static_cast<u16>(frames[i].length)};
  return taken;
}

Frame Pump::pop() noexcept {
  const pump_slot& slot = ring_->slots[ring_->tail++ % PUMP_SLOTS];
  return {.data = pool_.base() + static_cast<u64>(slot.frame) * pool_.size() + slot.at,
          .length = slot.length,
          .port = {},
          .stage = 0,
          .reason = 0,
          .verdict = WEIR_NEXT,
          .argument = 0};
}

// A live frame comes with as many bytes as the first needs: the kernel clears what it has to add to one.
int Pump::run(FrameCache& cache) noexcept {
  while (waiting() > 0) {
    const u64 from = ring_->tail;
    const u32 length = std::max<u32>(ring_->slots[from % PUMP_SLOTS].length, PUMP_SHORTEST);
    // Two at least: the dispatcher's programs are called without a detour only by runs of more than one.
    const int error = run_live(program_, Ifindex{0}, std::max(waiting(), 2u), length) ? 0 : errno;
    std::atomic_signal_fence(std::memory_order_seq_cst);  // the kernel has written to the ring
    for (u64 at = from; at != ring_->tail; ++at) cache.release(static_cast<u64>(ring_->slots[at % PUMP_SLOTS].frame) * pool_.size());
    if (error != 0 && ring_->tail == from) return error;  // a signal only ends a run early
  }
  return 0;
}

u32 Pump::take_lost() noexcept { return static_cast<u32>(ring_->lost - std::exchange(lost_, ring_->lost)); }

void PumpedQueue::Cost::add(u64 now, u64 taken_ns, u32 number) noexcept {
  constexpr float weight = 15.0f / 16;
  time_ns.store(time_ns.load(std::memory_order_relaxed) * weight + static_cast<float>(taken_ns), std::memory_order_relaxed);
  frames.store(frames.load(std::memory_order_relaxed) * weight + static_cast<float>(number), std::memory_order_relaxed);
  measured_ns = now;
}

float PumpedQueue::Cost::each() const noexcept {
  const float number = frames.load(std::memory_order_relaxed);
  return number > 0 ? time_ns.load(std::memory_order_relaxed) / number : 0;
}

// What is not known is tried, and what was measured long ago is measured again, with frames that are to be sent anyway.
bool PumpedQueue::wants_pump(u32 number, u64 now) const noexcept {
  if (!automatic_) return true;
  if (socket_cost_.measured_ns == 0 || (one_queue_ && now - socket_cost_.measured_ns > fresh_ns)) return false;
  const float socket = socket_cost_.each(), pump = pump_cost_.each();
  if (number >= trial && (pump_cost_.measured_ns == 0 || now - pump_cost_.measured_ns > retry_ns)) return true;
  const u32 together = number + pump_->waiting();
  return pump_cost_.measured_ns != 0 && static_cast<float>(pump_->call_ns()) < (socket - pump) * static_cast<float>(together);
}

bool PumpedQueue::may_pump(FrameCache& cache) noexcept {
  if (socket_.sending() > 0) socket_.reclaim(cache);
  return socket_.sending() == 0;
}

bool PumpedQueue::may_leave_pump(u64 now) const noexcept { return one_queue_ || now - ran_ns_ > quiet_ns; }

u32 PumpedQueue::transmit(const Frame* frames, u32 number, FrameCache& cache) noexcept {
  const bool possible = open_.load(std::memory_order_relaxed) && broken_.load(std::memory_order_relaxed) == 0;
  if (!possible || std::any_of(frames, frames + number, [&](const Frame& frame) { return !pump_->takes(frame); }))
    return by_socket(frames, number, cache, now_ns());
  const u64 now = now_ns();
  // With frames in the pump already, these are behind them.
  const bool pump = pump_->waiting() > 0 || wants_pump(number, now) || !may_leave_pump(now);
  if (!pump || !may_pump(cache)) return by_socket(frames, number, cache, now);
  const u32 taken = pump_->push(frames, number);
  add(pumped_, taken);
  if (pump_->waiting() >= run_at) run(cache);
  return taken;
}

u32 PumpedQueue::by_socket(const Frame* frames, u32 number, FrameCache& cache, u64 now) noexcept {
  if (pump_->waiting() > 0) {
    run(cache);
    now = now_ns();
  }
  const u32 sent = socket_.transmit(frames, number, cache);
  refused_ += socket_.take_refused();
  if (sent > 0 && automatic_) {
    const u64 end = now_ns();
    socket_cost_.add(end, end - now, sent);
  }
  add(by_socket_, sent);
  return sent;
}

// What the kernel refuses goes by the socket, and from then on everything does.
void PumpedQueue::run(FrameCache& cache) noexcept {
  const u32 number = pump_->waiting();
  const u64 start = now_ns();
  const int error = pump_->run(cache);
  ran_ns_ = now_ns();
  refused_ += pump_->take_lost();
  if (error == 0) {
    const u64 taken = ran_ns_ - start;
    pump_cost_.add(ran_ns_, taken - std::min(taken, pump_->call_ns()), number);
    return;
  }
  broken_.store(error, std::memory_order_relaxed);
  while (pump_->waiting() > 0) {
    const Frame frame = pump_->pop();
    add(pumped_, ~0ull);
    if (socket_.transmit(&frame, 1, cache) == 1) {
      add(by_socket_, 1);
      continue;
    }
    cache.release(frame);
    ++refused_;
  }
}

// While every turn brings more, they wait for one another.
bool PumpedQueue::reclaim(FrameCache& cache) noexcept {
  const bool kick_again = socket_.reclaim(cache);
  refused_ += socket_.take_refused();
  const u32 waiting = pump_->waiting();
  const bool more = waiting != std::exchange(seen_waiting_, waiting);
  if (waiting == 0) return kick_again;
  if (more) return true;
  run(cache);
  seen_waiting_ = 0;
  return kick_again;
}

void PumpedQueue::finish() noexcept {
  FrameCache cache(pump_->pool());
  if (pump_->waiting() > 0) run(cache);
}

u32 PumpedQueue::take_back() noexcept {
  FrameCache cache(pump_->pool());
  u32 number = 0;
  for (; pump_->waiting() > 0; ++number) cache.release(pump_->pop());
  return number;
}

PumpedQueue::Seen PumpedQueue::seen() const noexcept {
  return {pumped_.load(std::memory_order_relaxed), by_socket_.load(std::memory_order_relaxed), pump_->call_ns(),
          static_cast<u64>(pump_cost_.each()),     static_cast<u64>(socket_cost_.each()),      broken_.load(std::memory_order_relaxed)};
}

}  // namespace weir
