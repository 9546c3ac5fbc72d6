// SPDX-License-Identifier: BSD-3-Clause
// capture_reader: the frames of a pcap or pcapng file, read ahead by a thread of its own, so that no worker waits for a disk or a pipe.
#pragma once

#include <pcap/pcap.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/base/fd.hh"
#include "core/port/pacer.hh"

namespace weir {

class CaptureReader {
 public:
  struct Options {
    std::string file;  // "-": standard input
    u64 loops = 1;     // how often it is read; 0: without end
    u32 longest = 0;   // bytes of a frame; of a longer one only the length comes
  };
  // A frame: this, and behind it its bytes.
  struct Record {
    u64 time_ns;  // since 1970
    u32 length;   // bytes that the file has of it
    u8 anew;      // 1: the first one of a turn through the file
    [[nodiscard]] const u8* bytes() const noexcept { return reinterpret_cast<const u8*>(this + 1); }
  };

  // What is wrong with a file is told here, and of a pipe, which has nothing to tell yet, by trouble().
  // Rings `alarm` when something has come that peek() has not found.
  static Result<std::unique_ptr<CaptureReader>> open(Options options, const Alarm& alarm);
  CaptureReader(const CaptureReader&) = delete;
  ~CaptureReader();

  // By one worker: the next record, or none yet; and that it is done with it.
  const Record* peek() noexcept;
  void pop() noexcept;

  // Nothing will come any more.
  [[nodiscard]] bool ended() const noexcept { return ended_.load(std::memory_order_acquire); }
  // Why it ended before the file did; empty: it did not.
  [[nodiscard]] std::string trouble() const { return ended_read_.load(std::memory_order_acquire) ? trouble_ : ""; }
  [[nodiscard]] u64 cut() const noexcept {
    return cut_.load(std::memory_order_relaxed);
  }  // frames that were longer when they were captured
  [[nodiscard]] u64 loops() const noexcept { return turns_.load(std::memory_order_relaxed); }  // how often it has been read to its end

 private:
  static constexpr u32 chunks = 4, chunk_size = 256 << 10, stdio_size = 128 << 10;
  struct Chunk {
    std::vector<u8> bytes;
    u32 used = 0;
  };
  struct Close {
    void operator()(pcap_t* pcap) const noexcept { ::pcap_close(pcap); }
  };
  CaptureReader(Options options, const Alarm& alarm);
  Result<> begin();
  // The file by its descriptor, for libpcap.
  ssize_t read(char* to, std::size_t size) noexcept;
  void work();
  bool rewind();
  bool put(const pcap_pkthdr& head, const u8* bytes);
  bool publish();
  [[nodiscard]] bool stopping() const noexcept { return stopping_.load(std::memory_order_relaxed); }

  Options options_;
  const Alarm& alarm_;
  std::string who_;
  Fd file_, stop_;
  bool seekable_ = false;
  std::vector<char> stdio_;  // outlives pcap_, whose file it serves
  std::unique_ptr<pcap_t, Close> pcap_;
  i64 start_ = 0;  // in the file, of what is read in each turn
  bool anew_ = true;
  u64 in_turn_ = 0;

  // The thread fills chunk number published_, the worker empties number consumed_, both modulo `chunks`.
  std::vector<Chunk> ring_;
  std::mutex mutex_;
  std::condition_variable room_;
  std::atomic<u32> published_{0}, consumed_{0};
  u32 at_ = 0;  // the worker's, in its chunk
  std::atomic<bool> waiting_{false};
  std::atomic<bool> stopping_{false};
  std::atomic<bool> ended_read_{false};  // no more will be published
  std::atomic<bool> ended_{false};       // and the worker has taken everything
  std::string trouble_;                  // written before ended_read_
  std::atomic<u64> cut_{0}, turns_{0};
  std::thread thread_;
};

}  // namespace weir
