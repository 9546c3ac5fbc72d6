// SPDX-License-Identifier: BSD-3-Clause
// runner: bursts to completion. The only place where frames change hands on the user side.
#include "core/worker/runner.hh"

#include <time.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <mutex>
#include <tuple>

namespace weir {

namespace {

// Bytes of a frame; 0: its device is down.
u32 longest_of(PortEntry& port) noexcept { return std::atomic_ref(port.longest).load(std::memory_order_relaxed); }

}  // namespace

Runner::Runner(DataPath& path, FramePool& pool, u32 number, u32 row, std::vector<RxQueue> queues)
    : path_(path), number_(number), row_(row), way_(number), cache_(pool), queues_(std::move(queues)) {
  fit_ways();
  for (Burst* burst : {&burst_, &part_, &drained_burst_}) burst->run_by(number);
  for (const auto& pipeline : path.pipelines)
    for (const StageEntry& stage : pipeline->stages) {
      if (stage.lanes == nullptr) continue;
      stagings_.resize(std::max<std::size_t>(stagings_.size(), stage.lanes->number() + 1));
      Staging& staging = stagings_[stage.lanes->number()];
      staging.lanes = stage.lanes;
      staging.frames.resize(std::size_t{Staging::room} * stage.lanes->shape().lanes);
    }
}

void Runner::fit_ways() {
  ways_.clear();
  out_.clear();
  waiting_.clear();
  drained_.clear();
  for (u16 slot = 0; slot < path_.ports.size(); ++slot) {
    const u32 queues = path_.ports[slot].port->queues();
    ways_.push_back({static_cast<u32>(out_.size()), queues});
    for (u32 queue = 0; queue < queues; ++queue) out_.emplace_back(PortSlot{slot}, queue);
  }
  waiting_.reserve(out_.size());
  drained_.reserve(out_.size());
}

u32 Runner::poll(const Runner& whose) noexcept {
  u32 total = 0;
  for (const RxQueue& from : whose.queues_) {
    // What goes to lanes goes there many at a time, when there are many.
    constexpr int most_for_lanes = 4;
    u32 got = receive(from);
    total += got;
    for (int i = 1; i < most_for_lanes && got == Burst::capacity && any_staged(); ++i) total += got = receive(from);
  }
  flush();
  publish();
  reclaim();
  return total;
}

void Runner::count(const Queue::Unread& unread, account& port) noexcept {
  port.frames += unread.frames();
  port.bytes += unread.bytes;
  port.verdict[WEIR_DROP] += unread.frames();
  port.drop[WEIR_DROP_RUNT] += unread.runt;
  port.drop[WEIR_DROP_TOO_LONG] += unread.too_long;
  port.drop[WEIR_DROP_NO_FRAME] += unread.no_frame;
}

u32 Runner::receive(const RxQueue& from) noexcept {
  burst_.clear();
  const u32 got = from.queue->receive(burst_, cache_);
  ++numbers_.polls;
  if (const Queue::Unread unread = from.queue->take_unread()) count(unread, of(from.port));
  if (got == 0) return 0;
  ++numbers_.found;
  numbers_.frames += got;
  account& port = of(from.port);
  port.frames += got;
  for (const Frame& frame : burst_) port.bytes += frame.length;
  run(path_.ports[from.port.value].pipeline, burst_);
  return got;
}

u32 Runner::poll_for(const Runner& other) noexcept {
  way_ = other.number_;
  stands_in_ = true;
  const u32 got = poll(other);
  stands_in_ = false;
  way_ = number_;
  return got;
}

// What a thread that polls works off between two polls takes no longer than this, where a frame of the stage does not.
constexpr u64 share_ns = 50'000;

u32 Runner::drain(Lanes& lanes) noexcept {
  const u32 want = static_cast<u32>(std::clamp<u64>(share_ns / std::max(lanes.cost_ns(), 1u), 1, Burst::capacity));
  const u64 mine = lanes.claim(want, number_ * (Lanes::most / 4) + static_cast<u32>(numbers_.drains));
  if (mine == 0) return 0;
  drained_burst_.clear();
  u64 left = 0;
  for (u64 rest = mine; rest != 0; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    if (drained_burst_.size() < want) lanes.pop(lane, drained_burst_);
    if (!lanes.empty(lane)) left |= rest & -rest;
  }
  const u32 taken = drained_burst_.size();
  if (taken > 0) {
    numbers_.drained += taken;
    ++numbers_.drains;
    draining_ = true;
    run_on(&lanes.pipeline(), lanes.stage(), drained_burst_, true);
    flush();
    publish();
    draining_ = false;
    reclaim_drained();
  }
  lanes.release(mine, left, taken);
  return taken;
}

// Frames that the kernel punted at different stages are run in parts, in their order.
void Runner::run(const Pipeline* pipeline, Burst& burst) noexcept {
  if (burst.empty()) return;
  const u8 entry = burst.begin()->stage;
  if (std::all_of(burst.begin(), burst.end(), [&](const Frame& frame) { return frame.stage == entry; })) {
    run_from(pipeline, entry, burst);
    return;
  }
  // Whoever polls in this one's place would overtake the other parts: so none is to stay in a parallel stage.
  const bool stood_in = std::exchange(stands_in_, true);
  for (const Frame* at = burst.begin(); at != burst.end();) {
    const u8 stage = at->stage;
    part_.clear();
    for (; at != burst.end() && at->stage == stage; ++at) part_.push(*at);
    run_from(pipeline, stage, part_);
  }
  stands_in_ = stood_in;
}

// `stage` is the instance's number; one of another pipeline (a frame of before a reload) starts at the front, which is always right.
void Runner::run_from(const Pipeline* pipeline, u32 stage, Burst& burst) noexcept {
  const u32 count = pipeline == nullptr ? 0 : static_cast<u32>(pipeline->stages.size());
  const u32 at = count > 0 && stage >= pipeline->first() ? stage - pipeline->first() : 0;
  run_on(pipeline, at < count ? at : 0, burst, false);
}

namespace {

// Calls of stages from one that is timed to the next: a prime, so that each stage of a pipeline has its turn. More of those that may be
// parallel, which goes by it.
constexpr u32 timed_every = 61, lanes_timed_every = 17;

u64 now_ns() noexcept {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<u64>(now.tv_sec) * 1'000'000'000 + static_cast<u64>(now.tv_nsec);
}

}  // namespace

// `from_lane`: of the stage in this place.
void Runner::run_on(const Pipeline* pipeline, u32 at, Burst& burst, bool from_lane) noexcept {
  const u32 count = pipeline == nullptr ? 0 : static_cast<u32>(pipeline->stages.size());
  if (pipeline != nullptr) miss_ = pipeline->miss;
  for (; at < count && !burst.empty(); ++at, from_lane = false) {
    const StageEntry& entry = pipeline->stages[at];
    account& stage_account = path_.accounts.at(row_, entry.block);
    burst.charge(&stage_account);
    if (entry.lanes != nullptr) [[unlikely]] {
      if (!from_lane && hand_over(*entry.lanes, burst)) {
        place_.store(calls_, std::memory_order_relaxed);
        return;
      }
      process_parallel(entry, burst, from_lane);
    } else {
      calls_ += u64{1} << Place::call_shift;
      place_.store(calls_ | Place::inside_bit | entry.number, std::memory_order_relaxed);
      if (--until_timed_ == 0) [[unlikely]]
        process_timed(entry, burst);
      else entry.stage->process(burst);
    }
    stage_account.verdict[WEIR_NEXT] += burst.size() - burst.decided();
    if (burst.decided() > 0) settle(burst, stage_account);
  }
  place_.store(calls_, std::memory_order_relaxed);
  for (const Frame& frame : burst) to_stack(frame);
}

u64 Runner::process_timed(const StageEntry& entry, Burst& burst) noexcept {
  until_timed_ = timed_every;
  StageTime& time = numbers_.stages[entry.number % WEIR_MAX_STAGES];
  const u32 frames = burst.size();
  const u64 began = now_ns();
  entry.stage->process(burst);
  const u64 ns = now_ns() - began;
  time.frames += frames;
  ++time.bursts;
  time.ns += ns;
  return ns;
}

void Runner::process_parallel(const StageEntry& entry, Burst& burst, bool from_lane) noexcept {
  if (!from_lane) publish_before();
  const u32 frames = burst.size();
  calls_ += u64{1} << Place::call_shift;
  place_.store(calls_ | Place::inside_bit | Place::parallel_bit | (draining_ ? 0 : Place::poll_bit) | entry.number,
               std::memory_order_release);
  if (--until_lanes_timed_ == 0) {
    until_lanes_timed_ = lanes_timed_every;
    entry.lanes->note(process_timed(entry, burst), frames);
  } else {
    entry.stage->process(burst);
  }
  if ((place_.exchange(calls_, std::memory_order_acq_rel) & Place::kept_out_bit) != 0) wait_to_be_let_in(entry, !draining_);
}

bool Runner::keep_out(Place at) noexcept {
  kept_out_.fetch_add(1);
  u64 seen = place_.load();
  while (Place(seen).inside() && Place(seen).of_parallel() && Place(seen) == at)
    if (place_.compare_exchange_weak(seen, seen | Place::kept_out_bit)) return true;
  let_in();
  return false;
}

void Runner::let_in() noexcept {
  kept_out_.fetch_sub(1);
  kept_out_.notify_all();
}

bool Runner::take_over(Place at, Lanes& lanes) noexcept {
  if (at.of_poll()) lanes.hold();
  if (keep_out(at)) {
    stood_in_ += at.of_poll() ? 1 : 0;
    return true;
  }
  if (at.of_poll()) lanes.unhold();
  return false;
}

void Runner::wait_to_be_let_in(const StageEntry& entry, bool polled) noexcept {
  // Who polls in this one's place holds the lanes; the frames that they wait for are away at the end of this turn.
  for (u32 now = kept_out_.load(); now != 0; now = kept_out_.load()) kept_out_.wait(now);
  if (polled) stagings_[entry.lanes->number()].held += std::exchange(stood_in_, 0);
}

// False: the stage is to run here and now: it costs little, and no frame of before waits in its lanes.
bool Runner::hand_over(Lanes& lanes, Burst& burst) noexcept {
  Staging& staging = stagings_[lanes.number()];
  if (!lanes.spreads() && !stands_in_ && staging.total == 0 && lanes.pending() == 0 && !lanes.held()) return false;
  for (const Frame& frame : burst) {
    const u32 lane = lanes.lane_of(frame);
    if (staging.sizes[lane] == Staging::room) publish(staging);
    Frame& place = staging.frames[lane * Staging::room + staging.sizes[lane]++];
    place = frame;
    if (!draining_) place.way = static_cast<u8>(way_);
    ++staging.total;
  }
  burst.truncate(0);
  return true;
}

void Runner::publish(Staging& staging) noexcept {
  flush();  // what of the same flows did not go through lanes was before
  Lanes& lanes = *staging.lanes;
  const u32 count = lanes.shape().lanes,
            first = static_cast<u32>(numbers_.polls);  // where there is no room for all, not always for the same ones
  u32 room = lanes.reserve(staging.total), lost = staging.total - room;
  u64 offered = 0;
  for (u32 i = 0; i < count; ++i) {
    const u32 lane = (first + i) & (count - 1), size = std::exchange(staging.sizes[lane], 0);
    if (size == 0) continue;
    const Frame* frames = staging.frames.data() + std::size_t{lane} * Staging::room;
    const u32 fitting = std::min(size, room), taken = lanes.push(lane, frames, fitting);
    room -= fitting;
    if (taken > 0) offered |= u64{1} << lane;
    for (u32 frame = taken; frame < size; ++frame) drop(frames[frame], WEIR_DROP_LANE_FULL);
    lost += fitting - taken;
  }
  staging.total = 0;
  if (offered != 0) lanes.offer(offered);
  if (lost != 0) lanes.overflowed(lost);
}

// Should the thread stay in the stage, whoever polls in its place must not overtake what it has collected.
void Runner::publish_before() noexcept {
  flush();
  for (Staging& staging : stagings_)
    if (staging.total > 0) publish(staging);
}

void Runner::publish() noexcept {
  for (Staging& staging : stagings_) {
    if (staging.total > 0) publish(staging);
    for (; staging.held > 0; --staging.held) staging.lanes->unhold();
  }
}

namespace {

bool same_way(const Frame& one, const Frame& other) noexcept {
  return one.verdict == other.verdict && one.argument == other.argument && one.port == other.port;
}

}  // namespace

// Carries out the verdicts; the frames without one move to the front of the burst.
void Runner::settle(Burst& burst, account& stage) noexcept {
  u32 kept = 0;
  Frame* frames = burst.begin();
  for (u32 i = 0, alike = 1; i < burst.size(); i += std::exchange(alike, 1)) {
    const Frame& frame = frames[i];
    switch (frame.verdict) {
      case WEIR_NEXT:
        frames[kept++] = frame;
        continue;
      case WEIR_REDIRECT:  // most frames of a burst go from one port to one other: those go together
        while (i + alike < burst.size() && same_way(frame, frames[i + alike])) ++alike;
        stage.verdict[emit(&frame, alike, PortSlot{frame.argument})] += alike;
        continue;
      case WEIR_FLOOD:
        flood(frame, frame.argument);
        break;
      case WEIR_TO_STACK:
        to_stack(frame);
        break;
      default:
        ++stage.drop[std::min<u32>(frame.argument, WEIR_DROP_UNNAMED)];
        ++of(frame.port).verdict[WEIR_DROP];
        cache_.release(frame);
    }
    stage.verdict[frame.verdict] += alike;
  }
  burst.truncate(kept);
}

// As the kernel's half does (bpf/lib/runtime.bpf.h, end_with_miss).
void Runner::miss(const Frame& frame) noexcept {
  account& port = of(frame.port);
  if (miss_ == Miss::to_stack) {
    ++port.counter[WEIR_PORT_MISS_STACK];
    return to_stack(frame);
  }
  ++port.counter[miss_ == Miss::aborted ? WEIR_PORT_MISS_ABORTED : WEIR_PORT_MISS_DROP];
  drop(frame, WEIR_DROP_NO_ENTRY);
}

weir_verdict Runner::emit(const Frame* frames, u32 number, PortSlot port) noexcept {
  if (port.value >= path_.ports.size() || path_.ports[port.value].deleted || path_.ports[port.value].kernel_only) {
    for (u32 i = 0; i < number; ++i) miss(frames[i]);
    return miss_ == Miss::to_stack ? WEIR_TO_STACK : WEIR_DROP;
  }
  of(frames->port).verdict[WEIR_REDIRECT] += number;
  collect(frames, number, port);
  return WEIR_REDIRECT;
}

void Runner::collect(const Frame* frames, u32 number, PortSlot port) noexcept {
  for (const Frame* const end = frames + number; frames != end;) {
    const u32 way = draining_ ? frames->way : way_, box = box_of(port, way);
    Outbox& out = out_[box];
    do {
      if (out.size == 0) waiting_.push_back(box);
      out.frames[out.size++] = *frames;
      if (out.size == Burst::capacity) send(box);
    } while (++frames != end && (!draining_ || frames->way == way));
  }
}

bool Runner::copy(const Frame& frame, Frame& to) noexcept {
  u64 chunk = 0;
  if (cache_.take(&chunk, 1) != 1) return false;
  to = frame;
  to.data = cache_.pool().base() + chunk + (static_cast<u64>(frame.data - cache_.pool().base()) & (cache_.pool().size() - 1));
  std::memcpy(to.data, frame.data, frame.length);
  if (const std::optional<u64> time = cache_.pool().time_of(frame)) cache_.pool().set_time(to, *time);
  return true;
}

void Runner::flood(const Frame& frame, u32 group) noexcept {
  if (group >= path_.groups.size()) return drop(frame, WEIR_DROP_NO_GROUP);
  const PortSlot* last = nullptr;
  account& from = of(frame.port);
  for (const PortSlot& member : path_.groups[group]) {
    PortEntry& to = path_.ports[member.value];
    if (member == frame.port || to.deleted || longest_of(to) == 0) continue;  // none of both halves' groups has who is down
    if (to.kernel_only) {                                                     // the kernel would have sent a copy
      ++from.counter[WEIR_PORT_COPIES];
      ++of(member).drop[WEIR_DROP_NO_ENTRY];
      continue;
    }
    if (last != nullptr) {
      ++from.counter[WEIR_PORT_COPIES];
      if (Frame another; copy(frame, another)) collect(&another, 1, *last);
      else ++of(*last).drop[WEIR_DROP_NO_FRAME];
    }
    last = &member;
  }
  if (last == nullptr) return drop(frame, WEIR_DROP_NO_ENTRY);
  ++from.verdict[WEIR_FLOOD];
  collect(&frame, 1, *last);
}

void Runner::to_stack(const Frame& frame) noexcept {
  if (path_.stack == nullptr) return drop(frame, WEIR_DROP_STACK_FAILED);
  if (const auto refused = path_.stack->submit(frame.port, frame.bytes())) return drop(frame, *refused);
  ++of(frame.port).verdict[WEIR_TO_STACK];
  cache_.release(frame);
}

void Runner::drop(const Frame& frame, u32 reason) noexcept {
  account& port = of(frame.port);
  ++port.verdict[WEIR_DROP];
  ++port.drop[reason];
  cache_.release(frame);
}

void Runner::flush() noexcept {
  while (!waiting_.empty()) {
    const u32 box = waiting_.back();
    if (out_[box].size > 0) send(box);
    else waiting_.pop_back();
  }
}

// A device that is asked to send what it cannot take loses it without a word. Moves those that it takes to the front.
Runner::Taken Runner::drop_longer(Frame* frames, u32 number, PortEntry& to, account& account) noexcept {
  const u32 longest = longest_of(to);
  u64 bytes = 0;
  u32 fitting = 0;
  for (u32 i = 0; i < number; ++i) {
    if (frames[i].length > longest) {
      cache_.release(frames[i]);
      continue;
    }
    bytes += frames[i].length;
    frames[fitting++] = frames[i];
  }
  account.drop[longest > 0 ? WEIR_DROP_TOO_LONG : WEIR_DROP_DEVICE_DOWN] += number - fitting;
  return {fitting, bytes};
}

void Runner::send(u32 box) noexcept {
  Outbox& out = out_[box];
  const PortSlot port = out.port;
  PortEntry& entry = path_.ports[port.value];
  if (auto at = std::ranges::find(waiting_, box); at != waiting_.end()) waiting_.erase(at);
  if (draining_ && !std::exchange(out.drained, true)) drained_.push_back(box);
  account& account = of(port);
  // The kernel checks a frame as it comes to the device entry: in front of a chain that stands there, behind one that is fused.
  const u32 collected = std::exchange(out.size, 0);
  auto [number, bytes] =
      entry.fused && !entry.egress.empty() ? Taken{collected, 0} : drop_longer(out.frames.data(), collected, entry, account);
  if (!entry.egress.empty()) {
    const u32 kept = entry.egress.run(out.frames.data(), number, path_.accounts, row_, cache_);
    std::tie(number, bytes) = drop_longer(out.frames.data(), kept, entry, account);
  }
  if (number == 0) return;
  const u32 sent = send_now(entry.port->queue(out.queue), out.frames.data(), number);
  for (u32 i = sent; i < number; ++i) {
    bytes -= out.frames[i].length;
    cache_.release(out.frames[i]);
  }
  account.tx += sent;
  account.tx_bytes += bytes;
  account.drop[WEIR_DROP_RING_FULL] += number - sent;
}

// A ring that stays full after the kernel has been kicked this often belongs to a device that does not keep up.
u32 Runner::send_now(Queue& queue, const Frame* frames, u32 number) noexcept {
  constexpr int attempts = 8;
  std::scoped_lock hold(queue.tx_lock());
  u32 sent = queue.transmit(frames, number, cache_);
  for (int i = 0; sent < number && i < attempts; ++i) {
    queue.reclaim(cache_);
    sent += queue.transmit(frames + sent, number - sent, cache_);
  }
  return sent;
}

void Runner::reclaim() noexcept {
  unsent_ = false;
  for (u16 slot = 0; slot < path_.ports.size(); ++slot)
    unsent_ |= reclaim(PortSlot{slot}, box_of(PortSlot{slot}, way_) - ways_[slot].first);
  if (!drained_.empty()) unsent_ |= reclaim_drained();
}

bool Runner::empty_rings() noexcept {
  flush();
  reclaim();
  return !unsent_;
}

bool Runner::reclaim_drained() noexcept {
  std::erase_if(drained_, [this](u32 box) {
    out_[box].drained = reclaim(out_[box].port, out_[box].queue);
    return !out_[box].drained;
  });
  return !drained_.empty();
}

bool Runner::reclaim(PortSlot port, u32 number) noexcept {
  Queue& queue = path_.ports[port.value].port->queue(number);
  if (!queue.tx_lock().try_lock()) return false;  // whoever has it does the same
  std::scoped_lock hold(std::adopt_lock, queue.tx_lock());
  const bool unsent = queue.reclaim(cache_);
  of(port).drop[WEIR_DROP_DEVICE_REFUSED] += queue.take_refused();
  return unsent;
}

u32 Runner::held() const noexcept {
  u32 held = 0;
  for (const Outbox& out : out_) held += out.size;
  for (const Staging& staging : stagings_) held += staging.total;
  return held;
}

}  // namespace weir
