// SPDX-License-Identifier: BSD-3-Clause
// xdp_link: an XDP program on a device, for as long as the link or its pin lives.
#pragma once

#include "core/base/fd.hh"
#include "core/base/result.hh"
#include "core/base/types.hh"

namespace weir {

class XdpLink {
 public:
  XdpLink() = default;
  // In the driver (`native`) or in the kernel's generic hook. unsupported: the driver has no native XDP.
  static Result<XdpLink> attach(int program_fd, Ifindex device, bool native);
  // Fails when a program is attached, with its id and what to do about it.
  static Result<> expect_free(Ifindex device);
  // A pinned link of an earlier run. missing: there is none, or it does not hold this device in this mode.
  static Result<XdpLink> adopt(Fd link, Ifindex device, bool native);

  // The next frame meets the other program; no frame meets none.
  Result<> replace(int program_fd) const;
  void detach() noexcept;
  // The attached program.
  [[nodiscard]] Result<Fd> program() const;
  [[nodiscard]] int fd() const noexcept { return link_.get(); }

 private:
  explicit XdpLink(Fd link) noexcept : link_(std::move(link)) {}
  Fd link_;
};

}  // namespace weir
