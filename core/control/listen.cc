// SPDX-License-Identifier: BSD-3-Clause
// listen: what egress programs note of frames (bpf/abi/note.h): samples are kept.
#include <time.h>

#include <algorithm>

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
