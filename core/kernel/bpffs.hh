// SPDX-License-Identifier: BSD-3-Clause
// bpffs: where an instance's kernel objects are pinned, so that they outlive the process.
#pragma once

#include <string>
#include <vector>

#include "core/base/fd.hh"
#include "core/base/result.hh"
#include "core/base/types.hh"

namespace weir {

// The instance that has pinned this link to a device; empty: none that can be seen from here.
std::string instance_of_link(u32 id);

// The folder weir/NAME of a bpffs: pins go in, and come out under the same names after a restart.
class PinFolder {
 public:
  // Looks for a bpffs at /sys/fs/bpf, then at /run/weir/bpf, and mounts one at the latter when neither is there (`ip netns exec`
  // hides the first one). Creates the folder. The instance's lock must be held.
  static Result<PinFolder> open(const std::string& instance);

  [[nodiscard]] const std::string& path() const noexcept { return path_; }
  [[nodiscard]] bool found() const noexcept { return found_; }  // pins of an earlier run are there

  // The pinned object's descriptor; invalid when there is none of that name.
  [[nodiscard]] Result<Fd> get(const std::string& name) const;
  // Pins `fd` beside what stands under the name; commit() puts it in its place. A reader, or a crash in between, finds the old object or
  // the new one.
  Result<> prepare(const std::string& name, int fd) const;
  Result<> commit(const std::string& name) const;
  // What was prepared and not committed.
  void forget_prepared() const noexcept;
  void remove(const std::string& name) const noexcept;
  [[nodiscard]] std::vector<std::string> names() const;
  // Removes every pin but those of `keep`, and the folder when it is empty.
  void remove_all_but(const std::vector<std::string>& keep) const noexcept;

 private:
  explicit PinFolder(std::string path) : path_(std::move(path)) {}
  std::string path_;
  bool found_ = false;
};

}  // namespace weir
