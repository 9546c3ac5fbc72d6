# SPDX-License-Identifier: BSD-3-Clause
"""Rule 1: the user half is the function. The same frames in give the same frames out with kernel halves on and off."""
import os
import pathlib
import random

import pytest
from lab import frame, mac, wait_until
from scapy.utils import rdpcap

HERE = pathlib.Path(__file__).resolve().parent
DATA = HERE.parent / "data"
SWITCH = '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "l2_switch"\n'
PATCH = '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "patch"\npairs = [["p0", "p1"]]\n'
CHAIN = '["count", { program = "mac_rewrite", src = "02:00:00:00:0f:01" }]'


def random_frames(seed, number):
    """Frames of few stations, so that they find each other: all sizes, VLAN tags, garbage EtherTypes, truncated headers."""
    dice = random.Random(seed)
    frames = []
    for _ in range(number):
        port = dice.randrange(3)
        source = mac(0x10 * (port + 1) + dice.randrange(3)) if dice.random() < 0.97 else mac(0x10 + dice.randrange(0x30))
        destination = dice.choice([mac(0x10 + dice.randrange(0x33)), "ff:ff:ff:ff:ff:ff", "33:33:00:00:00:01"])
        ethertype = dice.choice([0x0800, 0x86DD, 0x0806, 0x88B5, 0x8100, 0x88A8, 0x0000, dice.randrange(65536)])
        # A tag that is the first thing in a frame is taken out of it by the kernel's packet sockets: here the second one shows.
        payload = dice.randbytes(dice.choice([0, 1, 19, 39, 46, 200, 1000, 1500]))
        if ethertype in (0x8100, 0x88A8):
            payload = payload[:1496]
        raw = frame(source, destination, payload, ethertype)
        frames.append((port, raw))
    return frames


def captured_frames():
    """Frames that other software sent, from a capture file: out of the ports in turn."""
    return [(number % 3, bytes(packet)) for number, packet in enumerate(rdpcap(str(DATA / "conversation.pcap")))]


def play(lab, weir, wires, frames):
    """Sends frame by frame, each when the one before has come out everywhere: a frame that is punted may be overtaken by later ones
    of other stations, and then the order would differ though nothing else does. What each port heard."""
    heard = [[] for _ in wires]
    before = sum(port["rx"] for port in weir.stats()["ports"])
    for sent, (port, raw) in enumerate(frames, 1):
        wires[port].send(raw)
        wait_until(lambda: weir.settled(before + 2 * sent - 1), "the frame is through", 5)
        # A broadcast from a station of its own is behind everything that was sent to a port before it.
        marker = frame(mac(0xF0 + port), "ff:ff:ff:ff:ff:ff", b"end")
        wires[port].send(marker)
        for number, wire in enumerate(wires):
            while number != port and (not heard[number] or heard[number][-1][14:] != marker[14:]):
                more = wire.hear(1)
                assert more, f"port {number} does not hear the marker behind {raw.hex()} from port {port}"
                heard[number] += more
            if number != port:
                heard[number].pop()
        heard[port] += wires[port].waiting()
    return heard


def outcome(make_lab, frames, flags, egress):
    lab = make_lab(3)
    wires = lab.wires()
    weir = lab.weir(lab.ports(3, egress=egress) + SWITCH, *flags)
    heard = play(lab, weir, wires, frames)
    now = weir.conserved()
    drops = {(drop["where"], drop["reason"]): drop["frames"] for drop in now["drops"]}
    counted = [(program["port"], program["program"], program["frames"], program["counters"]) for program in now["egress"]]
    weir.stop()
    return heard, drops, counted


@pytest.mark.parametrize("egress", ["[]", '["count"]', CHAIN], ids=["bare", "count", "chain"])
def test_random_frames_come_out_the_same(make_lab, egress):
    seed = int(os.environ.get("WEIR_TEST_SEED", random.randrange(1 << 32)))
    print(f"seed {seed}")
    frames = random_frames(seed, 300)
    kernel, user = outcome(make_lab, frames, [], egress), outcome(make_lab, frames, ["--user-only"], egress)
    assert kernel[0] == user[0]
    assert kernel[1] == user[1]
    assert kernel[2] == user[2]
    assert sum(len(each) for each in kernel[0]) > 200


def test_a_capture_of_other_software_comes_out_the_same(make_lab):
    frames = captured_frames()
    assert len(frames) > 50
    kernel, user = outcome(make_lab, frames, [], '["count"]'), outcome(make_lab, frames, ["--user-only"], '["count"]')
    assert kernel == user


@pytest.mark.parametrize("flags", [[], ["--user-only"]], ids=["kernel", "user_only"])
def test_patch_changes_nothing(lab, flags):
    seed = int(os.environ.get("WEIR_TEST_SEED", random.randrange(1 << 32)))
    print(f"seed {seed}")
    left, right = lab.wires()
    weir = lab.weir(lab.ports(2) + PATCH, *flags)
    sent = [raw for _, raw in random_frames(seed, 500)]
    for wire, other in ((left, right), (right, left)):
        heard = []
        for start in range(0, len(sent), 50):
            for raw in sent[start:start + 50]:
                wire.send(raw)
            heard += other.hear(50)
        assert heard == sent
    weir.conserved()
