// SPDX-License-Identifier: BSD-3-Clause
// runner: bursts to completion. The only place where frames change hands on the user side.
#include "core/worker/runner.hh"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <tuple>

namespace weir {

namespace {

// Bytes of a frame; 0: its device is down.
u32 longest_of(PortEntry& port) noexcept { return std::atomic_ref(port.longest).load(std::memory_order_relaxed); }

}  // namespace

Runner::Runner(DataPath& path, FramePool& pool, u32 number, u32 row, std::vector<RxQueue> queues)
    : path_(path), number_(number), row_(row), cache_(pool), queues_(std::move(queues)), out_(path.ports.size()) {
  waiting_.reserve(path.ports.size());
}

u32 Runner::poll() noexcept {
  u32 total = 0;
  for (const RxQueue& from : queues_) {
    burst_.clear();
    const u32 got = from.queue->receive(burst_, cache_);
    if (const Queue::Unread unread = from.queue->take_unread()) count(unread, of(from.port));
    if (got == 0) continue;
    total += got;
    account& port = of(from.port);
    port.frames += got;
    for (const Frame& frame : burst_) port.bytes += frame.length;
    run(path_.ports[from.port.value].pipeline, burst_);
  }
  flush();
  reclaim();
  return total;
}

void Runner::count(const Queue::Unread& unread, account& port) noexcept {
  const u32 frames = unread.too_long + unread.no_frame;
  port.frames += frames;
  port.bytes += unread.bytes;
  port.verdict[WEIR_DROP] += frames;
  port.drop[WEIR_DROP_TOO_LONG] += unread.too_long;
  port.drop[WEIR_DROP_NO_FRAME] += unread.no_frame;
}

// Frames that the kernel punted at different stages are run in parts, in their order.
void Runner::run(const Pipeline* pipeline, Burst& burst) noexcept {
  if (burst.empty()) return;
  const u8 entry = burst.begin()->stage;
  if (std::all_of(burst.begin(), burst.end(), [&](const Frame& frame) { return frame.stage == entry; })) {
    run_from(pipeline, entry, burst);
    return;
  }
  for (const Frame* at = burst.begin(); at != burst.end();) {
    const u8 stage = at->stage;
    part_.clear();
    for (; at != burst.end() && at->stage == stage; ++at) part_.push(*at);
    run_from(pipeline, stage, part_);
  }
}

// `stage` is the instance's number; one of another pipeline (a frame of before a reload) starts at the front, which is always right.
void Runner::run_from(const Pipeline* pipeline, u32 stage, Burst& burst) noexcept {
  const u32 count = pipeline == nullptr ? 0 : static_cast<u32>(pipeline->stages.size());
  u32 at = count > 0 && stage >= pipeline->first() ? stage - pipeline->first() : 0;
  if (at >= count) at = 0;
  if (pipeline != nullptr) miss_ = pipeline->miss;
  for (; at < count && !burst.empty(); ++at) {
    const StageEntry& entry = pipeline->stages[at];
    account& stage_account = path_.accounts.at(row_, entry.block);
    burst.charge(&stage_account);
    entry.stage->process(burst);
    stage_account.verdict[WEIR_NEXT] += burst.size() - burst.decided();
    if (burst.decided() > 0) settle(burst, stage_account);
  }
  for (const Frame& frame : burst) to_stack(frame);
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
  Outbox& out = out_[port.value];
  for (const Frame* end = frames + number; frames != end; ++frames) {
    if (out.size == 0) waiting_.push_back(port.value);
    out.frames[out.size++] = *frames;
    if (out.size == Burst::capacity) send(port);
  }
}

bool Runner::copy(const Frame& frame, Frame& to) noexcept {
  u64 chunk = 0;
  if (cache_.take(&chunk, 1) != 1) return false;
  to = frame;
  to.data = cache_.pool().base() + chunk + (static_cast<u64>(frame.data - cache_.pool().base()) & (cache_.pool().size() - 1));
  std::memcpy(to.data, frame.data, frame.length);
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
    const PortSlot port{waiting_.back()};
    if (out_[port.value].size > 0) send(port);
    else waiting_.pop_back();
  }
}

Queue& Runner::way_out(PortSlot port) noexcept {
  Port& to = *path_.ports[port.value].port;
  return to.queue(number_ % to.queues());
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

void Runner::send(PortSlot port) noexcept {
  Outbox& out = out_[port.value];
  PortEntry& entry = path_.ports[port.value];
  if (auto at = std::ranges::find(waiting_, port.value); at != waiting_.end()) waiting_.erase(at);
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
  const u32 sent = send_now(way_out(port), out.frames.data(), number);
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
  for (u16 slot = 0; slot < path_.ports.size(); ++slot) {
    Queue& queue = way_out(PortSlot{slot});
    if (!queue.tx_lock().try_lock()) continue;  // whoever has it does the same
    std::scoped_lock hold(std::adopt_lock, queue.tx_lock());
    unsent_ |= queue.reclaim(cache_);
    of(PortSlot{slot}).drop[WEIR_DROP_DEVICE_REFUSED] += queue.take_refused();
  }
}

u32 Runner::held() const noexcept {
  u32 held = 0;
  for (const Outbox& out : out_) held += out.size;
  return held;
}

}  // namespace weir
