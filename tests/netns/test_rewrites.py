# SPDX-License-Identifier: BSD-3-Clause
"""Rule 2: a frame leaves through the same egress programs whichever path it took. Thousands of frames through each program and through chains,
by the kernel's redirect and by user space: the same bytes, counters and drops. scapy makes the frames and judges what comes out."""
import os
import pathlib
import random

import pytest
from lab import mac, wait_until
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

PATCH = '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "patch"\npairs = [["p0", "p1"]]\n'
CHAINS = {
    "count": '["count"]',
    "mac_rewrite": '[{ program = "mac_rewrite", src = "02:00:00:00:00:66", dst = "02:00:00:00:00:77" }]',
    "vlan_push": '[{ program = "vlan_push", vid = 100 }]',
    "vlan_pop": '["vlan_pop"]',
    "vlan_rewrite": '[{ program = "vlan_rewrite", vid = 7, pcp = 3, tpid = "802.1ad" }]',
    "ttl": '["ttl"]',
    "dscp": '[{ program = "dscp", set = 46, map = [{ from = 0, to = 10 }] }]',
    "mtu_guard": '[{ program = "mtu_guard", mtu = 1400 }]',
    "told": '[{ program = "mtu_guard", mtu = 1300, answer = true }]',
    "sample": '[{ program = "sample", n = 1 }]',
    "ipip": '[{ program = "encap_ipip", local = "192.0.2.1", remote = "198.51.100.1" }]',
    "vxlan": '[{ program = "encap_vxlan", vni = 5, local = "192.0.2.1", remote = "198.51.100.1", src = "02:00:00:00:00:66",'
             ' dst = "02:00:00:00:00:77" }]',
    "filter": '[{ program = "filter", rules = [{ action = "drop", protocol = "icmp" }, { action = "permit", dport = "2-7", dst = "10.0.0.0/8" },'
              ' { action = "drop", src = "fd00::/64", protocol = "tcp", sport = 1 }] }]',
    "police": '[{ program = "police", cir_bps = 1, burst_bytes = 50_000, excess_bytes = 50_000, yellow = "remark", yellow_dscp = 12, red = "remark",'
              ' red_dscp = 14 }]',
    "router": '["ttl", { program = "dscp", set = 10 }, { program = "mac_rewrite", src = "02:00:00:00:00:66" }, { program = "vlan_push", vid = 100 }]',
    "eight": '["count", "vlan_pop", "ttl", { program = "vlan_push", vid = 1 }, { program = "vlan_rewrite", vid = 2, pcp = 7 },'
             ' { program = "mac_rewrite", src = "02:00:00:00:00:66" }, { program = "dscp", set = 1 }, "count"]',
}
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
NUMBER = 1000
BATCH = 100  # a veth holds 256


def random_frame(dice):
    """v4 and v6, tagged once, twice or not, with options, fragments, expiring TTLs, wrong checksums; cut, or not IP at all."""
    packet = Ether(src=mac(1), dst=mac(2))
    for _ in range(dice.choice([0, 0, 1, 2, 3])):
        packet /= dice.choice([Dot1Q, Dot1AD])(vlan=dice.randrange(4096), prio=dice.randrange(8))
    ttl, tos = dice.choice([0, 1, 2, 64, 255]), dice.randrange(256)
    kind = dice.randrange(8)
    if kind < 4:
        packet /= IP(src="10.0.0.1", dst="10.0.0.2", ttl=ttl, tos=tos, id=dice.randrange(65536),
                     options=[IPOption_NOP()] * 4 if dice.random() < 0.2 else [], frag=dice.choice([0, 0, 0, 185]),
                     **({"chksum": dice.randrange(65536)} if dice.random() < 0.1 else {}))
    elif kind < 7:
        packet /= IPv6(src="fd00::1", dst="fd00::2", hlim=ttl, tc=tos, fl=dice.randrange(1 << 20))
        if dice.random() < 0.2:
            packet /= IPv6ExtHdrFragment(id=dice.randrange(1 << 32), offset=100)
    else:
        packet /= ARP()
    if kind < 7:
        packet /= dice.choice([UDP(sport=1, dport=2), TCP(sport=1, dport=2), ICMP()])
    raw = bytes(packet / Raw(dice.randbytes(dice.choice([0, 1, 18, 100, 1400]))))
    if dice.random() < 0.2:
        raw = raw[:dice.randrange(14, len(raw) + 1)]
    # The kernel's packet sockets send no tagged frame whose tag is cut, and no frame that is longer than the device takes.
    return raw[:1514]


# What it carries no random frame does, and every chain lets it through.
MARK = b"that was the last frame"
LAST = bytes(Ether(src=mac(1), dst=mac(2)) / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=1, dport=2) / Raw(MARK))


def play(lab, frames, egress, flags, placement="auto"):
    """What comes out of the other port, LAST behind it, what the programs counted, and what was dropped."""
    left, right = lab.wires()
    weir = lab.weir(lab.ports(2).replace('name = "p1"\n', f'name = "p1"\nplacement = "{placement}"\negress = {egress}\n') + PATCH, *flags)
    heard = []
    if "--user-only" not in flags:
        chain = weir.ask("devmap", "list")["ports"][1]["chain"]
        assert len({program["id"] for program in chain}) == 1, "one program in the kernel"
    for start in range(0, len(frames), BATCH):
        for raw in frames[start:start + BATCH]:
            left.send(raw)
        wait_until(lambda end=start + BATCH: weir.settled(min(end, len(frames))), "the frames are through")
        heard += right.waiting()
    left.send(LAST)
    wait_until(lambda: weir.settled(len(frames) + 1), "the last frame is through")
    now = weir.conserved()
    heard += right.hear_up_to(MARK)
    # The stack that hears them drops a frame that ends right behind a VLAN tag (net/core/skbuff.c, skb_vlan_untag), and no other.
    lost = now["ports"][1]["tx_kernel"] + now["ports"][1]["tx_user"] - len(heard)
    assert 0 <= lost <= sum(ends_behind_a_tag(raw) for raw in frames), "every frame that was sent is heard"
    drops = {(drop["where"], drop["reason"]): drop["frames"] for drop in now["drops"]}
    counted = [(program["program"], program["frames"], program["drop"], program["counters"]) for program in now["egress"]]
    weir.stop()
    return heard, drops, counted


def ends_behind_a_tag(raw):
    """Whether so little is behind one of its tags that it may end there, once a chain has taken others off or put one on."""
    at, cut = 12, False
    while raw[at:at + 2] in (b"\x81\x00", b"\x88\xa8"):
        at += 4
        cut = cut or len(raw) < at + 4
    return cut or len(raw) < 16


def has_right_checksum(raw):
    """Whether scapy computes the IPv4 header checksum that the frame has; True for what is not IPv4."""
    packet = Ether(raw)
    if IP not in packet or len(bytes(packet[IP])) < packet[IP].ihl * 4:
        return True
    given = packet[IP].chksum
    header = bytes(packet[IP])[:packet[IP].ihl * 4]
    fresh = IP(header)
    del fresh.chksum
    return IP(bytes(fresh)).chksum == given


@pytest.mark.parametrize("flags", [[], ["--user-only"]], ids=["kernel", "user_only"])
def test_the_example_of_a_trunk_tags_and_untags(lab, flags):
    text = (ROOT / "config" / "trunk.toml").read_text().replace('"eth0"', '"p0"').replace('"eth1"', '"p1"')
    access, trunk = lab.wires()
    weir = lab.weir(text.replace('[weir]\nname = "trunk"\n', "", 1), *flags)
    inner = IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=1, dport=2) / Raw(b"water" * 8)
    access.send(bytes(Ether(src=mac(1), dst=mac(2)) / inner))
    raw, = trunk.hear(1)
    packet = Ether(raw)
    assert (packet[Dot1Q].vlan, packet[Dot1Q].prio, packet[IP].tos, bytes(packet[Raw])) == (100, 5, 46 << 2, b"water" * 8)
    assert has_right_checksum(raw)
    back = Ether(src=mac(2), dst=mac(1)) / Dot1Q(vlan=100) / inner
    trunk.send(bytes(back))
    assert access.hear(1) == [bytes(Ether(src=mac(2), dst=mac(1)) / inner)]
    weir.conserved()


@pytest.mark.parametrize("name", CHAINS)
def test_all_paths_give_the_same_bytes_counters_and_drops(make_lab, name):
    """In front of the redirect, on the device entry, and in user space."""
    seed = int(os.environ.get("WEIR_TEST_SEED", random.randrange(1 << 32)))
    print(f"seed {seed}")
    dice = random.Random(seed)
    frames = [random_frame(dice) for _ in range(NUMBER)]
    if name == "police":  # a bit a second makes the difference to the next size in minutes, however slow a way is
        frames = [raw[:64 * (1514 // 64)] for raw in frames]
        frames = [raw + bytes(-len(raw) % 64) for raw in frames]
    ways = {"fused": ("fused", []), "entry": ("entry", []), "user space": ("auto", ["--user-only"])}
    played = {way: play(make_lab(2), frames, CHAINS[name], flags, placement) for way, (placement, flags) in ways.items()}
    kernel = played.pop("fused")
    assert len(kernel[0]) > NUMBER // 4
    for way, other in played.items():
        for number, (one, another) in enumerate(zip(kernel[0], other[0])):
            assert one == another, f"frame {number} that comes out, fused and of {way}"
        assert kernel == other, way
    wrong = sum(not has_right_checksum(raw) for raw in kernel[0])
    sent_wrong = sum(not has_right_checksum(raw) for raw in frames)
    assert wrong <= sent_wrong, "a program spoilt a checksum"


def test_scapy_finds_the_frame_that_was_sent_in_the_tunnel(make_lab):
    inner = IP(src="10.0.0.1", dst="10.0.0.2", tos=46 << 2 | 1) / UDP(sport=1, dport=2) / Raw(bytes(40))
    inner6 = IPv6(src="fd00::1", dst="fd00::2", tc=46 << 2 | 1) / UDP(sport=1, dport=2) / Raw(bytes(40))
    sent = [bytes(Ether(src=mac(1), dst=mac(2)) / Dot1Q(vlan=7) / packet) for packet in (inner, inner6)]
    heard, _, _ = play(make_lab(2), sent, CHAINS["ipip"], [])
    for raw, packet, proto in zip(heard[:-1], (inner, inner6), (4, 41), strict=True):
        outer = Ether(raw)[IP]
        assert has_right_checksum(raw)
        assert (outer.src, outer.dst, outer.proto, outer.tos, outer.ttl, outer.flags) == ("192.0.2.1", "198.51.100.1", proto, 46 << 2 | 1, 64, "DF")
        assert (Ether(raw)[Dot1Q].vlan, outer.payload.original) == (7, bytes(packet))
    heard, _, _ = play(make_lab(2), sent, CHAINS["vxlan"], [])
    for raw, frame in zip(heard[:-1], sent, strict=True):
        outer = Ether(raw)
        assert has_right_checksum(raw)
        assert (outer.dst, outer[IP].src, outer[IP].dst, outer[IP].tos) == ("02:00:00:00:00:77", "192.0.2.1", "198.51.100.1", 46 << 2 | 1)
        assert (outer[IP].len, outer[UDP].len, outer[UDP].dport, outer[UDP].chksum) == (len(raw) - 14, len(raw) - 34, 4789, 0)
        assert outer[UDP].sport >= 49152
        assert (outer[VXLAN].vni, outer[VXLAN].payload.original) == (5, frame)
