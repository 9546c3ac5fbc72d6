# SPDX-License-Identifier: BSD-3-Clause
"""scenario: what holds on every kernel that weir runs on: one laboratory, and weir in each way of running. Guests run it (guest.py); given to
pytest by its name, it runs on the host's own kernel."""
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "netns"))

import lab as labs
from lab import Lab, frame, mac, ping
from test_start import everything

PATIENCE_S = 60  # a guest's CPU is slow, and shared
wait_until = labs.wait_until
labs.wait_until = lambda claim, what, timeout=0: wait_until(claim, what, max(timeout, PATIENCE_S))

SWITCH = '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "l2_switch"\n'
CHAIN = '["count", { program = "mac_rewrite", src = "02:00:00:00:0f:01" }]'
BROADCAST = "ff:ff:ff:ff:ff:ff"
WAYS = [(mode, flags) for mode in ("native", "generic") for flags in ([], ["--user-only"])]


@pytest.fixture(scope="module")
def lab():
    made = Lab(3)
    yield made
    wrong = made.close()
    assert not wrong, "\n".join(wrong)


def test_redirects_outlive_the_process_and_the_next_start_adopts_them(lab):
    was = everything(lab)
    weir = lab.weir(lab.ports(3, egress=CHAIN) + SWITCH)
    one = lab.hosts[0]
    assert ping(one, "10.9.0.2") == 3
    weir.kill()
    assert ping(one, "10.9.0.2") == 3
    weir.start()
    assert ping(one, "10.9.0.2") == 3
    weir.conserved()
    weir.stop()
    assert everything(lab) == was


def test_a_driver_without_native_mode_falls_back(lab):
    lab.switch.run("ip", "link", "add", "br9", "type", "bridge")
    lab.switch.run("ip", "link", "set", "br9", "up")
    weir = lab.weir(lab.ports(2).replace('device = "p1"', 'device = "br9"') + SWITCH)
    assert [port["mode"] for port in weir.stats()["ports"]] == ["native", "generic"]
    weir.stop()


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: "-".join([way[0], *way[1]]).replace("--user-only", "user_only"))
def running(request, lab):
    """weir in one way of running, for all the tests that ask for it; the last of them stops it."""
    mode, flags = request.param
    was = everything(lab)
    weir = lab.weir(lab.ports(3, mode=f'"{mode}"', egress=CHAIN) + SWITCH, *flags)
    weir.mode, weir.was, weir.user_only = mode, was, bool(flags)
    yield weir
    if weir.process.popen.poll() is None:
        weir.stop()


def total(now, *keys):
    """Of all ports in the stats; "user.KEY" is of their user side."""
    found = 0
    for port in now["ports"]:
        for key in keys:
            found += port["user"][key.removeprefix("user.")] if key.startswith("user.") else port[key]
    return found


def test_hosts_talk(lab, running):
    one, two, _ = lab.hosts
    assert ping(one, "10.9.0.2") == 3
    assert ping(two, "fd09::3") == 3
    now = running.stats()
    assert {port["mode"] for port in now["ports"]} == {running.mode}
    if running.user_only:
        assert total(now, "tx_kernel") == 0 and total(now, "tx_user") >= 12
    else:
        assert total(now, "tx_kernel") >= 8, "all but the first ones, which are learned from, and floods in generic mode"


def test_a_broadcast_reaches_all_others_through_their_egress_chains(lab, running):
    wires = [host.tap("eth0") for host in lab.hosts]
    for number in range(3):
        wires[0].send(frame(mac(0x11), BROADCAST, bytes([number])))
        for wire in wires[1:]:
            assert wire.hear_of(frame("02:00:00:00:0f:01", BROADCAST, bytes([number])), PATIENCE_S)
    now = running.stats()
    if not running.user_only:
        for entry in running.ask("devmap", "list")["ports"]:
            assert len(entry["chain"]) > 1 and len({program["id"] for program in entry["chain"]}) == 1, "a chain is one program"
    if running.user_only or running.mode == "generic":
        assert total(now, "flood") == 0 and total(now, "user.flood") >= 3, "generic mode's clones share the bytes that a chain may write"
    else:
        assert total(now, "flood") >= 2, "all but the first one, which is learned from"


def test_the_host_stack_gets_its_frames_as_they_came(lab, running):
    wire, stack = lab.hosts[0].tap("eth0"), lab.switch.tap("p0")
    sent = [frame(mac(0x11), "01:80:c2:00:00:03", number.to_bytes(2, "big") + bytes(number * 131 % 1400)) for number in range(40)]
    for raw in sent:
        wire.send(raw)
    assert stack.hear(len(sent), PATIENCE_S) == sent
    now = running.stats()
    assert total(now, "user.to_stack" if running.user_only else "to_stack") == len(sent)
    assert total(now, "to_stack", "user.to_stack") == len(sent), "generic mode shows such a frame again: it must not count as another"


def test_every_frame_is_accounted_for_and_a_stop_leaves_nothing(lab, running):
    now = running.conserved()
    assert [drop for drop in now["drops"] if drop["frames"]] == []
    for port in ("p0", "p1", "p2"):
        count, mac_rewrite = (program["frames"] for program in now["egress"] if program["port"] == port)
        assert count == mac_rewrite > 0
    running.stop()
    assert everything(lab) == running.was
