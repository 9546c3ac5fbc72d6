// SPDX-License-Identifier: BSD-3-Clause
// capture_reader: libpcap's reader in a thread, and a ring of chunks from there to a worker.
#include "core/port/capture_reader.hh"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

namespace weir {
namespace {

static_assert(sizeof(CaptureReader::Record) % alignof(CaptureReader::Record) == 0);

constexpr u32 aligned(u32 bytes) noexcept { return (bytes + 7) & ~7u; }

std::string link_type(int type) {
  const char* name = ::pcap_datalink_val_to_name(type);
  const char* says = ::pcap_datalink_val_to_description(type);
  return name == nullptr ? fmt::format("number {}", type) : fmt::format("{} ({})", name, says);
}

// The first bytes of what is often taken for a capture.
const char* known_as(const u8* head) noexcept {
  if (head[0] == 0x1f && head[1] == 0x8b) return "; it is compressed: gunzip it first";
  if (std::memcmp(head, "\x28\xb5\x2f\xfd", 4) == 0) return "; it is compressed: unzstd it first";
  return "";
}

}  // namespace

CaptureReader::CaptureReader(Options options, const Alarm& alarm)
    : options_(std::move(options)),
      alarm_(alarm),
      who_("read capture " + (options_.file == "-" ? "from standard input" : options_.file)),
      stdio_(stdio_size),
      ring_(chunks) {
  for (Chunk& chunk : ring_) chunk.bytes.resize(chunk_size);
}

Result<std::unique_ptr<CaptureReader>> CaptureReader::open(Options options, const Alarm& alarm) {
  std::unique_ptr<CaptureReader> made(new CaptureReader(std::move(options), alarm));
  const std::string& who = made->who_;
  // A named pipe is not waited for.
  made->file_ = made->options_.file == "-" ? Fd(::fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 0))
                                           : Fd(::open(made->options_.file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat is {};
  if (!made->file_ || ::fstat(made->file_.get(), &is) != 0) return fail_errno(errno, who);
  if (S_ISDIR(is.st_mode)) return fail("{}: it is a folder; name a file", who);
  made->seekable_ = S_ISREG(is.st_mode);
  if (!made->seekable_ && made->options_.loops != 1) return fail("{}: it can be read only once; leave out loop", who);
  if (made->seekable_ && ::flock(made->file_.get(), LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK)
    return fail("{}: another port or another weir writes it; wait for its end", who);
  made->stop_ = Fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!made->stop_) return fail_errno(errno, who + ": create an eventfd");
  if (made->seekable_) {
    static_cast<void>(::posix_fadvise(made->file_.get(), 0, 0, POSIX_FADV_SEQUENTIAL));
    TRY_VOID(made->begin());
  }
  made->thread_ = std::thread([reader = made.get()] { reader->work(); });
  return made;
}

CaptureReader::~CaptureReader() {
  {
    const std::scoped_lock hold(mutex_);
    stopping_ = true;
  }
  room_.notify_all();
  const u64 one = 1;
  if (stop_) static_cast<void>(::write(stop_.get(), &one, sizeof one) == sizeof one);
  if (thread_.joinable()) thread_.join();
}

ssize_t CaptureReader::read(char* to, std::size_t size) noexcept {
  while (!stopping()) {
    if (!seekable_) {
      pollfd wait[] = {{file_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
      if (::poll(wait, 2, 0) == 0 && !publish()) break;  // what is there goes on before it waits
      if (::poll(wait, 2, -1) < 0 && errno != EINTR) return -1;
      if (wait[0].revents == 0) continue;
    }
    const ssize_t got = ::read(file_.get(), to, size);
    if (got >= 0 || (errno != EINTR && errno != EAGAIN)) return got;
  }
  return 0;
}

Result<> CaptureReader::begin() {
  constexpr cookie_io_functions_t calls{
      .read = [](void* self, char* to, std::size_t size) { return static_cast<CaptureReader*>(self)->read(to, size); },
      .write = nullptr,
      .seek =
          [](void* self, off64_t* to, int from) {
            const off64_t at = ::lseek64(static_cast<CaptureReader*>(self)->file_.get(), *to, from);
            if (at >= 0) *to = at;
            return at < 0 ? -1 : 0;
          },
      .close = nullptr};
  u8 head[4] = {};
  if (seekable_) static_cast<void>(::pread(file_.get(), head, sizeof head, 0));
  FILE* file = ::fopencookie(this, "r", calls);
  if (file == nullptr) return fail_errno(errno, who_);
  ::setvbuf(file, stdio_.data(), _IOFBF, stdio_.size());
  char why[PCAP_ERRBUF_SIZE] = {};
  pcap_.reset(::pcap_fopen_offline_with_tstamp_precision(file, PCAP_TSTAMP_PRECISION_NANO, why));
  if (!pcap_) {
    ::fclose(file);
    return fail("{}: {}{}", who_, why, known_as(head));
  }
  if (const int type = ::pcap_datalink(pcap_.get()); type != DLT_EN10MB)
    return fail("{}: its frames are of link type {}, weir takes Ethernet (EN10MB) alone; capture on one device", who_, link_type(type));
  // The interfaces of a pcapng stand in front of its frames, and are read again with them.
  const bool pcapng = head[0] == 0x0a && head[1] == 0x0d && head[2] == 0x0d && head[3] == 0x0a;
  if (seekable_) start_ = pcapng ? 0 : ::ftello(::pcap_file(pcap_.get()));
  return {};
}

bool CaptureReader::rewind() {
  ++turns_;
  if (options_.loops != 0 && turns_ == options_.loops) return false;
  if (in_turn_ == 0) return false;  // an empty file has no end of turns
  in_turn_ = 0;
  anew_ = true;
  return ::fseeko(::pcap_file(pcap_.get()), start_, SEEK_SET) == 0;
}

void CaptureReader::work() {
  if (!pcap_)
    if (const Result<> begun = begin(); !begun) trouble_ = begun.error().what;
  while (trouble_.empty()) {
    pcap_pkthdr* head = nullptr;
    const u8* bytes = nullptr;
    const int got = ::pcap_next_ex(pcap_.get(), &head, &bytes);
    if (got == 1 ? !put(*head, bytes) : got == PCAP_ERROR_BREAK && !rewind()) break;
    if (got != 1 && got != PCAP_ERROR_BREAK) trouble_ = fmt::format("{}: {}", who_, ::pcap_geterr(pcap_.get()));
  }
  publish();
  if (stopping()) trouble_.clear();  // a pipe that was given up
  ended_read_.store(true);
  if (waiting_.exchange(false)) alarm_.now();
}

bool CaptureReader::put(const pcap_pkthdr& head, const u8* bytes) {
  const u32 kept = head.caplen <= options_.longest ? head.caplen : 0;
  const u32 size = static_cast<u32>(sizeof(Record)) + aligned(kept);
  Chunk* chunk = &ring_[published_.load(std::memory_order_relaxed) % chunks];
  if (chunk->used + size > chunk_size) {
    if (!publish()) return false;
    chunk = &ring_[published_.load(std::memory_order_relaxed) % chunks];
  }
  if (stopping()) return false;
  const Record record{static_cast<u64>(head.ts.tv_sec) * 1'000'000'000 + static_cast<u64>(head.ts.tv_usec), head.caplen, anew_};
  std::memcpy(chunk->bytes.data() + chunk->used, &record, sizeof record);
  std::memcpy(chunk->bytes.data() + chunk->used + sizeof record, bytes, kept);
  chunk->used += size;
  anew_ = false;
  ++in_turn_;
  if (head.caplen < head.len) cut_.fetch_add(1, std::memory_order_relaxed);
  return true;
}

// Hands the chunk over, and waits for the next one to be free. False: it is to stop.
bool CaptureReader::publish() {
  const u32 number = published_.load(std::memory_order_relaxed);
  if (ring_[number % chunks].used == 0) return !stopping();
  published_.store(number + 1);
  if (waiting_.exchange(false)) alarm_.now();
  std::unique_lock hold(mutex_);
  room_.wait(hold, [&] { return stopping() || number + 1 - consumed_.load(std::memory_order_relaxed) < chunks; });
  if (stopping()) return false;
  ring_[(number + 1) % chunks].used = 0;
  return true;
}

const CaptureReader::Record* CaptureReader::peek() noexcept {
  const u32 number = consumed_.load(std::memory_order_relaxed);
  const bool last = ended_read_.load(std::memory_order_acquire);  // before what it is the last of
  if (published_.load(std::memory_order_acquire) == number) {
    if (last) {
      alarm_.off();  // it would keep awake who waits for it
      ended_.store(true, std::memory_order_release);
    }
    // From here on the thread rings; what it has published or ended meanwhile is seen by the next call.
    if (last || waiting_.load(std::memory_order_relaxed)) return nullptr;
    alarm_.off();
    waiting_.store(true);
    if (published_.load() == number && !ended_read_.load()) return nullptr;
    waiting_.store(false);
    alarm_.now();
    return nullptr;
  }
  return reinterpret_cast<const Record*>(ring_[number % chunks].bytes.data() + at_);
}

void CaptureReader::pop() noexcept {
  const u32 number = consumed_.load(std::memory_order_relaxed);
  const Chunk& chunk = ring_[number % chunks];
  const auto* record = reinterpret_cast<const Record*>(chunk.bytes.data() + at_);
  at_ += static_cast<u32>(sizeof(Record)) + aligned(record->length <= options_.longest ? record->length : 0);
  if (at_ < chunk.used) return;
  at_ = 0;
  {
    const std::scoped_lock hold(mutex_);
    consumed_.store(number + 1, std::memory_order_relaxed);
  }
  room_.notify_one();
}

}  // namespace weir
