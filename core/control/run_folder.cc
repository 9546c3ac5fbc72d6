// SPDX-License-Identifier: BSD-3-Clause
// run_folder: files under /run/weir.
#include "core/control/run_folder.hh"

#include <fcntl.h>
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

// The whole file. An open file description's own lock, as flock() gives it, but one that can be seen without being taken for a moment: who
// only looks must not be in the way of an instance that starts.
constexpr struct flock whole_file = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

// A killed one leaves its socket, but not its lock.
bool runs(const std::string& instance) {
  const Fd file(::open((folder / (instance + ".lock")).c_str(), O_RDONLY | O_CLOEXEC));
  struct flock found = whole_file;
  if (!file) return errno == EACCES;  // whoever may not look is told so when it asks
  return ::fcntl(file.get(), F_OFD_GETLK, &found) == 0 && found.l_type != F_UNLCK;
}

}  // namespace

std::string socket_path(const std::string& instance) { return folder / (instance + ".sock"); }

std::string loans_path(const std::string& instance) { return folder / (instance + ".borrowed"); }

std::vector<std::string> instances() {
  std::vector<std::string> names;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error))
    if (entry.path().extension() == ".sock" && runs(entry.path().stem())) names.push_back(entry.path().stem());
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
    struct flock wanted = whole_file;
    if (::fcntl(fd.get(), F_OFD_SETLK, &wanted) != 0) {
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

Result<> prepare_layout(const std::string& instance, const std::string& text) {
  const std::string fresh = layout_path(instance) + ".new";
  if (fs::is_directory(layout_path(instance))) return fail("write {}: a folder is in the way; remove it", layout_path(instance));
  std::ofstream file(fresh, std::ios::trunc);
  file << text;
  file.close();
  if (!file) return fail_errno(errno, fmt::format("write {}", fresh));
  return {};
}

Result<> commit_layout(const std::string& instance) {
  const std::string path = layout_path(instance);
  if (::rename((path + ".new").c_str(), path.c_str()) != 0) return fail_errno(errno, fmt::format("write {}", path));
  return {};
}

void forget_prepared_layout(const std::string& instance) noexcept { ::unlink((layout_path(instance) + ".new").c_str()); }

void forget_layout(const std::string& instance) noexcept { ::unlink(layout_path(instance).c_str()); }

}  // namespace weir
