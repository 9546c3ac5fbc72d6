// SPDX-License-Identifier: BSD-3-Clause
// serve: the control loop of a running instance: signals, the clock, questions.
#include "core/control/serve.hh"

#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>
#include <vector>

#include "core/base/guard.hh"
#include "core/control/control_socket.hh"

namespace weir {

Result<Fd> catch_stop_signals() {
  sigset_t set;
  ::sigemptyset(&set);
  for (int signal : {SIGINT, SIGTERM, SIGHUP}) ::sigaddset(&set, signal);
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  Fd fd(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd) return fail_errno(errno, "create a signalfd");
  return fd;
}

namespace {

constexpr int end_interval_ms = 10;  // between two looks whether all has come in

// Says each warning once for as long as it holds.
class Warnings {
 public:
  void tell(Instance& instance) {
    std::vector<std::string> now = instance.warnings();
    for (const std::string& each : instance.take_news()) std::fputs(fmt::format("weir: {}\n", each).c_str(), stderr);
    for (const std::string& each : now)
      if (std::ranges::find(told_, each) == told_.end()) std::fputs(fmt::format("weir: warning: {}\n", each).c_str(), stderr);
    told_ = std::move(now);
  }

 private:
  std::vector<std::string> told_;
};

// One line for each question that has changed something: who looks at the log later finds when.
void log_change(const Instance& instance, const nlohmann::json& question, const nlohmann::json& answer) {
  static constexpr std::array looks{"stats", "devmap", "egress", "samples", "flows", "stage"};
  const std::string what = question.value("ask", "");
  if (std::ranges::find(looks, what) != looks.end()) return;
  std::string words = what;
  for (const char* key : {"group", "port", "chain"})
    if (const auto given = question.find(key); given != question.end() && !given->empty() && *given != "")
      words +=
          " " + (given->is_string() ? given->get<std::string>() : given->dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  if (answer.contains("changed"))
    words += ": " + (answer["changed"].empty() ? "nothing to change"
                                               : fmt::format("{}", fmt::join(answer["changed"].get<std::vector<std::string>>(), ", ")));
  if (answer.contains("flushed")) words += fmt::format(": {} flows", answer["flushed"].get<u64>());
  std::fputs(fmt::format("weir: {}: {}\n", instance.name(), words).c_str(), stdout);
  std::fflush(stdout);
}

// The end of a run whose sources have one is told, since nobody can ask any more.
Result<> end(Instance& instance, bool finite) {
  Result<> finished = instance.finish();
  if (!finite) return finished;
  const std::string summary = TRY(instance.summary());
  std::fputs(fmt::format("weir: {}: {}\n", instance.name(), summary).c_str(), stdout);
  std::fflush(stdout);
  return finished;
}

}  // namespace

Result<> serve(Instance& instance, const Fd& stop) {
  const ControlSocket socket = TRY(ControlSocket::listen(instance.name()));
  const Fd clock(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  const itimerspec every_second{{1, 0}, {1, 0}};
  if (!clock || ::timerfd_settime(clock.get(), 0, &every_second, nullptr) != 0) return fail_errno(errno, "start the clock");
  const LinkEvents links = TRY(LinkEvents::open());
  TRY_VOID(instance.go());  // last, so that what fails here finds no device touched
  Warnings warnings;
  warnings.tell(instance);
  instance.tick();
  std::fputs(fmt::format("weir: {}: forwarding\n", instance.name()).c_str(), stdout);  // fmt::print() throws when nobody reads
  std::fflush(stdout);
  std::vector<pollfd> wait{
      {stop.get(), POLLIN, 0}, {clock.get(), POLLIN, 0}, {socket.descriptor(), POLLIN, 0}, {links.descriptor(), POLLIN, 0}};
  const std::size_t own = wait.size();
  const bool finite = instance.finite();
  while (true) {
    const std::vector<std::pair<int, Stage*>> watched = instance.watched();  // a reload may have brought others
    wait.resize(own);
    for (const auto& [fd, stage] : watched) wait.push_back({fd, POLLIN, 0});
    const int most_ms = finite ? end_interval_ms : instance.listens() ? NOTE_INTERVAL_MS : -1;
    if (::poll(wait.data(), wait.size(), most_ms) < 0 && errno != EINTR) return fail_errno(errno, "wait for events");
    if (wait[0].revents != 0 || (finite && instance.done())) return end(instance, finite);
    instance.listen();
    if (u64 ticks = 0; wait[1].revents != 0 && ::read(clock.get(), &ticks, sizeof ticks) == sizeof ticks) instance.tick();
    if (wait[3].revents != 0) {
      links.forget();
      instance.watch_devices();
    }
    for (std::size_t i = own; i < wait.size(); ++i)
      if (wait[i].revents != 0) watched[i - own].second->ready();
    warnings.tell(instance);
    if (wait[2].revents != 0)
      socket.serve([&](const nlohmann::json& question) {
        Result<nlohmann::json> answer = guarded("answer", [&] { return instance.answer(question); });  // which may be anything
        if (answer) log_change(instance, question, *answer);
        return answer;
      });
  }
}

}  // namespace weir
