// SPDX-License-Identifier: BSD-3-Clause
// capture_writer: frames into a pcap or pcapng file with nanoseconds. Workers fill chunks, a thread of its own writes them.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "core/base/fd.hh"
#include "core/base/result.hh"
#include "core/frame/pool.hh"

namespace weir {

class CaptureWriter {
 public:
  struct Options {
    std::string file;   // "-": standard output; pcapng where it ends so
    std::string port;   // the interface's name in pcapng
    u32 snap = ~0u;     // bytes of a frame that are written
    bool waits = true;  // where the output takes nothing, put() waits a little: nothing is lost meanwhile
  };
  // What stood in the file before is there until begin(). One that is not begun leaves no file that was not there.
  static Result<std::unique_ptr<CaptureWriter>> open(Options options);
  CaptureWriter(const CaptureWriter&) = delete;
  // Writes what it has.
  ~CaptureWriter();

  // From here on the file is a capture. To be called again and again: it does so once.
  void begin() noexcept {
    if (!begun_.load(std::memory_order_relaxed)) begin_now();
  }
  // Writes a frame with the time that it says, or `now`, and in the end all that it has taken. How many it has taken: not all, where the
  // file has been taking nothing for a while. The frames stay the caller's.
  u32 put(const Frame* frames, u32 number, const FramePool& pool, u64 now) noexcept;
  // Frames of those that put() took which the file then did not, since the last call.
  u32 take_lost() noexcept { return lost_.load(std::memory_order_relaxed) == 0 ? 0 : lost_.exchange(0, std::memory_order_relaxed); }

  // Writes what it has, and ends. Why something could not be written is the error.
  Result<> finish();
  // The same while it runs; empty: all could be.
  [[nodiscard]] std::string trouble() const;
  [[nodiscard]] u64 bytes() const noexcept { return written_bytes_.load(std::memory_order_relaxed); }

 private:
  static constexpr u32 chunks = 4, chunk_size = 512 << 10;
  struct Chunk {
    std::vector<u8> bytes;
    u32 used = 0, frames = 0;
  };
  // Of a chunk, what is whole in its first bytes.
  struct Whole {
    u32 frames = 0;
    std::size_t bytes = 0;
  };
  explicit CaptureWriter(Options options);
  Result<> open_file();
  Result<> open_output();
  void begin_now() noexcept;
  void append(Chunk& chunk, const Frame& frame, u64 time) const noexcept;
  void work() noexcept;
  void write_head() noexcept;
  void write_chunk(const Chunk& chunk) noexcept;
  std::size_t write_bytes(std::span<const u8> bytes) noexcept;
  [[nodiscard]] bool writable() noexcept;
  [[nodiscard]] Whole whole(std::span<const u8> bytes) const noexcept;
  void stop() noexcept;

  Options options_;
  std::string who_;
  bool pcapng_ = false, regular_ = false;
  bool made_ = false;  // there was no such file
  bool finished_ = false;
  Fd file_;

  mutable std::mutex mutex_;
  std::condition_variable work_, room_;
  // Under mutex_. Who puts fills chunk number filled_, the thread writes number written_, both modulo `chunks`.
  std::array<Chunk, chunks> ring_;
  u32 filled_ = 0, written_ = 0;
  std::chrono::steady_clock::time_point first_;  // frame of the chunk that is being filled
  std::atomic<bool> begun_{false};
  std::atomic<bool> stopping_{false};  // nobody puts any more
  std::atomic<int> error_{0};          // of the system; from then on nothing is written
  std::atomic<u32> lost_{0};
  std::atomic<u64> written_bytes_{0};
  std::thread thread_;
};

}  // namespace weir
