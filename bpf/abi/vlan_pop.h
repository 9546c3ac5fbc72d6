/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* vlan_pop: the reasons of the egress program of this name. */
#pragma once

enum vlan_pop_drop { VLAN_POP_TRUNCATED };
enum vlan_pop_counter { VLAN_POP_POPPED, VLAN_POP_UNTAGGED };
