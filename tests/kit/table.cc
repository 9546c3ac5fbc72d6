// SPDX-License-Identifier: BSD-3-Clause
// table: run each claim, and say of those that do not hold what is otherwise.
#include "kit/table.hh"

#include <algorithm>
#include <sstream>

namespace weir::kit {
namespace {

std::string text_of(const Verdict& verdict) {
  std::ostringstream text;
  text << verdict;
  return text.str();
}

std::string text_of(const Packet& bytes) { return fmt::format("{} bytes {:02x}", bytes.size(), fmt::join(bytes, " ")); }

template <typename Run>
std::string run_all(const std::vector<Case>& cases, Run run) {
  std::string lines;
  for (const Case& each : cases) {
    const Result<Outcome> got = run(each);
    const std::string what = got ? difference({each.verdict, each.out.empty() ? each.in : each.out}, *got) : got.error().what;
    if (!what.empty()) lines += fmt::format("{}{}: {}", lines.empty() ? "" : "\n", each.claim, what);
  }
  return lines;
}

// As a kernel half's verdict is read: a flood to nobody is no entry, one to a single port a redirect to it.
Verdict as_in_kernel(Verdict verdict, u32 port, const FakeContext& context) {
  if (verdict.what != WEIR_FLOOD) return verdict;
  std::vector<PortSlot> others;
  for (const PortSlot member : context.groups().at(verdict.argument))
    if (member.value != port) others.push_back(member);
  if (others.empty()) return {WEIR_DROP, WEIR_DROP_NO_ENTRY};
  return others.size() == 1 ? redirect(others.front().value) : verdict;
}

}  // namespace

std::string difference(const Outcome& wanted, const Outcome& got) {
  if (wanted.verdict != got.verdict) return fmt::format("the verdict is {}, not {}", text_of(got.verdict), text_of(wanted.verdict));
  // What is dropped is not looked at any more.
  if (wanted.verdict.what == WEIR_DROP || wanted.bytes == got.bytes) return "";
  return fmt::format("the frame is {}, not {}", text_of(got.bytes), text_of(wanted.bytes));
}

std::string differences(UserHalf& half, const std::vector<Case>& cases) {
  return run_all(cases, [&](const Case& each) -> Result<Outcome> { return half.run(each.port, each.in); });
}

std::string differences(KernelHalf& half, const std::vector<Case>& cases) {
  return run_all(cases, [&](const Case& each) { return half.run(each.port, each.in); });
}

Result<Agreement> both_halves_agree(const Plugin& plugin, std::string_view keys, const std::vector<std::string>& ports,
                                    const Traffic& traffic) {
  if (plugin.kernel_half == nullptr || plugin.kernel_half().empty()) return fail("{}: it has no kernel half", plugin.name);
  FakeContext context(ports);
  PlainMemory plain;
  UserHalf alone = TRY(UserHalf::make(plugin, keys, context, plain));
  const std::unique_ptr<KernelHalf> kernel = TRY(KernelHalf::open(plugin, context));
  UserHalf beside = TRY(UserHalf::make(plugin, keys, context, kernel->memory()));
  TRY_VOID(kernel->load());
  Agreement agreement;
  for (const auto& [port, bytes] : traffic) {
    Outcome wanted = alone.run(port, bytes);
    Outcome got = TRY(kernel->run(port, bytes));
    ++agreement.frames;
    if (got.verdict.what == WEIR_PUNT) {
      ++agreement.punted;
      got = beside.run(port, got.bytes);  // the bytes as the kernel half has left them
    } else {
      wanted.verdict = as_in_kernel(wanted.verdict, port, context);
    }
    if (const std::string what = difference(wanted, got); !what.empty())
      return fail("{}: frame {} in by port {}, {}: with the kernel half {}", plugin.name, agreement.frames, ports.at(port), text_of(bytes),
                  what);
  }
  return agreement;
}

}  // namespace weir::kit
