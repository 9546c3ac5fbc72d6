// SPDX-License-Identifier: BSD-3-Clause
// stage: what the author of a plugin writes against: the user half, what it knows of its surroundings, and its kernel half's maps.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/result.hh"
#include "core/config/node.hh"
#include "core/config/schema.hh"
#include "core/frame/frame.hh"
#include "core/pipeline/flows.hh"

namespace weir {

// Where a stage stands: the ports that its pipeline serves, and the clock. Valid as long as the stage.
class StageContext {
 public:
  virtual ~StageContext() = default;
  // Ports whose pipeline this stage is in, by slot, in the order of the file.
  [[nodiscard]] virtual std::vector<PortSlot> ports() const = 0;
  [[nodiscard]] virtual std::optional<PortSlot> port(std::string_view name) const = 0;  // any port of the instance
  [[nodiscard]] virtual std::string_view name(PortSlot port) const = 0;
  // The network device of any port of the instance, by its name; empty: it has none, or there is no such port.
  [[nodiscard]] virtual std::string_view device(PortSlot port) const = 0;
  // A group of these ports, for Burst::flood() and the kernel half's flood(). The same ports give the same group. At most
  // WEIR_MAX_GROUPS in an instance.
  virtual Result<GroupSlot> group(std::span<const PortSlot> ports) = 0;
  // How many threads may run a stage at once: Burst::thread() is below that.
  [[nodiscard]] virtual u32 threads() const = 0;
  // By which the stage hands flows to the kernel, from bind() on. Whose constructor does not ask for it does not offload: where no stage of
  // a pipeline does, its frames are not looked up.
  virtual Flows& flows() = 0;
  // The flow cache of all stages, for one on whose decisions the flows of others depend. To ask for it is not to offload. Null: there is
  // none, nor will there be.
  virtual FlowCache* flow_cache() { return nullptr; }
  [[nodiscard]] virtual std::string_view pipeline() const { return {}; }  // by name
  // For what stages of the instance have in common: the value that was given first for `what`, which is this one where none was. To be
  // asked by the constructor.
  virtual u64 first_said(const std::string& what, u64 value) {
    static_cast<void>(what);
    return value;
  }
};

// The memory-mapped maps of a stage's kernel half, by name; without one (--user-only, or no XDP port), ordinary memory of the same
// size, so that a user half works on one table either way.
class StageMemory {
 public:
  virtual ~StageMemory() = default;
  // The section ".data.config" (map "config") or a BPF_F_MMAPABLE array: `count` entries of T from its start. A map of another size
  // is a mistake of the plugin.
  template <typename T>
  Result<std::span<T>> array(std::string_view map, u32 count) {
    return std::span<T>(reinterpret_cast<T*>(TRY(bytes(map, sizeof(T), count))), count);
  }
  // As array(), of memory that the plugin's stages have in common: all that ask for the map by one name get the same, in whatever pipeline.
  // It is there as long as the instance, and goes on being used when a reload replaces a stage. A map that the kernel half does not have is
  // user space's alone.
  template <typename T>
  struct Common {
    std::span<T> entries;
    bool first;  // in this process: zeroed, or as an earlier run left it
  };
  template <typename T>
  Result<Common<T>> common(std::string_view map, std::string_view name, u32 count) {
    const CommonBytes found = TRY(common_bytes(map, name, sizeof(T), count));
    return Common<T>{std::span<T>(reinterpret_cast<T*>(found.bytes), count), found.first};
  }

 protected:
  struct CommonBytes {
    u8* bytes;
    bool first;
  };
  virtual Result<CommonBytes> common_bytes(std::string_view map, std::string_view name, std::size_t entry, u32 count) {
    static_cast<void>(entry), static_cast<void>(count);
    return fail("map {}, common by the name {}: stages have no memory in common here", map, name);
  }

 private:
  // Before the kernel half is loaded this also sets the map's number of entries. Zeroed, or as an earlier run of the instance left it.
  virtual Result<u8*> bytes(std::string_view map, std::size_t entry, u32 count) = 0;
};

// The memory of a stage that gives its place to another: its maps, by name, which it still works with.
class StageRemains {
 public:
  virtual ~StageRemains() = default;
  // All entries; none: there is no map of the name, or its entries are not of T's size.
  template <typename T>
  [[nodiscard]] std::span<const T> array(std::string_view map) const {
    const auto [bytes, entry, count] = find(map);
    return bytes != nullptr && entry == sizeof(T) ? std::span(reinterpret_cast<const T*>(bytes), count) : std::span<const T>();
  }

 protected:
  struct Found {
    const u8* bytes = nullptr;
    std::size_t entry = 0;
    u32 count = 0;
  };

 private:
  [[nodiscard]] virtual Found find(std::string_view map) const = 0;
};

// The user half of a plugin. Constructed on the control side; process() runs on the workers, several at once.
class Stage {
 public:
  virtual ~Stage() = default;
  // Once, after construction and before any frame: take hold of the memory that is shared with the kernel half and fill it.
  virtual Result<> bind(StageMemory& memory) {
    static_cast<void>(memory);
    return {};
  }
  // Once, behind bind(), where the stage takes the place of one of the same plugin, perhaps of another build of it, whose keys or code have
  // changed: keep of its tables what is still right. What that one learns behind this is lost. Before any frame.
  virtual void take_state(const StageRemains& before) { static_cast<void>(before); }
  // Behind take_state(), when both halves stand in the place of the old ones: what the old one decided from here on is of the past. Also
  // when a reload is undone, for the one that comes back. On the control side, beside process().
  virtual void in_place() noexcept {}
  // Give each frame of the burst a verdict, or leave it to go on. No exception, log, allocation or system call.
  virtual void process(Burst& burst) noexcept = 0;
  // Once a second, on the control side, beside process(). `now_s`: seconds of CLOCK_MONOTONIC.
  virtual void tick(u32 now_s) noexcept { static_cast<void>(now_s); }
  // A flow that the stage had offloaded has ended. On the control side, beside process().
  virtual void flow_ended(const EndedFlow& flow) noexcept { static_cast<void>(flow); }
  // A descriptor that the control thread waits for beside its own, such as a netlink socket; -1: none.
  [[nodiscard]] virtual int watched() const { return -1; }
  // When it is readable: on the control thread, beside process(). What takes long is done in parts, since nothing else is answered
  // meanwhile.
  virtual void ready() noexcept {}
  // What `weir stats --json` adds for this stage: gauges, such as the number of entries of a table.
  [[nodiscard]] virtual std::vector<std::pair<std::string, u64>> gauges() const { return {}; }
  // What `weir stage ask STAGE WORDS` shows, as the text of a JSON value. The error of words that it does not know names those that it
  // does. On the control side.
  virtual Result<std::string> answer(std::span<const std::string> words) {
    static_cast<void>(words);
    return invalid("it answers no questions");
  }
  // Whether `next`, of the same build and with the same keys, does what this one does: no, where a file that the keys name has changed.
  [[nodiscard]] virtual bool does_as(const Stage& next) const noexcept {
    static_cast<void>(next);
    return true;
  }
};

// What a plugin is; one constant in each.
struct Plugin {
  const char* name = nullptr;
  const char* says = nullptr;  // one sentence for people
  Schema keys = {};
  std::vector<std::string> drops = {};     // names of its drop reasons, in the order of its enum
  std::vector<std::string> counters = {};  // names of its other counters, in the order of their enum
  std::vector<std::string> punts = {};     // names of the kernel half's reasons to punt
  // Checks what a schema cannot, touches nothing outside: `weir check` calls it without privileges.
  Result<std::unique_ptr<Stage>> (*make)(const ConfigNode& keys, StageContext& context) = nullptr;
  // The kernel half's object file, empty when there is none. It holds one STAGE.
  std::span<const u8> (*kernel_half)() = nullptr;
  // What a stage of it decides of one frame holds for the frame's whole flow, unless it says Burst::keep(), until a reload replaces the
  // stage: so it and stages behind it may offload flows, whose later frames it does not see. See Flows.
  bool per_flow = false;
};

}  // namespace weir
