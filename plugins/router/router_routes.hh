// SPDX-License-Identifier: BSD-3-Clause
// router_routes: what the kernel and the file say of routes, neighbours and devices, and what of it the tables get. The control thread's.
#pragma once

#include <functional>
#include <string>
#include <unordered_map>

#include "plugins/router/router_fib.hh"
#include "plugins/router/router_tables.hh"

namespace weir::routing {

struct Path {
  u32 device = 0;              // ifindex; 0: the port is known
  u32 port = HopKey::no_port;  // of the file
  Address via;                 // version 0: the destination is on the link
  u32 weight = 1;
  bool dead = false;  // says the kernel
  friend bool operator==(const Path&, const Path&) = default;
};

// One of the routes to a prefix.
struct Route {
  enum class Source { local, file, main };  // earlier ones come first
  Source source = Source::main;
  u32 metric = 0;
  u32 special = 0;  // TOS, or that it is for some sources alone: what the host must decide
  router_kind kind = ROUTER_KIND_HOST;
  u32 mtu = 0;
  std::vector<Path> paths;
  u32 seen = 0;  // by which sweep
  [[nodiscard]] auto order() const noexcept { return std::tuple(source, metric); }
  [[nodiscard]] bool same_key(const Route& other) const noexcept { return order() == other.order() && special == other.special; }
  [[nodiscard]] bool same_way(const Route& other) const noexcept { return kind == other.kind && mtu == other.mtu && paths == other.paths; }
};

struct Link {
  std::string name;
  u64 mac = 0;
  u32 mtu = 0;
  bool up = false, carrier = false;
  u32 port = HopKey::no_port;
  friend bool operator==(const Link&, const Link&) = default;
};

class Routes {
 public:
  Routes(Tables& tables, Fib& fib) : tables_(tables), fib_(fib) {}
  Routes(const Routes&) = delete;

  // How a kernel's message about a route is meant.
  enum class Change { add, append, replace, found };  // `found`: by a dump
  void add(const Prefix& prefix, Route route, Change change);
  void remove(const Prefix& prefix, const Route& route);
  // True: routes and neighbours are to be asked for anew, since what the kernel does to them now it does not tell.
  bool set_link(u32 device, Link link);
  bool remove_link(u32 device);
  void set_neighbour(u32 device, const Address& address, router_state state, u64 mac, bool stale);
  void remove_neighbour(u32 device, const Address& address);
  // Of the file: the kernel's word does not change it.
  void fix_neighbour(u32 port, const Address& address, u64 mac);

  // What the kernel does not name between these two it does not have any more.
  void begin_sweep() { ++sweep_; }
  void end_sweep();
  // Puts all that changed into the tables.
  void apply();

  // A frame wanted the neighbour. `ask` has the kernel look for it, or see whether it is still there.
  void want(u32 port, const Address& address, u32 now_s);
  void tick(u32 now_s);
  std::function<void(u32 device, const Address& address)> ask;

  [[nodiscard]] u32 device_of(u32 port) const;  // ifindex; 0: none
  [[nodiscard]] std::size_t size(u32 version) const noexcept { return installed_[version == 4 ? 0 : 1]; }
  [[nodiscard]] std::size_t overflow() const noexcept { return overflow_.size(); }

 private:
  struct Hash {
    std::size_t operator()(const Prefix& prefix) const noexcept {
      return router_mix(router_hash_address(shared(prefix.address), prefix.address.version), prefix.length);
    }
  };
  struct Entry {
    std::vector<Route> routes;  // in the order of the kernel
    u32 group = 0;              // in the tables; 0: none
    bool own = false, dirty = false;
  };
  struct Neighbour {
    bool fixed = false, stale = false;
    u64 frames = 0;  // at the last look
    u32 seen = 0;
  };
  void touch(const Prefix& prefix, Entry& entry);
  void touch_all();
  void install(const Prefix& prefix, Entry& entry);
  void put(const Prefix& prefix, u32 group);
  void take_out(const Prefix& prefix);
  [[nodiscard]] GroupKey resolve(const Entry& entry) const;
  [[nodiscard]] std::optional<HopKey> hop_of(const Path& path) const;
  [[nodiscard]] bool alive(const Path& path) const;
  [[nodiscard]] u32 port_of(u32 device) const;

  Tables& tables_;
  Fib& fib_;
  std::unordered_map<Prefix, Entry, Hash> routes_;
  std::vector<Prefix> dirty_;
  std::unordered_map<u32, Link> links_;
  std::unordered_map<u32, u32> link_seen_;  // by which sweep
  std::map<HopKey, Neighbour> neighbours_;
  std::map<HopKey, u32> asked_;  // in which second
  std::vector<Prefix> overflow_;
  std::array<std::size_t, 2> installed_{};
  u32 sweep_ = 0, asked_in_second_ = 0;
};

}  // namespace weir::routing
