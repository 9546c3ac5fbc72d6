// SPDX-License-Identifier: BSD-3-Clause
// module_tag: find one symbol in an ELF file of any content.
#include "core/pipeline/module_tag.hh"

#include <elf.h>

#include <cstring>
#include <optional>
#include <string_view>
#include <vector>

namespace weir {
namespace {

constexpr std::string_view symbol_name = "weir_plugin_abi";
constexpr std::size_t longest_tag = 64;

// A copy, since nothing in a file need be aligned.
template <typename T>
std::optional<T> read(std::span<const u8> file, u64 at) {
  if (at > file.size() || file.size() - at < sizeof(T)) return std::nullopt;
  T value;
  std::memcpy(&value, file.data() + at, sizeof value);
  return value;
}

// Up to its zero, or to `most` bytes, or to the end of the file.
std::string_view text(std::span<const u8> file, u64 at, std::size_t most) {
  if (at >= file.size()) return "";
  const std::string_view rest(reinterpret_cast<const char*>(file.data()) + at, std::min<u64>(most, file.size() - at));
  return rest.substr(0, rest.find('\0'));
}

std::vector<Elf64_Shdr> sections_of(std::span<const u8> file, const Elf64_Ehdr& head) {
  std::vector<Elf64_Shdr> sections;
  for (u64 i = 0; i < head.e_shnum; ++i) {
    const auto section = read<Elf64_Shdr>(file, head.e_shoff + i * sizeof(Elf64_Shdr));
    if (!section) break;
    sections.push_back(*section);
  }
  return sections;
}

// The offset in the file of what the symbol names.
std::optional<u64> place_of(std::span<const u8> file, const std::vector<Elf64_Shdr>& sections) {
  for (const Elf64_Shdr& table : sections) {
    if (table.sh_type != SHT_DYNSYM || table.sh_link >= sections.size()) continue;
    for (u64 at = 0; at + sizeof(Elf64_Sym) <= table.sh_size; at += sizeof(Elf64_Sym)) {
      const auto symbol = read<Elf64_Sym>(file, table.sh_offset + at);
      if (!symbol) break;
      if (symbol->st_shndx >= sections.size() || symbol->st_shndx == SHN_UNDEF) continue;
      if (text(file, sections[table.sh_link].sh_offset + symbol->st_name, symbol_name.size() + 1) != symbol_name) continue;
      const Elf64_Shdr& home = sections[symbol->st_shndx];
      return home.sh_offset + (symbol->st_value - home.sh_addr);
    }
  }
  return std::nullopt;
}

}  // namespace

Result<std::string> module_tag(std::span<const u8> file) {
  const auto head = read<Elf64_Ehdr>(file, 0);
  if (!head || std::memcmp(head->e_ident, ELFMAG, SELFMAG) != 0 || head->e_ident[EI_CLASS] != ELFCLASS64 || head->e_type != ET_DYN)
    return fail("it is no shared object of 64 bits");
  const std::optional<u64> place = place_of(file, sections_of(file, *head));
  return std::string(place ? text(file, *place, longest_tag) : "");
}

}  // namespace weir
