// SPDX-License-Identifier: BSD-3-Clause
// transmit: send frames that differ from user space, one way or the other, as fast as one thread can, until a signal comes.
//   transmit DEVICE FILE AT WAY     FILE holds a frame, whose four bytes at AT are another number in each; WAY: af_xdp or pump
#include <linux/bpf.h>
#include <signal.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "core/kernel/netdev.hh"
#include "core/port/xdp_port.hh"

using namespace weir;

namespace {

constexpr u32 frames = 4096, size = 2048, headroom = 256;
std::atomic<bool> stopping{false};

struct Wanted {
  const char* device;
  std::vector<u8> frame;
  u32 at;
  bool pump;
};

Result<> send(const Wanted& wanted) {
  const Netdev netdev = TRY(look_at(wanted.device));
  // The same memory for both.
  BpfMap map = TRY(BpfMap::create("frames", {BPF_MAP_TYPE_ARRAY, sizeof(u32), size, frames, BPF_F_MMAPABLE}));
  Mapping memory = TRY(map.map_memory());
  const auto pool = TRY(FramePool::create(frames, size, std::move(memory)));
  const auto umem = TRY(Umem::create(*pool));
  const auto port = TRY(XdpPort::open(*umem, wanted.device, 1, PortSlot{0}, {.zero_copy = ZeroCopy::off, .fill = 64}));
  if (wanted.pump) TRY_VOID(port->add_pumps(*pool, map, netdev.ifindex, 0, Tx::pump, true));
  for (const auto& queue : port->pumped()) queue->open(true);
  Queue& queue = port->queue(0);
  FrameCache cache(*pool);
  Frame burst[Burst::capacity];
  for (u32 number = 0; !stopping;) {
    u64 chunks[Burst::capacity];
    const u32 got = cache.take(chunks, Burst::capacity);
    for (u32 i = 0; i < got; ++i, ++number) {
      burst[i] = {.data = pool->base() + chunks[i] + headroom,
                  .length = static_cast<u32>(wanted.frame.size()),
                  .port = {},
                  .stage = 0,
                  .reason = 0,
                  .verdict = WEIR_NEXT,
                  .argument = 0};
      std::memcpy(burst[i].data, wanted.frame.data(), wanted.frame.size());
      std::memcpy(burst[i].data + wanted.at, &number, sizeof number);
    }
    for (u32 sent = 0; sent < got && !stopping;) {
      sent += queue.transmit(burst + sent, got - sent, cache);
      queue.reclaim(cache);
    }
  }
  return {};
}

}  // namespace

int main(int words, char** word) {
  Wanted wanted{};
  if (words == 5) {
    Result<std::vector<u8>> frame = read_file(word[2]);
    wanted = {word[1], frame ? std::move(*frame) : std::vector<u8>{}, static_cast<u32>(std::strtoul(word[3], nullptr, 10)),
              std::strcmp(word[4], "pump") == 0};
  }
  if (wanted.frame.size() < 60 || wanted.frame.size() > size - headroom || wanted.at + sizeof(u32) > wanted.frame.size()) {
    std::fprintf(stderr, "usage: transmit DEVICE FILE AT af_xdp|pump: a file with a frame of 60 to %u bytes\n", size - headroom);
    return 2;
  }
  ::signal(SIGTERM, [](int) { stopping = true; });
  const Result<> done = send(wanted);
  if (!done) std::fprintf(stderr, "transmit: %s\n", done.error().what.c_str());
  return done ? 0 : 1;
}
