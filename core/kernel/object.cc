// SPDX-License-Identifier: BSD-3-Clause
// object: libbpf's objects and maps behind types that own them.
#include "core/kernel/object.hh"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/capability.h>

#include <cerrno>
#include <charconv>
#include <cstdarg>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

namespace weir {
namespace {

// What libbpf says goes into the error of the call that failed, not to the terminal. The end of it holds the verifier's reason.
thread_local std::string libbpf_said;

__attribute__((format(printf, 2, 0))) int listen_to_libbpf(libbpf_print_level level, const char* format, va_list arguments) {
  if (level == LIBBPF_DEBUG) return 0;
  va_list again;
  va_copy(again, arguments);
  const int length = std::vsnprintf(nullptr, 0, format, again);
  va_end(again);
  if (length <= 0) return length;
  std::string line(static_cast<std::size_t>(length) + 1, '\0');  // the verifier's whole log comes at once
  std::vsnprintf(line.data(), line.size(), format, arguments);
  line.pop_back();
  libbpf_said += line;
  return length;
}

// Of what libbpf said, which holds the verifier's log and more behind it.
std::string verifier_reason() {
  const std::string_view said = libbpf_said;
  return verifier_words(said.substr(0, said.find("-- END PROG LOAD LOG")));
}

// Of the program that was not loaded; as a word behind another.
std::string refused_program() {
  const std::size_t at = libbpf_said.find("prog '"), end = at == std::string::npos ? at : libbpf_said.find('\'', at + 6);
  return end == std::string::npos ? "" : " " + libbpf_said.substr(at + 6, end - at - 6);
}

// Of this process; see capabilities(7).
bool has_capability(unsigned number) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("CapEff:")) return std::strtoull(line.c_str() + 7, nullptr, 16) >> number & 1;
  return true;
}

// Where to read more than one line of it.
std::string whole_log() {
  const char* path = std::getenv("WEIR_BPF_LOG");
  if (path == nullptr) return "; WEIR_BPF_LOG=FILE in the environment writes the whole log";
  std::ofstream file(path, std::ios::app);
  file << libbpf_said;
  file.close();
  return file ? fmt::format("; the whole log is in {}", path) : fmt::format("; {} cannot be written", path);
}

// A constant of 64 bits takes two instructions.
bool stands_for(const bpf_insn& low, const bpf_insn& high, u64 placeholder) {
  return low.code == (BPF_LD | BPF_IMM | BPF_DW) && low.src_reg == 0 && static_cast<u32>(high.imm) == placeholder >> 32;
}

void put_word(bpf_insn* at, u64 word) {
  at[0].imm = static_cast<__s32>(word);
  at[1].imm = static_cast<__s32>(word >> 32);
}

MapShape shape_of(const bpf_map* map) {
  return {::bpf_map__type(map), ::bpf_map__key_size(map), ::bpf_map__value_size(map), ::bpf_map__max_entries(map),
          ::bpf_map__map_flags(map)};
}

}  // namespace

Result<BpfMap> BpfMap::create(std::string_view name, const MapShape& shape, int inner_fd) {
  LIBBPF_OPTS(bpf_map_create_opts, options, .map_flags = shape.flags);
  if (inner_fd >= 0) options.inner_map_fd = static_cast<u32>(inner_fd);
  std::string short_name(name.substr(0, BPF_OBJ_NAME_LEN - 1));
  for (char& c : short_name)
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '_' && c != '.') c = '_';
  Fd fd(::bpf_map_create(static_cast<bpf_map_type>(shape.type), short_name.c_str(), shape.key_size, shape.value_size, shape.entries,
                         &options));
  if (!fd) {
    int err = errno;
    return fail_errno(err, fmt::format("create BPF map {} of {} entries{}", name, shape.entries,
                                       err == EPERM ? " (weir needs CAP_BPF and CAP_NET_ADMIN: run it as root)" : ""));
  }
  BpfMap map;
  map.fd_ = std::move(fd);
  map.shape_ = shape;
  return map;
}

Result<BpfMap> BpfMap::adopt(Fd fd, const MapShape& shape) {
  bpf_map_info info{};
  u32 size = sizeof info;
  if (::bpf_obj_get_info_by_fd(fd.get(), &info, &size) != 0) return fail_errno(errno, "look at a pinned map");
  const MapShape found{info.type, info.key_size, info.value_size, info.max_entries, info.map_flags};
  if (found != shape) return fail("a pinned map has another shape");
  BpfMap map;
  map.fd_ = std::move(fd);
  map.shape_ = shape;
  return map;
}

u32 BpfMap::id() const noexcept {
  bpf_map_info info{};
  u32 size = sizeof info;
  return ::bpf_obj_get_info_by_fd(fd_.get(), &info, &size) == 0 ? info.id : 0;
}

Result<> BpfMap::set(u32 key, const void* value) const {
  if (::bpf_map_update_elem(fd_.get(), &key, value, BPF_ANY) != 0) return fail_errno(errno, fmt::format("set map entry {}", key));
  return {};
}

bool BpfMap::get(u32 key, void* value) const noexcept { return ::bpf_map_lookup_elem(fd_.get(), &key, value) == 0; }

void BpfMap::remove(u32 key) const noexcept { ::bpf_map_delete_elem(fd_.get(), &key); }

Result<Mapping> BpfMap::map_memory() const { return Mapping::shared(fd_.get(), stride() * shape_.entries); }

Result<BpfObject> BpfObject::open(std::string name, std::span<const u8> elf) {
  ::libbpf_set_print(listen_to_libbpf);
  libbpf_said.clear();
  LIBBPF_OPTS(bpf_object_open_opts, options, .object_name = "weir");
  bpf_object* object = ::bpf_object__open_mem(elf.data(), elf.size(), &options);
  if (object == nullptr) return fail_errno(errno, fmt::format("open the BPF object of {}", name));
  return BpfObject(std::move(name), elf, object);
}

void BpfObject::Close::operator()(bpf_object* object) const noexcept { ::bpf_object__close(object); }

// By hand, since libbpf's own search prefixes the names of data sections with the object's.
bpf_map* BpfObject::map(std::string_view name) const noexcept {
  bpf_map* map = nullptr;
  bpf_object__for_each_map(map, object_.get()) {
    if (name == ::bpf_map__name(map)) return map;
  }
  return nullptr;
}

bool BpfObject::has_map(std::string_view name) const noexcept { return map(name) != nullptr; }

Result<MapShape> BpfObject::shape(std::string_view name) const {
  const bpf_map* found = map(name);
  if (found == nullptr) return fail("{}: its BPF object has no map {}", name_, name);
  return shape_of(found);
}

Result<> BpfObject::use(std::string_view name, int fd) {
  bpf_map* found = map(name);
  if (found == nullptr) return fail("{}: its BPF object has no map {}", name_, name);
  if (int err = ::bpf_map__reuse_fd(found, fd); err != 0) return fail_errno(-err, fmt::format("{}: use map {}", name_, name));
  return {};
}

Result<> BpfObject::use_maps_of(const BpfObject& other) {
  bpf_map* mine = nullptr;
  bpf_object__for_each_map(mine, object_.get()) {
    const std::string_view name = ::bpf_map__name(mine);
    const bpf_map* theirs = other.map(name);
    if (theirs != nullptr && !name.starts_with(".rodata")) TRY_VOID(use(name, ::bpf_map__fd(theirs)));
  }
  return {};
}

Result<> BpfObject::constants(std::string_view section, const void* value, std::size_t size) {
  bpf_map* found = map(section);
  if (found == nullptr) return fail("{}: its BPF object has no section {}", name_, section);
  if (int err = ::bpf_map__set_initial_value(found, value, size); err != 0)
    return fail_errno(-err, fmt::format("{}: set section {} to {} bytes", name_, section, size));
  return {};
}

Result<> BpfObject::link(link_struct which, std::span<const u64> values, const LinkMemory& memory) {
  std::array<int, LINK_MEMORIES> descriptors{};
  descriptors[LINK_ACCOUNTS] = memory.accounts;
  descriptors[LINK_STATE] = memory.state;
  descriptors[LINK_ENTRIES] = memory.entries;
  bpf_program* each = nullptr;
  bpf_object__for_each_program(each, object_.get()) {
    std::vector<bpf_insn> code(::bpf_program__insns(each), ::bpf_program__insns(each) + ::bpf_program__insn_cnt(each));
    for (std::size_t at = 0; at + 1 < code.size(); ++at) {
      const u32 number = static_cast<u32>(code[at].imm), offset = number & ((1u << LINK_STRUCT) - 1), of = number >> LINK_STRUCT;
      if (stands_for(code[at], code[at + 1], LINK_PLACEHOLDER)) {
        const bool known = of == which || (of == LINK_accounts_link && offset < sizeof(accounts_link));
        if (!known || offset % sizeof(u64) != 0 || offset / sizeof(u64) >= values.size())
          return fail("{}: program {} asks for a constant of another kind of program: include only what is for its own kind", name_,
                      ::bpf_program__name(each));
        put_word(&code[at], values[offset / sizeof(u64)]);
      } else if (stands_for(code[at], code[at + 1], LINK_MEMORY)) {
        if (number >= descriptors.size()) return fail("{}: program {} asks for memory that there is not", name_, ::bpf_program__name(each));
        put_word(&code[at], descriptors[number] >= 0 ? static_cast<u32>(descriptors[number]) : 0);
        if (descriptors[number] >= 0) code[at].src_reg = BPF_PSEUDO_MAP_VALUE;
      }
    }
    if (int err = ::bpf_program__set_insns(each, code.data(), code.size()); err != 0)
      return fail_errno(-err, fmt::format("{}: link program {}", name_, ::bpf_program__name(each)));
  }
  return {};
}

// Functions that are not inlined come to a program when it is loaded.
Result<> BpfObject::expect_linked() const {
  bpf_program* each = nullptr;
  bpf_object__for_each_program(each, object_.get()) {
    if (::bpf_program__fd(each) < 0) continue;
    const std::span code(::bpf_program__insns(each), ::bpf_program__insn_cnt(each));
    for (std::size_t at = 0; at + 1 < code.size(); ++at)
      if (stands_for(code[at], code[at + 1], LINK_PLACEHOLDER) || stands_for(code[at], code[at + 1], LINK_MEMORY))
        return fail("{}: program {} calls a function that asks the runtime for something: make that function static __always_inline", name_,
                    ::bpf_program__name(each));
  }
  return {};
}

std::string BpfObject::refuse_on_entry(std::string_view name, bool frags) const {
  const bpf_program* found = nullptr;
  std::string all;
  bpf_program* each = nullptr;
  bpf_object__for_each_program(each, object_.get()) {
    if (name == ::bpf_program__name(each)) found = each;
    all += (all.empty() ? "" : ", ") + std::string(::bpf_program__name(each));
  }
  if (found == nullptr) return fmt::format("{} has no program {}; it has: {}", name_, name, all.empty() ? "none" : all);
  const std::string_view section = ::bpf_program__section_name(found);
  const char* wanted = frags ? "xdp.frags/devmap" : "xdp/devmap";
  if (::bpf_program__type(found) != BPF_PROG_TYPE_XDP || ::bpf_program__expected_attach_type(found) != BPF_XDP_DEVMAP)
    return fmt::format(
        "program {} of {} is in section \"{}\", and the kernel takes for a device entry only one whose attach type is that of "
        "SEC(\"{}\"): write that",
        name, name_, section, wanted);
  if (section.starts_with("xdp.frags") == frags) return "";
  return fmt::format("program {} of {} is {} frames in several buffers, and the instance's {}: write SEC(\"{}\"), or set [weir] frags = {}",
                     name, name_, frags ? "not for" : "for", frags ? "are such" : "are not", wanted, !frags);
}

void BpfObject::set_frags(bool frags) noexcept {
  bpf_program* each = nullptr;
  bpf_object__for_each_program(each, object_.get()) {
    const u32 flags = ::bpf_program__flags(each);
    if (::bpf_program__type(each) == BPF_PROG_TYPE_XDP)
      ::bpf_program__set_flags(each, frags ? flags | BPF_F_XDP_HAS_FRAGS : flags & ~static_cast<u32>(BPF_F_XDP_HAS_FRAGS));
  }
}

Result<> BpfObject::load(std::string_view program) {
  bool there = false;
  bpf_program* each = nullptr;
  bpf_object__for_each_program(each, object_.get()) {
    const bool wanted = program == ::bpf_program__name(each);
    there |= wanted;
    ::bpf_program__set_autoload(each, wanted);
  }
  if (!there) return fail("{}: its BPF object has no program {}", name_, program);
  return load();
}

Result<> BpfObject::load() {
  libbpf_said.clear();
  int err = ::bpf_object__load(object_.get());
  if (err == 0) return expect_linked();
  if (err == -EPERM || err == -EACCES) {
    if (std::string reason = verifier_reason(); err == -EACCES && !reason.empty())
      return fail("{}: the kernel's verifier refuses its program{}{}: {}{}", name_, refused_program(),
                  reason.starts_with("write into map forbidden")  // devmaps and xskmaps: kernel/bpf/devmap.c, dev_map_init_map
                      ? ", which sets or deletes an entry of a devmap: a program may look entries up, and only user space changes them"
                      : has_capability(CAP_PERFMON) || has_capability(CAP_SYS_ADMIN)
                            ? ""
                            : ", as it does more often without CAP_PERFMON (run weir as root)",
                  reason, whole_log());
    return fail_errno(-err,
                      fmt::format("{}: load its BPF programs (weir needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN: run it as root)", name_));
  }
  return fail_errno(-err, fmt::format("{}: load its BPF programs: {}{}", name_, verifier_reason(), whole_log()));
}

bpf_program* BpfObject::program(std::string_view name) const noexcept {
  bpf_program* each = nullptr;
  bpf_object__for_each_program(each, object_.get()) {
    if (name == ::bpf_program__name(each)) return each;
  }
  return nullptr;
}

int BpfObject::program_fd(std::string_view name) const noexcept {
  const bpf_program* found = program(name);
  return found != nullptr ? ::bpf_program__fd(found) : -1;
}

ProgramKind BpfObject::kind(std::string_view name) const noexcept {
  const bpf_program* found = program(name);
  if (found == nullptr) return {};
  return {static_cast<u32>(::bpf_program__expected_attach_type(found)), ::bpf_program__flags(found)};
}

std::span<const bpf_insn> BpfObject::instructions(std::string_view name) const noexcept {
  const bpf_program* found = program(name);
  if (found == nullptr) return {};
  return {::bpf_program__insns(found), ::bpf_program__insn_cnt(found)};
}

std::string BpfObject::first_program() const {
  const bpf_program* first = ::bpf_object__next_program(object_.get(), nullptr);
  return first != nullptr ? ::bpf_program__name(first) : "";
}

Result<Fd> BpfObject::attach_tracing(std::string_view name) const {
  Fd link(::bpf_link_create(program_fd(name), 0, BPF_TRACE_RAW_TP, nullptr));
  if (!link) return fail_errno(errno, fmt::format("attach {} to its tracepoint", name));
  return link;
}

std::string verifier_words(std::string_view log) {
  std::string_view words;
  for (std::size_t start = 0, end = 0; start < log.size(); start = end + 1) {
    end = std::min(log.find('\n', start), log.size());
    const std::string_view line = log.substr(start, end - start);
    if (!line.empty() && !line.starts_with("processed ") && !line.starts_with("libbpf: ") && !line.starts_with("verification time"))
      words = line;
  }
  return std::string(words);
}

Result<std::vector<u8>> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<u8> bytes{std::istreambuf_iterator<char>(file), {}};
  if (!file || bytes.empty()) return fail("{}: cannot be read, or is empty: {}", path, std::strerror(errno));
  return bytes;
}

bool run_live(int program_fd, Ifindex device, u32 number, u32 length) noexcept {
  static const u8 bytes[longest_live] = {};
  xdp_md context{};
  context.data_end = length;
  context.ingress_ifindex = device.value;
  LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = bytes, .data_size_in = length, .ctx_in = &context, .ctx_size_in = sizeof context,
              .repeat = static_cast<int>(number), .flags = BPF_F_TEST_XDP_LIVE_FRAMES);
  return ::bpf_prog_test_run_opts(program_fd, &options) == 0;
}

u32 possible_cpus() noexcept {
  static const u32 cpus = [] {
    std::string list;
    std::getline(std::ifstream("/sys/devices/system/cpu/possible"), list);
    const u32 found = cpus_in(list);
    return found != 0 ? found : static_cast<u32>(std::max(1, ::libbpf_num_possible_cpus()));
  }();
  return cpus;
}

u32 cpus_in(std::string_view list) noexcept {
  const std::size_t last = list.find_last_of(",-") + 1;  // npos + 1 is the start
  u32 highest = 0;
  const auto [end, error] = std::from_chars(list.data() + last, list.data() + list.size(), highest);
  return error == std::errc() && end == list.data() + list.size() && highest < 1u << 20 ? highest + 1 : 0;
}

u32 program_id(int program_fd) noexcept {
  bpf_prog_info info{};
  u32 size = sizeof info;
  return ::bpf_obj_get_info_by_fd(program_fd, &info, &size) == 0 ? info.id : 0;
}

std::string program_name(u32 id) {
  Fd fd(::bpf_prog_get_fd_by_id(id));
  bpf_prog_info info{};
  u32 size = sizeof info;
  if (!fd || ::bpf_obj_get_info_by_fd(fd.get(), &info, &size) != 0) return "";
  return info.name;
}

}  // namespace weir
