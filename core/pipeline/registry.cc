// SPDX-License-Identifier: BSD-3-Clause
// registry: load modules, refuse those that do not fit, and answer what they declare.
#include "core/pipeline/registry.hh"

#include <dlfcn.h>
#include <elf.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>

#include "core/kernel/object.hh"
#include "core/pipeline/egress_config.hh"
#include "core/pipeline/module_tag.hh"
#include "core/pipeline/module_trial.hh"
#include "core/port/null_port.hh"
#include "core/port/tap_port.hh"

namespace weir {
namespace {

namespace fs = std::filesystem;

constexpr u32 most_drops = WEIR_DROP_UNNAMED - WEIR_DROP_OWN;  // of a plugin's own

template <typename T>
T* symbol(void* handle, const char* name) {
  return reinterpret_cast<T*>(::dlsym(handle, name));
}

Result<> expect_version(const std::string& file) {
  const std::string who = file + ": load plugin";
  const std::vector<u8> bytes = TRY(read_file(file));
  const std::string tag = TRY_WITHIN(who, module_tag(bytes));
  if (tag.empty()) return fail("{}: it is not a weir plugin (it has no WEIR_PLUGIN, WEIR_EGRESS or WEIR_PORT_DRIVER)", who);
  if (tag != WEIR_PLUGIN_ABI) return fail("{}: it was built for {}, this is {}; build it again", who, tag, WEIR_PLUGIN_ABI);
  return {};
}

template <typename Map>
std::vector<std::string> names_of(const Map& map) {
  std::vector<std::string> names;
  for (const auto& [name, value] : map) names.push_back(name);
  return names;
}

}  // namespace

// With the drivers that are part of libweir.
Registry::Registry() {
  for (const PortDriver* driver : {&null_driver, &tap_driver})
    if (!add(*driver, "libweir")) broken("two port drivers of one name are linked in");
}

void Registry::Unload::operator()(void* handle) const noexcept { ::dlclose(handle); }

Result<Registry> Registry::load(const Registry* before) {
  Dl_info self{};
  if (::dladdr(reinterpret_cast<void*>(&refuse_egress_config), &self) == 0 || self.dli_fname == nullptr)
    return fail("find the folder of plugins: the dynamic linker does not know where libweir is");
  const fs::path beside = fs::canonical(self.dli_fname).parent_path();
  for (const fs::path& folder : {beside / "weir" / "plugins", beside.parent_path() / "plugins"})
    if (fs::is_directory(folder)) {
      Registry registry;
      if (before != nullptr) registry.opened_ = before->opened_;
      TRY_VOID(registry.add_folder(folder));
      if (before != nullptr)
        for (const Plugin* own : before->own_) TRY_VOID(registry.add(*own));
      return registry;
    }
  return fail("find the folder of plugins: neither {} nor {} is there; install weir again", (beside / "weir/plugins").string(),
              (beside.parent_path() / "plugins").string());
}

Result<Registry> Registry::load(const std::string& folder) {
  Registry registry;
  TRY_VOID(registry.add_folder(folder));
  return registry;
}

Result<> Registry::add_folder(const std::string& folder) {
  std::vector<Stamp> modules = TRY(modules_in(folder));
  TRY_VOID(load_modules(modules));
  folders_.push_back({folder, std::move(modules)});
  return {};
}

Result<> Registry::add(const Plugin& plugin) {
  TRY_VOID(add(plugin, "this program"));
  own_.push_back(&plugin);
  return {};
}

// In the order of their names, which is the order that they are loaded in.
Result<std::vector<Registry::Stamp>> Registry::modules_in(const std::string& folder) {
  std::vector<Stamp> modules;
  std::error_code error;
  for (fs::recursive_directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    struct stat now {};
    if (at->path().extension() != ".so" || at->is_directory()) continue;
    if (::stat(at->path().c_str(), &now) != 0) return fail_errno(errno, fmt::format("{}: load plugin", at->path().string()));
    modules.push_back(
        {at->path(), now.st_dev, now.st_ino, static_cast<u64>(now.st_size), now.st_mtim.tv_sec * 1'000'000'000 + now.st_mtim.tv_nsec});
  }
  if (error) return invalid("look for plugins in folder {}: {}", folder, error.message());
  std::ranges::sort(modules, {}, &Stamp::file);
  return modules;
}

std::string Registry::changed_since() const {
  for (const Folder& folder : folders_) {
    const Result<std::vector<Stamp>> now = modules_in(folder.name);
    if (!now) return folder.name;
    const auto [before, after] = std::ranges::mismatch(folder.modules, *now);
    if (before != folder.modules.end() && (after == now->end() || before->file <= after->file)) return before->file;
    if (after != now->end()) return after->file;
  }
  return "";
}

Registry Registry::of(std::vector<const Plugin*> plugins, std::vector<const EgressModule*> egress) {
  Registry registry;
  for (const Plugin* plugin : plugins)
    if (!registry.add(*plugin)) broken("two plugins of one name are linked in");
  for (const EgressModule* module : egress)
    if (!registry.add(*module, "this program")) broken("two egress programs of one name are linked in");
  return registry;
}

// The dynamic linker takes a name that it knows for the file that it knows: one that was built again goes by another name, which no earlier
// one had, also where that was refused.
const std::string& Registry::name_for(const Stamp& module) {
  static std::atomic<u32> names = 0;
  const auto [at, fresh] = opened_.try_emplace(module.file, Opened{module, module.file});
  if (!fresh && at->second.stamp != module) {
    fs::path name = fs::path(module.file).parent_path();
    for (u32 times = ++names; times > 0; --times) name /= ".";
    at->second = {module, name / fs::path(module.file).filename()};
  }
  return at->second.name;
}

Result<> Registry::load_modules(const std::vector<Stamp>& modules) {
  std::vector<std::string> files, names;
  for (const Stamp& module : modules) {
    std::error_code error;
    if (const fs::path real = fs::canonical(module.file, error); !error && !loaded_.insert(real).second) continue;
    TRY_VOID(expect_version(module.file));
    files.push_back(module.file);
    names.push_back(name_for(module));
  }
  TRY_VOID(try_modules(names));
  for (std::size_t i = 0; i < files.size(); ++i) TRY_VOID(load_module(files[i], names[i]));
  return {};
}

Result<> Registry::load_module(const std::string& file, const std::string& name) {
  // A library that a module brings along may not outlive its unloading: DPDK's keep what they have allocated when they were loaded.
  std::unique_ptr<void, Unload> handle(::dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE));
  if (!handle) return fail("{}: load plugin: {}", file, ::dlerror());
  if (auto* plugin = symbol<const Plugin>(handle.get(), "weir_plugin")) TRY_VOID(add(*plugin, file));
  if (auto* egress = symbol<const EgressModule>(handle.get(), "weir_egress")) TRY_VOID(add(*egress, file));
  if (auto* driver = symbol<const PortDriver>(handle.get(), "weir_driver")) TRY_VOID(add(*driver, file));
  handles_.push_back(std::move(handle));
  return {};
}

Result<> Registry::add(const Plugin& plugin, const std::string& file) {
  if (plugin.name == nullptr || plugin.says == nullptr || plugin.make == nullptr)
    return fail("{}: load plugin: its WEIR_PLUGIN lacks .name, .says or .make", file);
  if (plugin.drops.size() > most_drops || plugin.counters.size() > WEIR_COUNTERS)
    return fail("{}: load plugin {}: it declares more than {} drop reasons or {} counters", file, plugin.name, most_drops, WEIR_COUNTERS);
  if (auto [at, fresh] = files_.emplace(plugin.name, file); !fresh)
    return fail("two plugins are named {}: {} and {}; remove one", plugin.name, at->second, file);
  plugins_.emplace(plugin.name, &plugin);
  return {};
}

Result<> Registry::add(const EgressModule& module, const std::string& file) {
  const std::string name = module.host->name;
  if (module.host->keys == nullptr || module.host->drops == nullptr || module.host->counters == nullptr)
    return fail(
        "{}: load egress program {}: it lacks the list of its keys, drop reasons or counters; write EGRESS_KEYS, EGRESS_DROPS and "
        "EGRESS_COUNTERS, if need be of none",
        file, name);
  std::size_t drops = 0;
  while (module.host->drops[drops] != nullptr) ++drops;
  if (drops > most_drops) return fail("{}: load egress program {}: it declares more than {} drop reasons", file, name, most_drops);
  if (auto [at, fresh] = files_.emplace("egress " + name, file); !fresh)
    return fail("two egress programs are named {}: {} and {}; remove one", name, at->second, file);
  egress_.emplace(name, EgressEntry{&module, egress_schema(*module.host)});
  return {};
}

Result<> Registry::add(const PortDriver& driver, const std::string& file) {
  if (driver.name == nullptr || driver.says == nullptr || driver.queues == nullptr || driver.open == nullptr)
    return fail("{}: load port driver: its WEIR_PORT_DRIVER lacks .name, .says, .queues or .open", file);
  for (const Key& key : driver.settings)
    if (key.required) return fail("{}: load port driver {}: {} of its settings cannot be left out", file, driver.name, key.name);
  if (std::string_view(driver.name) == "xdp") return fail("{}: load port driver: xdp is the name of libweir's own", file);
  if (auto [at, fresh] = files_.emplace(std::string("driver ") + driver.name, file); !fresh)
    return fail("two port drivers are named {}: {} and {}; remove one", driver.name, at->second, file);
  drivers_.emplace(driver.name, &driver);
  return {};
}

const Plugin* Registry::plugin(const std::string& name) const {
  auto at = plugins_.find(name);
  return at == plugins_.end() ? nullptr : at->second;
}

const EgressModule* Registry::egress_module(const std::string& name) const {
  auto at = egress_.find(name);
  return at == egress_.end() ? nullptr : at->second.module;
}

const std::string& Registry::file_of(const EgressModule& module) const { return files_.at(std::string("egress ") + module.host->name); }

const PortDriver* Registry::port_driver(const std::string& name) const {
  auto at = drivers_.find(name);
  return at == drivers_.end() ? nullptr : at->second;
}

const std::string& Registry::file_of(const PortDriver& driver) const { return files_.at(std::string("driver ") + driver.name); }

const Schema* Registry::stage(const std::string& name) const {
  const Plugin* found = plugin(name);
  return found == nullptr ? nullptr : &found->keys;
}

std::string Registry::refuse_egress(const std::string& program, const ConfigNode& keys) const {
  const char* what = refuse_egress_config(*egress_.at(program).module->host, keys);
  return what != nullptr ? what : "";
}

std::string Registry::refuse_object(const std::string& file, const std::string& program, bool frags) const {
  const Result<std::vector<u8>> bytes = read_file(file);
  if (!bytes) return bytes.error().what;
  constexpr const char* remedy = "; compile it by: clang -target bpf -g -O2 -c (clang-19, or any from 14 on)";
  if (bytes->size() < SELFMAG || std::memcmp(bytes->data(), ELFMAG, SELFMAG) != 0) return fmt::format("{} is no ELF file{}", file, remedy);
  const Result<BpfObject> object = BpfObject::open(file, *bytes);
  return object ? object->refuse_on_entry(program, frags) : object.error().what + remedy;
}

std::vector<std::pair<std::size_t, std::string>> Registry::refuse_order(const std::vector<std::string>& programs) const {
  std::vector<std::pair<std::size_t, std::string>> refused;
  for (std::size_t place = 1; place < programs.size(); ++place) {
    const egress_order* rule = egress_.at(programs[place]).module->host->not_behind;
    for (; rule != nullptr && rule->program != nullptr; ++rule) {
      const auto before = programs.begin() + static_cast<std::ptrdiff_t>(place);
      if (std::find(rule->next_to ? before - 1 : programs.begin(), before, rule->program) != before)
        refused.emplace_back(place, fmt::format("{} stands behind {}: {}", programs[place], rule->program, rule->why));
    }
  }
  return refused;
}

const Schema* Registry::egress(const std::string& name) const {
  auto at = egress_.find(name);
  return at == egress_.end() ? nullptr : &at->second.schema;
}

std::vector<std::string> Registry::stages() const { return names_of(plugins_); }
std::vector<std::string> Registry::egress_programs() const { return names_of(egress_); }

const Schema* Registry::driver(const std::string& name) const {
  const PortDriver* found = port_driver(name);
  return found == nullptr ? nullptr : &found->keys;
}

const Schema& Registry::driver_settings(const std::string& name) const { return drivers_.at(name)->settings; }

std::string Registry::refuse_port(const std::string& driver, const ConfigNode& keys) const {
  const PortDriver& found = *drivers_.at(driver);
  return found.refuse != nullptr ? found.refuse(keys) : "";
}

std::vector<std::string> Registry::drivers() const { return names_of(drivers_); }

}  // namespace weir
