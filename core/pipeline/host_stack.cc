// SPDX-License-Identifier: BSD-3-Clause
// host_stack: one memory-mapped ring per port, one thread for all.
#include "core/pipeline/host_stack.hh"

#include <atomic>
#include <cstring>
#include <mutex>
#include <optional>
#include <thread>

#include "bpf/abi/to_stack.h"
#include "bpf/ingress/to_stack.skel.h"
#include "core/base/spin_lock.hh"
#include "core/kernel/anchor.hh"

namespace weir {
class HostStack::Ring {
 public:
  static Result<std::unique_ptr<Ring>> create(const Entry& port, const PinFolder& pins, bool adopt);

  std::optional<weir_drop> push(std::span<const u8> bytes) noexcept {
    std::scoped_lock hold(lock_);
    const u64 head = std::atomic_ref(ring_->head).load(std::memory_order_relaxed);
    if (bytes.size() < TO_STACK_SHORTEST || bytes.size() > TO_STACK_LONGEST) return WEIR_DROP_STACK_FAILED;
    if (head - tail() == TO_STACK_SLOTS) return WEIR_DROP_STACK_FULL;
    to_stack_slot& slot = slots_[head % TO_STACK_SLOTS];
    slot.length = static_cast<u32>(bytes.size());
    std::memcpy(slot.bytes, bytes.data(), bytes.size());
    std::atomic_ref(ring_->head).store(head + 1, std::memory_order_release);
    return std::nullopt;
  }
  void set_mark(u64 mark) noexcept { std::atomic_ref(ring_->mark).store(mark, std::memory_order_relaxed); }
  void set_device(Ifindex device) noexcept { device_ = device.value; }
  [[nodiscard]] const KernelMemory& memory() const noexcept { return *memory_; }
  [[nodiscard]] u32 waiting() const noexcept {
    const u64 from = tail();  // first: it never passes a head that is read later
    return static_cast<u32>(std::atomic_ref(ring_->head).load(std::memory_order_acquire) - from);
  }
  [[nodiscard]] u64 lost() const noexcept { return std::atomic_ref(ring_->lost).load(std::memory_order_relaxed); }
  // Gives what waits to the stack. What the kernel does not take (the device is gone) is lost, and counted.
  void drain() noexcept {
    const u64 end = tail() + waiting();
    for (u64 at = tail(); at != end;) {
      run_live(program_, Ifindex{device_}, anchor_->holds() ? static_cast<u32>(end - at) : 1);
      const u64 now = tail();
      if (now == at) break;  // refused; a signal only ends a run early
      at = now;
    }
    if (const u64 left = end - tail(); left > 0) {
      std::atomic_ref(ring_->lost).fetch_add(left, std::memory_order_relaxed);
      std::atomic_ref(ring_->tail).store(end, std::memory_order_release);
    }
  }

 private:
  explicit Ring(BpfObject object) : object_(std::move(object)) {}
  [[nodiscard]] u64 tail() const noexcept { return std::atomic_ref(ring_->tail).load(std::memory_order_acquire); }

  BpfObject object_;
  std::optional<Anchor> anchor_;  // goes before the program
  std::unique_ptr<KernelMemory> memory_;
  std::span<to_stack_slot> slots_;
  to_stack_ring* ring_ = nullptr;
  int program_ = -1;
  std::atomic<u32> device_{0};  // ifindex
  SpinLock lock_;               // of the workers that push
};

Result<std::unique_ptr<HostStack::Ring>> HostStack::Ring::create(const Entry& port, const PinFolder& pins, bool adopt) {
  std::size_t size = 0;
  const void* elf = to_stack::elf_bytes(&size);
  BpfObject object = TRY(BpfObject::open("to_stack", {static_cast<const u8*>(elf), size}));
  std::unique_ptr<Ring> made(new Ring(std::move(object)));
  made->memory_ = std::make_unique<KernelMemory>(made->object_, pins, fmt::format("to_stack_{}", port.slot.value), adopt);
  made->ring_ = TRY(made->memory_->array<to_stack_ring>("ring", 1)).data();
  made->slots_ = TRY(made->memory_->array<to_stack_slot>("slots", TO_STACK_SLOTS));
  TRY_VOID(made->object_.load());
  made->program_ = made->object_.program_fd("to_stack");
  made->device_ = port.device.value;
  made->anchor_.emplace(made->program_);
  return made;
}

struct HostStack::Worker {
  std::atomic<u32> asked{0};  // grows with every frame
  std::atomic<bool> stopping{false};
  std::thread thread;
};

HostStack::HostStack() = default;

Result<std::unique_ptr<HostStack>> HostStack::create(const std::vector<Entry>& ports, const PinFolder& pins, bool adopt) {
  std::unique_ptr<HostStack> made(new HostStack);
  for (const Entry& port : ports) {
    if (made->rings_.size() <= port.slot.value) made->rings_.resize(port.slot.value + 1u);
    made->rings_[port.slot.value] = TRY(Ring::create(port, pins, adopt));
  }
  made->worker_ = std::make_unique<Worker>();
  made->worker_->asked = 1;  // an adopted ring is perhaps not empty
  return made;
}

void HostStack::start(std::span<const u64> marks) {
  for (std::size_t slot = 0; slot < rings_.size(); ++slot)
    if (rings_[slot]) rings_[slot]->set_mark(marks[slot]);
  worker_->thread = std::thread([this] {
    for (u32 seen = 0; !worker_->stopping || held() > 0;) {
      worker_->asked.wait(seen);
      seen = worker_->asked;
      for (const auto& ring : rings_)
        if (ring) ring->drain();
    }
  });
}

void HostStack::follow(PortSlot port, Ifindex device, u64 mark) noexcept {
  rings_[port.value]->set_mark(mark);
  rings_[port.value]->set_device(device);
}

HostStack::~HostStack() {
  if (!worker_ || !worker_->thread.joinable()) return;
  worker_->stopping = true;
  worker_->asked.fetch_add(1);
  worker_->asked.notify_one();
  worker_->thread.join();
}

std::optional<weir_drop> HostStack::submit(PortSlot port, std::span<const u8> bytes) noexcept {
  if (port.value >= rings_.size() || !rings_[port.value]) return WEIR_DROP_STACK_FAILED;
  if (const auto refused = rings_[port.value]->push(bytes)) return refused;
  worker_->asked.fetch_add(1);  // in one order with the thread's going to sleep
  worker_->asked.notify_one();  // a system call only when the thread sleeps
  return std::nullopt;
}

u32 HostStack::held() const noexcept {
  u32 waiting = 0;
  for (const auto& ring : rings_)
    if (ring) waiting += ring->waiting();
  return waiting;
}

std::vector<const KernelMemory*> HostStack::memories() const {
  std::vector<const KernelMemory*> all;
  for (const auto& ring : rings_)
    if (ring) all.push_back(&ring->memory());
  return all;
}

u64 HostStack::lost(PortSlot port) const noexcept {
  return port.value < rings_.size() && rings_[port.value] ? rings_[port.value]->lost() : 0;
}

}  // namespace weir
