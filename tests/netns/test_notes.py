# SPDX-License-Identifier: BSD-3-Clause
"""What egress programs tell user space of frames: samples. From the device entry, from in front of the
redirect, and from user space."""
import contextlib
import json
import os
import signal
import time

import pytest
from lab import frame, mac, run, wait_until, WEIR

PATCH = '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "patch"\npairs = [["p0", "p1"]]\n'
WAYS = pytest.mark.parametrize("placement, flags", [("entry", []), ("fused", []), ("fused", ["--user-only"])], ids=["entry", "fused", "user_only"])
KERNEL = pytest.mark.parametrize("placement", ["entry", "fused"])


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
