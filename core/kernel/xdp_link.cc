// SPDX-License-Identifier: BSD-3-Clause
// xdp_link: bpf links of type XDP.
#include "core/kernel/xdp_link.hh"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/if_link.h>

#include <cerrno>

#include "core/kernel/object.hh"

namespace weir {

namespace {

u32 attached_id(Ifindex device, bool native) {
  u32 id = 0;
  ::bpf_xdp_query_id(static_cast<int>(device.value), native ? XDP_FLAGS_DRV_MODE : XDP_FLAGS_SKB_MODE, &id);
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
  u32 id = attached_id(device, true);
  if (id == 0) id = attached_id(device, false);
  if (id == 0) return {};
  return fail("another XDP program is attached (id {}, \"{}\"); detach it with: ip link set dev DEVICE xdp off, or stop its owner", id,
              program_name(id));
}

Result<XdpLink> XdpLink::adopt(Fd link, Ifindex device, bool native) {
  bpf_link_info info{};
  u32 size = sizeof info;
  if (!link || ::bpf_obj_get_info_by_fd(link.get(), &info, &size) != 0) return fail("no pinned link");
  if (info.type != BPF_LINK_TYPE_XDP || info.xdp.ifindex != device.value) return fail("the pinned link is for another device");
  if (attached_id(device, native) != info.prog_id) return fail("the pinned link is attached in another mode");
  return XdpLink(std::move(link));
}

Result<> XdpLink::replace(int program_fd) const {
  if (::bpf_link_update(link_.get(), program_fd, nullptr) != 0) return fail_errno(errno, "replace the attached XDP program");
  return {};
}

Fd XdpLink::program() const noexcept {
  bpf_link_info info{};
  u32 size = sizeof info;
  return Fd(::bpf_obj_get_info_by_fd(link_.get(), &info, &size) == 0 ? ::bpf_prog_get_fd_by_id(info.prog_id) : -1);
}

void XdpLink::detach() noexcept {
  if (link_) ::bpf_link_detach(link_.get());
  link_ = Fd();
}

}  // namespace weir
