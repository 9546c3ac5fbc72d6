// SPDX-License-Identifier: BSD-3-Clause
// module: a plugin, an egress program or a port driver as a module of its own, good or bad as its defines say.
#if defined(TEST_ABI)

#include <cstdlib>

extern "C" const char weir_plugin_abi[];
const char weir_plugin_abi[] = TEST_ABI;

// What it expects may be anything: none of it is to run.
[[maybe_unused]] const int never = (std::abort(), 0);

#elif defined(TEST_DRIVER)

#include "core/driver.hh"

namespace {

using namespace weir;

[[maybe_unused]] u32 no_queues(const ConfigNode&) { return 0; }
[[maybe_unused]] Result<std::unique_ptr<Port> > no_port(const ConfigNode&, const PortContext&) { return fail("it is of no use"); }

}  // namespace

#ifdef TEST_NOTHING
WEIR_PORT_DRIVER(.name = TEST_DRIVER, .says = "nothing", .queues = no_queues)
#else
WEIR_PORT_DRIVER(
        .name = TEST_DRIVER, .says = "nothing", .keys = {Key::integer("depth", 1, 9)}, .settings = {TEST_SETTING},
        .refuse = [](const ConfigNode& keys) -> std::string { return keys.integer("depth") == 7 ? "7 is too deep" : ""; },
        .queues = no_queues, .open = no_port)
#endif

#elif defined(TEST_PLUGIN) || defined(TEST_EGRESS)

#include <cstdlib>
#include <stdexcept>
#include <utility>

#include "core/egress.hh"

namespace {

[[maybe_unused]] constexpr std::size_t most_drops = WEIR_DROP_UNNAMED - WEIR_DROP_OWN, most_counters = WEIR_COUNTERS;

}  // namespace

#ifdef TEST_PLUGIN

namespace {

using namespace weir;

[[maybe_unused]] std::vector<std::string> names(std::size_t number) { return std::vector<std::string>(number, "name"); }
[[maybe_unused]] std::vector<std::string> thrown(const char* what) { throw std::runtime_error(what); }
[[maybe_unused]] std::vector<std::string> crashed() { std::abort(); }

[[maybe_unused]] Result<std::unique_ptr<Stage> > make(const ConfigNode&, StageContext&) {
#ifdef TEST_MAKE_THROWS
  throw std::runtime_error("no water");
#else
  return fail("it is of no use");
#endif
}

}  // namespace

#ifdef TEST_NOTHING
WEIR_PLUGIN(.name = TEST_PLUGIN)
#else
WEIR_PLUGIN(.name = TEST_PLUGIN, .says = "nothing", .drops = TEST_DROPS, .counters = TEST_COUNTERS, .make = make)
#endif

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
