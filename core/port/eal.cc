// SPDX-License-Identifier: BSD-3-Clause
// eal: start DPDK's environment so that it changes nothing of the process or the host that is not DPDK's.
#include "core/port/eal.hh"

#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_lcore.h>
#include <sched.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <mutex>

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

// The folder that DPDK makes for its sockets and locks, of which --no-shconf and --no-telemetry leave none.
void remove_runtime_folder() {
  const char* made = rte_eal_get_runtime_dir();
  if (made == nullptr || *made == '\0') return;
  const std::filesystem::path folder(made);
  ::rmdir(folder.c_str());
  ::rmdir(folder.parent_path().c_str());  // that of all of DPDK's processes; where there is another one, it stays
}

Result<> start() {
  if (rte_lcore_count() > 0) return {};  // another module has: asked again, DPDK would complain on stderr
  const Affinity affinity;
  std::array<std::string, 10> words{"weir",
                                    "--no-huge",
                                    "-m",
                                    std::to_string(eal_memory_mb()),
                                    "--no-pci",
                                    "--no-shconf",
                                    "--no-telemetry",
                                    "--log-level=error",
                                    "--file-prefix=weir-" + std::to_string(::getpid()),
                                    "--lcores=0@" + std::to_string(affinity.first())};
  std::array<char*, words.size() + 1> arguments{};
  for (std::size_t i = 0; i < words.size(); ++i) arguments[i] = words[i].data();
  const int started = rte_eal_init(static_cast<int>(words.size()), arguments.data());
  const int why = rte_errno;
  if (started < 0 && why == EALREADY) return {};
  remove_runtime_folder();
  if (started < 0)
    return fail("start DPDK's environment with {} MB of memory: {}; its own words are above", eal_memory_mb(), rte_strerror(why));
  return {};
}

}  // namespace

// A kernel that does not overcommit refuses what is more than it has (mm/util.c, __vm_enough_memory).
u32 eal_memory_mb() noexcept {
  struct sysinfo machine {};
  if (::sysinfo(&machine) != 0) return 256;
  const u64 half = u64{machine.totalram} * machine.mem_unit / 2 >> 20;
  return static_cast<u32>(std::clamp<u64>(half, 128, 4096));
}

Result<> ensure_eal() {
  static std::mutex mutex;
  static bool started = false;
  const std::scoped_lock hold(mutex);
  if (!started) TRY_VOID(start());
  started = true;
  return {};
}

}  // namespace weir
