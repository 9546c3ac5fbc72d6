/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* acl_frame: what of a frame rules ask about, read from its headers: one reader for both halves. */
#pragma once

#include <linux/if_ether.h>
#include <linux/types.h>

#ifdef __bpf__
#include <linux/in.h>
#include <linux/in6.h>

typedef const struct stage_frame acl_frame;

static __always_inline const __u8 *acl_at(acl_frame *frame, __u32 offset, __u32 size) { return stage_header(frame, offset, size); }
static __always_inline __u32 acl_length(acl_frame *frame) { return frame_length(frame->ctx); }

/* In one piece: left to itself, clang reads byte by byte what it does not know to be aligned. */
typedef __u64 __attribute__((may_alias)) acl_word64;
typedef __u32 __attribute__((may_alias)) acl_word32;
typedef __u16 __attribute__((may_alias)) acl_word16;
static __always_inline __u64 acl_get64(const void *at) { return *(const acl_word64 *)at; }
static __always_inline __u32 acl_get32(const void *at) { return *(const acl_word32 *)at; }
static __always_inline __u16 acl_get16(const void *at) { return *(const acl_word16 *)at; }
#else
#include <netinet/in.h>

struct acl_bytes {
	const __u8 *data;
	__u32 length;
};
typedef const struct acl_bytes acl_frame;
#define ACL_INLINE static inline __attribute__((always_inline))

ACL_INLINE const __u8 *acl_at(acl_frame *frame, __u32 offset, __u32 size)
{
	return offset + size <= frame->length ? frame->data + offset : 0;
}
ACL_INLINE __u32 acl_length(acl_frame *frame) { return frame->length; }

#define ACL_GET(bits)                                           \
	ACL_INLINE __u##bits acl_get##bits(const void *at)      \
	{                                                       \
		__u##bits word;                                 \
		__builtin_memcpy(&word, at, sizeof(word));      \
		return word;                                    \
	}
ACL_GET(64)
ACL_GET(32)
ACL_GET(16)
#endif
#ifdef __bpf__
#define ACL_INLINE static __always_inline
#endif

#ifdef __BIG_ENDIAN__
ACL_INLINE __u16 acl_host16(__u16 value) { return value; }
ACL_INLINE __u64 acl_first_half(__u32 bytes) { return (__u64)bytes << 32; }
#else
ACL_INLINE __u16 acl_host16(__u16 value) { return __builtin_bswap16(value); }
/* A word of which these are the first four bytes in memory, and zeroes the others. */
ACL_INLINE __u64 acl_first_half(__u32 bytes) { return bytes; }
#endif

/* Parts of the word `kind`, each at its lowest bit. */
enum {
	ACL_TYPE = 48,		/* EtherType behind the tags, 16 bits */
	ACL_VLAN = 32,		/* of the tag in front, 16 bits; 0: none, or priority alone */
	ACL_PROTOCOL = 16,	/* 8 bits */
	ACL_FLAGS = 8,		/* of TCP, 8 bits */
	ACL_SHOWS = 0,		/* of the next, 8 bits */
};
enum {
	ACL_HAS_PORTS = 1,	/* and flags, where the protocol is TCP */
	ACL_LATER = 2,		/* fragment that is not the first: no ports */
	ACL_OPENS = 4,		/* it may begin a flow: of TCP SYN without ACK, FIN and RST, of ICMP no answer and no error, of others every frame */
	ACL_REQUEST = 8,	/* ICMP echo; its identifier stands for both ports, */
	ACL_REPLY = 16,		/* which no rule sees without ACL_HAS_PORTS */
	ACL_ERROR = 32,		/* ICMP about a packet, which begins where the word of the ports says, in bytes of the frame */
};

#define ACL_ADDRESS_WORDS 4
#define ACL_KIND_WORD 4
#define ACL_PORTS_WORD 5
#define ACL_WORDS 6

struct acl_key {
	/* Two of the source address, two of the destination, of IPv4 the first halves; kind; source port << 16 | destination port. */
	__u64 word[ACL_WORDS];
};

/* What came of reading a frame. */
enum acl_read {
	ACL_READ,
	ACL_IS_TRUNCATED,	/* ends before what its headers promise */
	ACL_IS_BAD,		/* its headers contradict themselves */
	ACL_IS_DEEP,		/* more extension headers than were to be walked */
	ACL_IS_HIDDEN,		/* the frame has the bytes, and not where they can be read: in its second buffer */
};

enum { ACL_IPV4_SIZE = 20, ACL_IPV6_SIZE = 40, ACL_EXTENSION_SIZE = 8, ACL_TCP_SIZE = 20, ACL_UDP_SIZE = 8, ACL_ICMP_SIZE = 8 };
enum { ACL_FIN = 1, ACL_SYN = 2, ACL_RST = 4, ACL_ACK = 16 };
#define ACL_MAX_TAGS 2
#define ACL_TAG_SIZE 4

ACL_INLINE enum acl_read acl_missing(acl_frame *frame, __u32 end) { return end <= acl_length(frame) ? ACL_IS_HIDDEN : ACL_IS_TRUNCATED; }

ACL_INLINE int acl_is_extension(__u32 protocol)
{
	return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING || protocol == IPPROTO_DSTOPTS || protocol == IPPROTO_FRAGMENT;
}

ACL_INLINE int acl_has_ports(__u32 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE || protocol == IPPROTO_DCCP ||
	       protocol == IPPROTO_SCTP;
}

/* Behind the IP header: a protocol, where its header is, and where the packet ends. */
struct acl_upper {
	__u32 protocol;
	__u32 at;
	__u32 end;
	__u32 later;
};

ACL_INLINE enum acl_read acl_read_ipv4(acl_frame *frame, __u32 at, struct acl_key *key, struct acl_upper *upper)
{
	const __u8 *ip = acl_at(frame, at, ACL_IPV4_SIZE);
	__u32 size, total;

	if (!ip)
		return acl_missing(frame, at + ACL_IPV4_SIZE);
	size = (ip[0] & 0xf) * 4;
	total = acl_host16(acl_get16(ip + 2));
	if (ip[0] >> 4 != 4 || size < ACL_IPV4_SIZE || total < size)
		return ACL_IS_BAD;
	key->word[0] = acl_first_half(acl_get32(ip + 12));
	key->word[2] = acl_first_half(acl_get32(ip + 16));
	upper->protocol = ip[9];
	upper->later = acl_host16(acl_get16(ip + 6)) & 0x1fff;
	upper->at = at + size;
	upper->end = at + total;
	return upper->end > acl_length(frame) ? ACL_IS_TRUNCATED : ACL_READ;
}

/* From the first header behind that of IPv6 to the upper protocol, over at most so many extension headers. */
ACL_INLINE enum acl_read acl_walk(acl_frame *frame, __u32 extensions, struct acl_upper *upper)
{
	const __u8 *header;
	__u32 i, protocol;

	for (i = 0; i < extensions && acl_is_extension(upper->protocol); i++) {
		if (upper->at + ACL_EXTENSION_SIZE > upper->end)
			return ACL_IS_TRUNCATED;
		header = acl_at(frame, upper->at, ACL_EXTENSION_SIZE);
		if (!header)
			return acl_missing(frame, upper->at + ACL_EXTENSION_SIZE);
		protocol = upper->protocol;
		upper->protocol = header[0];
		upper->at += protocol == IPPROTO_FRAGMENT ? 8u : (header[1] + 1u) * 8;
		if (protocol == IPPROTO_FRAGMENT && acl_host16(acl_get16(header + 2)) & 0xfff8) {
			upper->later = 1; /* what is behind may look like anything */
			return ACL_READ;
		}
	}
	if (acl_is_extension(upper->protocol))
		return ACL_IS_DEEP;
	return upper->at > upper->end ? ACL_IS_BAD : ACL_READ;
}

ACL_INLINE enum acl_read acl_read_ipv6(acl_frame *frame, __u32 at, __u32 extensions, struct acl_key *key, struct acl_upper *upper)
{
	const __u8 *ip = acl_at(frame, at, ACL_IPV6_SIZE);

	if (!ip)
		return acl_missing(frame, at + ACL_IPV6_SIZE);
	if (ip[0] >> 4 != 6)
		return ACL_IS_BAD;
	key->word[0] = acl_get64(ip + 8);
	key->word[1] = acl_get64(ip + 16);
	key->word[2] = acl_get64(ip + 24);
	key->word[3] = acl_get64(ip + 32);
	upper->protocol = ip[6];
	upper->at = at + ACL_IPV6_SIZE;
	upper->end = upper->at + acl_host16(acl_get16(ip + 4));
	if (upper->end > acl_length(frame))
		return ACL_IS_TRUNCATED;
	return acl_walk(frame, extensions, upper);
}

ACL_INLINE enum acl_read acl_read_ports(acl_frame *frame, const struct acl_upper *upper, struct acl_key *key)
{
	__u32 size = upper->protocol == IPPROTO_TCP ? ACL_TCP_SIZE : ACL_UDP_SIZE;
	const __u8 *header;

	if (upper->at + size > upper->end)
		return ACL_IS_TRUNCATED;
	header = acl_at(frame, upper->at, ACL_UDP_SIZE);
	if (!header)
		return acl_missing(frame, upper->at + size);
	key->word[ACL_PORTS_WORD] = (__u64)acl_host16(acl_get16(header)) << 16 | acl_host16(acl_get16(header + 2));
	key->word[ACL_KIND_WORD] |= ACL_HAS_PORTS;
	if (upper->protocol != IPPROTO_TCP)
		return ACL_READ;
	header = acl_at(frame, upper->at, ACL_TCP_SIZE);
	if (!header)
		return acl_missing(frame, upper->at + size);
	key->word[ACL_KIND_WORD] |= (__u64)header[13] << ACL_FLAGS;
	return header[12] >> 4 < ACL_TCP_SIZE / 4 ? ACL_IS_BAD : ACL_READ;
}

ACL_INLINE __u32 acl_icmp_of(int ipv6)
{
	if (ipv6)
		return IPPROTO_ICMPV6;
	return IPPROTO_ICMP;
}

/* Of ICMP what belongs to a flow: an echo, its answer, and an error, by type (RFC 792, RFC 4443). Redirects are none: they change routes. */
ACL_INLINE __u32 acl_icmp_kind(__u32 type, int ipv6)
{
	if (ipv6)
		return type == 128 ? ACL_REQUEST : type == 129 ? ACL_REPLY : type >= 1 && type <= 4 ? ACL_ERROR : 0;
	return type == 8 ? ACL_REQUEST : type == 0 ? ACL_REPLY : type == 3 || type == 11 || type == 12 ? ACL_ERROR : 0;
}

/* One that is too short for it is of no flow, and no less a frame that rules judge. */
ACL_INLINE enum acl_read acl_read_icmp(acl_frame *frame, const struct acl_upper *upper, int ipv6, struct acl_key *key)
{
	const __u8 *header;
	__u32 kind, id;

	if (upper->at + ACL_ICMP_SIZE > upper->end)
		return ACL_READ;
	header = acl_at(frame, upper->at, ACL_ICMP_SIZE);
	if (!header)
		return acl_missing(frame, upper->at + ACL_ICMP_SIZE);
	kind = acl_icmp_kind(header[0], ipv6);
	id = acl_host16(acl_get16(header + 4));
	key->word[ACL_KIND_WORD] |= kind;
	if (kind & (ACL_REPLY | ACL_ERROR))
		key->word[ACL_KIND_WORD] &= ~(__u64)ACL_OPENS;
	if (kind & (ACL_REQUEST | ACL_REPLY))
		key->word[ACL_PORTS_WORD] = id << 16 | id;
	else if (kind == ACL_ERROR)
		key->word[ACL_PORTS_WORD] = upper->at + ACL_ICMP_SIZE;
	return ACL_READ;
}

ACL_INLINE int acl_is_tag(__u32 type) { return type == ETH_P_8021Q || type == ETH_P_8021AD; }

ACL_INLINE int acl_is_tcp(const struct acl_key *key) { return (key->word[ACL_KIND_WORD] >> ACL_PROTOCOL & 0xff) == IPPROTO_TCP; }

/* `key` comes in zeroed. */
ACL_INLINE enum acl_read acl_read(acl_frame *frame, __u32 extensions, struct acl_key *key)
{
	const __u8 *header = acl_at(frame, 0, ETH_HLEN);
	struct acl_upper upper = { 0 };
	__u32 type, flags, vlan = 0, at = ETH_HLEN, i;
	enum acl_read read = ACL_READ;

	if (!header)
		return acl_missing(frame, ETH_HLEN);
	type = acl_host16(acl_get16(header + 12));
	for (i = 0; i < ACL_MAX_TAGS && acl_is_tag(type); i++) {
		header = acl_at(frame, at, ACL_TAG_SIZE);
		if (!header)
			return acl_missing(frame, at + ACL_TAG_SIZE);
		if (i == 0)
			vlan = acl_host16(acl_get16(header)) & 0xfff;
		type = acl_host16(acl_get16(header + 2));
		at += ACL_TAG_SIZE;
	}
	key->word[ACL_KIND_WORD] = (__u64)type << ACL_TYPE | (__u64)vlan << ACL_VLAN;
	if (type == ETH_P_IP)
		read = acl_read_ipv4(frame, at, key, &upper);
	else if (type == ETH_P_IPV6)
		read = acl_read_ipv6(frame, at, extensions, key, &upper);
	else
		return ACL_READ;
	if (read != ACL_READ)
		return read;
	key->word[ACL_KIND_WORD] |= (__u64)(upper.protocol & 0xff) << ACL_PROTOCOL;
	if (upper.later) {
		key->word[ACL_KIND_WORD] |= ACL_LATER | ACL_OPENS;
		return ACL_READ;
	}
	if (acl_has_ports(upper.protocol)) {
		read = acl_read_ports(frame, &upper, key);
		flags = key->word[ACL_KIND_WORD] >> ACL_FLAGS & (ACL_FIN | ACL_SYN | ACL_RST | ACL_ACK);
		if (upper.protocol != IPPROTO_TCP || flags == ACL_SYN)
			key->word[ACL_KIND_WORD] |= ACL_OPENS;
		return read;
	}
	key->word[ACL_KIND_WORD] |= ACL_OPENS;
	if (upper.protocol == acl_icmp_of(type == ETH_P_IPV6))
		return acl_read_icmp(frame, &upper, type == ETH_P_IPV6, key);
	return ACL_READ;
}
