// SPDX-License-Identifier: BSD-3-Clause
// borrowed: settings of devices that an instance changes while it runs, and sets back at its end. What a killed one has left the next start
// of the instance knows.
#pragma once

#include <string>
#include <vector>

#include "core/base/result.hh"
#include "core/base/types.hh"

namespace weir {

class Borrowed {
 public:
  enum class What {
    queues,             // of a device, as ethtool -l shows them
    defer_hard_irqs,    // napi_defer_hard_irqs of /sys/class/net/DEVICE: turns of NAPI without a frame before interrupts come back
    gro_flush_timeout,  // the same folder's: nanoseconds until the kernel looks by itself, when interrupts stay away
  };
  // Of an instance, by the network namespace of the caller.
  static Result<Borrowed> open(const std::string& instance);
  Borrowed(Borrowed&& other) noexcept : file_(std::exchange(other.file_, {})), netns_(other.netns_), loans_(std::move(other.loans_)) {}
  Borrowed& operator=(Borrowed&&) = delete;
  // Gives everything back.
  ~Borrowed() { static_cast<void>(give_back(false)); }

  // Changes the setting; nothing, where it has that value.
  Result<> set(const std::string& device, What what, u64 value);
  // What an earlier run had changed of it stays as it is until the end of this one.
  void hold(const std::string& device, What what) noexcept;
  // Gives back what an earlier run had changed and this one neither has nor holds. The error names what could not be set back, which is
  // tried again at the end.
  Result<> settle() { return give_back(true); }
  // From now on it stays as it is, for the next run of the instance to take over.
  void leave() noexcept { file_.clear(); }

 private:
  struct Loan {
    std::string device;
    What what;
    u64 before;
    bool again = false;  // of an earlier run, and set by this one too; or its own
  };
  Borrowed(std::string file, u32 netns) : file_(std::move(file)), netns_(netns) {}
  Result<> give_back(bool of_before);
  Result<> note() const;
  std::string file_;  // empty: nothing is to be given back
  u32 netns_;
  std::vector<Loan> loans_;
};

}  // namespace weir
