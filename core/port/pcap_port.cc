// SPDX-License-Identifier: BSD-3-Clause
// pcap_port: frames from a capture file and into one. A module: libweir does not need libpcap.
//   [[port]]  driver = "pcap"  read = "in.pcapng"  write = "out.pcap"  pace = "recorded"
#include <sys/stat.h>
#include <time.h>

#include "core/driver.hh"
#include "core/port/capture_reader.hh"
#include "core/port/capture_writer.hh"

namespace {

using namespace weir;

constexpr u32 shortest = 14;  // bytes: an Ethernet header

u64 now_ns() noexcept {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<u64>(now.tv_sec) * 1'000'000'000 + static_cast<u64>(now.tv_nsec);
}

// One queue: the order of a file is that of its frames.
class PcapQueue final : public Queue {
 public:
  PcapQueue(const PortContext& context, Alarm alarm, Pace pace)
      : pool_(context.pool), slot_(context.slot), alarm_(std::move(alarm)), pacer_(pace) {}

  u32 receive(Burst& burst, FrameCache& cache) noexcept override {
    if (!reader) return 0;
    std::array<u64, Burst::capacity> chunks;
    u32 taken = 0, used = 0, got = 0;
    const u64 now = pacer_.full() ? 0 : monotonic_ns();
    while (burst.room() > 0) {
      const CaptureReader::Record* record = reader->peek();
      if (record == nullptr) break;
      if (const u64 due = pacer_.full() ? 0 : pacer_.due(now, record->time_ns, record->anew != 0); due > now) {
        alarm_.at(due);
        break;
      }
      if (record->length >= shortest && record->length <= longest()) {
        if (used == taken) {
          taken += cache.take(chunks.data() + taken, burst.room());
          if (used == taken) break;  // the file waits until there is a free frame
        }
        Frame frame{.data = pool_.base() + chunks[used++] + FramePool::front, .length = record->length, .port = slot_};
        std::memcpy(frame.data, record->bytes(), record->length);
        pool_.set_time(frame, record->time_ns);
        burst.push(frame);
        ++got;
      } else {
        ++(record->length < shortest ? unread_.runt : unread_.too_long);
        unread_.bytes += record->length;
      }
      pacer_.next();
      reader->pop();
    }
    while (used < taken) cache.release(chunks[used++]);
    return got;
  }

  u32 transmit(const Frame* frames, u32 number, FrameCache& cache) noexcept override {
    const u32 taken = writer ? writer->put(frames, number, pool_, now_ns()) : number;
    for (u32 i = 0; i < taken; ++i) cache.release(frames[i]);
    return taken;
  }
  bool reclaim(FrameCache&) noexcept override {
    if (writer) {
      writer->begin();
      count_lost();
    }
    return false;
  }
  void count_lost() noexcept { refused_ += writer->take_lost(); }

  [[nodiscard]] u32 held() const noexcept override { return 0; }
  [[nodiscard]] int descriptor() const noexcept override { return reader ? alarm_.descriptor() : -1; }
  [[nodiscard]] bool silent() const noexcept override { return !reader || reader->ended(); }
  [[nodiscard]] u32 longest() const noexcept { return pool_.size() - FramePool::front; }
  [[nodiscard]] const Alarm& alarm() const noexcept { return alarm_; }

 private:
  FramePool& pool_;
  PortSlot slot_;
  Alarm alarm_;  // outlives the reader, which rings it
  Pacer pacer_;

 public:
  std::unique_ptr<CaptureReader> reader;  // null: nothing is read
  std::unique_ptr<CaptureWriter> writer;  // null: what goes out is discarded
};

class PcapPort final : public Port {
 public:
  static Result<std::unique_ptr<Port>> open(const ConfigNode& keys, const PortContext& context) {
    const auto file = [&](const char* key) { return keys.string(key) == "-" ? "-" : keys.beside(keys.string(key)); };
    std::unique_ptr<PcapPort> made(new PcapPort(context, TRY(Alarm::create()), *Pace::parse(keys.string("pace"), true)));
    PcapQueue& queue = made->queue_;
    if (keys.has("read")) {
      made->facts_.emplace_back("read", keys.string("read"));
      const u64 loops = static_cast<u64>(keys.integer("loop"));
      queue.reader = TRY(CaptureReader::open({.file = file("read"), .loops = loops, .longest = queue.longest()}, queue.alarm()));
      made->finite_ = loops > 0;
    }
    if (keys.has("write")) {
      made->facts_.emplace_back("write", keys.string("write"));
      CaptureWriter::Options options{.file = file("write"), .port = context.name, .waits = context.files_only};
      if (keys.has("snap_bytes")) options.snap = static_cast<u32>(keys.integer("snap_bytes"));
      queue.writer = TRY(CaptureWriter::open(std::move(options)));
    }
    return made;
  }

  [[nodiscard]] u32 queues() const noexcept override { return 1; }
  [[nodiscard]] Queue& queue(u32) noexcept override { return queue_; }
  [[nodiscard]] bool finite() const noexcept override { return finite_; }

  [[nodiscard]] std::vector<std::pair<std::string, std::string>> facts() const override {
    auto all = facts_;
    if (queue_.reader) all.emplace_back("cut", std::to_string(queue_.reader->cut()));
    if (queue_.reader) all.emplace_back("loops", std::to_string(queue_.reader->loops()));
    return all;
  }
  [[nodiscard]] std::vector<std::string> warnings() const override {
    std::vector<std::string> all;
    if (queue_.reader && !queue_.reader->trouble().empty()) all.push_back(queue_.reader->trouble());
    if (queue_.reader && queue_.reader->cut() > 0)
      all.push_back("frames were cut when they were captured, and come in as short as they are; capture whole ones: tcpdump -s 0");
    if (queue_.writer && !queue_.writer->trouble().empty()) all.push_back(queue_.writer->trouble());
    return all;
  }
  Result<> finish() override {
    Result<> written;
    if (queue_.writer) {
      written = queue_.writer->finish();
      queue_.count_lost();
    }
    if (queue_.reader && !queue_.reader->trouble().empty()) return fail("{}", queue_.reader->trouble());
    return written;
  }

 private:
  PcapPort(const PortContext& context, Alarm alarm, Pace pace) : queue_(context, std::move(alarm), pace) {}
  PcapQueue queue_;
  bool finite_ = false;
  std::vector<std::pair<std::string, std::string>> facts_;
};

// Two names of one file, by what is there.
bool same_file(const std::string& one, const std::string& other) {
  if (one == other) return true;
  struct stat first {
  }, second{};
  return ::stat(one.c_str(), &first) == 0 && ::stat(other.c_str(), &second) == 0 && S_ISREG(first.st_mode) &&
         first.st_dev == second.st_dev && first.st_ino == second.st_ino;
}

std::string refuse(const ConfigNode& keys) {
  const bool reads = keys.has("read"), writes = keys.has("write");
  if (!reads && !writes) return "it neither reads nor writes: give read, write or both (driver = \"null\" does nothing)";
  for (const char* key : {"read", "write"})
    if (keys.has(key) && keys.string(key).empty()) return fmt::format("{} is \"\", must be the name of a file, or \"-\"", key);
  if (reads && !keys.has("pipeline")) return "it reads, but has no pipeline that its frames could go through";
  if (reads && writes && keys.string("read") != "-" && same_file(keys.beside(keys.string("read")), keys.beside(keys.string("write"))))
    return fmt::format("it reads and writes one file, {}: what it reads would be gone; write another one", keys.string("read"));
  if (!Pace::parse(keys.string("pace"), true))
    return fmt::format(
        "pace is \"{}\", must be \"full\", \"recorded\", frames a second as \"1000/s\", or times as fast as recorded as \"2.5x\"",
        keys.string("pace"));
  return "";
}

}  // namespace

WEIR_PORT_DRIVER(
        .name = "pcap", .says = "reads frames from a capture file, and writes them into one",
        .keys = {Key::string("read").optional().as("the pcap or pcapng file that frames come from, relative to this file; \"-\": "
                                                   "standard input; left out: none come in"),
                 Key::string("write").optional().as("the file that frames go into: pcapng where it ends in .pcapng, else pcap; "
                                                    "\"-\": standard output; left out: discarded"),
                 Key::string("pace")
                     .otherwise("\"full\"")
                     .as("when frames come: \"full\", \"recorded\", \"2.5x\" as fast as "
                         "recorded, or \"1000/s\""),
                 Key::integer("loop", 0, 1'000'000'000).otherwise("1").as("how often the file is read; 0: without end"),
                 Key::integer("snap_bytes", 14, 262144).optional().as("of a frame that are written; left out: all")},
        .refuse = refuse, .queues = [](const ConfigNode& keys) -> u32 { return keys.has("read") ? 1 : 0; }, .open = PcapPort::open)
