/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* ttl: the reasons and counters of the egress program of this name. */
#pragma once

enum ttl_drop { TTL_EXPIRED, TTL_TRUNCATED };
enum ttl_counter { TTL_IPV4, TTL_IPV6, TTL_OTHER };
