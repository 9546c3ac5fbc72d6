// SPDX-License-Identifier: BSD-3-Clause
// module: a plugin or an egress program as a module of its own, good or bad as its defines say.
#if defined(TEST_ABI)

extern "C" const char weir_plugin_abi[];
const char weir_plugin_abi[] = TEST_ABI;

#elif defined(TEST_PLUGIN) || defined(TEST_EGRESS)

#include <utility>

#include "core/egress.hh"

namespace {

[[maybe_unused]] constexpr std::size_t most_drops = WEIR_DROP_UNNAMED - WEIR_DROP_OWN, most_counters = WEIR_COUNTERS;

}  // namespace

#ifdef TEST_PLUGIN

namespace {

std::vector<std::string> names(std::size_t number) { return std::vector<std::string>(number, "name"); }

}  // namespace

WEIR_PLUGIN(.name = TEST_PLUGIN, .says = "nothing", .drops = names(TEST_DROPS), .counters = names(TEST_COUNTERS))

#else

namespace {

template <std::size_t... each>
constexpr std::array<const char*, sizeof...(each) + 1> names(std::index_sequence<each...>) {
  return {(static_cast<void>(each), "name")..., nullptr};
}
constexpr auto drops = names(std::make_index_sequence<TEST_DROPS>());
constexpr egress_key keys[] = {{.type = EGRESS_KEY_END}};
constexpr egress_program program{.name = TEST_EGRESS, .says = "nothing", .keys = keys, .drops = drops.data(), .counters = drops.data()};

}  // namespace

extern "C" const char weir_plugin_abi[];
const char weir_plugin_abi[] = WEIR_PLUGIN_ABI;
extern "C" const weir::EgressModule weir_egress;
const weir::EgressModule weir_egress{&program, {}};

#endif
#endif
