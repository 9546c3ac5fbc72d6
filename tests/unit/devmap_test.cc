// SPDX-License-Identifier: BSD-3-Clause
// devmap_test: what holds of device entries, in both forms of the map and on every kernel that this runs on.
#include <bpf/bpf.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/bpf.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <map>
#include <thread>

#include "core/kernel/devmap.hh"
#include "core/kernel/xdp_link.hh"
#include "core/plugin.hh"
#include "kit/plugin_kit.hh"

#include "devmap_reader.skel.h"
#include "devmap_wire.skel.h"
#include "devmap_writer.skel.h"

namespace weir {
namespace {

using namespace kit;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;

constexpr u32 sparse = 0xfffffff0;  // a key that no array has
constexpr u32 many = 4;

std::string said(const Result<>& result) { return result ? "done" : result.error().what; }

class KernelDevmap : public testing::TestWithParam<DevmapForm> {
 protected:
  void SetUp() override {
    if (const std::string why = no_kernel(); !why.empty()) GTEST_SKIP() << why;
    loopback_ = Ifindex{::if_nametoindex("lo")};
    ASSERT_NE(loopback_.value, 0u);
    map_ = make();
    Result<BpfObject> object = BpfObject::open("reader", WEIR_KERNEL_HALF(devmap_reader)());
    ASSERT_TRUE(object) << object.error().what;
    object_ = std::make_unique<BpfObject>(std::move(*object));
    ASSERT_TRUE(object_->use("entries", map_.map().fd()));
    const Result<> loaded = object_->load();
    ASSERT_TRUE(loaded) << loaded.error().what;
  }
  static Devmap make(DevmapValue value = DevmapValue::device_and_program) {
    Result<Devmap> made = Devmap::create("entries", GetParam(), many, value);
    if (!made) broken(made.error().what.c_str());
    return std::move(*made);
  }
  [[nodiscard]] int program(const char* name) const { return object_->program_fd(name); }
  // The program's answer to a question: see devmap_reader.bpf.c.
  std::pair<u32, u32> ask(u32 key, u32 flags, bool look = false) {
    std::array<u32, 15> frame{key, flags, look}, out{};
    LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = frame.data(), .data_out = out.data(), .data_size_in = sizeof frame,
                .data_size_out = sizeof out);
    if (::bpf_prog_test_run_opts(program("reader"), &options) != 0) broken("the kernel does not run the reader");
    return {options.retval, out[3]};
  }

  Ifindex loopback_;
  Devmap map_;
  std::unique_ptr<BpfObject> object_;
};

TEST_P(KernelDevmap, row_1_keys_are_an_index_or_any_number) {
  EXPECT_EQ(said(map_.set(many - 1, loopback_)), "done");
  if (GetParam() == DevmapForm::array) {
    EXPECT_THAT(said(map_.set(many, loopback_)), HasSubstr("keys 0 to 3"));
    return;
  }
  EXPECT_EQ(said(map_.set(sparse, loopback_)), "done");
  EXPECT_EQ(said(map_.set(1u << 20, loopback_)), "done");
  EXPECT_EQ(said(map_.set(7, loopback_)), "done");
  EXPECT_THAT(said(map_.set(8, loopback_)), HasSubstr("full with 4 entries"));
  EXPECT_EQ(said(map_.set(7, loopback_)), "done") << "a full hash still replaces";
}

TEST_P(KernelDevmap, row_2_a_write_takes_a_descriptor_and_a_read_gives_the_id) {
  ASSERT_EQ(said(map_.set(1, loopback_, program("on_entry"))), "done");
  EXPECT_EQ(map_.get(1), (DeviceEntry{loopback_, program_id(program("on_entry"))}));
  ASSERT_EQ(said(map_.set(1, loopback_)), "done");
  EXPECT_EQ(map_.get(1), (DeviceEntry{loopback_, 0})) << "without a program again";
  EXPECT_THAT(said(map_.set(1, loopback_, 0)), HasSubstr("descriptor 0"));
}

TEST_P(KernelDevmap, row_2_a_plain_value_is_a_device_alone) {
  const Devmap plain = make(DevmapValue::device);
  ASSERT_EQ(said(plain.set(1, loopback_)), "done");
  EXPECT_EQ(plain.get(1), (DeviceEntry{loopback_, 0}));
  EXPECT_THAT(said(plain.set(1, loopback_, program("on_entry"))), HasSubstr("no programs"));
}

TEST_P(KernelDevmap, row_3_the_caller_chooses_what_becomes_of_a_miss) {
  ASSERT_EQ(said(map_.set(1, loopback_)), "done");
  for (u32 action : {XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX}) {
    EXPECT_EQ(ask(2, action).first, action);
    EXPECT_EQ(ask(many + 100, action).first, action) << "a key past the end";
    EXPECT_EQ(ask(1, action).first, u32{XDP_REDIRECT});
  }
}

TEST_P(KernelDevmap, row_5_a_program_may_look_entries_up) {
  ASSERT_EQ(said(map_.set(1, loopback_)), "done");
  EXPECT_EQ(ask(1, 0, true), std::pair(u32{XDP_PASS}, loopback_.value));
  EXPECT_EQ(ask(2, 0, true).first, u32{XDP_DROP});
}

TEST_P(KernelDevmap, row_6_any_makes_and_replaces) {
  EXPECT_EQ(said(map_.set(1, loopback_, program("on_entry"), DevmapUpdate::any)), "done");
  EXPECT_EQ(said(map_.set(1, loopback_, -1, DevmapUpdate::any)), "done");
  EXPECT_EQ(map_.get(1)->program, 0u);
}

TEST_P(KernelDevmap, row_6_noexist_only_makes) {
  EXPECT_EQ(said(map_.set(1, loopback_, program("on_entry"), DevmapUpdate::noexist)), "done");
  const Result<> again = map_.set(1, loopback_, -1, DevmapUpdate::noexist);
  EXPECT_THAT(said(again), HasSubstr("there is one already"));
  EXPECT_NE(map_.get(1)->program, 0u) << "a refused update changes nothing";
}

TEST_P(KernelDevmap, row_6_exist_only_replaces) {
  const Result<> absent = map_.set(1, loopback_, -1, DevmapUpdate::exist);
  ASSERT_FALSE(absent);
  EXPECT_EQ(absent.error().failure, Failure::missing);
  EXPECT_EQ(map_.get(1), std::nullopt) << "a refused update changes nothing";
  ASSERT_EQ(said(map_.set(1, loopback_)), "done");
  EXPECT_EQ(said(map_.set(1, loopback_, program("on_entry"), DevmapUpdate::exist)), "done");
  EXPECT_NE(map_.get(1)->program, 0u);
}

TEST_P(KernelDevmap, row_6_what_is_no_device_is_refused_with_its_index) {
  EXPECT_THAT(said(map_.set(1, Ifindex{0})), HasSubstr("index 0"));
  EXPECT_THAT(said(map_.set(1, Ifindex{0x7ffffff0})), HasSubstr("no device with index 2147483632"));
  EXPECT_TRUE(map_.all().empty());
}

TEST_P(KernelDevmap, row_7_an_entry_is_removed_once) {
  ASSERT_EQ(said(map_.set(3, loopback_)), "done");
  ASSERT_EQ(said(map_.set(1, loopback_)), "done");
  EXPECT_THAT(map_.all(), ElementsAre(Pair(1, DeviceEntry{loopback_, 0}), Pair(3, DeviceEntry{loopback_, 0})));
  EXPECT_EQ(said(map_.remove(1)), "done");
  const Result<> again = map_.remove(1);
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().failure, Failure::missing);
  EXPECT_FALSE(map_.remove(many + 5)) << "a key that there is not";
  EXPECT_THAT(map_.all(), ElementsAre(Pair(3, DeviceEntry{loopback_, 0})));
}

TEST_P(KernelDevmap, row_8_only_a_program_of_its_kind_stands_on_an_entry) {
  EXPECT_THAT(said(map_.set(1, loopback_, program("ordinary"))), HasSubstr("xdp/devmap"));
  EXPECT_EQ(map_.get(1), std::nullopt);
  EXPECT_EQ(said(map_.set(1, loopback_, program("on_entry"))), "done");
}

TEST_P(KernelDevmap, row_11_a_program_with_frags_is_refused_where_the_others_have_none) {
  const std::string answer = said(map_.set(1, loopback_, program("with_frags")));
  if (GetParam() == DevmapForm::hash && answer == "done") return;  // Linux 6.18 does not look: see devmap.hh
  EXPECT_THAT(answer, HasSubstr("frags"));
  EXPECT_EQ(map_.get(1), std::nullopt);
}

INSTANTIATE_TEST_SUITE_P(Form, KernelDevmap, testing::Values(DevmapForm::array, DevmapForm::hash),
                         [](const auto& form) { return form.param == DevmapForm::array ? "array" : "hash"; });

// As in devmap_wire.bpf.c.
struct Wire {
  u32 flags, answer, ingress, egress, queue, runs;
};

// In a network namespace of its own: s0 sends to s1, whose program redirects to a0 and b0, and what these send comes out of a1 and b1.
class KernelDevmapWire : public testing::TestWithParam<DevmapForm> {
 protected:
  static constexpr const char* devices[] = {"s0", "s1", "a0", "a1", "b0", "b1"};

  void SetUp() override {
    if (const std::string why = no_kernel(); !why.empty()) GTEST_SKIP() << why;
    home_ = Fd(::open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
    ASSERT_EQ(::unshare(CLONE_NEWNET), 0);
    ASSERT_EQ(std::system("for each in s a b; do ip link add ${each}0 type veth peer name ${each}1 || exit 1; done"
                          " && for each in s0 s1 a0 a1 b0 b1; do ip link set $each up || exit 1; done"),
              0);
    Result<Devmap> made = Devmap::create("entries", GetParam(), 8);
    ASSERT_TRUE(made) << made.error().what;
    map_ = std::move(*made);
    Result<BpfObject> object = BpfObject::open("wire", WEIR_KERNEL_HALF(devmap_wire)());
    ASSERT_TRUE(object) << object.error().what;
    object_ = std::make_unique<BpfObject>(std::move(*object));
    ASSERT_TRUE(object_->use("entries", map_.map().fd()));
    Result<BpfMap> wire = BpfMap::create("wire", {BPF_MAP_TYPE_ARRAY, 4, sizeof(Wire), 1, BPF_F_MMAPABLE});
    ASSERT_TRUE(wire && object_->use("wire", wire->fd()));
    Result<Mapping> memory = wire->map_memory();
    ASSERT_TRUE(memory);
    memory_ = std::move(*memory);
    const Result<> loaded = object_->load();
    ASSERT_TRUE(loaded) << loaded.error().what;
    attach("to_entries", "s1");
    for (const char* device : {"s0", "a1", "b1"}) attach("receiver", device);
    for (const char* device : devices) sockets_.emplace(device, open_socket(device));
  }
  void TearDown() override {
    links_.clear();
    sockets_.clear();
    // The other namespace goes, with its devices.
    if (home_ && ::setns(home_.get(), CLONE_NEWNET) != 0) broken("there is no way back into the namespace of the tests");
  }

  static Ifindex index(const char* device) { return Ifindex{::if_nametoindex(device)}; }
  void attach(const char* program, const char* device) {
    Result<XdpLink> link = XdpLink::attach(object_->program_fd(program), index(device), true);
    ASSERT_TRUE(link) << device << ": " << link.error().what;
    links_.push_back(std::move(*link));
  }
  static Fd open_socket(const char* device) {
    Fd fd(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(0x88b5)));
    sockaddr_ll to{};
    to.sll_family = AF_PACKET;
    to.sll_protocol = htons(0x88b5);
    to.sll_ifindex = static_cast<int>(index(device).value);
    if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&to), sizeof to) != 0) broken("a packet socket is not bound");
    return fd;
  }
  Wire& wire() { return *reinterpret_cast<Wire*>(memory_.data()); }
  u32 runs() { return std::atomic_ref(wire().runs).load(); }
  void send(u8 mark) {
    const Packet frame = FrameBuilder().ethernet(station(1), station(2)).payload({&mark, 1}).pad(60);
    ASSERT_EQ(::send(sockets_.at("s0").get(), frame.data(), frame.size(), 0), static_cast<ssize_t>(frame.size()));
  }
  // The mark of the next frame that comes out of a device; -1: none within the time.
  int heard(const char* device, int wait_ms = 5000) {
    pollfd poll{sockets_.at(device).get(), POLLIN, 0};
    std::array<u8, 2048> frame{};
    if (::poll(&poll, 1, wait_ms) != 1 || ::recv(poll.fd, frame.data(), frame.size(), 0) < 15) return -1;
    return frame[14];
  }
  // Until the entries' programs have run so often.
  bool ran(u32 times) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
    while (runs() < times && std::chrono::steady_clock::now() < deadline) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return runs() == times;
  }
  void set(u32 key, const char* device) { ASSERT_EQ(said(map_.set(key, index(device), object_->program_fd("of_entry"))), "done"); }

  Fd home_;
  Devmap map_;
  std::unique_ptr<BpfObject> object_;
  Mapping memory_;
  std::vector<XdpLink> links_;
  std::map<std::string, Fd> sockets_;
};

TEST_P(KernelDevmapWire, row_9_the_program_of_an_entry_sees_both_devices) {
  set(1, "a0");
  wire().answer = XDP_PASS;
  send(1);
  EXPECT_EQ(heard("a1"), 1);
  EXPECT_EQ(wire().ingress, index("s1").value);
  EXPECT_EQ(wire().egress, index("a0").value);
  EXPECT_EQ(wire().queue, 0u);
}

TEST_P(KernelDevmapWire, row_10_what_the_program_does_not_let_go_is_dropped) {
  set(1, "a0");
  u32 sent = 0;
  for (u32 answer : std::array<u32, 5>{XDP_DROP, XDP_ABORTED, XDP_TX, XDP_REDIRECT, 77}) {
    wire().answer = answer;
    send(9);
    EXPECT_TRUE(ran(++sent)) << answer;
  }
  wire().answer = XDP_PASS;
  send(1);
  EXPECT_EQ(heard("a1"), 1) << "the first that comes out, and the wire keeps the order";
  EXPECT_EQ(runs(), sent + 1);
}

TEST_P(KernelDevmapWire, row_4_a_broadcast_reaches_every_entry) {
  for (const auto& [key, device] : {std::pair(1u, "a0"), std::pair(2u, "b0"), std::pair(3u, "s1")}) set(key, device);
  wire().answer = XDP_PASS;
  wire().flags = BPF_F_BROADCAST;
  send(1);
  EXPECT_TRUE(ran(3));
  EXPECT_EQ(heard("a1"), 1);
  EXPECT_EQ(heard("b1"), 1);
}

TEST_P(KernelDevmapWire, row_4_a_broadcast_leaves_out_the_port_that_the_frame_came_in_by) {
  for (const auto& [key, device] : {std::pair(1u, "a0"), std::pair(2u, "b0"), std::pair(3u, "s1")}) set(key, device);
  wire().answer = XDP_PASS;
  wire().flags = BPF_F_BROADCAST | BPF_F_EXCLUDE_INGRESS;
  send(1);
  send(2);
  for (const char* device : {"a1", "b1"}) {
    EXPECT_EQ(heard(device), 1);
    EXPECT_EQ(heard(device), 2);
  }
  EXPECT_EQ(runs(), 4u);
}

TEST_P(KernelDevmapWire, row_7_an_entry_goes_with_its_device) {
  set(1, "a0");
  set(2, "b0");
  ASSERT_EQ(std::system("ip link del b0"), 0);
  EXPECT_THAT(map_.all(), ElementsAre(Pair(1, testing::Field(&DeviceEntry::device, index("a0")))));
}

TEST_P(KernelDevmapWire, row_8_a_program_of_an_entry_is_attached_to_no_device) {
  EXPECT_FALSE(XdpLink::attach(object_->program_fd("of_entry"), index("b0"), true));
}

INSTANTIATE_TEST_SUITE_P(Form, KernelDevmapWire, testing::Values(DevmapForm::array, DevmapForm::hash),
                         [](const auto& form) { return form.param == DevmapForm::array ? "array" : "hash"; });

TEST(KernelDevmapOfAStage, row_5_a_kernel_half_that_sets_an_entry_is_refused_with_the_reason) {
  if (const std::string why = no_kernel(); !why.empty()) GTEST_SKIP() << why;
  const Plugin writer{.name = "devmap_writer",
                      .says = "",
                      .keys = {},
                      .drops = {},
                      .counters = {},
                      .punts = {},
                      .make = nullptr,
                      .kernel_half = WEIR_KERNEL_HALF(devmap_writer)};
  FakeContext context{{"a", "b"}};
  auto half = KernelHalf::open(writer, context);
  ASSERT_TRUE(half) << half.error().what;
  const Result<> loaded = (*half)->load();
  ASSERT_FALSE(loaded);
  EXPECT_THAT(loaded.error().what, HasSubstr("only user space changes them"));
}

}  // namespace
}  // namespace weir
