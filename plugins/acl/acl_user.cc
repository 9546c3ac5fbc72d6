// SPDX-License-Identifier: BSD-3-Clause
// acl_user: rules and frames in the form that rte_acl wants them.
#include "plugins/acl/acl_user.hh"

#include <linux/if_ether.h>
#include <rte_acl.h>
#include <rte_errno.h>
#include <rte_memory.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/port/eal.hh"

namespace weir::acl {
namespace {

// Memory that a build needs for the while grows with the rules of one context, 20 KB for each.
constexpr std::size_t most_in_context = 32768;
constexpr std::size_t added_at_once = 1024;

// What a look-up reads, in network order. The library reads four bytes at a time, and the first field must be one byte.
struct Tail {
  u16 sport, dport, vlan;
  u8 flags, shows;
};
struct Ipv4 {
  u8 unused[3], protocol;
  u32 src, dst;
  Tail tail;
};
struct Ipv6 {
  u8 unused[3], protocol;
  u32 src[4], dst[4];
  Tail tail;
};
struct Other {
  u8 unused[4];  // all zero
  u16 type, vlan;
};

u16 net16(u64 value) { return __builtin_bswap16(static_cast<u16>(value)); }

Tail tail_of(const acl_key& key) {
  const u64 kind = key.word[ACL_KIND_WORD], ports = key.word[ACL_PORTS_WORD];
  return {net16(ports >> 16), net16(ports), net16(kind >> ACL_VLAN), static_cast<u8>(kind >> ACL_FLAGS), static_cast<u8>(kind)};
}

void fill(Ipv4& into, const acl_key& key) {
  into.protocol = static_cast<u8>(key.word[ACL_KIND_WORD] >> ACL_PROTOCOL);
  std::memcpy(&into.src, &key.word[0], sizeof into.src);
  std::memcpy(&into.dst, &key.word[2], sizeof into.dst);
  into.tail = tail_of(key);
}
void fill(Ipv6& into, const acl_key& key) {
  into.protocol = static_cast<u8>(key.word[ACL_KIND_WORD] >> ACL_PROTOCOL);
  std::memcpy(into.src, &key.word[0], sizeof into.src);
  std::memcpy(into.dst, &key.word[2], sizeof into.dst);
  into.tail = tail_of(key);
}
void fill(Other& into, const acl_key& key) {
  const u64 kind = key.word[ACL_KIND_WORD];
  into.type = net16(kind >> ACL_TYPE), into.vlan = net16(kind >> ACL_VLAN);
}

// The fields of a rule, one behind the other.
class Fields {
 public:
  void add(u8 type, u8 size, std::size_t offset) {
    const u8 index = static_cast<u8>(config_.num_fields++);
    // Fields within the same four bytes are read together.
    if (index > 0 && offset / 4 != config_.defs[index - 1].offset / 4) ++input_;
    config_.defs[index] = {type, size, index, input_, static_cast<u32>(offset)};
  }
  void add_tail(std::size_t at) {
    add(RTE_ACL_FIELD_TYPE_RANGE, 2, at + offsetof(Tail, sport));
    add(RTE_ACL_FIELD_TYPE_RANGE, 2, at + offsetof(Tail, dport));
    add(RTE_ACL_FIELD_TYPE_BITMASK, 2, at + offsetof(Tail, vlan));
    add(RTE_ACL_FIELD_TYPE_BITMASK, 1, at + offsetof(Tail, flags));
    add(RTE_ACL_FIELD_TYPE_BITMASK, 1, at + offsetof(Tail, shows));
  }
  [[nodiscard]] const rte_acl_config& config() const noexcept { return config_; }

 private:
  rte_acl_config config_{.num_categories = 1};
  u8 input_ = 0;
};

rte_acl_config config_of(const Ipv4*) {
  Fields fields;
  fields.add(RTE_ACL_FIELD_TYPE_BITMASK, 1, offsetof(Ipv4, protocol));
  fields.add(RTE_ACL_FIELD_TYPE_MASK, 4, offsetof(Ipv4, src));
  fields.add(RTE_ACL_FIELD_TYPE_MASK, 4, offsetof(Ipv4, dst));
  fields.add_tail(offsetof(Ipv4, tail));
  return fields.config();
}
rte_acl_config config_of(const Ipv6*) {
  Fields fields;
  fields.add(RTE_ACL_FIELD_TYPE_BITMASK, 1, offsetof(Ipv6, protocol));
  for (std::size_t i = 0; i < 8; ++i) fields.add(RTE_ACL_FIELD_TYPE_MASK, 4, offsetof(Ipv6, src) + 4 * i);
  fields.add_tail(offsetof(Ipv6, tail));
  return fields.config();
}
rte_acl_config config_of(const Other*) {
  Fields fields;
  fields.add(RTE_ACL_FIELD_TYPE_BITMASK, 1, 0);
  fields.add(RTE_ACL_FIELD_TYPE_BITMASK, 2, offsetof(Other, type));
  fields.add(RTE_ACL_FIELD_TYPE_BITMASK, 2, offsetof(Other, vlan));
  return fields.config();
}

template <typename T>
rte_acl_field field(T value, T mask) {
  rte_acl_field made{};
  std::memcpy(&made.value, &value, sizeof value);  // members of a union that begin at one place
  std::memcpy(&made.mask_range, &mask, sizeof mask);
  return made;
}

void write_prefix(const std::optional<Prefix>& prefix, u32 words, rte_acl_field*& into) {
  const u32 length = prefix ? prefix->length : 0;
  for (u32 i = 0; i < words; ++i) {
    u32 word = 0;
    if (prefix) std::memcpy(&word, prefix->address.bytes.data() + 4 * i, sizeof word);
    *into++ = field<u32>(__builtin_bswap32(word), std::clamp<i64>(i64{length} - 32 * i, 0, 32));
  }
}

void write_ip(const Rule& rule, u32 words, rte_acl_field* into) {
  const bool tcp = rule.flags_mask != 0;
  const u8 shows = static_cast<u8>((rule.has_ports() || tcp ? ACL_HAS_PORTS : 0) | (rule.fragments ? ACL_LATER : 0) |
                                   (rule.asks_for_first() ? ACL_OPENS : 0));
  const Ports sport = rule.sport.value_or(Ports{}), dport = rule.dport.value_or(Ports{});
  *into++ = field<u8>(tcp ? u8{IPPROTO_TCP} : rule.protocol.value_or(0), rule.protocol || tcp ? 0xff : 0);
  write_prefix(rule.src, words, into);
  write_prefix(rule.dst, words, into);
  *into++ = field<u16>(sport.first, sport.last);
  *into++ = field<u16>(dport.first, dport.last);
  *into++ = field<u16>(rule.vlan.value_or(0), rule.vlan ? 0xffff : 0);
  *into++ = field<u8>(rule.flags, rule.flags_mask);
  *into++ = field<u8>(shows, shows);
}

void write(const Rule& rule, const Ipv4*, rte_acl_field* into) { write_ip(rule, 1, into); }
void write(const Rule& rule, const Ipv6*, rte_acl_field* into) { write_ip(rule, 4, into); }
void write(const Rule& rule, const Other*, rte_acl_field* into) {
  *into++ = field<u8>(0, 0);
  *into++ = field<u16>(rule.type.value_or(0), rule.type ? 0xffff : 0);
  *into++ = field<u16>(rule.vlan.value_or(0), rule.vlan ? 0xffff : 0);
}

std::string reason(int err) {
  if (err == ENOMEM)
    return fmt::format("no memory; the tables of all plugins have {} MB together, and the host may have less; use fewer rules",
                       eal_memory_mb());
  if (err == ERANGE) return "the rules make too large a table; use fewer, or fewer ranges of ports";
  return std::strerror(err);
}

// The process's: asked for a name again, the library gives the table that has it.
std::string fresh_name() {
  static std::atomic<u32> number{0};
  return fmt::format("weir_acl_{}", number++);
}

template <typename Input>
Result<rte_acl_ctx*> build_one(std::span<const std::pair<const Rule*, u32>> rules) {
  const std::string name = fresh_name();
  const rte_acl_config config = config_of(static_cast<const Input*>(nullptr));
  const std::size_t stride = RTE_ACL_RULE_SZ(config.num_fields);
  const rte_acl_param shape{.name = name.c_str(),
                            .socket_id = SOCKET_ID_ANY,
                            .rule_size = static_cast<u32>(stride),
                            .max_rule_num = static_cast<u32>(rules.size())};
  rte_acl_ctx* context = ::rte_acl_create(&shape);
  if (context == nullptr) return fail("make a table of {} rules: {}", rules.size(), reason(rte_errno));
  std::unique_ptr<rte_acl_ctx, decltype(&::rte_acl_free)> hold(context, &::rte_acl_free);
  std::vector<u64> memory(stride * added_at_once / sizeof(u64) + 1);
  for (std::size_t at = 0; at < rules.size(); at += added_at_once) {
    const auto some = rules.subspan(at, std::min(added_at_once, rules.size() - at));
    std::ranges::fill(memory, 0);
    auto* each = reinterpret_cast<u8*>(memory.data());
    for (const auto& [rule, index] : some) {
      auto* made = reinterpret_cast<rte_acl_rule*>(each);
      made->data = {.category_mask = 1, .priority = static_cast<int>(ACL_MAX_RULES - index), .userdata = index + 1};
      write(*rule, static_cast<const Input*>(nullptr), made->field);
      each += stride;
    }
    if (const int err = ::rte_acl_add_rules(context, reinterpret_cast<const rte_acl_rule*>(memory.data()), static_cast<u32>(some.size())))
      return fail("add {} rules to a table of {}: {}", some.size(), rules.size(), reason(-err));
  }
  if (const int err = ::rte_acl_build(context, &config)) return fail("build a table of {} rules: {}", rules.size(), reason(-err));
  return hold.release();
}

}  // namespace

void Classifier::Free::operator()(rte_acl_ctx* context) const noexcept { ::rte_acl_free(context); }

template <Classifier::Family F>
Result<std::vector<Classifier::Context>> Classifier::build(const RuleSet& set) {
  using Input = std::conditional_t<F == ipv4, Ipv4, std::conditional_t<F == ipv6, Ipv6, Other>>;
  std::vector<std::pair<const Rule*, u32>> rules;
  for (u32 i = 0; i < set.rules.size(); ++i) {
    const Rule& rule = set.rules[i];
    const u16 type = F == ipv4 ? ETH_P_IP : F == ipv6 ? ETH_P_IPV6 : rule.type.value_or(0);
    const bool is_ip = type == ETH_P_IP || type == ETH_P_IPV6;
    if (rule.may_be(type) && is_ip == (F != other)) rules.emplace_back(&rule, i);
  }
  std::vector<Context> contexts;
  for (std::size_t at = 0; at < rules.size(); at += most_in_context)
    contexts.emplace_back(TRY(build_one<Input>(std::span(rules).subspan(at, std::min(most_in_context, rules.size() - at)))));
  return contexts;
}

Result<std::unique_ptr<Classifier>> Classifier::make(const RuleSet& set) {
  auto made = std::make_unique<Classifier>();
  made->contexts_[ipv4] = TRY_WITHIN("rules of IPv4", build<ipv4>(set));
  made->contexts_[ipv6] = TRY_WITHIN("rules of IPv6", build<ipv6>(set));
  made->contexts_[other] = TRY_WITHIN("rules of frames that are not IP", build<other>(set));
  return made;
}

Classifier::Family Classifier::family_of(const acl_key& key) noexcept {
  const u64 type = key.word[ACL_KIND_WORD] >> ACL_TYPE;
  return type == ETH_P_IP ? ipv4 : type == ETH_P_IPV6 ? ipv6 : other;
}

// What a table with earlier rules has decided is not asked of the later ones.
template <typename Input>
void Classifier::run(const std::vector<Context>& contexts, std::span<const Input> inputs, std::span<const u8> places,
                     std::span<u32> rules) noexcept {
  std::array<const u8*, Burst::capacity> data;
  std::array<u32, Burst::capacity> found;
  std::array<u8, Burst::capacity> open;
  u32 left = static_cast<u32>(inputs.size());
  for (u32 i = 0; i < left; ++i) open[i] = places[i], data[i] = reinterpret_cast<const u8*>(&inputs[i]);
  for (const Context& context : contexts) {
    if (left == 0) return;
    static_cast<void>(
        ::rte_acl_classify(context.get(), data.data(), found.data(), left, 1));  // fails for a wrong number of categories alone
    u32 still = 0;
    for (u32 i = 0; i < left; ++i) {
      if (found[i] != 0) rules[open[i]] = found[i] - 1;
      else open[still] = open[i], data[still] = data[i], ++still;
    }
    left = still;
  }
}

void Classifier::classify(std::span<const acl_key> keys, std::span<u32> rules) const noexcept {
  std::array<Ipv4, Burst::capacity> of_ipv4{};
  std::array<Ipv6, Burst::capacity> of_ipv6{};
  std::array<Other, Burst::capacity> of_other{};
  std::array<std::array<u8, Burst::capacity>, families> places;
  std::array<u32, families> count{};
  for (u32 i = 0; i < keys.size(); ++i) {
    const Family family = family_of(keys[i]);
    const u32 at = count[family]++;
    places[family][at] = static_cast<u8>(i);
    rules[i] = ACL_NO_RULE;
    if (family == ipv4) fill(of_ipv4[at], keys[i]);
    else if (family == ipv6) fill(of_ipv6[at], keys[i]);
    else fill(of_other[at], keys[i]);
  }
  const auto some = [&](const auto& inputs, Family family) { return std::span(inputs).first(count[family]); };
  run<Ipv4>(contexts_[ipv4], some(of_ipv4, ipv4), places[ipv4], rules);
  run<Ipv6>(contexts_[ipv6], some(of_ipv6, ipv6), places[ipv6], rules);
  run<Other>(contexts_[other], some(of_other, other), places[other], rules);
}

}  // namespace weir::acl
