// SPDX-License-Identifier: BSD-3-Clause
// eal: start DPDK's environment so that it changes nothing of the process or the host that is not DPDK's.
#include "core/port/eal.hh"

#include <fcntl.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <mutex>
#include <string_view>
#include <utility>

#include "core/base/fd.hh"

namespace weir {
namespace {

// In the format of the kernel's cpusets, of any size: a machine may have more CPUs than a cpu_set_t.
class Affinity {
 public:
  Affinity() : got_(::sched_getaffinity(0, sizeof cpus_, cpus_.data()) == 0) {}
  Affinity(const Affinity&) = delete;
  ~Affinity() {
    if (got_) ::sched_setaffinity(0, sizeof cpus_, cpus_.data());
  }
  [[nodiscard]] int first() const noexcept {
    for (int cpu = 0; got_ && cpu < static_cast<int>(8 * sizeof cpus_); ++cpu)
      if (CPU_ISSET_S(static_cast<std::size_t>(cpu), sizeof cpus_, cpus_.data())) return cpu;
    return 0;
  }

 private:
  std::array<cpu_set_t, 16> cpus_{};
  bool got_;
};

thread_local EalLines* listening = nullptr;

ssize_t take_line(void*, const char* text, std::size_t size) {
  if (listening != nullptr) listening->add(text, size);
  else static_cast<void>(::write(STDERR_FILENO, text, size) < 0);  // whoever reads it may have gone
  return static_cast<ssize_t>(size);
}

// DPDK's own place for what it says is stdout, which belongs to what weir says.
Result<> open_log() {
  std::FILE* lines = ::fopencookie(nullptr, "w", {.read = nullptr, .write = take_line, .seek = nullptr, .close = nullptr});
  if (lines == nullptr || rte_openlog_stream(lines) != 0) return fail("start DPDK's environment: it has no place for what it says");
  return {};
}

// What is written to stdout and stderr while it lives, which for a wrong option is a page of help on the former, and the reason on the
// latter.
class Captured {
 public:
  Captured() : to_(::memfd_create("eal", MFD_CLOEXEC)) {
    std::fflush(stdout);
    for (int i = 0; i < 2 && to_; ++i) {
      before_[i] = Fd(::fcntl(STDOUT_FILENO + i, F_DUPFD_CLOEXEC, 3));
      if (before_[i]) ::dup2(to_.get(), STDOUT_FILENO + i);
    }
  }
  Captured(const Captured&) = delete;
  ~Captured() { give_back(); }
  // Ends it. The lines that begin with `head`, without it.
  std::string lines(std::string_view head) {
    give_back();
    std::string text(static_cast<std::size_t>(std::max<off_t>(::lseek(to_.get(), 0, SEEK_END), 0)), '\0'), chosen;
    text.resize(static_cast<std::size_t>(std::max<ssize_t>(::pread(to_.get(), text.data(), text.size(), 0), 0)));
    for (std::size_t at = 0, end = 0; at < text.size(); at = end + 1) {
      end = std::min(text.find('\n', at), text.size());
      const std::string_view line = std::string_view(text).substr(at, end - at);
      if (line.starts_with(head) && chosen.find(line.substr(head.size())) == std::string::npos)  // options are looked at more than once
        chosen += fmt::format(": {}", line.substr(head.size()));
    }
    return chosen;
  }

 private:
  void give_back() noexcept {
    std::fflush(stdout);
    for (int i = 0; i < 2; ++i)
      if (const Fd old = std::move(before_[i])) ::dup2(old.get(), STDOUT_FILENO + i);
  }
  Fd to_;
  std::array<Fd, 2> before_;
};

// The folder that DPDK makes for its sockets and locks, of which --no-shconf and --no-telemetry leave none.
void remove_runtime_folder() {
  const char* made = rte_eal_get_runtime_dir();
  if (made == nullptr || *made == '\0') return;
  const std::filesystem::path folder(made);
  ::rmdir(folder.c_str());
  ::rmdir(folder.parent_path().c_str());  // that of all of DPDK's processes; where there is another one, it stays
}

// Those that are asked for, and of weir's own those that they do not have already.
std::vector<std::string> words_of(const EalNeeds& needs, int cpu) {
  std::vector<std::string> words{"weir"};
  words.insert(words.end(), needs.words.begin(), needs.words.end());
  const auto has = [&](std::initializer_list<std::string_view> names) {
    return std::ranges::any_of(needs.words, [&](const std::string& word) {
      return std::ranges::any_of(names, [&](std::string_view name) {
        return word == name || (word.starts_with(name) && (!name.starts_with("--") || word[name.size()] == '='));
      });
    });
  };
  words.emplace_back("--no-shconf");
  if (!has({"--telemetry"})) words.emplace_back("--no-telemetry");
  if (!has({"--file-prefix"})) words.push_back(fmt::format("--file-prefix=weir-{}", ::getpid()));
  if (!has({"--lcores", "-l", "-c", "-s"})) words.push_back(fmt::format("--lcores=0@{}", cpu));
  if (needs.devices.empty() && !has({"--no-pci", "-a", "--allow", "-b", "--block"})) words.emplace_back("--no-pci");
  for (const std::string& device : needs.devices) words.insert(words.end(), {"-a", device});
  if (!has({"--no-huge"})) {
    // No file in a folder of hugepages, which would stay when the process is killed.
    if (!has({"--in-memory", "--huge-unlink", "--huge-dir"})) words.emplace_back("--in-memory");
  } else if (!has({"-m", "--socket-mem"})) {
    words.insert(words.end(), {"-m", std::to_string(eal_memory_mb() + (needs.bytes >> 20))});
  }
  return words;
}

Result<> start(const EalNeeds& needs) {
  if (rte_lcore_count() > 0) return {};  // another module has: asked again, DPDK would complain on stderr
  const Affinity affinity;
  std::vector<std::string> words = words_of(needs, affinity.first());
  const std::string said = fmt::format("{}", fmt::join(words.begin() + 1, words.end(), " "));
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  TRY_VOID(open_log());
  rte_log_set_global_level(RTE_LOG_ERR);  // until one of the options says otherwise
  const EalLines lines;
  Captured captured;
  const int started = rte_eal_init(static_cast<int>(words.size()), arguments.data());
  const int why = rte_errno;
  const std::string of_options = captured.lines("weir: ");
  if (started < 0 && why == EALREADY) return {};
  remove_runtime_folder();
  const bool huge = std::ranges::find(words, "--no-huge") == words.end();
  if (started < 0)
    return fail("start DPDK's environment by {}: {}{}{}{}", said, rte_strerror(why), of_options, lines.tail(),
                huge ? "; reserve hugepages, or add \"--no-huge\" to [dpdk] eal" : "");
  return {};
}

}  // namespace

EalLines::EalLines() noexcept : before_(std::exchange(listening, this)) {}

EalLines::~EalLines() { listening = before_; }

std::string EalLines::tail() const {
  std::string text = said_;
  while (!text.empty() && text.back() == '\n') text.pop_back();
  for (std::size_t at = 0; (at = text.find('\n', at)) != std::string::npos;) text.replace(at, 1, "; ");
  return text.empty() ? text : ": " + text;
}

// A kernel that does not overcommit refuses what is more than it has (mm/util.c, __vm_enough_memory).
u32 eal_memory_mb() noexcept {
  struct sysinfo machine {};
  if (::sysinfo(&machine) != 0) return 256;
  const u64 half = u64{machine.totalram} * machine.mem_unit / 2 >> 20;
  return static_cast<u32>(std::clamp<u64>(half, 128, 4096));
}

Result<> ensure_eal() { return ensure_eal({.words = {"--no-huge"}, .devices = {}}); }

Result<> ensure_eal(const EalNeeds& needs) {
  static std::mutex mutex;
  static bool started = false;
  const std::scoped_lock hold(mutex);
  if (!started) TRY_VOID(start(needs));
  started = true;
  return {};
}

}  // namespace weir
