// SPDX-License-Identifier: BSD-3-Clause
// registry: the plugins, egress programs and port drivers that are there, loaded from the folder of modules.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>

#include "core/config/schema.hh"
#include "core/egress.hh"
#include "core/port/driver.hh"

namespace weir {

class Registry final : public Catalog {
 public:
  // Of what is part of libweir alone.
  Registry();
  // Loads every module of the folder. A module that does not fit is an error that names it; so are two of one name.
  static Result<Registry> load(const std::string& folder);
  // The folder that belongs to this libweir: beside it in an installed tree or in a build tree. `before`: what is loaded already; of that,
  // files that are as they were give the same plugins, and those that were built again give theirs beside the old ones; and the program's
  // own.
  static Result<Registry> load(const Registry* before = nullptr);
  // Loads the modules of one more folder beside those that are there, under the same rules. A file that is loaded already is left out.
  Result<> add_folder(const std::string& folder);
  // A plugin of the program that has libweir in it, beside those of modules; it outlives the registry. A reload has it too.
  Result<> add(const Plugin& plugin);
  // The first file of the folders that is not as it was when it was loaded, is gone, or is new; empty: none.
  [[nodiscard]] std::string changed_since() const;
  // Without modules: what is linked into a test.
  static Registry of(std::vector<const Plugin*> plugins, std::vector<const EgressModule*> egress);

  [[nodiscard]] const Plugin* plugin(const std::string& name) const;
  [[nodiscard]] const EgressModule* egress_module(const std::string& name) const;
  [[nodiscard]] const PortDriver* port_driver(const std::string& name) const;  // null: there is none, as of "xdp"
  // The file that it was loaded from, for messages.
  [[nodiscard]] const std::string& file_of(const Plugin& plugin) const { return files_.at(plugin.name); }
  [[nodiscard]] const std::string& file_of(const EgressModule& module) const;
  [[nodiscard]] const std::string& file_of(const PortDriver& driver) const;

  [[nodiscard]] const Schema* stage(const std::string& plugin) const override;
  [[nodiscard]] const Schema* egress(const std::string& program) const override;
  [[nodiscard]] std::string refuse_egress(const std::string& program, const ConfigNode& keys) const override;
  [[nodiscard]] std::string refuse_object(const std::string& file, const std::string& program, bool frags) const override;
  [[nodiscard]] std::vector<std::pair<std::size_t, std::string>> refuse_order(const std::vector<std::string>& programs) const override;
  [[nodiscard]] std::vector<std::string> stages() const override;
  [[nodiscard]] std::vector<std::string> egress_programs() const override;
  [[nodiscard]] const Schema* driver(const std::string& name) const override;
  [[nodiscard]] const Schema& driver_settings(const std::string& name) const override;
  [[nodiscard]] std::string refuse_port(const std::string& driver, const ConfigNode& keys) const override;
  [[nodiscard]] std::vector<std::string> drivers() const override;

 private:
  struct Unload {
    void operator()(void* handle) const noexcept;
  };
  struct EgressEntry {
    const EgressModule* module;
    Schema schema;
  };
  // A file as it was loaded.
  struct Stamp {
    std::string file;
    u64 device = 0, inode = 0, size = 0;
    i64 changed_ns = 0;
    friend bool operator==(const Stamp&, const Stamp&) = default;
  };
  struct Folder {
    std::string name;
    std::vector<Stamp> modules;
  };
  // By what name a file is known to the dynamic linker.
  struct Opened {
    Stamp stamp;
    std::string name;
  };
  static Result<std::vector<Stamp>> modules_in(const std::string& folder);
  const std::string& name_for(const Stamp& module);
  Result<> load_modules(const std::vector<Stamp>& modules);
  Result<> load_module(const std::string& file, const std::string& name);
  Result<> add(const Plugin& plugin, const std::string& file);
  Result<> add(const EgressModule& module, const std::string& file);
  Result<> add(const PortDriver& driver, const std::string& file);
  std::vector<const Plugin*> own_;                      // of the program itself
  std::vector<std::unique_ptr<void, Unload>> handles_;  // first in, last out: what they define is used below
  std::map<std::string, const Plugin*> plugins_;
  std::map<std::string, EgressEntry> egress_;
  std::map<std::string, const PortDriver*> drivers_;
  std::map<std::string, std::string> files_;  // by name, for messages
  std::set<std::string> loaded_;              // files, without links
  std::vector<Folder> folders_;
  std::map<std::string, Opened> opened_;  // by file
};

}  // namespace weir
