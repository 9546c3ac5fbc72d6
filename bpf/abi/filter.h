/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* filter: the configuration of the egress program of this name. */
#pragma once

#include "bpf/abi/egress.h"

#define FILTER_MAX_RULES 64

enum filter_action { FILTER_PERMIT, FILTER_DENY };

/* As its keys have it. */
struct filter_rule {
	__u32 action;
	__u32 protocol;
	struct egress_prefix src;
	struct egress_prefix dst;
	struct egress_range sport;
	struct egress_range dport;
	__u8 has_protocol;
	__u8 has_src;
	__u8 has_dst;
	__u8 has_sport;
	__u8 has_dport;
	__u8 unused[3];
};

/* What a frame is: its protocol in the low 8 bits, and of these. */
enum { FILTER_IS_IP = 1 << 8, FILTER_IS_IPV4 = 1 << 9, FILTER_HAS_PORTS = 1 << 10 };
#define FILTER_PROTOCOL_BITS 0xff

/* What a rule asks for, and what a frame hides. */
enum { FILTER_PROTOCOL = 1, FILTER_PORTS = 2 };

/* Ports from `first` on: this one, and `more`. */
struct filter_ports {
	__u32 first;
	__u32 more;
};

/* As frames are compared with it. */
struct filter_match {
	__u64 mask[4];		/* two words of source, two of destination */
	__u64 address[4];
	__u32 kind_mask;
	__u32 kind;
	struct filter_ports sport;
	struct filter_ports dport;
	__u32 asks;		/* FILTER_PROTOCOL, FILTER_PORTS */
	__u32 action;
};

struct filter_config {
	struct filter_match match[FILTER_MAX_RULES];	/* made of the rules */
	__u32 number;
	__u32 otherwise;
	struct filter_rule rule[FILTER_MAX_RULES];
};

enum filter_drop { FILTER_DENIED, FILTER_TRUNCATED, FILTER_UNREADABLE };
enum filter_counter { FILTER_COUNT_PERMITTED, FILTER_COUNT_DENIED, FILTER_COUNT_OTHERWISE };
