// SPDX-License-Identifier: BSD-3-Clause
// capture_writer: pcap and pcapng as bytes, and the thread that writes them. libpcap writes no pcapng, and does not tell which frames a
// full disk did not take.
#include "core/port/capture_writer.hh"

#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>

namespace weir {
namespace {

using namespace std::chrono_literals;

constexpr auto linger = 200ms;    // that a frame stays in memory at most while there is room for more
constexpr auto patience = 250ms;  // for a file that takes nothing; the Runner tries some times
constexpr int pipe_ms = 100, last_ms = 1000;
constexpr std::size_t pipe_bytes = 4096;  // that a pipe takes at once where it takes any (PIPE_BUF)

// draft-ietf-opsawg-pcap: the magic number of nanoseconds, version 2.4.
struct PcapHead {
  u32 magic = 0xa1b23c4d;
  u16 major = 2, minor = 4;
  u32 zone = 0, accuracy = 0, snap = 0, link_type = 1;
};
struct PcapRecord {
  u32 seconds, nanoseconds, kept, length;
};
// draft-ietf-opsawg-pcapng: blocks, each with its length at both ends and padded to 4 bytes.
struct BlockHead {
  u32 type, length;
};
constexpr u32 section = 0x0a0d0d0a, interface_description = 1, enhanced_packet = 6;
constexpr u16 option_end = 0, option_if_name = 2, option_if_tsresol = 9, option_application = 4;
struct PacketHead {
  BlockHead block;
  u32 interface, time_high, time_low, kept, length;
};

constexpr u32 padded(u32 bytes) noexcept { return (bytes + 3) & ~3u; }

template <typename T>
void append_to(std::vector<u8>& to, const T& value) {
  const auto* bytes = reinterpret_cast<const u8*>(&value);
  to.insert(to.end(), bytes, bytes + sizeof value);
}

void append_option(std::vector<u8>& to, u16 code, std::string_view value) {
  append_to(to, code);
  append_to(to, static_cast<u16>(value.size()));
  to.insert(to.end(), value.begin(), value.end());
  to.resize(padded(static_cast<u32>(to.size())));
}

void append_block(std::vector<u8>& to, u32 type, const std::vector<u8>& body) {
  const u32 length = static_cast<u32>(sizeof(BlockHead) + body.size() + sizeof(u32));
  append_to(to, BlockHead{type, length});
  to.insert(to.end(), body.begin(), body.end());
  append_to(to, length);
}

std::vector<u8> pcapng_head(const std::string& port, u32 snap) {
  std::vector<u8> head, body;
  append_to(body, u32{0x1a2b3c4d});
  append_to(body, u16{1});
  append_to(body, u16{0});
  append_to(body, ~u64{0});  // the section's length is not known
  append_option(body, option_application, "weir");
  append_option(body, option_end, "");
  append_block(head, section, body);
  body.clear();
  append_to(body, u16{1});  // LINKTYPE_ETHERNET
  append_to(body, u16{0});
  append_to(body, snap);
  append_option(body, option_if_name, port);
  append_option(body, option_if_tsresol, std::string_view("\x09", 1));  // 10 to the power of -9 seconds
  append_option(body, option_end, "");
  append_block(head, interface_description, body);
  return head;
}

constexpr u32 pcap_longest = 262144;  // MAXIMUM_SNAPLEN of libpcap, which takes no larger one for a capture's

}  // namespace

CaptureWriter::CaptureWriter(Options options)
    : options_(std::move(options)),
      who_("write capture " + (options_.file == "-" ? "to standard output" : options_.file)),
      pcapng_(options_.file.ends_with(".pcapng")) {
  for (Chunk& chunk : ring_) chunk.bytes.resize(chunk_size);
}

Result<std::unique_ptr<CaptureWriter>> CaptureWriter::open(Options options) {
  std::unique_ptr<CaptureWriter> made(new CaptureWriter(std::move(options)));
  TRY_VOID(made->options_.file == "-" ? made->open_output() : made->open_file());
  made->thread_ = std::thread([writer = made.get()] { writer->work(); });
  return made;
}

Result<> CaptureWriter::open_file() {
  const char* name = options_.file.c_str();
  constexpr int how = O_WRONLY | O_CLOEXEC | O_NONBLOCK;  // a named pipe is not waited for
  file_ = Fd(::open(name, how | O_CREAT | O_EXCL, 0666));
  made_ = static_cast<bool>(file_);
  if (!file_ && errno == EEXIST) file_ = Fd(::open(name, how));
  struct stat is {};
  if (!file_ || ::fstat(file_.get(), &is) != 0) return fail_errno(errno, errno == ENXIO ? who_ + ": nobody reads the pipe" : who_);
  static_cast<void>(::fcntl(file_.get(), F_SETFL, 0));
  regular_ = S_ISREG(is.st_mode);
  if (regular_ && ::flock(file_.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
    return fail("{}: another port or another weir reads or writes it; give each a file of its own", who_);
  return {};
}

// Nothing else goes there from here on: what weir says goes to standard error.
Result<> CaptureWriter::open_output() {
  static std::atomic<bool> taken{false};
  if (::isatty(STDOUT_FILENO) == 1) return fail("{}: it is a terminal; send it to a file or through a pipe", who_);
  if (taken.exchange(true)) return fail("{}: another port writes there", who_);
  file_ = Fd(::fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 0));
  struct stat is {};
  if (!file_ || ::fstat(file_.get(), &is) != 0 || ::dup2(STDERR_FILENO, STDOUT_FILENO) < 0) return fail_errno(errno, who_);
  return {};
}

CaptureWriter::~CaptureWriter() {
  stop();
  if (made_ && !finished_ && written_bytes_ == 0) ::unlink(options_.file.c_str());
}

void CaptureWriter::stop() noexcept {
  {
    const std::scoped_lock hold(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  if (thread_.joinable()) thread_.join();
}

Result<> CaptureWriter::finish() {
  begin();
  finished_ = true;
  stop();
  if (error_ != 0) return fail("{}", trouble());
  return {};
}

std::string CaptureWriter::trouble() const {
  const int error = error_;
  if (error == 0) return "";
  const char* why = error == ETIMEDOUT ? "whoever reads it has stopped reading" : std::strerror(error);
  return fmt::format("{}: {}; the frames from there on are not in it (device_refused)", who_, why);
}

void CaptureWriter::begin_now() noexcept {
  {
    const std::scoped_lock hold(mutex_);
    begun_ = true;
  }
  work_.notify_one();
}

u32 CaptureWriter::put(const Frame* frames, u32 number, const FramePool& pool, u64 now) noexcept {
  if (error_.load(std::memory_order_relaxed) != 0) {
    lost_.fetch_add(number, std::memory_order_relaxed);
    return number;
  }
  std::unique_lock hold(mutex_);
  begun_ = true;
  for (u32 i = 0; i < number; ++i) {
    Chunk* chunk = &ring_[filled_ % chunks];
    if (chunk->used + sizeof(PacketHead) + padded(frames[i].length) + sizeof(u32) > chunk_size) {
      const auto has_room = [&] { return filled_ + 1 - written_ < chunks; };
      if (!has_room() && !room_.wait_for(hold, options_.waits ? patience : 0ms, has_room)) return i;
      ++filled_;
      work_.notify_one();
      chunk = &ring_[filled_ % chunks];
    }
    if (chunk->used == 0) {
      first_ = std::chrono::steady_clock::now();
      work_.notify_one();
    }
    append(*chunk, frames[i], pool.time_of(frames[i]).value_or(now));
  }
  return number;
}

void CaptureWriter::append(Chunk& chunk, const Frame& frame, u64 time) const noexcept {
  const u32 kept = std::min(frame.length, options_.snap);
  u8* to = chunk.bytes.data() + chunk.used;
  const auto add = [&](const void* bytes, std::size_t size) { to = static_cast<u8*>(std::memcpy(to, bytes, size)) + size; };
  if (pcapng_) {
    const u32 length = static_cast<u32>(sizeof(PacketHead) + padded(kept) + sizeof(u32)), zero = 0;
    const PacketHead head{{enhanced_packet, length}, 0, static_cast<u32>(time >> 32), static_cast<u32>(time), kept, frame.length};
    add(&head, sizeof head);
    add(frame.data, kept);
    add(&zero, padded(kept) - kept);
    add(&length, sizeof length);
  } else {
    const PcapRecord head{static_cast<u32>(time / 1'000'000'000), static_cast<u32>(time % 1'000'000'000), kept, frame.length};
    add(&head, sizeof head);
    add(frame.data, kept);
  }
  chunk.used = static_cast<u32>(to - chunk.bytes.data());
  ++chunk.frames;
}

void CaptureWriter::work() noexcept {
  bool headed = false;
  std::unique_lock hold(mutex_);
  while (true) {
    if (begun_ && !std::exchange(headed, true)) {
      hold.unlock();
      write_head();
      hold.lock();
    }
    if (filled_ == written_ && ring_[filled_ % chunks].used == 0) {
      if (stopping_) return;
      work_.wait(hold, [&] { return stopping_ || ring_[written_ % chunks].used > 0 || (begun_ && !headed); });
      continue;
    }
    if (filled_ == written_) work_.wait_until(hold, first_ + linger, [&] { return stopping_ || filled_ != written_; });
    if (filled_ == written_) ++filled_;
    Chunk& chunk = ring_[written_ % chunks];
    hold.unlock();
    if (!std::exchange(headed, true)) write_head();
    write_chunk(chunk);
    hold.lock();
    chunk.used = chunk.frames = 0;
    ++written_;
    room_.notify_all();
  }
}

void CaptureWriter::write_head() noexcept {
  std::vector<u8> head;
  const bool limited = options_.snap != ~0u;
  if (pcapng_) head = pcapng_head(options_.port, limited ? options_.snap : 0);
  else append_to(head, PcapHead{.snap = limited ? options_.snap : pcap_longest});
  if (regular_ && ::ftruncate(file_.get(), 0) != 0) {
    error_ = errno;
    return;
  }
  const std::size_t done = write_bytes(head);
  if (done < head.size() && regular_) static_cast<void>(::ftruncate(file_.get(), 0));
}

// What is in the file is whole, also behind an error.
void CaptureWriter::write_chunk(const Chunk& chunk) noexcept {
  const std::span<const u8> bytes(chunk.bytes.data(), chunk.used);
  const std::size_t done = error_ == 0 ? write_bytes(bytes) : 0;
  if (done == bytes.size()) return;
  const Whole kept = whole(bytes.first(done));
  lost_.fetch_add(chunk.frames - kept.frames, std::memory_order_relaxed);
  if (!regular_ || done == kept.bytes) return;
  written_bytes_ -= done - kept.bytes;
  static_cast<void>(::ftruncate(file_.get(), static_cast<off_t>(written_bytes_.load())));
}

CaptureWriter::Whole CaptureWriter::whole(std::span<const u8> bytes) const noexcept {
  Whole found;
  while (true) {
    u32 length = 0;
    const std::size_t at = found.bytes + (pcapng_ ? offsetof(BlockHead, length) : offsetof(PcapRecord, kept));
    if (at + sizeof length > bytes.size()) return found;
    std::memcpy(&length, bytes.data() + at, sizeof length);
    const std::size_t next = found.bytes + length + (pcapng_ ? 0 : sizeof(PcapRecord));
    if (next > bytes.size()) return found;
    found = {found.frames + 1, next};
  }
}

// Of a pipe: that a write of so few bytes would not wait. Who reads it may have stopped.
bool CaptureWriter::writable() noexcept {
  pollfd wait{file_.get(), POLLOUT, 0};
  while (true) {
    const bool last = stopping_;
    if (::poll(&wait, 1, last ? last_ms : pipe_ms) > 0) return true;
    if (last) return false;
  }
}

std::size_t CaptureWriter::write_bytes(std::span<const u8> bytes) noexcept {
  std::size_t done = 0;
  while (done < bytes.size()) {
    if (!regular_ && !writable()) {
      error_ = ETIMEDOUT;
      break;
    }
    const std::size_t size = regular_ ? bytes.size() - done : std::min(bytes.size() - done, pipe_bytes);
    const ssize_t got = ::write(file_.get(), bytes.data() + done, size);
    if (got > 0) done += static_cast<std::size_t>(got);
    else if (got == 0 || (errno != EINTR && errno != EAGAIN)) {
      error_ = got == 0 ? EIO : errno;
      break;
    }
  }
  written_bytes_ += done;
  return done;
}

}  // namespace weir
