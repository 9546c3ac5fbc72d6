// SPDX-License-Identifier: BSD-3-Clause
// borrowed: change a setting of a device, and note what it was.
#include "core/control/borrowed.hh"

#include <sched.h>
#include <sys/mount.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <thread>
#include <utility>

#include "core/control/run_folder.hh"
#include "core/kernel/netdev.hh"

namespace weir {
namespace {

using What = Borrowed::What;

const char* name_of(What what) {
  return what == What::queues ? "queues" : what == What::defer_hard_irqs ? "napi_defer_hard_irqs" : "gro_flush_timeout";
}

std::string path_of(const std::string& device, What what) { return "/sys/class/net/" + device + "/" + name_of(what); }

// Calls where /sys shows the devices of this network namespace, which the process's own need not do: it shows those of the namespace that
// it was mounted in. A thread may have mounts of its own, which go with it.
void in_own_sysfs(const std::function<void()>& call) {
  std::thread([&] {
    const bool own = ::unshare(CLONE_NEWNS) == 0 && ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
                     ::mount("sysfs", "/sys", "sysfs", 0, nullptr) == 0;
    static_cast<void>(own);  // without it, the process's own is what there is
    call();
  }).join();
}

Result<u64> look(const std::string& device, What what) {
  if (what == What::queues) return TRY(look_at(device)).queues;
  std::optional<u64> found;
  in_own_sysfs([&] {
    u64 value = 0;
    std::ifstream file(path_of(device, what));
    if (file >> value) found = value;
  });
  if (!found) return fail("read {}: it is not to be had", path_of(device, what));
  return *found;
}

Result<> change(const std::string& device, What what, u64 value) {
  if (what == What::queues) return set_queues(device, static_cast<u32>(value));
  int failure = 0;
  in_own_sysfs([&] {
    errno = 0;
    std::ofstream file(path_of(device, what));
    if (!(file << value << std::flush)) failure = errno != 0 ? errno : EIO;
  });
  if (failure != 0) return fail_errno(failure, fmt::format("write {} to {}", value, path_of(device, what)));
  return {};
}

// A queue cannot go while a socket is bound to it (net/ethtool/channels.c), and the kernel lets go of one that is closed a moment later, by
// a work item of its own (net/xdp/xsk_buff_pool.c, xp_put_pool).
Result<> change_back(const std::string& device, What what, u64 value) {
  constexpr auto step = std::chrono::milliseconds(5);
  constexpr int steps = 400;
  Result<> done = change(device, what, value);
  for (int i = 0; i < steps && what == What::queues && !done && done.error().errno_value == EINVAL; ++i) {
    std::this_thread::sleep_for(step);
    done = change(device, what, value);
  }
  return done;
}

}  // namespace

Result<Borrowed> Borrowed::open(const std::string& instance) {
  Borrowed borrowed(loans_path(instance, netns_inode()), netns_inode());
  std::ifstream file(borrowed.file_);
  u32 netns = 0;
  if (!(file >> netns) || netns != borrowed.netns_) return borrowed;  // of an inode that had belonged to another one
  std::string device, what;
  for (u64 before = 0; file >> device >> what >> before;)
    for (const What each : {What::queues, What::defer_hard_irqs, What::gro_flush_timeout})
      if (what == name_of(each)) borrowed.loans_.push_back({device, each, before});
  return borrowed;
}

Result<> Borrowed::set(const std::string& device, What what, u64 value) {
  const auto loan = std::ranges::find_if(loans_, [&](const Loan& each) { return each.device == device && each.what == what; });
  if (loan != loans_.end()) loan->again = true;
  const u64 before = TRY(look(device, what));
  if (before == value) return {};
  if (loan == loans_.end()) {
    loans_.push_back({device, what, before, true});
    // Noted first, so that there is no moment at which nobody knew.
    if (Result<> noted = note(); !noted) {
      loans_.pop_back();
      return noted;
    }
  }
  return change(device, what, value);
}

Result<> Borrowed::note() const {
  std::ofstream file(file_ + ".new", std::ios::trunc);
  file << netns_ << "\n";
  for (const Loan& loan : loans_) file << loan.device << " " << name_of(loan.what) << " " << loan.before << "\n";
  file.close();
  std::error_code error;
  if (file) std::filesystem::rename(file_ + ".new", file_, error);
  if (!file || error) return fail_errno(error ? error.value() : errno, "write " + file_);
  return {};
}

void Borrowed::hold(const std::string& device, What what) noexcept {
  for (Loan& loan : loans_)
    if (loan.device == device && loan.what == what) loan.again = true;
}

// Last first: what depends on what was set before it goes before that.
Result<> Borrowed::give_back(bool of_before) {
  if (file_.empty()) return {};
  std::string trouble;
  std::vector<Loan> left;
  for (auto loan = loans_.rbegin(); loan != loans_.rend(); ++loan) {
    if (of_before && loan->again) {
      left.insert(left.begin(), *loan);
      continue;
    }
    const Result<> done = change_back(loan->device, loan->what, loan->before);
    if (done || !look_at(loan->device)) continue;
    trouble += (trouble.empty() ? "" : "; ") + done.error().what;
    left.insert(left.begin(), *loan);
  }
  loans_ = std::move(left);
  std::error_code gone;
  if (loans_.empty()) std::filesystem::remove(file_, gone);
  else if (const Result<> noted = note(); !noted) trouble += (trouble.empty() ? "" : "; ") + noted.error().what;
  if (!trouble.empty()) return fail("set back what an earlier run had changed: {}", trouble);
  return {};
}

}  // namespace weir
