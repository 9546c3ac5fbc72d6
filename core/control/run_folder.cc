// SPDX-License-Identifier: BSD-3-Clause
// run_folder: files under /run/weir.
#include "core/control/run_folder.hh"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace weir {
namespace {

namespace fs = std::filesystem;

const fs::path folder = "/run/weir";

std::string layout_path(const std::string& instance) { return folder / (instance + ".layout"); }

bool same_file(int fd, const std::string& path) {
  struct stat held {
  }, there{};
  return ::fstat(fd, &held) == 0 && ::stat(path.c_str(), &there) == 0 && held.st_ino == there.st_ino;
}

}  // namespace

std::string socket_path(const std::string& instance) { return folder / (instance + ".sock"); }

std::vector<std::string> instances() {
  std::vector<std::string> names;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error))
    if (entry.path().extension() == ".sock") names.push_back(entry.path().stem());
  std::ranges::sort(names);
  return names;
}

Result<InstanceLock> InstanceLock::take(const std::string& instance) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) return fail_errno(error.value(), fmt::format("create {} (weir needs root)", folder.string()));
  const std::string path = folder / (instance + ".lock");
  while (true) {
    Fd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!fd) return fail_errno(errno, fmt::format("open {} (weir needs root)", path));
    if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
      char owner[32] = {};
      static_cast<void>(::pread(fd.get(), owner, sizeof owner - 1, 0));
      return fail("instance {} is already running (process {}); stop it, or give this one another [weir] name", instance, owner);
    }
    if (!same_file(fd.get(), path)) continue;  // its holder removed it between our two calls
    const std::string pid = std::to_string(::getpid());
    if (::ftruncate(fd.get(), 0) != 0 || ::pwrite(fd.get(), pid.data(), pid.size(), 0) < 0)
      return fail_errno(errno, fmt::format("write {}", path));
    return InstanceLock(path, std::move(fd));
  }
}

InstanceLock::~InstanceLock() {
  if (fd_) ::unlink(path_.c_str());
}

std::string noted_layout(const std::string& instance) {
  std::ifstream file(layout_path(instance));
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

Result<> note_layout(const std::string& instance, const std::string& text) {
  const std::string path = layout_path(instance), fresh = path + ".new";
  std::ofstream file(fresh, std::ios::trunc);
  file << text;
  file.close();
  if (!file || ::rename(fresh.c_str(), path.c_str()) != 0) return fail_errno(errno, fmt::format("write {}", path));
  return {};
}

void forget_layout(const std::string& instance) noexcept { ::unlink(layout_path(instance).c_str()); }

}  // namespace weir
