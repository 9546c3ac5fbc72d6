// SPDX-License-Identifier: BSD-3-Clause
// tables_flows: the flow cache, filled, in front of patch: frames of a flow are routed, others would be seen by patch.
#include <bpf/bpf.h>
#include <net/if.h>

#include <bit>
#include <cstring>

#include "bench/tables.hh"
#include "core/pipeline/accounts.hh"
#include "core/pipeline/flow_table.hh"

namespace weir::bench {
namespace {

constexpr u32 hops = 64;  // that the flows go to
constexpr u32 patch_block = WEIR_MAX_PORTS, flow_block = patch_block + 1, blocks = flow_block + 1;
constexpr u32 most_places = 8388608;
constexpr FlowTable::Owner owner{0, flow_block};
constexpr PortSlot in{0}, out{1};

Mac own() { return kit::station(1); }
Mac hop_of(u32 number) { return kit::station(1000 + number % hops); }

class FlowCache final : public Table {
 public:
  static Result<std::unique_ptr<Table>> make(const Plugin& patch, u32 size, u64 seed) {
    const u32 places = std::bit_ceil(2 * size);  // half full at most
    if (places > most_places) return fail("they would want {} places; [weir] flows goes to {}", places, most_places);
    std::unique_ptr<FlowCache> made(new FlowCache(size, places));
    TRY_VOID(made->make_maps());
    TRY_VOID(made->load(patch, seed));
    TRY_VOID(made->fill());
    return made;
  }
  [[nodiscard]] std::vector<u32> versions() const override { return {4, 6}; }
  [[nodiscard]] FrameBytes frame_for(u32 entry, u32 version, Dice&) const override {
    return frame_of(there_[version == 4 ? 0 : 1][entry], version);
  }
  [[nodiscard]] FrameBytes after(const FrameBytes& frame) const override { return forwarded(frame, hop_of(number_of(frame)), own()); }
  Result<> check(const FrameBytes& frame) override;
  Result<> lead(const BpfMap& programs) override {
    const int fd = object_->program_fd(program_);
    return programs.set(0, &fd);
  }
  [[nodiscard]] account kernel_counts() const override { return accounts_.kernel(flow_block); }
  [[nodiscard]] Stage* user() const override { return nullptr; }
  [[nodiscard]] u64 found(const account& counted) const override { return counted.verdict[WEIR_REDIRECT]; }
  [[nodiscard]] std::string says() const override {
    return fmt::format("[weir] flows = {}: {} flows of IPv4 and {} of IPv6; {} others found no room", places_, size_, size_,
                       table_->counts().refused);
  }

 private:
  FlowCache(u32 size, u32 places) : size_(size), places_(places) {}
  static FrameBytes frame_of(u32 number, u32 version) {
    Ends ends{.sport = static_cast<u16>(1024 + (number >> 16)), .dport = 53};
    if (version == 4) {
      put<u32>(ends.source, 0, __builtin_bswap32(10u << 24 | (number & 0xffff)));
      put<u32>(ends.destination, 0, __builtin_bswap32(198u << 24 | 18u << 16 | (number >> 8 & 0xffff)));
    } else {
      put<u64>(ends.source, 0, __builtin_bswap64(0x20010db8'00010000ull | (number & 0xffff)));
      put<u64>(ends.destination, 0, __builtin_bswap64(0x20010db8'00020000ull | (number >> 8 & 0xffff)));
      ends.source[15] = ends.destination[15] = 1;
    }
    return ip_frame(version, ends, own(), kit::station(2));
  }
  // As frame_of() made it.
  static u32 number_of(const FrameBytes& frame) {
    const bool ipv4 = get<u16>(frame, 12) == __builtin_bswap16(ETH_P_IP);
    const u32 low =
        ipv4 ? __builtin_bswap32(get<u32>(frame, 26)) & 0xffff : static_cast<u32>(__builtin_bswap64(get<u64>(frame, 22)) & 0xffff);
    return low | (__builtin_bswap16(get<u16>(frame, ipv4 ? 34 : 54)) - 1024u) << 16;
  }
  Result<> make_maps();
  Result<> load(const Plugin& patch, u64 seed);
  Result<> fill();

  u32 size_, places_;
  std::array<std::vector<u32>, 2> there_;  // flows of IPv4 and of IPv6 that have found room
  std::optional<BpfObject> object_;
  std::string program_;
  AccountsMap accounts_map_;
  Accounts accounts_{Mapping(), 0, 0, 0};
  BpfMap ports_, entries_, flows4_, flows6_, rewrites_;
  Mapping memory4_, memory6_, memory_of_rewrites_;
  std::unique_ptr<FlowTable> table_;
};

Result<> FlowCache::make_maps() {
  accounts_map_ = TRY(AccountsMap::create(possible_cpus(), blocks));
  accounts_ = Accounts(TRY(accounts_map_.map().map_memory()), possible_cpus(), possible_cpus(), blocks);
  ports_ = TRY(BpfMap::create("ports", {BPF_MAP_TYPE_DEVMAP, 4, sizeof(bpf_devmap_val), WEIR_MAX_PORTS, 0}));
  entries_ = TRY(BpfMap::create("entries", {BPF_MAP_TYPE_ARRAY, 4, sizeof(port_entries), 1, 0}));
  flows4_ = TRY(BpfMap::create("flows4", {BPF_MAP_TYPE_ARRAY, 4, sizeof(flow4), places_, BPF_F_MMAPABLE}));
  flows6_ = TRY(BpfMap::create("flows6", {BPF_MAP_TYPE_ARRAY, 4, sizeof(flow6), places_, BPF_F_MMAPABLE}));
  rewrites_ = TRY(BpfMap::create("rewrites", {BPF_MAP_TYPE_ARRAY, 4, sizeof(flow_rewrite), places_, BPF_F_MMAPABLE}));
  memory4_ = TRY(flows4_.map_memory());
  memory6_ = TRY(flows6_.map_memory());
  memory_of_rewrites_ = TRY(rewrites_.map_memory());
  port_entries entries{};
  entries.present = 1u << out.value;
  TRY_VOID(entries_.set(0, &entries));
  const bpf_devmap_val entry{.ifindex = ::if_nametoindex("lo"), .bpf_prog = {-1}};
  return ports_.set(out.value, &entry);
}

Result<> FlowCache::load(const Plugin& patch, u64 seed) {
  const FlowTable::Memory memory{std::span(reinterpret_cast<flow4*>(memory4_.data()), places_),
                                 std::span(reinterpret_cast<flow6*>(memory6_.data()), places_),
                                 std::span(reinterpret_cast<flow_rewrite*>(memory_of_rewrites_.data()), places_)};
  table_ = std::make_unique<FlowTable>(memory, seed);
  object_ = TRY(BpfObject::open("flows", patch.kernel_half()));
  for (const auto& [name, map] : {std::pair{"ports", &ports_}, {"flows4", &flows4_}, {"flows6", &flows6_}, {"rewrites", &rewrites_}})
    TRY_VOID(object_->use(name, map->fd()));
  TRY_VOID(object_->use("accounts", accounts_map_.fd()));
  const stage_link stage{.block = patch_block, .go = WEIR_GO_STACK, .ports = 2, .miss = XDP_DROP, .offloads = 1};
  const ingress_link port{.port = in.value, .queues = 1, .flow_mask = places_ - 1, .flow_seed = seed, .blocks = blocks};
  TRY_VOID(object_->link(program_link{accounts_map_.link(), stage, port}, {.accounts = accounts_map_.memory(), .entries = entries_.fd()}));
  program_ = object_->first_program() + "_entry";
  return object_->load(program_);
}

Result<> FlowCache::fill() {
  for (const u32 version : versions()) {
    std::vector<u32>& there = there_[version == 4 ? 0 : 1];
    for (u32 number = 0; there.size() < size_; ++number) {
      FrameBytes bytes = frame_of(number, version);
      const FlowKey key =
          table_->key_of({.data = bytes.data(), .length = frame_size, .port = in, .stage = 0, .reason = 0, .verdict = 0, .argument = 0});
      const FlowAction action = FlowAction::transmit(out).ttl().addresses(hop_of(number), own()).longest(1514);
      if (table_->put(owner, {key, action, {}, number})) there.push_back(number);
      if (number + 1 - there.size() > 1 + size_ / 10) return fail("{} of {} flows found no room", number + 1 - there.size(), number + 1);
    }
  }
  return {};
}

Result<> FlowCache::check(const FrameBytes& frame) {
  FrameBytes made{};
  const u64 before = found(kernel_counts());
  LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = frame.data(), .data_out = made.data(), .data_size_in = frame_size,
              .data_size_out = frame_size);
  if (const int err = ::bpf_prog_test_run_opts(object_->program_fd(program_), &options); err != 0) return fail_errno(-err, "test run");
  if (found(kernel_counts()) != before + 1) return fail("the flow of a frame is not found");
  if (options.retval != XDP_REDIRECT || made != after(frame)) return fail("a frame of a flow comes out otherwise than its flow says");
  return {};
}

}  // namespace

Result<std::unique_ptr<Table>> make_flows(const Registry& registry, u32 size, Dice& dice) {
  const Plugin* patch = registry.plugin("patch");
  if (patch == nullptr) return fail("the plugin patch is not there: build it first");
  return FlowCache::make(*patch, size, dice());
}

}  // namespace weir::bench
