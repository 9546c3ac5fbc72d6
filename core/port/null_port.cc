// SPDX-License-Identifier: BSD-3-Clause
// null_port: the frames of its keys come in, in turn; what goes out is released.
//   [[port]]  driver = "null"  frames = ["ffffffffffff 020000000001 0806 …"]  count = 1000  pace = "100/s"
#include "core/port/null_port.hh"

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cstring>

#include "core/port/pacer.hh"

namespace weir {
namespace {

using Bytes = std::vector<u8>;
constexpr std::size_t shortest = 14, longest_frame = 4096 - FramePool::front;

// None: it is no frame in hexadecimal digits, with blanks or colons between them.
std::optional<Bytes> bytes_of(std::string_view text) {
  Bytes bytes;
  int half = -1;
  for (const unsigned char c : text) {
    if (half < 0 && (c == ' ' || c == ':')) continue;
    if (std::isxdigit(c) == 0) return std::nullopt;
    const int digit = std::isdigit(c) != 0 ? c - '0' : std::tolower(c) - 'a' + 10;
    if (half >= 0) bytes.push_back(static_cast<u8>(half << 4 | digit));
    half = half >= 0 ? -1 : digit;
  }
  if (half >= 0 || bytes.size() < shortest || bytes.size() > longest_frame) return std::nullopt;
  return bytes;
}

class Source final : public Queue {
 public:
  Source(const PortContext& context, std::vector<Bytes> frames, u64 count, Pace pace, std::optional<Alarm> alarm)
      : pool_(context.pool),
        slot_(context.slot),
        frames_(std::move(frames)),
        left_(count),
        endless_(count == 0),
        pacer_(pace),
        alarm_(std::move(alarm)) {}

  u32 receive(Burst& burst, FrameCache& cache) noexcept override {
    std::array<u64, Burst::capacity> chunks;
    u32 taken = 0, used = 0;
    const u64 now = pacer_.full() ? 0 : monotonic_ns();
    while (burst.room() > 0 && (endless_ || left_ > 0)) {
      if (const u64 due = pacer_.full() ? 0 : pacer_.due(now, 0, false); due > now) {
        alarm_->at(due);
        break;
      }
      if (used == taken) taken += cache.take(chunks.data() + taken, burst.room());
      if (used == taken) break;  // none is free: the others come later
      const Bytes& bytes = frames_[at_];
      burst.push({.data = pool_.base() + chunks[used++] + FramePool::front, .length = static_cast<u32>(bytes.size()), .port = slot_});
      std::memcpy((burst.end() - 1)->data, bytes.data(), bytes.size());
      if (++at_ == frames_.size()) at_ = 0;
      if (!endless_) --left_;
      pacer_.next();
    }
    for (u32 i = used; i < taken; ++i) cache.release(chunks[i]);
    if (!endless_ && left_ == 0) {
      if (alarm_) alarm_->off();  // it would keep awake who waits for it
      silent_.store(true, std::memory_order_release);
    }
    return used;
  }
  u32 transmit(const Frame* frames, u32 number, FrameCache& cache) noexcept override {
    for (u32 i = 0; i < number; ++i) cache.release(frames[i]);
    return number;
  }
  bool reclaim(FrameCache&) noexcept override { return false; }
  [[nodiscard]] u32 held() const noexcept override { return 0; }
  [[nodiscard]] int descriptor() const noexcept override { return alarm_ ? alarm_->descriptor() : -1; }
  [[nodiscard]] bool silent() const noexcept override { return silent_.load(std::memory_order_acquire); }

 private:
  FramePool& pool_;
  PortSlot slot_;
  std::vector<Bytes> frames_;
  std::size_t at_ = 0;
  u64 left_;
  bool endless_;
  Pacer pacer_;
  std::optional<Alarm> alarm_;  // none at full pace
  std::atomic<bool> silent_{false};
};

class SourcePort final : public Port {
 public:
  template <typename... Args>
  explicit SourcePort(bool finite, Args&&... args) : source_(std::forward<Args>(args)...), finite_(finite) {}
  [[nodiscard]] u32 queues() const noexcept override { return 1; }
  [[nodiscard]] Queue& queue(u32) noexcept override { return source_; }
  [[nodiscard]] bool finite() const noexcept override { return finite_; }

 private:
  Source source_;
  bool finite_;
};

Result<std::unique_ptr<Port>> open(const ConfigNode& keys, const PortContext& context) {
  if (!keys.has("frames")) return std::make_unique<NullPort>();
  std::vector<Bytes> frames;
  for (const ConfigValue& frame : keys.list("frames")) {
    frames.push_back(*bytes_of(std::get<std::string>(frame.value)));
    if (frames.back().size() > context.pool.size() - FramePool::front)
      return invalid("a frame of {} bytes is longer than the {} that a frame's memory has room for; set [frames] size = 4096",
                     frames.back().size(), context.pool.size() - FramePool::front);
  }
  const Pace pace = *Pace::parse(keys.string("pace"), false);
  std::optional<Alarm> alarm;
  if (pace.kind != Pace::Kind::full) alarm = TRY(Alarm::create());
  const u64 count = static_cast<u64>(keys.integer("count"));
  return std::make_unique<SourcePort>(count > 0, context, std::move(frames), count, pace, std::move(alarm));
}

std::string refuse(const ConfigNode& keys) {
  for (const ConfigValue& frame : keys.list("frames"))
    if (const auto& text = std::get<std::string>(frame.value); !bytes_of(text))
      return fmt::format("\"{}\" is no frame: {} to {} bytes in hexadecimal digits, with blanks or colons between them", text, shortest,
                         longest_frame);
  if (keys.has("frames") && !keys.has("pipeline")) return "it has frames, but no pipeline that they could go through";
  if (!Pace::parse(keys.string("pace"), false))
    return fmt::format("pace is \"{}\", must be \"full\", or frames a second as \"1000/s\"", keys.string("pace"));
  return "";
}

}  // namespace

const PortDriver null_driver{
    .name = "null",
    .says = "gives the frames of its keys, and releases what it sends",
    .keys = {Key::list("frames", Key::string(""), 1, 1024).optional().as("that come in, in turn, in hexadecimal digits; left out: none do"),
             Key::integer("count", 0, 1'000'000'000'000).otherwise("0").as("how many come in, all in all; 0: without end"),
             Key::string("pace").otherwise("\"full\"").as("when they come: \"full\", or \"1000/s\"")},
    .refuse = refuse,
    .queues = [](const ConfigNode& keys) -> u32 { return keys.has("frames") ? 1 : 0; },
    .open = open,
};

}  // namespace weir
