// SPDX-License-Identifier: BSD-3-Clause
// run_folder: what is in /run/weir (of a user who may not write there: in $XDG_RUNTIME_DIR/weir, or /tmp/weir-UID): one lock, one control
// socket and notes on the layout of its pins and on changed settings for each instance.
#pragma once

#include <string>
#include <vector>

#include "core/base/fd.hh"
#include "core/base/result.hh"
#include "core/base/types.hh"

namespace weir {

// Where an instance listens, if any of this name does; and where one that this user starts will.
std::string socket_path(const std::string& instance);
std::string own_socket_path(const std::string& instance);
// See Borrowed; `netns`: inode of the network namespace that the devices are in.
std::string loans_path(const std::string& instance, u32 netns);
// Names of instances that have a control socket, sorted: the user's own, or where there is none, those that everybody's folder has.
std::vector<std::string> instances();

// Held by a running instance; a second one of the same name is refused.
class InstanceLock {
 public:
  static Result<InstanceLock> take(const std::string& instance);
  InstanceLock(InstanceLock&&) = default;
  ~InstanceLock();

 private:
  InstanceLock(std::string path, Fd fd) : path_(std::move(path)), fd_(std::move(fd)) {}
  std::string path_;
  Fd fd_;
};

// What an earlier run noted on the layout of what it pinned; empty: nothing.
std::string noted_layout(const std::string& instance);
// A new note goes beside it, and then in its place.
Result<> prepare_layout(const std::string& instance, const std::string& text);
Result<> commit_layout(const std::string& instance);
void forget_prepared_layout(const std::string& instance) noexcept;
void forget_layout(const std::string& instance) noexcept;

}  // namespace weir
