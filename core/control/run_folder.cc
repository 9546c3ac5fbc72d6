// SPDX-License-Identifier: BSD-3-Clause
// run_folder: files under /run/weir, or of a user who may not write there, under a folder of the user's own.
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

const fs::path folder_of_all = "/run/weir";

fs::path folder_of_user() {
  const char* given = ::getenv("XDG_RUNTIME_DIR");
  return given != nullptr && given[0] == '/' ? fs::path(given) / "weir" : fs::path(fmt::format("/tmp/weir-{}", ::geteuid()));
}

// Root writes wherever the file system lets it, and is told of that folder where it cannot.
bool writes_for_all() { return ::geteuid() == 0 || ::access(folder_of_all.c_str(), W_OK) == 0; }

// Where this user's own instances are.
fs::path folder() { return writes_for_all() ? folder_of_all : folder_of_user(); }

// Where an instance is: a user's own comes before one of the same name that everybody's folder has.
fs::path folder_of(const std::string& instance) {
  for (const fs::path& each : {folder(), folder_of_all})
    if (fs::path file = each / (instance + ".sock"); ::access(file.c_str(), F_OK) == 0) return each;
  return folder();
}

// Others may write to /tmp, and must not be able to bring a folder of theirs along.
Result<> make_folder(const fs::path& path) {
  std::error_code error;
  if (path == folder_of_all) {
    fs::create_directories(path, error);
    if (error) return fail_errno(error.value(), fmt::format("create {}", path.string()));
    return {};
  }
  struct stat is {};
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return fail_errno(errno, fmt::format("create {}", path.string()));
  if (::lstat(path.c_str(), &is) != 0) return fail_errno(errno, fmt::format("look at {}", path.string()));
  if (!S_ISDIR(is.st_mode) || is.st_uid != ::geteuid() || (is.st_mode & 077) != 0)
    return fail("{}: it must be a folder of this user that nobody else may enter: remove it, or set XDG_RUNTIME_DIR", path.string());
  return {};
}

std::string layout_path(const std::string& instance) { return folder() / (instance + ".layout"); }

bool same_file(int fd, const std::string& path) {
  struct stat held {
  }, there{};
  return ::fstat(fd, &held) == 0 && ::stat(path.c_str(), &there) == 0 && held.st_ino == there.st_ino;
}

// The whole file. An open file description's own lock, as flock() gives it, but one that can be seen without being taken for a moment: who
// only looks must not be in the way of an instance that starts.
constexpr struct flock whole_file = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

// A killed one leaves its socket, but not its lock.
bool runs(const fs::path& in, const std::string& instance) {
  const Fd file(::open((in / (instance + ".lock")).c_str(), O_RDONLY | O_CLOEXEC));
  struct flock found = whole_file;
  if (!file) return errno == EACCES;  // whoever may not look is told so when it asks
  return ::fcntl(file.get(), F_OFD_GETLK, &found) == 0 && found.l_type != F_UNLCK;
}

}  // namespace

std::string socket_path(const std::string& instance) { return folder_of(instance) / (instance + ".sock"); }
std::string own_socket_path(const std::string& instance) { return folder() / (instance + ".sock"); }

std::string loans_path(const std::string& instance, u32 netns) { return folder() / fmt::format("{}.{}.borrowed", instance, netns); }

std::vector<std::string> instances() {
  std::vector<std::string> names;
  std::error_code error;
  for (const fs::path& each : {folder(), folder_of_all}) {
    for (const fs::directory_entry& entry : fs::directory_iterator(each, error))
      if (entry.path().extension() == ".sock" && runs(each, entry.path().stem())) names.push_back(entry.path().stem());
    if (!names.empty()) break;
  }
  std::ranges::sort(names);
  return names;
}

Result<InstanceLock> InstanceLock::take(const std::string& instance) {
  const fs::path in = folder();
  TRY_VOID(make_folder(in));
  const std::string path = in / (instance + ".lock");
  while (true) {
    Fd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!fd) return fail_errno(errno, fmt::format("open {}", path));
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
