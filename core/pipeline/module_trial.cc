// SPDX-License-Identifier: BSD-3-Clause
// module_trial: the child tells over a pipe which module it comes to, and what one threw; the parent says so of the last.
#include "core/pipeline/module_trial.hh"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <exception>

#include "core/base/fd.hh"

namespace weir {
namespace {

int told = -1;  // of the child: where it writes to

void tell(const char* text) noexcept {
  if (::write(told, text, std::strlen(text)) < 0) ::_exit(2);  // the parent has gone
}

// What an exception of a constructor comes to, whether the dynamic linker's frames let it through or end in std::terminate().
[[noreturn]] void tell_and_end() {
  tell("threw an exception: ");
  try {
    std::rethrow_exception(std::current_exception());
  } catch (const std::exception& error) {
    tell(error.what());
  } catch (...) {
    tell("of no standard type");
  }
  ::_exit(1);
}

[[noreturn]] void load_all(const std::vector<std::string>& files) noexcept {
  const rlimit none{0, 0};
  ::setrlimit(RLIMIT_CORE, &none);
  std::set_terminate(tell_and_end);
  // Its header says that dlopen() throws nothing, and a compiler that believes so leaves the handler out.
  void* (*volatile open)(const char*, int) = ::dlopen;
  for (const std::string& file : files) {
    tell("\n");
    try {
      open(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    } catch (...) {
      tell_and_end();
    }
  }
  ::_exit(0);
}

}  // namespace

Result<> try_modules(const std::vector<std::string>& files) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return fail_errno(errno, "load plugins: make a pipe");
  const Fd in(ends[0]);
  Fd out(ends[1]);
  const pid_t child = ::fork();
  if (child < 0) return fail_errno(errno, "load plugins: make a process to try them in");
  if (child == 0) {
    told = out.get();
    load_all(files);
  }
  out = Fd();
  std::string said;
  char block[512];
  for (ssize_t got = 1; got > 0 || (got < 0 && errno == EINTR);)
    if (got = ::read(in.get(), block, sizeof block); got > 0) said.append(block, static_cast<std::size_t>(got));
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return {};
  // A line for each that it came to. What an exception says may have more.
  const std::size_t reached = said.find("threw");
  std::size_t number = 0;
  for (const char letter : said.substr(0, reached)) number += letter == '\n';
  std::string how = reached != std::string::npos ? said.substr(reached) : "";
  for (char& letter : how)
    if (letter == '\n') letter = ' ';
  if (how.empty() && WIFSIGNALED(status)) how = fmt::format("ended the process: {}", ::strsignal(WTERMSIG(status)));
  else if (how.empty()) how = fmt::format("ended the process with {}", WEXITSTATUS(status));
  return fail("{}: load plugin: its constructors {}; report it to its author", number == 0 ? "?" : files.at(number - 1), how);
}

}  // namespace weir
