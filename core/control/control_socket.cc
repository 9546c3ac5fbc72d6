// SPDX-License-Identifier: BSD-3-Clause
// control_socket: both ends.
#include "core/control/control_socket.hh"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>

#include "core/control/run_folder.hh"

namespace weir {
namespace {

using nlohmann::json;

constexpr int patience_ms = 500;  // for a client that has connected and says nothing: devices are not watched meanwhile
// Questions are answered one after the other. A reload builds what the new stages look up in, such as the tables of 100,000 rules.
constexpr int answer_ms = 30'000, reload_ms = 300'000;
constexpr std::size_t longest = 4 << 20;  // bytes of a message

Result<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return invalid("{}: longer than the address of a Unix socket may be", path);
  path.copy(address.sun_path, path.size());
  return address;
}

// A packet is as long as the socket's send buffer allows: 212,992 bytes by default, and root may have more.
void allow_long_packets(int fd) {
  const int bytes = longest;
  if (::setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes) != 0)
    ::setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
}

Result<std::string> receive(int fd, int timeout_ms) {
  pollfd wait{fd, POLLIN, 0};
  if (::poll(&wait, 1, timeout_ms) != 1) return fail("nothing came within {} ms", timeout_ms);
  const ssize_t size = ::recv(fd, nullptr, 0, MSG_PEEK | MSG_TRUNC);
  if (size < 0) return fail_errno(errno, "read from the control socket");
  if (size == 0) return fail("the other side closed the control socket");
  std::string text(static_cast<std::size_t>(size), '\0');
  if (::recv(fd, text.data(), text.size(), 0) != size) return fail("the control socket gave half a message");
  return text;
}

Result<> send(int fd, const json& message) {
  // A device's name may be any bytes.
  const std::string text = message.dump(-1, ' ', false, json::error_handler_t::replace);
  if (::send(fd, text.data(), text.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(text.size()))
    return fail_errno(errno, fmt::format("write {} bytes to the control socket", text.size()));
  return {};
}

}  // namespace

Result<ControlSocket> ControlSocket::listen(const std::string& instance) {
  const std::string path = own_socket_path(instance);
  const sockaddr_un address = TRY(address_of(path));
  Fd listener(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener) return fail_errno(errno, fmt::format("open the control socket {}", path));
  ::unlink(path.c_str());  // of an instance that was killed: the lock is ours
  if (::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 || ::chmod(path.c_str(), 0600) != 0 ||
      ::listen(listener.get(), 16) != 0)
    return fail_errno(errno, fmt::format("open the control socket {}", path));
  return ControlSocket(path, std::move(listener));
}

ControlSocket::~ControlSocket() {
  if (listener_) ::unlink(path_.c_str());
}

void ControlSocket::serve(const Answer& answer) const {
  while (Fd client{::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC)}) {
    allow_long_packets(client.get());
    const Result<std::string> text = receive(client.get(), patience_ms);
    const json question = text ? json::parse(*text, nullptr, false) : json();
    const Result<json> given = !text                  ? Result<json>(std::unexpected(text.error()))
                               : question.is_object() ? answer(question)
                                                      : Result<json>(fail("a question is a JSON object"));
    // A client that has gone away is its own affair.
    static_cast<void>(
        send(client.get(),
             given ? json{{"ok", *given}} : json{{"error", given.error().what}, {"invalid", given.error().failure == Failure::invalid}}));
  }
}

Result<json> ask(const std::string& instance, const json& question) {
  const std::string path = socket_path(instance);
  const sockaddr_un address = TRY(address_of(path));
  Fd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!fd || ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    const int err = errno;
    if (err == ENOENT || err == ECONNREFUSED)
      return fail("instance {} is not running (no one listens at {}){}", instance, path,
                  noted_layout(instance).empty()
                      ? ""
                      : "; its kernel path is still there, and the next `weir run` of its file takes it over, and "
                        "off when it stops");
    return fail_errno(err, fmt::format("connect to instance {} at {}{}", instance, path,
                                       err == EACCES ? " (ask as the user who runs it, or as root)" : ""));
  }
  const auto asked = question.find("ask");
  const std::string what = asked != question.end() && asked->is_string() ? asked->get<std::string>() : "";
  TRY_WITHIN_VOID(fmt::format("instance {}: ask {}", instance, what), send(fd.get(), question));
  const int limit_ms = what == "reload" ? reload_ms : answer_ms;
  const Result<std::string> text = receive(fd.get(), limit_ms);
  if (!text)
    return fail("instance {}: {}: no answer: {}; it may still be carried out: `weir stats` answers when the instance does", instance, what,
                text.error().what);
  const json answer = json::parse(*text, nullptr, false);
  if (const auto why = answer.find("error"); why != answer.end() && why->is_string())
    return std::unexpected(Error{answer.value("invalid", false) ? Failure::invalid : Failure::failed,
                                 fmt::format("instance {}: {}", instance, why->get<std::string>())});
  if (!answer.contains("ok")) return fail("instance {}: its answer is not one; is it of the same version?", instance);
  return answer["ok"];
}

Result<std::string> find_instance(const std::string& name) {
  if (!name.empty()) return name;
  const std::vector<std::string> running = instances();
  if (running.size() == 1) return running.front();
  if (running.empty()) return fail("no instance is running; start one with: weir run FILE");
  return invalid("{} instances are running: {}; choose one with --instance NAME", running.size(), fmt::join(running, ", "));
}

}  // namespace weir
