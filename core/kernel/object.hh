// SPDX-License-Identifier: BSD-3-Clause
// object: a BPF object file, from its bytes to loaded programs over maps that the instance owns.
#pragma once

#include <array>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "bpf/abi/link.h"
#include "core/base/fd.hh"
#include "core/base/mapping.hh"
#include "core/base/result.hh"
#include "core/base/types.hh"

struct bpf_object;
struct bpf_map;
struct bpf_program;
struct bpf_insn;

namespace weir {

// What a map is, as an object file declares it or as it is to be created.
struct MapShape {
  u32 type = 0;
  u32 key_size = 4;
  u32 value_size = 4;
  u32 entries = 1;
  u32 flags = 0;
  friend bool operator==(const MapShape&, const MapShape&) = default;
};

// A map of the instance.
class BpfMap {
 public:
  BpfMap() = default;
  static Result<BpfMap> create(std::string_view name, const MapShape& shape, int inner_fd = -1);
  // `fd` must be a map of this shape.
  static Result<BpfMap> adopt(Fd fd, const MapShape& shape);

  [[nodiscard]] int fd() const noexcept { return fd_.get(); }
  [[nodiscard]] u32 id() const noexcept;
  [[nodiscard]] const MapShape& shape() const noexcept { return shape_; }
  Result<> set(u32 key, const void* value) const;
  // False: there is no such entry.
  [[nodiscard]] bool get(u32 key, void* value) const noexcept;
  void remove(u32 key) const noexcept;
  // Only of a BPF_F_MMAPABLE array: all its entries, `stride()` bytes apart.
  [[nodiscard]] Result<Mapping> map_memory() const;
  [[nodiscard]] std::size_t stride() const noexcept { return (shape_.value_size + 7) / 8 * 8; }

 private:
  Fd fd_;
  MapShape shape_;
};

// What the kernel is told of a program beside its instructions.
struct ProgramKind {
  u32 attach_type = 0;  // enum bpf_attach_type
  u32 flags = 0;
};

// The maps of enum link_memory, by their descriptors; -1: there is none, which is right for code that no frame comes to.
struct LinkMemory {
  int accounts = -1, state = -1, entries = -1;
};

constexpr link_struct link_struct_of(const program_link&) noexcept { return LINK_program_link; }
constexpr link_struct link_struct_of(const egress_link&) noexcept { return LINK_egress_link; }
constexpr link_struct link_struct_of(const trace_link&) noexcept { return LINK_trace_link; }
static_assert(WEIR_MAX_PORTS <= 64, "a bit for each in struct port_entries");

class BpfObject {
 public:
  // Nothing is loaded yet. `name` is for messages. `elf` outlives the object.
  static Result<BpfObject> open(std::string name, std::span<const u8> elf);
  // What is wrong with a program of this file as the program of a device entry; empty: nothing. Needs no privileges.
  [[nodiscard]] std::string refuse_on_entry(std::string_view program, bool frags) const;
  // Programs of type XDP are loaded with support of frames in several buffers (Linux 5.18), or without. Before load().
  void set_frags(bool frags) noexcept;
  // The same file opened once more, for another of its programs.
  [[nodiscard]] Result<BpfObject> again() const { return open(name_, elf_); }

  [[nodiscard]] bool has_map(std::string_view map) const noexcept;
  [[nodiscard]] Result<MapShape> shape(std::string_view map) const;
  // Use this map in place of the one that the file declares; its shape may differ in the number of entries.
  Result<> use(std::string_view map, int fd);
  // Use every map of `other`, which is loaded, but its constants.
  Result<> use_maps_of(const BpfObject& other);
  // Puts the members of a link struct of bpf/abi/link.h, and the addresses of the only values of maps, in the place of what stands for them
  // in the code. Before load(), which refuses a program in which a placeholder is left.
  template <typename T>
  Result<> link(const T& values, const LinkMemory& memory) {
    static_assert(sizeof(T) % sizeof(u64) == 0 && std::is_trivially_copyable_v<T> && offsetof(T, accounts) == 0);
    return link(link_struct_of(values), std::span(reinterpret_cast<const u64*>(&values), sizeof(T) / sizeof(u64)), memory);
  }
  // The initial value of a section such as ".rodata"; T must be exactly as large.
  template <typename T>
  Result<> constants(std::string_view section, const T& value) {
    return constants(section, &value, sizeof(T));
  }
  // Loads one program of the object and no other.
  Result<> load(std::string_view program);
  // Loads all of them.
  Result<> load();
  // Of a loaded program.
  [[nodiscard]] int program_fd(std::string_view program) const noexcept;
  [[nodiscard]] std::string first_program() const;
  [[nodiscard]] ProgramKind kind(std::string_view program) const noexcept;
  // Of a loaded program, as the kernel got them: with descriptors of this object's maps. They live as long as it.
  [[nodiscard]] std::span<const bpf_insn> instructions(std::string_view program) const noexcept;
  // Attaches a tracing program; closing the link, unless it is pinned, detaches it.
  Result<Fd> attach_tracing(std::string_view program) const;

 private:
  struct Close {
    void operator()(bpf_object* object) const noexcept;
  };
  BpfObject(std::string name, std::span<const u8> elf, bpf_object* object) : name_(std::move(name)), elf_(elf), object_(object) {}
  Result<> constants(std::string_view section, const void* value, std::size_t size);
  Result<> link(link_struct which, std::span<const u64> values, const LinkMemory& memory);
  [[nodiscard]] Result<> expect_linked() const;
  [[nodiscard]] bpf_map* map(std::string_view map) const noexcept;
  [[nodiscard]] bpf_program* program(std::string_view program) const noexcept;
  std::string name_;
  std::span<const u8> elf_;
  std::unique_ptr<bpf_object, Close> object_;
};

// The last words of the verifier in its log, which say why it refused a program.
std::string verifier_words(std::string_view log);

// The bytes of a BPF object file.
Result<std::vector<u8>> read_file(const std::string& path);

// Runs an XDP program over `number` live frames, as if they came in by the device, which is the loopback where it is 0: what the program
// passes goes up the host's stack, what it redirects goes out (BPF_F_TEST_XDP_LIVE_FRAMES, Linux 5.18). The frames' bytes are the
// program's to write; they come with `length` of them, at most longest_live. False: the kernel refused (errno), and perhaps after some of
// the frames.
constexpr u32 longest_live = 3408;
bool run_live(int program_fd, Ifindex device, u32 number, u32 length = 64) noexcept;

// One more than the highest number that a CPU may ever have, which are the rows of a table that BPF programs index by CPU. There may be
// gaps.
u32 possible_cpus() noexcept;
// The same of a list as the kernel writes it, "0-3,8-11"; 0: it is none.
u32 cpus_in(std::string_view list) noexcept;

// The kernel's id of a loaded program.
u32 program_id(int program_fd) noexcept;
// Its name, by id; empty when it is gone.
std::string program_name(u32 id);

}  // namespace weir
