// SPDX-License-Identifier: BSD-3-Clause
// bpffs: find or mount the file system, pin and find pins.
#include "core/kernel/bpffs.hh"

#include <bpf/bpf.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>

namespace weir {
namespace {

namespace fs = std::filesystem;

constexpr const char* usual = "/sys/fs/bpf";
constexpr const char* own = "/run/weir/bpf";
constexpr const char* fresh_ending = "~";  // no name in C ends so

// Held while a folder is made or the last one is taken away, so that no instance mounts what another is about to unmount. A lock on the
// folder itself, which leaves no file.
class Gate {
 public:
  Gate() : fd_(::open("/run/weir", O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
    if (fd_) ::flock(fd_.get(), LOCK_EX);
  }

 private:
  Fd fd_;
};

bool is_bpffs(const char* path) {
  struct statfs info {};
  return ::statfs(path, &info) == 0 && static_cast<u64>(info.f_type) == BPF_FS_MAGIC;
}

Result<std::string> find_or_mount() {
  for (const char* path : {usual, own})
    if (is_bpffs(path)) return std::string(path);
  std::error_code error;
  fs::create_directories(own, error);
  if (error) return fail_errno(error.value(), fmt::format("create {} to mount a bpffs on (weir needs root)", own));
  if (::mount("bpf", own, "bpf", 0, "mode=0700") != 0)
    return fail_errno(errno, fmt::format("mount a bpffs at {}, since there is none at {} (weir needs CAP_SYS_ADMIN for this, or: "
                                         "mount -t bpf bpf {})",
                                         own, usual, usual));
  return std::string(own);
}

}  // namespace

// Pins of links to devices are named link_IFINDEX; of another object the kernel would tell something else.
std::string instance_of_link(u32 id) {
  std::error_code error;
  for (const char* bpffs : {usual, own})
    for (const fs::directory_entry& folder : fs::directory_iterator(fs::path(bpffs) / "weir", error))
      for (const fs::directory_entry& pin : fs::directory_iterator(folder.path(), error)) {
        const std::string name = pin.path().filename();
        const Fd link(name.starts_with("link_") ? ::bpf_obj_get(pin.path().c_str()) : -1);
        bpf_link_info info{};
        u32 size = sizeof info;
        if (link && ::bpf_obj_get_info_by_fd(link.get(), &info, &size) == 0 && info.id == id) return folder.path().filename();
      }
  return "";
}

Result<PinFolder> PinFolder::open(const std::string& instance) {
  const Gate held;
  PinFolder folder(TRY(find_or_mount()) + "/weir/" + instance);
  std::error_code error;
  folder.forget_prepared();  // by a start that was killed
  folder.found_ = fs::exists(folder.path_, error) && !folder.names().empty();
  fs::create_directories(folder.path_, error);
  if (error) return fail_errno(error.value(), fmt::format("create {} for the instance's pins", folder.path_));
  return folder;
}

Result<Fd> PinFolder::get(const std::string& name) const {
  const std::string path = path_ + "/" + name;
  Fd fd(::bpf_obj_get(path.c_str()));
  if (!fd && errno != ENOENT) return fail_errno(errno, fmt::format("open {}, which an earlier run has pinned", path));
  return fd;
}

Result<> PinFolder::prepare(const std::string& name, int fd) const {
  const std::string fresh = path_ + "/" + name + fresh_ending;
  ::unlink(fresh.c_str());
  if (::bpf_obj_pin(fd, fresh.c_str()) != 0) return fail_errno(errno, fmt::format("pin {}/{}", path_, name));
  return {};
}

Result<> PinFolder::commit(const std::string& name) const {
  const std::string to = path_ + "/" + name, fresh = to + fresh_ending;
  if (::rename(fresh.c_str(), to.c_str()) == 0) return {};
  ::unlink(to.c_str());
  if (::rename(fresh.c_str(), to.c_str()) != 0) return fail_errno(errno, fmt::format("pin {}", to));
  return {};
}

void PinFolder::forget_prepared() const noexcept {
  for (const std::string& name : names())
    if (name.ends_with(fresh_ending)) remove(name);
}

void PinFolder::remove(const std::string& name) const noexcept { ::unlink((path_ + "/" + name).c_str()); }

std::vector<std::string> PinFolder::names() const {
  std::vector<std::string> names;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(path_, error)) names.push_back(entry.path().filename());
  return names;
}

void PinFolder::remove_all_but(const std::vector<std::string>& keep) const noexcept {
  const Gate held;
  for (const std::string& name : names())
    if (std::ranges::find(keep, name) == keep.end()) remove(name);
  if (::rmdir(path_.c_str()) != 0) return;                          // fails, rightly, when something is kept
  if (::rmdir(fs::path(path_).parent_path().c_str()) != 0) return;  // other instances
  if (!path_.starts_with(own)) return;
  if (::umount(own) == 0) ::rmdir(own);
}

}  // namespace weir
