// SPDX-License-Identifier: BSD-3-Clause
// frames: what a frame's addresses are as bytes.
#include "kit/frames.hh"

namespace weir::kit {

std::vector<u8> address_bytes(u8 version, const std::string& text) {
  std::vector<u8> bytes(version == 4 ? sizeof(in_addr) : sizeof(in6_addr));
  if (::inet_pton(version == 4 ? AF_INET : AF_INET6, text.c_str(), bytes.data()) != 1) broken("a test names an IP address that is none");
  return bytes;
}

}  // namespace weir::kit
