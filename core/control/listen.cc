// SPDX-License-Identifier: BSD-3-Clause
// listen: what egress programs note of frames (bpf/abi/note.h): samples are kept, senders of frames that are too long are told.
#include <time.h>

#include <algorithm>
#include <atomic>
#include <string_view>

#include "bpf/abi/mtu_guard.h"
#include "core/control/instance.hh"

namespace weir {
namespace {

using nlohmann::json;

constexpr std::size_t samples_kept = 256;

u64 clock_ns(clockid_t clock) noexcept {
  timespec now{};
  ::clock_gettime(clock, &now);
  return static_cast<u64>(now.tv_sec) * 1'000'000'000 + static_cast<u64>(now.tv_nsec);
}

std::string hex(std::span<const u8> bytes) {
  std::string text;
  for (const u8 byte : bytes) text += fmt::format("{:02x}", byte);
  return text;
}

// A program that put an IP header of its own in front of the sender's.
bool is_tunnel(const EgressChain::Step& step) noexcept { return std::string_view(step.program->name).starts_with("encap"); }

}  // namespace

// Whether there is a program that may have something to say.
bool Instance::listens() const noexcept {
  return std::ranges::any_of(path_->ports, [](const PortEntry& port) {
    return std::ranges::any_of(port.egress.steps(), [](const EgressChain::Step& step) { return step.program->notes != nullptr; });
  });
}

void Instance::listen() {
  const u64 ahead = clock_ns(CLOCK_REALTIME) - clock_ns(CLOCK_MONOTONIC);
  notes_->read([&](const note& head, std::span<const u8> bytes) {
    if (head.out >= path_->ports.size()) return;
    if (head.kind == NOTE_TOO_BIG) return answer_sender(head, bytes);
    if (samples_.size() == samples_kept) samples_.pop_front();
    samples_.push_back({++samples_read_, head.time + ahead, head, device_of(head), {bytes.begin(), bytes.end()}});
  });
}

// By what the instance knows of its ports now: a device of a note may have gone meanwhile.
Instance::NotedDevice Instance::device_of(const note& head) const {
  const auto at = std::ranges::find_if(kernel_ports_, [&](const KernelPort& port) {
    return head.device != 0 ? port.ifindex.value == head.device : port.slot.value == head.in;
  });
  if (at != kernel_ports_.end()) return {at->name, at->ifindex.value};
  return {head.device == 0 && head.in < path_->ports.size() ? path_->ports[head.in].name : "", head.device};
}

// The answers are counted in the guard's state, in the row that is the control thread's. Where a command has just replaced the chain, what
// the guard of before had told and nobody had read is the affair of one that stands in its place, or of nobody.
void Instance::answer_sender(const note& head, std::span<const u8> bytes) {
  const std::vector<EgressChain::Step>& steps = path_->ports[head.out].egress.steps();
  if (head.place >= steps.size() || steps[head.place].program->name != std::string_view("mtu_guard")) return;
  const EgressChain::Step& guard = steps[head.place];
  auto& state = *reinterpret_cast<mtu_guard_state*>(guard.state + (path_->accounts.rows() - 1) * guard.stride);
  const auto count = [&](mtu_guard_counter counter) { std::atomic_ref(state.count[counter]).fetch_add(1, std::memory_order_relaxed); };
  const bool tunnelled = std::any_of(steps.begin(), steps.begin() + head.place, is_tunnel);
  const std::optional<IcmpAnswer> answer = tunnelled ? std::nullopt : answer_too_big(bytes, head.mtu);
  if (!answer) return count(MTU_GUARD_UNFIT);
  switch (icmp_.send(*answer, device_of(head).ifindex, clock_ns(CLOCK_MONOTONIC))) {
    case IcmpSender::Outcome::answered:
      return count(MTU_GUARD_ANSWERED);
    case IcmpSender::Outcome::limited:
      return count(MTU_GUARD_LIMITED);
    case IcmpSender::Outcome::unsent:
      return count(MTU_GUARD_UNSENT);
  }
}

json Instance::samples() const {
  json report{{"instance", name()}, {"read", samples_read_}, {"samples", json::array()}};
  const auto side = [](const NotedDevice& device) {
    json given{{"port", device.port.empty() ? json(nullptr) : json(device.port)}};
    if (device.ifindex != 0) given["ifindex"] = device.ifindex;
    return given;
  };
  for (const Sample& sample : samples_) {
    const auto out = std::ranges::find(kernel_ports_, PortSlot{sample.head.out}, &KernelPort::slot);
    report["samples"].push_back({{"number", sample.number},
                                 {"time_ns", sample.time},
                                 {"monotonic_ns", sample.head.time},
                                 {"path", sample.head.device != 0 ? "kernel" : "user"},
                                 {"in", side(sample.in)},
                                 {"out", side({path_->ports[sample.head.out].name, out != kernel_ports_.end() ? out->ifindex.value : 0})},
                                 {"place", sample.head.place},
                                 {"length", sample.head.length},
                                 {"bytes", hex(sample.bytes)}});
  }
  return report;
}

}  // namespace weir
