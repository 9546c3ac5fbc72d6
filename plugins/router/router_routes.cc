// SPDX-License-Identifier: BSD-3-Clause
// router_routes: choose the best route of each prefix, and find its next hops among the ports.
#include "plugins/router/router_routes.hh"

#include <algorithm>

namespace weir::routing {
namespace {

constexpr u32 asks_per_second = 1000;  // so that frames for addresses of nobody do not fill the kernel's own table

bool shares_a_path(const Route& one, const Route& two) {
  return std::ranges::any_of(one.paths, [&](const Path& path) {
    return std::ranges::any_of(two.paths, [&](const Path& other) { return other.device == path.device && other.via == path.via; });
  });
}

}  // namespace

void Routes::touch(const Prefix& prefix, Entry& entry) {
  if (!std::exchange(entry.dirty, true)) dirty_.push_back(prefix);
}

void Routes::touch_all() {
  for (auto& [prefix, entry] : routes_) touch(prefix, entry);
}

// IPv6 names all paths of a route each time; of IPv4, a route that is added stands in front of its like, and an appended one behind.
void Routes::add(const Prefix& prefix, Route route, Change change) {
  Entry& entry = routes_[prefix];
  route.seen = sweep_;
  std::vector<Route>& all = entry.routes;
  const auto like = [&](const Route& each) { return each.same_key(route); };
  auto at = std::ranges::find_if(all, [&](const Route& each) { return like(each) && each.same_way(route); });
  if (at != all.end()) {
    at->seen = sweep_;
    if (change != Change::replace || like(*all.begin())) return;
  }
  if (prefix.address.version == 6)
    at = std::ranges::find_if(all, [&](const Route& each) { return like(each) && shares_a_path(each, route); });
  if (at == all.end() && change == Change::replace) at = std::ranges::find_if(all, like);
  if (at != all.end()) *at = std::move(route);
  else if (change == Change::add && prefix.address.version == 4) all.insert(std::ranges::find_if(all, like), std::move(route));
  else all.push_back(std::move(route));
  touch(prefix, entry);
}

void Routes::remove(const Prefix& prefix, const Route& route) {
  const auto found = routes_.find(prefix);
  if (found == routes_.end()) return;
  std::vector<Route>& all = found->second.routes;
  auto at = std::ranges::find_if(all, [&](const Route& each) { return each.same_key(route) && each.paths == route.paths; });
  if (at == all.end() && prefix.address.version == 6)
    at = std::ranges::find_if(all, [&](const Route& each) { return each.same_key(route) && shares_a_path(each, route); });
  if (at == all.end()) at = std::ranges::find_if(all, [&](const Route& each) { return each.same_key(route); });
  if (at == all.end()) return;
  // Of a route of several paths, IPv6 may remove one.
  if (prefix.address.version == 6 && !route.paths.empty() && route.paths.size() < at->paths.size())
    std::erase_if(at->paths, [&](const Path& path) {
      return std::ranges::any_of(route.paths, [&](const Path& gone) { return gone.device == path.device && gone.via == path.via; });
    });
  else all.erase(at);
  touch(prefix, found->second);
}

u32 Routes::port_of(u32 device) const {
  const auto at = links_.find(device);
  return at == links_.end() ? HopKey::no_port : at->second.port;
}

u32 Routes::device_of(u32 port) const {
  const auto at = std::ranges::find_if(links_, [&](const auto& each) { return each.second.port == port; });
  return at == links_.end() ? 0 : at->first;
}

bool Routes::set_link(u32 device, Link link) {
  Link& known = links_[device];
  link_seen_[device] = sweep_;
  if (known == link) return false;
  const bool moves = known.port != link.port, paths = known.up != link.up || known.carrier != link.carrier || moves;
  if (known.port != HopKey::no_port && moves) tables_.set_port(known.port, 0, 0);
  if (link.port != HopKey::no_port) tables_.set_port(link.port, link.mac, link.mtu);
  known = std::move(link);
  if (paths) touch_all();
  return paths;
}

bool Routes::remove_link(u32 device) {
  const auto at = links_.find(device);
  if (at == links_.end()) return false;
  if (at->second.port != HopKey::no_port) tables_.set_port(at->second.port, 0, 0);
  links_.erase(at);
  link_seen_.erase(device);
  touch_all();
  return true;
}

void Routes::set_neighbour(u32 device, const Address& address, router_state state, u64 mac, bool stale) {
  const HopKey key{port_of(device), address};
  if (key.port == HopKey::no_port) return;
  Neighbour& neighbour = neighbours_[key];
  neighbour.seen = sweep_;
  if (neighbour.fixed) return;
  neighbour.stale = stale;
  tables_.set_neighbour(key, state, mac);
}

void Routes::remove_neighbour(u32 device, const Address& address) {
  const auto at = neighbours_.find(HopKey{port_of(device), address});
  if (at == neighbours_.end() || at->second.fixed) return;
  tables_.erase_neighbour(at->first);
  neighbours_.erase(at);
}

void Routes::fix_neighbour(u32 port, const Address& address, u64 mac) {
  const HopKey key{port, address};
  neighbours_[key].fixed = true;
  tables_.set_neighbour(key, ROUTER_STATE_READY, mac);
}

void Routes::end_sweep() {
  for (const auto& [device, seen] : std::map<u32, u32>(link_seen_.begin(), link_seen_.end()))
    if (seen != sweep_) remove_link(device);
  for (auto& [prefix, entry] : routes_)
    if (std::erase_if(entry.routes, [&](const Route& route) { return route.source != Route::Source::file && route.seen != sweep_; }) > 0)
      touch(prefix, entry);
  std::erase_if(neighbours_, [&](const auto& each) {
    if (each.second.fixed || each.second.seen == sweep_) return false;
    tables_.erase_neighbour(each.first);
    return true;
  });
}

void Routes::apply() {
  if (dirty_.empty()) return;
  for (const Prefix& prefix : std::exchange(dirty_, {})) {
    const auto at = routes_.find(prefix);
    at->second.dirty = false;
    install(prefix, at->second);
    if (at->second.routes.empty()) routes_.erase(at);
  }
  tables_.note_whole();
}

bool Routes::alive(const Path& path) const {
  if (path.device == 0) return true;
  const auto at = links_.find(path.device);
  return !path.dead && at != links_.end() && at->second.up && at->second.carrier;
}

std::optional<HopKey> Routes::hop_of(const Path& path) const {
  const u32 port = path.device == 0 ? path.port : port_of(path.device);
  if (port == HopKey::no_port) return std::nullopt;
  return HopKey{port, path.via};
}

GroupKey Routes::resolve(const Entry& entry) const {
  if (std::ranges::any_of(entry.routes, [](const Route& route) { return route.special != 0; }))
    return {.kind = ROUTER_KIND_HOST, .paths = {}};
  const Route& best = *std::ranges::min_element(entry.routes, {}, &Route::order);
  if (best.kind != ROUTER_KIND_ONE) return {.kind = best.kind, .paths = {}};
  // Of several paths, those that lead somewhere; if none does, all, so that what is lost has a name.
  std::vector<Path> paths;
  std::ranges::copy_if(best.paths, std::back_inserter(paths), [&](const Path& path) { return alive(path); });
  if (paths.empty()) paths = best.paths;
  if (paths.size() > ROUTER_PATHS) paths.resize(ROUTER_PATHS);
  GroupKey key{.kind = paths.size() > 1 ? ROUTER_KIND_MANY : ROUTER_KIND_ONE, .mtu = std::min(best.mtu, 0xffffu), .paths = {}};
  for (const Path& path : paths) key.paths.emplace_back(hop_of(path).value_or(HopKey{}), std::max(path.weight, 1u));
  if (key.paths.size() == 1) key.paths.front().second = 1;
  std::ranges::sort(key.paths);
  if (std::ranges::all_of(key.paths, [](const auto& path) { return path.first.port == HopKey::no_port; }))
    return {.kind = ROUTER_KIND_HOST, .paths = {}};
  return key;
}

void Routes::install(const Prefix& prefix, Entry& entry) {
  std::size_t& count = installed_[prefix.address.version == 4 ? 0 : 1];
  const u32 before = entry.group;
  const GroupKey key = entry.routes.empty() ? GroupKey{} : resolve(entry);
  const bool own = key.kind == ROUTER_KIND_OWN;
  if (own != entry.own) tables_.set_own(prefix.address, own);
  entry.own = own;
  entry.group = entry.routes.empty() ? 0 : tables_.hold(key);
  if (entry.group != before) {
    tables_.changes().note_route(prefix);
    if (entry.group != 0) put(prefix, entry.group);
    else take_out(prefix);
    count += (entry.group != 0) - (before != 0);
  }
  if (before != 0) tables_.release(before);
}

// What has no length stands beside the tables, where a change of it is one word. The kernel half's has no route that user space's lacks.
void Routes::put(const Prefix& prefix, u32 group) {
  if (prefix.length == 0) return tables_.set_fallback(prefix.address.version, group);
  const bool fits = fib_.set(prefix, group), lacked = std::erase(overflow_, prefix) > 0;
  if (fits) tables_.trie().set(prefix, group);
  else overflow_.push_back(prefix);
  if (lacked || !fits) tables_.set_overflow(!overflow_.empty());
}

void Routes::take_out(const Prefix& prefix) {
  if (prefix.length == 0) return tables_.set_fallback(prefix.address.version, 0);
  if (std::erase(overflow_, prefix) > 0) return tables_.set_overflow(!overflow_.empty());
  const Fib::Above above = fib_.erase(prefix);
  tables_.trie().erase(prefix, above.group, above.length);
}

void Routes::want(u32 port, const Address& address, u32 now_s) {
  const u32 device = device_of(port);
  if (device == 0 || !ask || asked_in_second_ >= asks_per_second) return;
  const auto [at, made] = asked_.try_emplace(HopKey{port, address}, now_s);
  if (!made && at->second == now_s) return;
  at->second = now_s;
  ++asked_in_second_;
  ask(device, address);
}

void Routes::tick(u32 now_s) {
  asked_in_second_ = 0;
  std::erase_if(asked_, [&](const auto& each) { return each.second + 2 < now_s; });
  for (const HopKey& gateway : tables_.new_gateways()) want(gateway.port, gateway.address, now_s);
  for (auto& [key, neighbour] : neighbours_) {
    const u64 frames = tables_.frames_of(key);
    if (std::exchange(neighbour.frames, frames) != frames && neighbour.stale) want(key.port, key.address, now_s);
  }
  for (const Prefix& prefix : std::vector<Prefix>(overflow_)) {
    const auto at = routes_.find(prefix);
    if (at == routes_.end() || at->second.group == 0) continue;
    put(prefix, at->second.group);
    if (std::ranges::find(overflow_, prefix) != overflow_.end()) break;
  }
  tables_.tick();
}

}  // namespace weir::routing
