// SPDX-License-Identifier: BSD-3-Clause
// control_test: the lock, the files and the socket by which an instance is found and asked.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <future>
#include <random>
#include <thread>

#include "core/control/control_socket.hh"
#include "core/control/instance.hh"
#include "core/control/serve.hh"

namespace weir {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::Contains;
using testing::HasSubstr;
using testing::Not;

// A name of an instance that nobody else uses.
std::string unused_name() { return fmt::format("t{:08x}{:08x}", std::random_device()(), std::random_device()()); }

// What needs /run/weir, which is root's.
class RunFolder : public testing::Test {
 protected:
  void SetUp() override {
    const Result<InstanceLock> probe = InstanceLock::take(name);
    const int why = probe ? 0 : probe.error().errno_value;
    if (why == EACCES || why == EPERM || why == EROFS) GTEST_SKIP() << probe.error().what;
    ASSERT_TRUE(probe) << probe.error().what;
  }
  void TearDown() override {
    for (const char* ending : {".lock", ".sock", ".layout", ".layout.new"})
      EXPECT_FALSE(fs::remove("/run/weir/" + name + ending)) << ending << " is left";
  }
  const std::string name = unused_name();
};

// One end of a connection to an instance's control socket: the asking one, or the one that listens in its place.
class Raw {
 public:
  static Raw connected(const std::string& instance) { return Raw(instance, ::connect); }
  static Raw listening(const std::string& instance) {
    Raw made(instance, ::bind);
    if (::listen(made.fd_.get(), 1) != 0) broken("a test cannot listen");
    return made;
  }
  [[nodiscard]] Raw accept() const { return Raw(Fd(::accept(fd_.get(), nullptr, nullptr))); }
  void say(std::string_view text) const {
    if (::send(fd_.get(), text.data(), text.size(), MSG_NOSIGNAL) < 0) broken("a test cannot write to its control socket");
  }
  // Empty: the other side closed, or does not answer.
  [[nodiscard]] std::string hear() const {
    const timeval patience{10, 0};
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    std::string text(1 << 16, '\0');
    text.resize(static_cast<std::size_t>(std::max<ssize_t>(0, ::recv(fd_.get(), text.data(), text.size(), 0))));
    return text;
  }

 private:
  explicit Raw(Fd fd) : fd_(std::move(fd)) {}
  Raw(const std::string& instance, int (*join)(int, const sockaddr*, socklen_t))
      : fd_(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
    socket_path(instance).copy(address.sun_path, sizeof address.sun_path - 1);
    if (join(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) broken("a test cannot use its control socket");
  }
  Fd fd_;
};

using Lock = RunFolder;

TEST_F(Lock, is_held_by_one_and_tells_the_other_by_whom) {
  const auto first = InstanceLock::take(name);
  ASSERT_TRUE(first) << first.error().what;
  const auto second = InstanceLock::take(name);
  ASSERT_FALSE(second);
  EXPECT_THAT(second.error().what, HasSubstr(fmt::format("instance {} is already running (process {})", name, ::getpid())));
  EXPECT_TRUE(InstanceLock::take(name + "x")) << "another instance's name is another lock";
}

TEST_F(Lock, is_free_behind_its_holder) {
  for (int i = 0; i < 3; ++i) {
    const auto lock = InstanceLock::take(name);
    ASSERT_TRUE(lock) << lock.error().what;
    EXPECT_TRUE(fs::exists("/run/weir/" + name + ".lock"));
  }
}

TEST_F(Lock, is_free_behind_a_holder_that_was_killed) {
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const auto lock = InstanceLock::take(name);
    static_cast<void>(::write(ready[1], lock ? "y" : "n", 1) == 1);
    while (true) ::pause();
  }
  char taken = 0;
  EXPECT_EQ(::read(ready[0], &taken, 1), 1);
  EXPECT_EQ(taken, 'y');
  const auto refused = InstanceLock::take(name);
  EXPECT_THAT(refused ? "" : refused.error().what, HasSubstr(fmt::format("(process {})", child)));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  for (int end : ready) ::close(end);
  EXPECT_TRUE(fs::exists("/run/weir/" + name + ".lock"));
  EXPECT_TRUE(InstanceLock::take(name));
}

TEST_F(Lock, is_not_in_the_way_of_those_who_look_for_instances) {
  static_cast<void>(Raw::listening(name));  // as a process that was killed leaves it
  std::atomic<bool> stop = false;
  std::jthread looking([&] {
    while (!stop) static_cast<void>(instances());
  });
  for (u32 i = 0; i < 2000; ++i) {
    const auto lock = InstanceLock::take(name);
    EXPECT_TRUE(lock) << lock.error().what;
    if (!lock) break;
  }
  stop = true;
  looking.join();
  fs::remove(socket_path(name));
}

TEST_F(RunFolder, keeps_a_note_until_it_is_forgotten) {
  EXPECT_EQ(noted_layout(name), "");
  std::string before;
  for (const char* text : {"frames 1x2\nport a\n", "", "short"}) {
    ASSERT_TRUE(prepare_layout(name, text));
    EXPECT_EQ(noted_layout(name), before) << "the old note is there until the new one takes its place";
    ASSERT_TRUE(commit_layout(name));
    EXPECT_EQ(noted_layout(name), text);
    before = text;
  }
  forget_layout(name);
  EXPECT_EQ(noted_layout(name), "");
  forget_layout(name);
}

TEST_F(RunFolder, lists_instances_that_run_and_can_be_asked) {
  {
    const auto socket = ControlSocket::listen(name);
    ASSERT_TRUE(socket) << socket.error().what;
    std::ofstream("/run/weir/" + name + ".lock") << "1";
    EXPECT_THAT(instances(), Not(Contains(name))) << "one that was killed leaves its files, but holds no lock";
    const auto lock = InstanceLock::take(name);
    ASSERT_TRUE(lock) << lock.error().what;
    EXPECT_THAT(instances(), Contains(name));
    EXPECT_TRUE(std::ranges::is_sorted(instances()));
    EXPECT_EQ(socket_path(name), "/run/weir/" + name + ".sock");
    EXPECT_EQ(fs::status(socket_path(name)).permissions(), fs::perms::owner_read | fs::perms::owner_write);
  }
  EXPECT_THAT(instances(), Not(Contains(name)));
}

// An instance's control loop that does nothing but answer.
class Server {
 public:
  Server(const std::string& instance, ControlSocket::Answer answer) : socket_(ControlSocket::listen(instance)), answer_(std::move(answer)) {
    if (!socket_ || ::pipe(stop_) != 0) broken("a test cannot open its control socket");
    loop_ = std::thread([this] { run(); });
  }
  Server(const Server&) = delete;
  ~Server() {
    ::close(stop_[1]);
    loop_.join();
    ::close(stop_[0]);
  }

 private:
  void run() const {
    pollfd wait[] = {{socket_->descriptor(), POLLIN, 0}, {stop_[0], POLLIN, 0}};
    while (::poll(wait, 2, -1) > 0 && wait[1].revents == 0) socket_->serve(answer_);
  }
  const Result<ControlSocket> socket_;
  const ControlSocket::Answer answer_;
  int stop_[2];
  std::thread loop_;
};

Result<json> echo(const json& question) { return json{{"you said", question}}; }

using Socket = RunFolder;

TEST_F(Socket, gives_each_question_its_answer) {
  const Server server(name, echo);
  for (const json& question : {json{{"ask", "stats"}}, json{{"ask", nullptr}, {"π", {1, 2.5, "\n"}}}, json::object()}) {
    const auto answer = ask(name, question);
    ASSERT_TRUE(answer) << answer.error().what;
    EXPECT_EQ(*answer, (json{{"you said", question}}));
  }
}

TEST_F(Socket, carries_an_answer_of_a_megabyte) {
  const std::string text(1 << 20, 'w');
  const Server server(name, [&](const json&) { return json(text); });
  const auto answer = ask(name, json::object());
  ASSERT_TRUE(answer) << answer.error().what;
  EXPECT_TRUE(*answer == text);
}

TEST_F(Socket, carries_a_name_that_is_no_text) {
  const Server server(name, [](const json&) { return json("eth\xff"); });
  const auto answer = ask(name, json::object());
  ASSERT_TRUE(answer) << answer.error().what;
  EXPECT_EQ(*answer, "eth\ufffd");
}

TEST_F(Socket, carries_an_error_with_the_name_of_the_instance) {
  const Server server(name, [](const json&) { return fail("the gate is closed"); });
  const auto answer = ask(name, json::object());
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().what, fmt::format("instance {}: the gate is closed", name));
}

TEST_F(Socket, is_not_held_up_by_one_who_says_nothing) {
  const auto socket = ControlSocket::listen(name);
  ASSERT_TRUE(socket) << socket.error().what;
  const Raw silent = Raw::connected(name), empty = Raw::connected(name);
  static_cast<void>(Raw::connected(name));
  const Raw client = Raw::connected(name);
  empty.say("");
  client.say("{}");
  socket->serve(echo);
  EXPECT_EQ(client.hear(), R"({"ok":{"you said":{}}})");
  EXPECT_EQ(silent.hear(), R"({"error":"nothing came within 500 ms","invalid":false})");
  EXPECT_THAT(empty.hear(), testing::StartsWith(R"({"error":)"));
}

TEST_F(Socket, answers_garbage_with_an_error) {
  const auto socket = ControlSocket::listen(name);
  ASSERT_TRUE(socket) << socket.error().what;
  for (const std::string& garbage : {std::string("water"), std::string("[1]"), std::string("\"stats\""), std::string("\xff\x00{", 3),
                                     std::string("{\"ask\": \"sta"), std::string(100'000, '[')}) {
    const Raw client = Raw::connected(name);
    client.say(garbage);
    socket->serve(echo);
    const json answer = json::parse(client.hear(), nullptr, false);
    ASSERT_TRUE(answer.is_object()) << garbage.substr(0, 20);
    EXPECT_EQ(answer.value("error", ""), "a question is a JSON object");
  }
}

TEST_F(Socket, is_asked_in_vain_when_nobody_listens) {
  const std::string why = fmt::format("instance {} is not running (no one listens at {})", name, socket_path(name));
  for (bool stale : {false, true}) {
    if (stale) static_cast<void>(Raw::listening(name));  // as a process that was killed leaves it
    EXPECT_EQ(fs::exists(socket_path(name)), stale);
    const auto answer = ask(name, json::object());
    ASSERT_FALSE(answer);
    EXPECT_EQ(answer.error().what, why);
  }
  EXPECT_TRUE(ControlSocket::listen(name)) << "the next run takes its place";
}

TEST_F(Socket, takes_no_answer_that_is_none) {
  const Raw other = Raw::listening(name);
  for (const char* nonsense : {"", "water", "5", "[]", "{}", R"({"error": 5})", R"({"error": {"what": "x"}})"}) {
    auto answer = std::async(std::launch::async, [&] { return ask(name, json::object()); });
    const Raw client = other.accept();
    EXPECT_EQ(client.hear(), "{}");
    client.say(nonsense);
    EXPECT_FALSE(answer.get()) << nonsense;
  }
  fs::remove(socket_path(name));
}

TEST_F(Socket, refuses_a_name_that_no_address_can_hold) {
  const auto socket = ControlSocket::listen(std::string(200, 'n'));
  ASSERT_FALSE(socket);
  EXPECT_EQ(socket.error().failure, Failure::invalid);
}

TEST_F(Socket, is_found_by_name_and_not_guessed_among_several) {
  EXPECT_EQ(*find_instance(name), name);
  const std::string other = name + "2";
  const auto lock = InstanceLock::take(name), other_lock = InstanceLock::take(other);
  const auto socket = ControlSocket::listen(name), other_socket = ControlSocket::listen(other);
  ASSERT_TRUE(lock && other_lock && socket && other_socket);
  const auto found = find_instance("");
  ASSERT_FALSE(found);
  EXPECT_EQ(found.error().failure, Failure::invalid);
  EXPECT_THAT(found.error().what, HasSubstr(fmt::format("{}, {}", name, other)));
}

// An instance without a device: it needs the run folder and nothing else of the host.
Result<std::unique_ptr<Instance>> started(const std::string& name, const Registry& registry) {
  const std::string text = fmt::format("[weir]\nname = \"{}\"\n[[port]]\nname = \"sink\"\ndriver = \"null\"\n", name);
  auto config = parse_config(text, "test.toml", registry);
  if (!config) broken(config.error().front().text().c_str());
  auto topology = TRY(Topology::build(std::move(*config), registry));
  auto instance = TRY(Instance::prepare(std::move(topology), registry, {}));
  TRY_VOID(instance->go());
  return instance;
}

using Running = RunFolder;

// Watches a descriptor that is readable from the start, and ends the run when it has been told three times.
struct Watcher final : Stage {
  static Result<std::unique_ptr<Stage>> make(const ConfigNode&, StageContext&) { return std::make_unique<Watcher>(); }
  void process(Burst&) noexcept override {}
  [[nodiscard]] int watched() const override { return event.get(); }
  void ready() noexcept override {
    u64 number = 0;
    if (::read(event.get(), &number, sizeof number) != sizeof number || ++told < 3) number = 1;
    else number = 0, stop->notify();
    if (number != 0) static_cast<void>(!::write(event.get(), &number, sizeof number));
  }
  struct Stop {
    Fd event{::eventfd(0, EFD_CLOEXEC)};
    void notify() const noexcept {
      const u64 one = 1;
      static_cast<void>(!::write(event.get(), &one, sizeof one));
    }
  };
  Fd event{::eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK)};
  static inline u32 told = 0;
  static inline const Stop* stop = nullptr;
};

TEST_F(Running, tells_a_stage_when_its_descriptor_is_readable) {
  const Plugin plugin{.name = "watcher", .says = "watch", .make = Watcher::make};
  const Registry registry = Registry::of({&plugin}, {});
  const std::string text = fmt::format(
      "[weir]\nname = \"{}\"\n[[port]]\nname = \"sink\"\ndriver = \"null\"\npipeline = \"p\"\n"
      "[[pipeline]]\nname = \"p\"\n[[pipeline.stage]]\nplugin = \"watcher\"\n",
      name);
  auto config = parse_config(text, "test.toml", registry);
  ASSERT_TRUE(config);
  auto topology = Topology::build(std::move(*config), registry);
  ASSERT_TRUE(topology) << topology.error().what;
  auto instance = Instance::prepare(std::move(*topology), registry, {});
  ASSERT_TRUE(instance) << instance.error().what;
  Watcher::told = 0;
  const Watcher::Stop stop;
  Watcher::stop = &stop;
  const Result<> served = serve(**instance, stop.event);
  EXPECT_TRUE(served) << served.error().what;
  EXPECT_EQ(Watcher::told, 3u);
}

TEST_F(Running, answers_what_is_no_question_with_an_error) {
  const Registry registry = Registry::of({}, {});
  const auto instance = started(name, registry);
  ASSERT_TRUE(instance) << instance.error().what;
  for (const json& question :
       {json::object(), json{{"ask", 5}}, json{{"ask", nullptr}}, json{{"ask", json::array()}}, json{{"ask", "water"}}})
    EXPECT_FALSE((*instance)->answer(question)) << question;
  const auto stats = (*instance)->answer({{"ask", "stats"}});
  ASSERT_TRUE(stats) << stats.error().what;
  EXPECT_EQ(stats->at("instance"), name);
  EXPECT_EQ(stats->at("frames").at("free"), stats->at("frames").at("total"));
}

}  // namespace
}  // namespace weir
