# SPDX-License-Identifier: BSD-3-Clause
"""What egress programs tell user space of frames: samples, and packets that are too big, whose senders are told by ICMP. From the device entry,
from in front of the redirect, and from user space. Linux's own path MTU discovery is the judge of the answers, and scapy of their bytes."""
import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import threading
import time

import pytest
from lab import WEIR, frame, mac, run, wait_until
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6, in6_chksum
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

PATCH = '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "patch"\npairs = [["p0", "p1"]]\n'
WAYS = pytest.mark.parametrize("placement, flags", [("entry", []), ("fused", []), ("fused", ["--user-only"])], ids=["entry", "fused", "user_only"])
KERNEL = pytest.mark.parametrize("placement", ["entry", "fused"])
MTU = 1400


def start(lab, egress, placement, flags=()):
    """A patch whose port p1 has this chain."""
    chain = f'name = "p1"\nplacement = "{placement}"\negress = {egress}\n'
    return lab.weir(lab.ports(2).replace('name = "p1"\n', chain) + PATCH, *flags)


def counters(weir, program):
    return next(each["counters"] for each in weir.stats()["egress"] if each["program"] == program)


@contextlib.contextmanager
def one_cpu():
    """What this process sends is received, and counted, on the CPU that it runs on."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def stopped(weir):
    """Nobody reads the rings meanwhile; the kernel forwards."""
    weir.process.popen.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        weir.process.popen.send_signal(signal.SIGCONT)


@WAYS
def test_every_nth_frame_is_shown_with_its_devices_and_its_time(lab, placement, flags):
    left, right = lab.wires()
    weir = start(lab, '[{ program = "sample", n = 4, snap_bytes = 40 }]', placement, flags)
    sent = [frame(mac(1), mac(2), bytes([number]) * (60 + number)) for number in range(1, 23)]
    before = time.time_ns()
    with one_cpu():
        for raw in sent:
            left.send(raw)
        assert right.hear(len(sent)) == sent
    shown = weir.ask("egress", "samples")
    devices = {each["ifname"]: each["ifindex"] for each in json.loads(lab.switch.run("ip", "-j", "link").stdout)}
    assert [each["bytes"] for each in shown["samples"]] == [raw[:40].hex() for raw in sent[3::4]]
    assert [each["length"] for each in shown["samples"]] == [len(raw) for raw in sent[3::4]]
    for number, each in enumerate(shown["samples"], 1):
        assert (each["number"], each["path"], each["place"]) == (number, "user" if flags else "kernel", 0)
        assert (each["in"], each["out"]) == ({"port": "p0", "ifindex": devices["p0"]}, {"port": "p1", "ifindex": devices["p1"]})
        assert before < each["time_ns"] < time.time_ns()
    assert shown["read"] == 5
    assert counters(weir, "sample") == {"sampled": 5, "lost": 0}
    text = run(WEIR, "egress", "samples", "--instance", weir.name).stdout
    assert len(text.splitlines()) == 6 and sent[3][:40].hex() in text


@KERNEL
def test_a_sample_for_which_the_ring_is_full_is_lost_and_counted(lab, placement):
    left, right = lab.wires()
    weir = start(lab, '[{ program = "sample", n = 1, snap_bytes = 2048 }]', placement)
    sent = [frame(mac(1), mac(2), number.to_bytes(2, "big") * 600) for number in range(700)]
    with stopped(weir):
        for at in range(0, len(sent), 50):
            for raw in sent[at:at + 50]:
                left.send(raw)
            assert right.hear(50) == sent[at:at + 50]
    shown = weir.ask("egress", "samples")
    counted = counters(weir, "sample")
    assert counted["sampled"] + counted["lost"] == 700 and counted["lost"] > 100 and counted["sampled"] == shown["read"]
    assert [each["number"] for each in shown["samples"]] == list(range(shown["read"] - 255, shown["read"] + 1))
    assert [each["bytes"] for each in shown["samples"]] == [raw.hex() for raw in sent[shown["read"] - 256:shown["read"]]]
    left.send(sent[0])
    assert wait_until(lambda: weir.ask("egress", "samples")["read"] == shown["read"] + 1, "the ring has room again")


def test_samples_of_a_chain_that_is_replaced_stay(lab):
    left, right = lab.wires()
    weir = start(lab, '[{ program = "sample", n = 1 }]', "fused")
    left.send(frame(mac(1), mac(2), b"one"))
    right.hear(1)
    weir.ask("egress", "set", "p1", "count", "sample,n=1,snap_bytes=20")
    left.send(frame(mac(1), mac(2), b"other"))
    right.hear(1)
    shown = weir.ask("egress", "samples")["samples"]
    assert [(each["place"], len(each["bytes"]) // 2) for each in shown] == [(0, 60), (1, 20)]


GUARD = f'[{{ program = "mtu_guard", mtu = {MTU}, answer = true }}]'


def let_the_switch_answer(lab):
    """What a device whose frames are all forwarded needs beside, since its host's stack hears no neighbour."""
    lab.switch.run("sysctl", "-qw", "net.ipv6.conf.p0.disable_ipv6=0")
    lab.switch.run("ip", "addr", "add", "10.9.0.254/24", "dev", "p0")
    lab.switch.run("ip", "addr", "add", "fd09::fe/64", "dev", "p0", "nodad")
    for address in ("10.9.0.1", "fd09::1"):
        lab.switch.run("ip", "neigh", "replace", address, "lladdr", mac(1), "dev", "p0", "nud", "permanent")


def transfer(lab, address, content, seconds):
    """The content by TCP from one host to the other; what has arrived within the time."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listening = lab.hosts[1].inside(lambda: socket.create_server((address, 0), family=family))
    sending = lab.hosts[0].inside(lambda: socket.create_connection(listening.getsockname()[:2], timeout=5))
    receiving, _ = listening.accept()
    receiving.settimeout(0.1)
    sending.settimeout(seconds)

    def send():
        with contextlib.suppress(OSError):
            sending.sendall(content)
            sending.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send)
    thread.start()
    got, deadline = b"", time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(TimeoutError):
            piece = receiving.recv(1 << 16)
            if not piece:
                break
            got += piece
    sending.close()
    thread.join()
    for each in (receiving, listening):
        each.close()
    return got


def path_mtu(lab, address):
    return json.loads(lab.hosts[0].run("ip", "-j", "route", "get", address).stdout)[0].get("metrics", [{}])[0].get("mtu")


@WAYS
def test_a_ping_that_is_too_long_is_told_the_mtu(lab, placement, flags):
    let_the_switch_answer(lab)
    weir = start(lab, GUARD, placement, flags)
    said = lab.hosts[0].run("ping", "-M", "do", "-c", 1, "-W", 2, "-s", MTU - 27, "10.9.0.2", check=False).stdout
    assert f"From 10.9.0.254 icmp_seq=1 Frag needed and DF set (mtu = {MTU})" in said
    said = lab.hosts[0].run("ping", "-M", "do", "-c", 1, "-W", 2, "-s", MTU - 47, "fd09::2", check=False).stdout
    assert f"From fd09::fe icmp_seq=1 Packet too big: mtu={MTU}" in said
    assert (path_mtu(lab, "10.9.0.2"), path_mtu(lab, "fd09::2")) == (MTU, MTU)
    for length, address in ((MTU - 28, "10.9.0.2"), (MTU - 48, "fd09::2")):
        assert "1 received" in lab.hosts[0].run("ping", "-M", "do", "-c", 1, "-W", 2, "-s", length, address).stdout
    assert counters(weir, "mtu_guard") == {"told": 2, "lost": 0, "answered": 2, "unfit": 0, "limited": 0, "unsent": 0}
    assert weir.drops()[("egress p1 mtu_guard", "too_long")] == 2


@WAYS
@pytest.mark.parametrize("address", ["10.9.0.2", "fd09::2"], ids=["v4", "v6"])
def test_tcp_finds_the_mtu_of_the_path(lab, placement, flags, address):
    let_the_switch_answer(lab)
    weir = start(lab, GUARD, placement, flags)
    content = random.Random(1).randbytes(1 << 20)
    assert hashlib.sha256(transfer(lab, address, content, 10)).digest() == hashlib.sha256(content).digest()
    assert path_mtu(lab, address) == MTU
    counted = counters(weir, "mtu_guard")
    assert counted["answered"] > 0 and counted["told"] == counted["answered"] + counted["limited"]


def test_without_an_answer_tcp_finds_nothing(lab):
    let_the_switch_answer(lab)
    start(lab, GUARD.replace("true", "false"), "fused")
    content = bytes(1 << 20)
    assert len(transfer(lab, "10.9.0.2", content, 1)) < len(content)


def ones_complement_sum_is_right(raw):
    total = sum(int.from_bytes(raw[at:at + 2].ljust(2, b"\0"), "big") for at in range(0, len(raw), 2))
    return total % 0xFFFF == 0


def judge4(answer, packet):
    """An answer as RFC 1812 and RFC 1191 have it."""
    outer = Ether(answer)[IP]
    assert (outer.src, outer.dst, outer.len, outer.tos) == ("10.9.0.254", "10.9.0.1", 576, 0xC0)
    icmp = bytes(outer)[20:outer.len]
    assert ones_complement_sum_is_right(bytes(outer)[:20]) and ones_complement_sum_is_right(icmp)
    assert (outer[ICMP].type, outer[ICMP].code, outer[ICMP].nexthopmtu) == (3, 4, MTU)
    assert icmp[8:] == packet[:548]


def judge6(answer, packet):
    outer = Ether(answer)[IPv6]
    assert (outer.src, outer.dst, outer.plen) == ("fd09::fe", "fd09::1", 1240)
    assert outer[ICMPv6PacketTooBig].mtu == MTU
    assert in6_chksum(58, outer, bytes(outer)[40:]) == 0
    assert bytes(outer)[48:] == packet[:1232]


@WAYS
def test_scapy_finds_the_packet_in_the_answer(lab, placement, flags):
    left, _ = lab.wires()
    let_the_switch_answer(lab)
    weir = start(lab, GUARD, placement, flags)
    left.waiting()
    link = Ether(src=mac(1), dst=mac(2))
    four = IP(src="10.9.0.1", dst="10.9.0.2", flags="DF") / UDP(sport=1, dport=2) / Raw(os.urandom(MTU - 27))
    six = IPv6(src="fd09::1", dst="fd09::2") / UDP(sport=1, dport=2) / Raw(os.urandom(MTU - 47))
    for tags in ([], [Dot1Q(vlan=7)], [Dot1Q(vlan=8), Dot1Q(vlan=7)]):
        for packet, judge, kind in ((four, judge4, ICMP), (six, judge6, ICMPv6PacketTooBig)):
            whole = link.copy()
            for tag in tags:
                whole /= tag
            left.send(bytes(whole / packet))
            answers = wait_until(lambda kind=kind: [each for each in left.hear(1, 0.1) if kind in Ether(each)], "an answer comes")
            judge(answers[0], bytes(packet))
    assert counters(weir, "mtu_guard")["answered"] == 6


@KERNEL
def test_answers_are_limited(lab, placement):
    left, _ = lab.wires()
    let_the_switch_answer(lab)
    weir = start(lab, GUARD, placement)
    packet = IP(src="10.9.0.1", dst="10.9.0.2", flags="DF") / UDP(sport=1, dport=2) / Raw(bytes(MTU))
    raw = bytes(Ether(src=mac(1), dst=mac(2)) / packet)
    with stopped(weir):
        for _ in range(300):
            left.send(raw)
    wait_until(lambda: weir.settled(300), "the frames are through")
    counted = counters(weir, "mtu_guard")
    assert counted["told"] == 300 == counted["answered"] + counted["limited"]
    assert 50 <= counted["answered"] < 250
    assert weir.drops()[("egress p1 mtu_guard", "too_long")] == 300


@WAYS
def test_there_is_no_answer_where_one_would_be_wrong(lab, placement, flags):
    left, _ = lab.wires()
    let_the_switch_answer(lab)
    weir = start(lab, GUARD, placement, flags)
    left.waiting()
    link, load = Ether(src=mac(1), dst=mac(2)), UDP(sport=1, dport=2) / Raw(bytes(MTU))
    wrong = [
        link / IP(src="10.9.0.1", dst="10.9.0.2") / load,
        link / IP(src="10.9.0.1", dst="10.9.0.2", flags="DF", frag=10) / load,
        link / IP(src="10.9.0.1", dst="224.0.0.5", flags="DF") / load,
        Ether(src=mac(1), dst="ff:ff:ff:ff:ff:ff") / IP(src="10.9.0.1", dst="10.9.0.2", flags="DF") / load,
        link / IP(src="127.0.0.1", dst="10.9.0.2", flags="DF") / load,
        link / IP(src="10.9.0.1", dst="10.9.0.2", flags="DF", chksum=1) / load,
        link / IP(src="10.9.0.1", dst="10.9.0.2", flags="DF", len=100) / load,
        link / IP(src="10.9.0.1", dst="10.9.0.2", flags="DF") / ICMP(type=3, code=1) / Raw(bytes(MTU)),
        link / IPv6(src="fd09::1", dst="ff02::1") / load,
        link / IPv6(src="::", dst="fd09::2") / load,
        link / IPv6(src="fd09::1", dst="fd09::2") / ICMPv6PacketTooBig(mtu=1280) / Raw(bytes(MTU)),
    ]
    for packet in wrong:
        left.send(bytes(packet))
    wait_until(lambda: weir.settled(len(wrong)), "the frames are through")
    counted = counters(weir, "mtu_guard")
    assert (counted["told"], counted["unfit"], counted["answered"]) == (len(wrong), len(wrong), 0)
    assert [each for each in left.waiting() if ICMP in Ether(each) or ICMPv6PacketTooBig in Ether(each)] == []


@WAYS
def test_there_is_no_answer_to_what_is_in_a_tunnel(lab, placement, flags):
    left, _ = lab.wires()
    let_the_switch_answer(lab)
    chain = GUARD.replace("[", '[{ program = "encap_ipip", local = "10.9.0.254", remote = "10.9.0.2" }, ')
    weir = start(lab, chain, placement, flags)
    left.send(bytes(Ether(src=mac(1), dst=mac(2)) / IP(src="10.9.0.1", dst="10.9.0.2", flags="DF") / UDP() / Raw(bytes(MTU - 28))))
    wait_until(lambda: weir.settled(1), "the frame is through")
    assert counters(weir, "mtu_guard") == {"told": 1, "lost": 0, "answered": 0, "unfit": 1, "limited": 0, "unsent": 0}


@WAYS
def test_an_answer_that_the_stack_does_not_take_is_counted(lab, placement, flags):
    left, _ = lab.wires()
    weir = start(lab, GUARD, placement, flags)
    left.send(bytes(Ether(src=mac(1), dst=mac(2)) / IP(src="10.9.0.1", dst="10.9.0.2", flags="DF") / UDP() / Raw(bytes(MTU))))
    wait_until(lambda: counters(weir, "mtu_guard")["unsent"] == 1, "there is no route")
