// SPDX-License-Identifier: BSD-3-Clause
// egress_chain_test: a worker's frames through several egress programs, one behind the other.
#include "core/pipeline/egress_chain.hh"

#include <gtest/gtest.h>

#include <cstring>
#include <deque>

#include "bpf/abi/count.h"
#include "kit/frames.hh"

// The host side of the programs' own header: struct egress_frame.
extern "C" {
#include "bpf/lib/egress.bpf.h"
extern const egress_program weir_egress_count;
}

namespace weir {
namespace {

using namespace kit;
using Packets = std::vector<Packet>;

// A worker's frames through a chain: the frames live in a pool, the accounts have a row for the kernel and two for workers.
class Chain {
 public:
  static constexpr u32 worker = 1, other_worker = 2;

  void append(const egress_program& program, std::vector<u8> config) {
    const std::size_t stride = egress_stride(program);
    const u32 place = static_cast<u32>(chain.steps().size());
    chain.append(
        {&program, memory_.emplace_back(std::move(config)).data(), memory_.emplace_back(3 * stride).data(), stride, nullptr, place});
  }
  // The frames that are left, in their order.
  Packets run(const Packets& frames, u32 row = worker) {
    std::vector<Frame> burst;
    for (const Packet& bytes : frames) {
      u64 at = 0;
      if (cache_.take(&at, 1) != 1) broken("a test has too many frames");
      std::ranges::copy(bytes, pool_->base() + at + 256);
      burst.push_back({.data = pool_->base() + at + 256, .length = static_cast<u32>(bytes.size())});
    }
    const u32 left = chain.run(burst.data(), static_cast<u32>(burst.size()), accounts, row, cache_);
    EXPECT_EQ(pool_->free() + cache_.free() + left, pool_->count()) << "what is not transmitted is released";
    Packets out;
    for (u32 i = 0; i < left; ++i) {
      out.emplace_back(burst[i].data, burst[i].data + burst[i].length);
      cache_.release(burst[i]);
    }
    return out;
  }
  // Of a place where "count" stands.
  [[nodiscard]] const count_state& counted(std::size_t place, u32 row) const {
    const EgressChain::Step& step = chain.steps().at(place);
    return *reinterpret_cast<const count_state*>(step.state + row * step.stride);
  }

  Accounts accounts{std::move(*Mapping::anonymous(3 * max_egress_chain * sizeof(account))), 1, 3, max_egress_chain};
  EgressChain chain;

 private:
  static constexpr std::size_t max_egress_chain = 8;
  std::unique_ptr<FramePool> pool_ = std::move(*FramePool::create(64, 2048));
  FrameCache cache_{*pool_};
  std::deque<std::vector<u8>> memory_;
};

// Appends its configuration to a frame. Drops a frame that begins with 'x' under the reason that follows.
u32 sign(egress_frame* frame, const void* config, void*) {
  if (frame->data[0] == 'x') return EGRESS_DROP(u32{frame->data[1]});
  frame->data[frame->length++] = *static_cast<const u8*>(config);
  return EGRESS_TRANSMIT;
}
u32 strip(egress_frame* frame, const void*, void*) {
  frame->data += 2, frame->length -= 2;
  return EGRESS_TRANSMIT;
}
const egress_program signing{.name = "sign", .run = sign, .config_size = 1, .state_size = 8};
const egress_program stripping{.name = "strip", .run = strip, .config_size = 1, .state_size = 8};

Packet text(std::string_view from) { return {from.begin(), from.end()}; }

TEST(EgressChain, runs_its_programs_in_their_order) {
  Chain chain;
  for (u8 letter : {'a', 'b', 'c'}) chain.append(signing, {letter});
  EXPECT_EQ(chain.run({text("1"), text("2")}), (Packets{text("1abc"), text("2abc")}));
}

TEST(EgressChain, transmits_everything_without_a_program) {
  Chain chain;
  EXPECT_EQ(chain.run({text("1"), text("2")}), (Packets{text("1"), text("2")}));
}

TEST(EgressChain, releases_what_a_program_drops_and_counts_it_by_reason) {
  Chain chain;
  chain.append(weir_egress_count, {0});
  chain.append(signing, {'a'});
  chain.append(weir_egress_count, {0});
  const Packets in = {text("x\x05"), text("1"), text("x\x03"), text("x\x05"), text("2"), text("x\x05")};
  EXPECT_EQ(chain.run(in), (Packets{text("1a"), text("2a")})) << "those that are left keep their order";
  const account step = chain.accounts.user(1);
  EXPECT_EQ(step.verdict[WEIR_NEXT], 2u);
  EXPECT_EQ(step.verdict[WEIR_DROP], 4u);
  EXPECT_EQ(step.drop[WEIR_DROP_OWN + 5], 3u);
  EXPECT_EQ(step.drop[WEIR_DROP_OWN + 3], 1u);
  EXPECT_EQ(chain.accounts.user(0).verdict[WEIR_NEXT], 6u);
  EXPECT_EQ(chain.accounts.user(2).verdict[WEIR_NEXT], 2u);
  EXPECT_EQ(chain.counted(0, Chain::worker).frames[COUNT_OTHER], 6u);
  EXPECT_EQ(chain.counted(2, Chain::worker).frames[COUNT_OTHER], 2u) << "a program sees what those before it let go";
}

TEST(EgressChain, carries_a_frame_on_from_where_a_program_left_its_bytes) {
  Chain chain;
  chain.append(stripping, {0});
  chain.append(signing, {'a'});
  EXPECT_EQ(chain.run({text("..1"), text("..x\x01"), text("..22")}), (Packets{text("1a"), text("22a")}));
}

TEST(EgressChain, counts_a_reason_that_has_no_counter_as_unnamed) {
  Chain chain;
  chain.append(signing, {'a'});
  EXPECT_TRUE(chain.run({text("x\xff")}).empty());
  EXPECT_EQ(std::exchange(chain.accounts.at(Chain::worker, 0).verdict[WEIR_DROP], 0), 1u);
  EXPECT_EQ(std::exchange(chain.accounts.at(Chain::worker, 0).drop[WEIR_DROP_UNNAMED], 0), 1u);
  for (u32 row = 0; row < chain.accounts.rows(); ++row)
    for (u32 block = 0; block < chain.accounts.blocks(); ++block) {
      const account untouched{};
      EXPECT_EQ(std::memcmp(&chain.accounts.at(row, block), &untouched, sizeof untouched), 0) << "row " << row << ", block " << block;
    }
}

TEST(EgressChain, gives_each_worker_a_state_and_all_one_configuration) {
  Chain chain;
  chain.append(weir_egress_count, {0});
  chain.append(signing, {'a'});
  const Packet arp = FrameBuilder().ethernet(station(1), broadcast, ETH_P_ARP).build();
  chain.run({arp, arp});
  *static_cast<u8*>(const_cast<void*>(chain.chain.steps()[1].config)) = 'b';
  EXPECT_EQ(chain.run({text("1")}, Chain::other_worker), (Packets{text("1b")}));
  EXPECT_EQ(chain.counted(0, Chain::worker).frames[COUNT_ARP], 2u);
  EXPECT_EQ(chain.counted(0, Chain::worker).bytes, 28u);
  EXPECT_EQ(chain.counted(0, Chain::other_worker).frames[COUNT_OTHER], 1u);
  EXPECT_EQ(chain.counted(0, Chain::other_worker).bytes, 1u);
  EXPECT_EQ(chain.counted(0, 0).bytes, 0u) << "the kernel's row is the kernel's";
  EXPECT_EQ(chain.accounts.at(Chain::worker, 0).verdict[WEIR_NEXT], 2u);
  EXPECT_EQ(chain.accounts.at(Chain::other_worker, 0).verdict[WEIR_NEXT], 1u);
}

}  // namespace
}  // namespace weir
