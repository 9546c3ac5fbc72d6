// SPDX-License-Identifier: BSD-3-Clause
// xdp_link: bpf links of type XDP.
#include "core/kernel/xdp_link.hh"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/if_link.h>
#include <net/if.h>

#include <cerrno>

#include "core/kernel/bpffs.hh"
#include "core/kernel/object.hh"

namespace weir {

namespace {

// The id of the bpf link that holds this program on the device; 0: there is none, it was attached by netlink. Links of all network
// namespaces are listed, and ifindexes repeat.
u32 link_on(Ifindex device, u32 program) {
  for (u32 id = 0; ::bpf_link_get_next_id(id, &id) == 0;) {
    const Fd link(::bpf_link_get_fd_by_id(id));
    bpf_link_info info{};
    u32 size = sizeof info;
    if (!link || ::bpf_obj_get_info_by_fd(link.get(), &info, &size) != 0) continue;
    if (info.type == BPF_LINK_TYPE_XDP && info.xdp.ifindex == device.value && info.prog_id == program) return id;
  }
  return 0;
}

// Of the program on a device; 0: none.
Result<u32> attached_id(Ifindex device, bool native) {
  u32 id = 0;
  const int err = ::bpf_xdp_query_id(static_cast<int>(device.value), native ? XDP_FLAGS_DRV_MODE : XDP_FLAGS_SKB_MODE, &id);
  if (err != 0) return fail_errno(-err, "ask which XDP program is attached");
  return id;
}

}  // namespace

Result<XdpLink> XdpLink::attach(int program_fd, Ifindex device, bool native) {
  LIBBPF_OPTS(bpf_link_create_opts, options, .flags = native ? XDP_FLAGS_DRV_MODE : XDP_FLAGS_SKB_MODE);
  Fd link(::bpf_link_create(program_fd, static_cast<int>(device.value), BPF_XDP, &options));
  if (link) return XdpLink(std::move(link));
  const int err = errno;
  if (native && err == EOPNOTSUPP) return unsupported("the driver has no native XDP");
  if (err == EBUSY || err == EEXIST) TRY_VOID(expect_free(device));
  if (err == ERANGE || err == EINVAL || err == EOPNOTSUPP)
    return fail_errno(err,
                      "attach XDP: the driver refuses; the usual reasons are an MTU over one page (about 3500) and large receive "
                      "offload (see the kernel log)");
  return fail_errno(err, err == EPERM ? "attach XDP (weir needs CAP_NET_ADMIN: run it as root)" : "attach XDP");
}

Result<> XdpLink::expect_free(Ifindex device) {
  const bool native = TRY(attached_id(device, true)) != 0;
  const u32 id = TRY(attached_id(device, native));
  if (id == 0) return {};
  char name[IF_NAMESIZE] = {};
  ::if_indextoname(device.value, name);
  const u32 link = link_on(device, id);
  const std::string remedy = link != 0 ? fmt::format("bpftool link detach id {}", link)
                                       : fmt::format("ip link set dev {} {} off", name, native ? "xdpdrv" : "xdpgeneric");
  const std::string instance = link != 0 ? instance_of_link(link) : "";
  return fail("another XDP program is attached (id {}, \"{}\"{}); stop its owner, or detach it with: {}", id, program_name(id),
              instance.empty() ? "" : ", of weir's instance " + instance, remedy);
}

Result<XdpLink> XdpLink::adopt(Fd link, Ifindex device, bool native) {
  bpf_link_info info{};
  u32 size = sizeof info;
  if (!link) return missing("no pinned link");
  if (::bpf_obj_get_info_by_fd(link.get(), &info, &size) != 0) return fail_errno(errno, "ask what a pinned link holds");
  if (info.type != BPF_LINK_TYPE_XDP || info.xdp.ifindex != device.value) return missing("the pinned link is for another device");
  if (TRY(attached_id(device, native)) != info.prog_id) return missing("the pinned link is attached in another mode");
  return XdpLink(std::move(link));
}

Result<> XdpLink::replace(int program_fd) const {
  if (::bpf_link_update(link_.get(), program_fd, nullptr) != 0) return fail_errno(errno, "replace the attached XDP program");
  return {};
}

Result<Fd> XdpLink::program() const {
  bpf_link_info info{};
  u32 size = sizeof info;
  Fd program(::bpf_obj_get_info_by_fd(link_.get(), &info, &size) == 0 ? ::bpf_prog_get_fd_by_id(info.prog_id) : -1);
  if (!program) return fail_errno(errno, "open the attached XDP program, to give it back if need be");
  return program;
}

void XdpLink::detach() noexcept {
  if (link_) ::bpf_link_detach(link_.get());
  link_ = Fd();
}

}  // namespace weir
