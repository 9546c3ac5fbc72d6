// SPDX-License-Identifier: BSD-3-Clause
// config: the configuration as passive data, and how it is read from a file.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/config/node.hh"
#include "core/config/schema.hh"

namespace weir {

enum class Mode { automatic, native, generic };
enum class ZeroCopy { automatic, on, off };
// How frames of user space leave by a port.
enum class Tx {
  af_xdp,     // by the socket of a queue
  pump,       // by a redirect in the kernel, see core/port/pump.hh; by the socket where that is not to be had
  automatic,  // by whichever is found to cost less
};
// Where a port's egress chain runs in the kernel.
enum class Placement {
  automatic,  // fused, unless a group holds the port
  entry,      // on the device entry
  fused,      // in front of the redirect to it; a flood goes through user space then
};
// What becomes of a redirect to a port that has no device entry.
enum class Miss { drop, to_stack, aborted };

enum class DevmapKind { automatic, array, hash };

struct EgressConfig {
  std::string program;
  std::string object;  // the file of a foreign program; empty: it is one of the catalog's
  ConfigNode keys;
  Position at;
};

struct PortConfig {
  std::string name;
  std::string driver = "xdp";
  std::string device;  // driver xdp: the netdev; else empty
  ConfigNode keys;     // another driver's own
  Mode mode = Mode::automatic;
  ZeroCopy zero_copy = ZeroCopy::automatic;
  Tx tx = Tx::af_xdp;
  u32 queues = 0;                    // 0: all that the device has
  u32 busy_poll = 0;                 // frames that a poll of the driver takes at most, instead of interrupts; 0: interrupts
  std::string pipeline;              // empty: frames only leave here; what comes in goes to the host stack
  std::vector<EgressConfig> egress;  // the chain, in order
  Placement placement = Placement::automatic;
  std::optional<u32> key;  // in the devmap; none: the port's slot
  Position at;
  [[nodiscard]] bool is_xdp() const noexcept { return driver == "xdp"; }
};

struct GroupConfig {
  std::string name;
  std::vector<std::string> ports;
  Position at;
};

struct StageConfig {
  std::string plugin;
  std::string name;  // unique in its pipeline; default: the plugin's name
  ConfigNode keys;   // the plugin's own keys
  Position at;
  bool parallel = false;  // its frames go to lanes, which any free worker works off
};

struct PipelineConfig {
  std::string name;
  Miss miss = Miss::drop;
  std::vector<StageConfig> stages;
  Position at;
};

// A folder of plugin modules beside those that came with libweir.
struct PluginDir {
  std::string folder;  // absolute; of one that is not there, as the file has it
  Position at;
};

struct Config {
  std::string file;  // for messages
  std::string name;  // of the instance
  std::vector<PluginDir> plugin_dirs;
  bool spin = false;                           // workers without frames do not sleep
  u32 workers = 0;                             // 0: one for each CPU, as far as there are receive queues
  DevmapKind devmap = DevmapKind::automatic;   // array, unless a port's key is beyond one
  bool frags = false;                          // kernel halves take frames in several buffers
  u32 flows = 65536;                           // places of the flow cache, for IPv4 and again for IPv6: a power of two, or 0: none
  u32 frame_size = 2048;                       // bytes
  u32 frame_count = 16384;                     // frames in the shared umem
  std::map<std::string, ConfigNode> settings;  // of drivers that have some, by the driver's name
  std::vector<PortConfig> ports;
  std::vector<GroupConfig> groups;
  std::vector<PipelineConfig> pipelines;
};

// One thing that is wrong with a file. Its text: "FILE:LINE:COL: path: what, and what is allowed".
struct Problem {
  std::string file;
  Position at;
  std::string path;  // "port[1].mode"
  std::string what;
  [[nodiscard]] std::string text() const;
};
using Problems = std::vector<Problem>;

constexpr std::size_t max_ports = 64;
constexpr std::size_t max_egress_chain = 8;

// Reads and checks a whole file; touches nothing else. Every problem that can be told from the file alone is in the answer, in the
// order of the file.
std::expected<Config, Problems> load_config(const std::string& file, const Catalog& catalog);
// The same from text; `file` is only for messages.
std::expected<Config, Problems> parse_config(std::string_view text, const std::string& file, const Catalog& catalog);
// What a file would say that reads one capture and writes another, or none where that is empty: ports "in" and "out" of one pipeline
// "main". Its stages from the words of a command, as of parse_egress(); behind them, unless one is "patch", a patch between the two.
std::expected<Config, Problems> capture_config(const std::string& name, const std::string& read, const std::string& write,
                                               const std::vector<std::string>& stages, const Catalog& catalog);
// What a file says of plugin_dirs, which are loaded before the rest of it can be judged. None: it cannot be read, or is not TOML;
// load_config() says why.
std::optional<std::vector<PluginDir>> plugin_dirs_of(const std::string& file);
// An egress chain from the words of a command: each "NAME", "NAME,KEY=VALUE,…" or a table as in the file, "{ program = …, … }". In the
// second form a string of letters, digits and _-.:/+@%~ needs no quotes. Objects are looked for in `folder`.
std::expected<std::vector<EgressConfig>, Problems> parse_egress(const std::vector<std::string>& words, const std::string& folder,
                                                                bool frags, const Catalog& catalog);
// What stands behind the name in the second form of it: "KEY=VALUE,…". Only what was given; empty: nothing.
std::string keys_given(const EgressConfig& step);

}  // namespace weir
