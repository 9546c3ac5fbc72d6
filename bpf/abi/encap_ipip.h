/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* encap_ipip: the configuration of the egress program of this name. */
#pragma once

#include "bpf/abi/encap.h"

struct encap_ipip_config {
	struct encap_ends ends;
};

enum encap_ipip_drop { ENCAP_IPIP_TRUNCATED, ENCAP_IPIP_NOT_IP, ENCAP_IPIP_TOO_LONG, ENCAP_IPIP_NO_HEADROOM };
