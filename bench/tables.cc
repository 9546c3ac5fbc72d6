// SPDX-License-Identifier: BSD-3-Clause
// tables: nanoseconds per frame of a look-up, by the number of entries, in each half of a plugin; prints JSON.
//   tables TABLE REPEAT ROUNDS SEED SIZE...    TABLE: lines, flows, router_ipv4, router_ipv6, acl, l2_switch. In each round every case
//   once, of REPEAT frames
#include "bench/tables.hh"

#include <bpf/bpf.h>
#include <time.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "vary.skel.h"

namespace weir::bench {
namespace {

constexpr u32 hot_entries = 64, checked_frames = 2000;

u64 clock_ns(clockid_t which) noexcept {
  timespec now{};
  ::clock_gettime(which, &now);
  return static_cast<u64>(now.tv_sec) * 1'000'000'000 + static_cast<u64>(now.tv_nsec);
}
// CPU time of this thread: what others do on the CPU meanwhile is not in it.
u64 cpu_time() noexcept { return clock_ns(CLOCK_THREAD_CPUTIME_ID); }

// Bytes that this process has, and its BPF maps, each once.
u64 memory_bytes() {
  const auto read = [](const std::filesystem::path& path, std::string_view key) {
    std::ifstream file(path);
    u64 value = 0;
    for (std::string word; file >> word;)
      if (word == key && file >> value) break;
    return value;
  };
  std::map<u64, u64> maps;
  for (const auto& each : std::filesystem::directory_iterator("/proc/self/fdinfo"))
    if (const u64 id = read(each.path(), "map_id:"); id != 0) maps[id] = read(each.path(), "memlock:");
  u64 bytes = 1024 * (read("/proc/self/status", "RssAnon:") + read("/proc/self/status", "RssShmem:"));
  for (const auto& [id, of_map] : maps) bytes += of_map;
  return bytes;
}

// Looks nothing up.
class Nothing final : public Stage {
 public:
  void process(Burst& burst) noexcept override {
    for (Frame& frame : burst) burst.transmit(frame, PortSlot{1});
  }
};

// Frames one after the other, as a device has written them into its ring, and what looks them up.
class Ring {
 public:
  static Result<std::unique_ptr<Ring>> make(u32 repeat) {
    std::unique_ptr<Ring> made(new Ring);
    // What warms up and what is timed, so that each of them is new.
    const u32 entries = std::bit_ceil(2 * repeat + 2);
    made->mask_ = entries - 1;
    made->map_ = TRY(BpfMap::create("ring", {BPF_MAP_TYPE_ARRAY, 4, frame_size, entries, BPF_F_MMAPABLE}));
    made->memory_ = TRY(made->map_.map_memory());
    made->chain_ = TRY(BpfMap::create("chain", {BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 1}));
    for (const char* program : {"vary", "none"}) {
      BpfObject& object = made->objects_.emplace_back(TRY(BpfObject::open(program, WEIR_KERNEL_HALF(::vary)())));
      TRY_VOID(object.use("ring", made->map_.fd()));
      TRY_VOID(object.use("chain", made->chain_.fd()));
      TRY_VOID(object.constants(".rodata.vary", made->mask_));
      TRY_VOID(object.load(program));
    }
    return made;
  }

  void draw(const Table& table, u32 size, u32 version, bool hot, Dice& dice) {
    for (FrameBytes& frame : frames()) {
      u32 entry = dice.below(hot ? std::min(hot_entries, size) : size);
      if (hot) entry = static_cast<u32>(entry * 0x9e3779b1ull % size);  // not next to each other
      frame = table.frame_for(entry, version, dice);
    }
  }

  // Nanoseconds per frame behind a warm-up of as many frames; of `table` null: of the ring alone.
  Result<double> time_kernel(Table* table, u32 repeat) {
    const int nothing = objects_[1].program_fd("none");
    if (table == nullptr) TRY_VOID(chain_.set(0, &nothing));
    else TRY_VOID(table->lead(chain_));
    TRY_VOID(run(table, repeat));
    const u64 two = TRY(run(table, 2));  // what a call costs itself: see bench/README.md, egress
    return (static_cast<double>(TRY(run(table, repeat + 2))) - static_cast<double>(two)) / repeat;
  }

  Result<double> time_user(Table* table, u32 repeat) {
    Nothing nothing;
    Stage& stage = table != nullptr ? *table->user() : nothing;
    TRY_VOID(process(table, stage, repeat));
    return static_cast<double>(TRY(process(table, stage, repeat))) / repeat;
  }

 private:
  Ring() = default;
  [[nodiscard]] std::span<FrameBytes> frames() const noexcept { return {reinterpret_cast<FrameBytes*>(memory_.data()), mask_ + 1}; }

  // CPU time of a call, checked: the last frame came out as it must, and the entry of every frame was found.
  Result<u64> run(Table* table, u32 repeat) {
    const u64 before = table != nullptr ? table->found(table->kernel_counts()) : 0;
    const FrameBytes empty{};
    FrameBytes out;
    LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = empty.data(), .data_out = out.data(), .data_size_in = frame_size,
                .data_size_out = frame_size, .repeat = static_cast<int>(repeat));
    const u64 start = cpu_time();
    const int err = ::bpf_prog_test_run_opts(objects_[0].program_fd("vary"), &options);
    const u64 end = cpu_time();
    if (err != 0) return fail_errno(-err, "test run");
    kernel_at_ += repeat;
    const FrameBytes& last = frames()[(kernel_at_ - 1) & mask_];
    if (out != (table != nullptr ? table->after(last) : last)) return fail("the kernel half makes another frame than the reference");
    if (table != nullptr && table->found(table->kernel_counts()) - before != repeat)
      return fail("the kernel half found the entries of {} of {} frames", table->found(table->kernel_counts()) - before, repeat);
    return end - start;
  }

  // The same in user space, in bursts: each frame is copied out of the ring into memory of its own, as a device does.
  Result<u64> process(Table* table, Stage& stage, u32 repeat) {
    constexpr u32 chunk = 2048, headroom = 256;
    static std::array<u8, chunk * Burst::capacity> chunks;
    account counted{};
    Burst burst;
    burst.charge(&counted);
    const u64 start = cpu_time();
    for (u32 done = 0; done < repeat; done += burst.size()) {
      burst.clear();
      const u32 number = std::min(Burst::capacity, repeat - done);
      for (u32 i = 0; i < number; ++i) {
        u8* at = &chunks[i * chunk + headroom];
        std::memcpy(at, &frames()[(user_at_ + i) & mask_], frame_size);
        burst.push({.data = at, .length = frame_size, .port = PortSlot{0}, .stage = 0, .reason = 0, .verdict = 0, .argument = 0});
      }
      user_at_ += number;
      stage.process(burst);
      for (const Frame& frame : burst) ++counted.verdict[frame.verdict];
    }
    const u64 end = cpu_time();
    if (table != nullptr && table->found(counted) != repeat)
      return fail("the user half found the entries of {} of {} frames", table->found(counted), repeat);
    return end - start;
  }

  u64 mask_ = 0, kernel_at_ = 0, user_at_ = 0;
  BpfMap map_, chain_;
  Mapping memory_;
  std::vector<BpfObject> objects_;
};

struct Row {
  bool user;
  u32 version;
  bool hot;
  std::vector<double> none;             // by round
  std::vector<std::vector<double>> ns;  // by size, by round
};

using Make = Result<std::unique_ptr<Table>> (*)(const Registry& registry, u32 size, Dice& dice);
template <u32 version>
Result<std::unique_ptr<Table>> make_router_of(const Registry& registry, u32 size, Dice& dice) {
  return make_router(registry, version, size, dice);
}
constexpr std::pair<std::string_view, Make> makers[] = {
    {"lines", make_lines}, {"flows", make_flows},        {"router_ipv4", make_router_of<4>}, {"router_ipv6", make_router_of<6>},
    {"acl", make_acl},     {"l2_switch", make_l2_switch}};

struct Sized {
  u32 size;
  std::unique_ptr<Table> table;
  nlohmann::json report;
};

// Every frame's way by the reference, first of all.
Result<Sized> set_up(Make make, const Registry& registry, u32 size, Dice& dice) {
  const u64 before = memory_bytes(), start = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
  Sized made{size, TRY(make(registry, size, dice)), {}};
  const double seconds = static_cast<double>(clock_ns(CLOCK_PROCESS_CPUTIME_ID) - start) / 1e9;
  made.report = {{"size", size}, {"seconds", seconds}, {"bytes", memory_bytes() - before}, {"says", made.table->says()}};
  for (const u32 version : made.table->versions())
    for (u32 i = 0; i < checked_frames; ++i) TRY_VOID(made.table->check(made.table->frame_for(dice.below(size), version, dice)));
  return made;
}

std::vector<Row> rows_of(const Table& table, std::size_t sizes) {
  std::vector<Row> rows;
  for (const bool user : {false, true})
    for (const u32 version : table.versions())
      for (const bool hot : {false, true})
        if (!user || table.user() != nullptr) rows.push_back({user, version, hot, {}, std::vector<std::vector<double>>(sizes)});
  return rows;
}

// Each size in turn, forwards and backwards; the ring alone once in each row of a round.
Result<> time_round(std::vector<Sized>& tables, std::vector<Row>& rows, u32 round, u32 repeat, Ring& ring, Dice& dice) {
  const auto time = [&](const Row& row, Table* table) {
    return row.user ? ring.time_user(table, repeat) : ring.time_kernel(table, repeat);
  };
  for (Row& row : rows) {
    ring.draw(*tables.front().table, tables.front().size, row.version, row.hot, dice);
    row.none.push_back(TRY(time(row, nullptr)));
    for (std::size_t i = 0; i < tables.size(); ++i) {
      const std::size_t at = round % 2 == 0 ? i : tables.size() - 1 - i;
      ring.draw(*tables[at].table, tables[at].size, row.version, row.hot, dice);
      row.ns[at].push_back(TRY(time(row, tables[at].table.get())));
    }
  }
  return {};
}

Result<nlohmann::json> measure(Make make, u32 repeat, u32 rounds, u64 seed, const std::vector<u32>& sizes) {
  const Registry registry = TRY(Registry::load());
  const auto ring = TRY(Ring::make(repeat));
  Dice dice(seed);
  std::vector<Sized> tables;
  for (const u32 size : sizes) tables.push_back(TRY_WITHIN(fmt::format("a table of {}", size), set_up(make, registry, size, dice)));
  std::vector<Row> rows = rows_of(*tables.front().table, tables.size());
  for (u32 round = 0; round < rounds; ++round) TRY_VOID(time_round(tables, rows, round, repeat, *ring, dice));
  nlohmann::json said{{"tables", nlohmann::json::array()}, {"rows", nlohmann::json::array()}};
  for (const Sized& each : tables) said["tables"].push_back(each.report);
  for (const Row& row : rows)
    said["rows"].push_back(
        {{"half", row.user ? "user" : "kernel"}, {"version", row.version}, {"hot", row.hot}, {"none", row.none}, {"ns", row.ns}});
  return said;
}

}  // namespace
}  // namespace weir::bench

int main(int words, char** word) {
  using namespace weir::bench;
  const auto number = [&](int at) { return words > at ? std::strtoull(word[at], nullptr, 10) : 0; };
  const auto* maker = std::ranges::find(makers, words > 1 ? word[1] : "", &std::pair<std::string_view, Make>::first);
  std::vector<weir::u32> sizes;
  for (int i = 5; i < words; ++i) sizes.push_back(static_cast<weir::u32>(number(i)));
  if (maker == std::end(makers) || number(2) == 0 || number(3) == 0 || sizes.empty() ||
      std::ranges::any_of(sizes, [](weir::u32 size) { return size < 2; })) {
    fmt::print(stderr, "usage: tables lines|flows|router_ipv4|router_ipv6|acl|l2_switch REPEAT ROUNDS SEED SIZE...\n");
    return 2;
  }
  const auto said = measure(maker->second, static_cast<weir::u32>(number(2)), static_cast<weir::u32>(number(3)), number(4), sizes);
  if (!said) {
    fmt::print(stderr, "bench tables: {}: {}; seed {}\n", word[1], said.error().what, number(4));
    return 1;
  }
  fmt::print("{}\n", said->dump());
  return 0;
}
