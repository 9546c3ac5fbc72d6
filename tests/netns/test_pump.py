# SPDX-License-Identifier: BSD-3-Clause
"""Frames of user space that leave by a pump: the same frames, in the same order, with the same sums; and what is said where there is none."""
import contextlib
import os
import pathlib
import random
import secrets
import threading
import time

import pytest
from lab import WEIR, iperf, wait_until
from test_drops import PATCH, numbered, of_length, send

PUMP = {"tx": '"pump"'}
AUTO = {"tx": '"auto"'}
CHAINS = {"bare": "[]", "count": '["count"]', "longer": '[{ program = "vlan_push", vid = 100 }]',
          "shorter": '["vlan_pop"]'}


def tagged(raw):
    return raw[:12] + bytes.fromhex("81000007") + raw[12:]


def starts(lab, *flags, **keys):
    """weir on a lab whose hosts are silent, and the wires."""
    wires = lab.wires()
    return wires, lab.weir(lab.ports(2, **keys) + PATCH, "--user-only", *flags)


def out(weir, port="p1"):
    return weir.port(port)["tx"]


@pytest.mark.parametrize("size", [2048, 4096])
def test_frames_of_every_length_leave_as_they_are(lab, size):
    wires = lab.wires()
    weir = lab.weir(f"[frames]\nsize = {size}\n" + lab.ports(2, **PUMP) + PATCH, "--user-only")
    seed = secrets.token_hex(4)
    print("seed", seed)
    chance = random.Random(seed)
    sent = [of_length(14) + chance.randbytes(length - 14) for length in range(14, 1515)]
    send(lab, wires, 0, sent)
    assert wires[1].hear(len(sent)) == sent
    now = weir.conserved()
    assert now["ports"][1]["tx_user"] == len(sent)
    assert now["ports"][1]["tx"]["by"] == "pump"
    assert now["ports"][1]["tx"]["frames"] == {"pump": len(sent), "af_xdp": 0}
    assert [drop for drop in now["drops"] if drop["frames"]] == []


def test_a_frame_longer_than_a_page_allows_goes_by_the_socket(make_lab):
    lab = make_lab(2, mtu=3490)
    wires = lab.wires()
    weir = lab.weir("[frames]\nsize = 4096\n" + lab.ports(2, **PUMP) + PATCH, "--user-only")
    sent = [of_length(length, number) for number in range(40) for length in (60, 3408, 3409, 3500)]
    send(lab, wires, 0, sent)
    assert wires[1].hear(len(sent)) == sent
    assert weir.conserved()["ports"][1]["tx_user"] == len(sent)
    frames = out(weir)["frames"]
    assert frames["pump"] + frames["af_xdp"] == len(sent)
    assert frames["af_xdp"] >= 80, "the longer ones"


@pytest.mark.parametrize("placement", ["entry", "fused"])
@pytest.mark.parametrize("chain", CHAINS)
def test_the_egress_chain_runs_once_over_each_frame(lab, chain, placement):
    came = [tagged(raw) if chain == "shorter" else raw for raw in numbered(300)]
    gone = {"longer": lambda raw: raw[:12] + bytes.fromhex("81000064") + raw[12:], "shorter": lambda raw: raw[:12] + raw[16:]}
    wires, weir = starts(lab, egress=CHAINS[chain], placement=f'"{placement}"', **PUMP)
    send(lab, wires, 0, came)
    assert wires[1].hear(len(came)) == [gone.get(chain, lambda raw: raw)(raw) for raw in came]
    now = weir.conserved()
    assert {row["user"] for row in now["egress"] if row["port"] == "p1"} <= {300}
    assert all(row["kernel"] == 0 for row in now["egress"])
    assert now["ports"][1]["tx"]["frames"] == {"pump": 300, "af_xdp": 0}


@contextlib.contextmanager
def sending(wires):
    """Sends frames without a pause while it lasts."""
    done = threading.Event()

    def keep_sending():
        number = 0
        while not done.is_set():
            wires[0].send(of_length(60, number))
            number += 1

    sender = threading.Thread(target=keep_sending)
    sender.start()
    try:
        yield
    finally:
        done.set()
        sender.join()


@pytest.mark.parametrize("key", [1, 70000])
def test_what_is_lost_behind_a_run_is_counted_at_the_port_and_was_not_sent(lab, key):
    """A veth whose peer has lost its NAPI loses what is redirected to it, until weir has seen that. Whatever the key of its entry."""
    wires = lab.wires()
    ports = lab.ports(2, **PUMP).replace('name = "p0"', 'name = "p0"\nkey = 0').replace('name = "p1"', f'name = "p1"\nkey = {key}')
    weir = lab.weir(ports + PATCH, "--user-only")
    with sending(wires):
        wait_until(lambda: out(weir)["frames"]["pump"] > 100, "frames leave")
        lab.hosts[1].run("ethtool", "-K", "eth0", "gro", "off")
        wait_until(lambda: out(weir)["by"] == "af_xdp", "weir has seen it")
    now = weir.conserved()
    lost = {drop["reason"]: drop["frames"] for drop in now["drops"] if drop["where"] == "port p1" and drop["frames"]}
    assert lost and set(lost) <= {"redirect_failed", "peer_no_napi"}, "which of them is for the kernel to say"
    frames = now["ports"][1]["tx"]["frames"]
    assert now["ports"][1]["tx_user"] == frames["pump"] + frames["af_xdp"] - sum(lost.values())
    assert len(wires[1].hear(now["ports"][1]["tx_user"])) == now["ports"][1]["tx_user"]
    assert wires[1].waiting() == []


def test_what_the_device_refuses_is_counted_and_was_not_sent(lab):
    """A veth holds 256 frames, and its NAPI is the receiver's work: many at once are too many."""
    weir = lab.weir(lab.ports(2, **PUMP) + PATCH, "--user-only")
    iperf(*lab.hosts, "10.9.0.1", "-u", "-b", "0", "-l", "64", "-P", "4")
    now = weir.conserved()
    assert now["ports"][0]["tx"]["frames"]["pump"] > 10000
    assert now["ports"][0]["tx"]["frames"]["pump"] >= now["ports"][0]["tx_user"]


# What comes before a pump is open, such as the ARP of a host that knows the device, goes by the socket.
def test_tcp_goes_both_ways(lab):
    weir = lab.weir(lab.ports(2, **PUMP) + PATCH, "--user-only")
    end = iperf(lab.hosts[0], lab.hosts[1], "10.9.0.1")
    assert end["sum_received"]["bytes"] > 0
    for port in weir.conserved()["ports"]:
        assert port["tx"]["frames"]["pump"] > 100 * port["tx"]["frames"]["af_xdp"], port


def test_auto_takes_the_way_that_was_measured_to_cost_less(lab):
    """Single frames go by the socket; many at once by the pump, once that was measured; all of them in order."""
    wires, weir = starts(lab, **AUTO)
    send(lab, wires, 0, numbered(1))
    assert len(wires[1].hear(1)) == 1
    tx = out(weir)
    assert (tx["asked"], tx["frames"]) == ("auto", {"pump": 0, "af_xdp": 1})
    assert (tx["by"], tx["why"]) == ("auto", "not measured yet")
    done, sent = threading.Event(), []

    def keep_sending():
        while not done.is_set():
            part = numbered(len(sent) + 200)[len(sent):]
            send(lab, wires, 0, part)
            sent.extend(part)

    heard = []
    sender = threading.Thread(target=keep_sending)
    sender.start()
    try:
        wait_until(lambda: heard.extend(wires[1].waiting()) or out(weir)["ns"]["pump_frame"] > 0, "the pump is measured", 20)
    finally:
        done.set()
        sender.join()
    heard += wires[1].hear(len(sent) - len(heard))
    assert heard == sent
    tx = out(weir)
    assert tx["frames"]["pump"] + tx["frames"]["af_xdp"] == len(sent) + 1
    assert tx["ns"]["run"] > 0 and tx["ns"]["af_xdp_frame"] > 0
    if tx["ns"]["af_xdp_frame"] > tx["ns"]["pump_frame"]:
        assert (tx["by"], tx["why"]) == ("auto", f"from {tx['burst']} frames on the pump costs less")
        assert tx["burst"] == tx["ns"]["run"] // (tx["ns"]["af_xdp_frame"] - tx["ns"]["pump_frame"]) + 1
    else:
        assert (tx["by"], tx["why"]) == ("af_xdp", "a frame costs no less by the pump")
    weir.conserved()


def test_a_peer_without_napi_gets_its_frames_by_the_socket(lab):
    wires = lab.wires()
    lab.hosts[1].run("ethtool", "-K", "eth0", "gro", "off")
    weir = lab.weir(lab.ports(2, **PUMP) + PATCH, "--user-only")
    send(lab, wires, 0, numbered(100))
    assert wires[1].hear(100) == numbered(100)
    tx = out(weir)
    assert (tx["by"], tx["frames"]) == ("af_xdp", {"pump": 0, "af_xdp": 100})
    assert tx["why"] == "its veth peer has neither GRO nor an XDP program, and loses what is redirected to it"
    lab.hosts[1].run("ethtool", "-K", "eth0", "gro", "on")
    wait_until(lambda: out(weir)["by"] == "pump", "weir has seen it")
    send(lab, wires, 0, numbered(200)[100:])
    assert wires[1].hear(100) == numbered(200)[100:]
    assert out(weir)["frames"] == {"pump": 100, "af_xdp": 100}
    weir.conserved()


def test_generic_mode_has_no_pump(lab):
    wires, weir = starts(lab, mode='"generic"', **PUMP)
    for raw in numbered(100):
        wires[0].send(raw)
    assert wires[1].hear(100) == numbered(100)
    tx = out(weir)
    assert (tx["by"], tx["why"]) == ("af_xdp", "nothing is redirected to a device in generic mode")
    assert tx["frames"] == {"pump": 0, "af_xdp": 100}


def test_where_no_tap_may_be_made_frames_leave_by_the_socket(lab, tmp_path):
    """The kernel takes 24 ms for a run then."""
    wires = lab.wires()
    without_tap = tmp_path / "weir"
    without_tap.write_text(f'#!/bin/sh\nexec unshare --mount sh -c \'mount --bind /dev/null /dev/net/tun && exec {WEIR} "$@"\' sh "$@"\n')
    without_tap.chmod(0o755)
    weir = lab.weir(lab.ports(2, **PUMP) + PATCH, "--user-only", program=without_tap)
    send(lab, wires, 0, numbered(100))
    assert wires[1].hear(100) == numbered(100)
    tx = out(weir)
    assert tx["by"] == "af_xdp"
    assert "weir may not make a network namespace with a tap" in tx["why"]
    assert any("frames leave by AF_XDP, and not by a pump" in warning for warning in weir.stats()["warnings"])
    weir.conserved()


def test_a_device_that_goes_under_load_and_comes_back_has_its_pump_again(lab):
    wires, weir = starts(lab, **PUMP)
    with sending(wires):
        wait_until(lambda: out(weir)["frames"]["pump"] > 1000, "load")
        lab.hosts[1].run("ip", "link", "del", "eth0")
        wait_until(lambda: not weir.port("p1")["up"], "weir has seen it")
        lab.join(lab.hosts[1], 1)
        again = lab.wire(lab.hosts[1])
        wait_until(lambda: weir.port("p1")["up"] and out(weir).get("frames", {}).get("pump", 0) > 100, "weir sends there again")
    weir.conserved()
    before = len(again.waiting())
    assert before > 0
    last = numbered(3)
    send(lab, wires, 0, last)
    assert again.hear(3) == last


def test_asleep_it_costs_nothing_and_the_next_frame_leaves_at_once(lab):
    wires, weir = starts(lab, **PUMP)
    send(lab, wires, 0, numbered(500))
    assert len(wires[1].hear(500)) == 500
    process = pathlib.Path(f"/proc/{weir.process.popen.pid}/stat")

    def ticks():
        return sum(map(int, process.read_text().rpartition(")")[2].split()[11:13]))

    def share(seconds=1.0):
        before, start = ticks(), time.monotonic()
        time.sleep(seconds)
        return (ticks() - before) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - start)

    wait_until(lambda: share() <= 0.02, "below 2 ticks in a second", 15)
    send(lab, wires, 0, numbered(1))
    assert wires[1].hear(1) == numbered(1)
    weir.conserved()


def test_stopping_sends_what_waits(lab):
    """What weir has taken from its rings is sent before it ends: no frame is counted as sent and is not."""
    wires, weir = starts(lab, **PUMP)
    for _ in range(5):
        sent = numbered(1000)
        send(lab, wires, 0, sent)
        wait_until(lambda: weir.port("p0")["user"]["rx"] % 1000 == 0, "user space has taken them")
    assert wires[1].hear(5000) == numbered(1000) * 5
    weir.stop()
