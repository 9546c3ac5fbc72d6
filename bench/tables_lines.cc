// SPDX-License-Identifier: BSD-3-Clause
// tables_lines: no table: an array of cache lines, as many as the flow cache has places, of which each frame has one counted in.
#include <bpf/bpf.h>

#include <bit>

#include "bench/tables.hh"
#include "vary.skel.h"

namespace weir::bench {
namespace {

class Lines final : public Table {
 public:
  static Result<std::unique_ptr<Table>> make(u32 entries) {
    std::unique_ptr<Lines> made(new Lines(std::bit_ceil(2 * entries)));
    made->object_ = TRY(BpfObject::open("lines", WEIR_KERNEL_HALF(::vary)()));
    made->lines_ = TRY(BpfMap::create("lines", {BPF_MAP_TYPE_ARRAY, 4, 64, made->places_, BPF_F_MMAPABLE}));
    made->counted_ = TRY(BpfMap::create("counted", {BPF_MAP_TYPE_ARRAY, 4, 8, 1, BPF_F_MMAPABLE}));
    TRY_VOID(made->object_->use("lines", made->lines_.fd()));
    TRY_VOID(made->object_->use("counted", made->counted_.fd()));
    TRY_VOID(made->object_->load("touch"));
    return made;
  }
  [[nodiscard]] FrameBytes frame_for(u32 entry, u32, Dice&) const override {
    FrameBytes frame{};
    put<u32>(frame, frame_size - sizeof(u32), entry * 0x9e3779b1u & (places_ - 1));  // an odd factor: no two of one place
    return frame;
  }
  [[nodiscard]] FrameBytes after(const FrameBytes& frame) const override { return frame; }
  Result<> check(const FrameBytes& frame) override {
    const u32 place = get<u32>(frame, frame_size - sizeof(u32));
    std::array<u64, 8> before{}, behind{};
    if (!lines_.get(place, before.data())) return fail("there is no line {}", place);
    LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = frame.data(), .data_size_in = frame_size);
    if (const int err = ::bpf_prog_test_run_opts(object_->program_fd("touch"), &options); err != 0) return fail_errno(-err, "test run");
    if (!lines_.get(place, behind.data()) || behind[0] != before[0] + 1) return fail("a frame is not counted in its line");
    return {};
  }
  Result<> lead(const BpfMap& programs) override {
    const int fd = object_->program_fd("touch");
    return programs.set(0, &fd);
  }
  [[nodiscard]] account kernel_counts() const override {
    account counts{};
    static_cast<void>(counted_.get(0, &counts.verdict[WEIR_DROP]));
    return counts;
  }
  [[nodiscard]] Stage* user() const override { return nullptr; }
  [[nodiscard]] u64 found(const account& counts) const override { return counts.verdict[WEIR_DROP]; }
  [[nodiscard]] std::string says() const override { return fmt::format("{} lines", places_); }

 private:
  explicit Lines(u32 places) : places_(places) {}
  u32 places_;
  std::optional<BpfObject> object_;
  BpfMap lines_, counted_;
};

}  // namespace

Result<std::unique_ptr<Table>> make_lines(const Registry&, u32 size, Dice&) { return Lines::make(size); }

}  // namespace weir::bench
