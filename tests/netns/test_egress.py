# SPDX-License-Identifier: BSD-3-Clause
"""Egress programs: the same ones on the device entry and in user space."""
import json

import pytest
from lab import WEIR, frame, mac, run

PATCH = '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "patch"\npairs = [["p0", "p1"]]\n'
BOTH = pytest.mark.parametrize("flags", [[], ["--user-only"]], ids=["kernel", "user_only"])


@BOTH
def test_count_counts_by_protocol(lab, flags):
    left, right = lab.wires()
    weir = lab.weir(lab.ports(2, egress='["count"]') + PATCH, *flags)
    header = bytes(9) + b"\x11" + bytes(10)  # an IPv4 header whose protocol is UDP
    sent = [frame(mac(1), mac(2), header, 0x0800), frame(mac(1), mac(2), bytes(28), 0x0806), frame(mac(1), mac(2), bytes(6) + b"\x3a", 0x86DD),
            frame(mac(1), mac(2), b"", 0x1234)]
    for raw in sent:
        left.send(raw)
    assert right.hear(4) == sent
    counted = next(program for program in weir.conserved()["egress"] if program["port"] == "p1")
    assert counted["frames"] == 4
    assert counted["counters"] == {"bytes": 240, "arp": 1, "ipv4": 1, "ipv6": 1, "vlan": 0, "other": 1, "tcp": 0, "udp": 1, "icmp": 1}


@BOTH
def test_mac_rewrite_gives_the_address_of_the_port_and_the_one_of_the_file(lab, flags):
    left, right = lab.wires()
    lab.weir(lab.ports(2, egress='[{ program = "mac_rewrite", dst = "02:00:00:00:00:77" }]') + PATCH, *flags)
    own = lab.switch.mac("p1")
    left.send(frame(mac(1), mac(2), b"content"))
    assert right.hear(1) == [frame(own, mac(0x77), b"content")]


@BOTH
def test_a_chain_runs_in_its_order(lab, flags):
    left, right = lab.wires()
    weir = lab.weir(lab.ports(2, egress='["count", { program = "mac_rewrite", src = "02:00:00:00:00:aa" }, "count"]') + PATCH, *flags)
    for _ in range(10):
        left.send(frame(mac(1), mac(2)))
    assert right.hear(10) == [frame(mac(0xAA), mac(2))] * 10
    programs = [program for program in weir.conserved()["egress"] if program["port"] == "p1"]
    assert [(each["program"], each["frames"]) for each in programs] == [("count", 10), ("mac_rewrite", 10), ("count", 10)]


def test_devmap_list_shows_each_entry_and_the_program_on_it(lab):
    weir = lab.weir(lab.ports(2, egress='["count"]').replace('egress', 'placement = "entry"\negress', 1) + PATCH)
    shown = weir.ask("devmap", "list")["ports"]
    assert [(each["key"], each["device"], each["placement"]) for each in shown] == [(0, "p0", "entry"), (1, "p1", "fused")]
    for entry, program in zip(shown, weir.stats()["egress"]):
        assert entry["chain"] == [{"program": "count", "id": program["prog_id"]}]
        loaded = json.loads(run("bpftool", "-j", "prog", "show", "id", program["prog_id"]).stdout)
        assert loaded["name"] == ("count" if entry["placement"] == "entry" else "count_fused")
    assert shown[0]["program"] == {"id": shown[0]["chain"][0]["id"], "name": "count"}
    assert "program" not in shown[1]
    text = run(WEIR, "devmap", "list", "--instance", weir.name).stdout
    assert "count" in text and "p1" in text


def test_the_programs_of_a_chain_are_one_in_the_kernel(lab):
    left, right = lab.wires()
    chain = '["count", { program = "mac_rewrite", src = "02:00:00:00:00:aa" }, "count"]'
    weir = lab.weir(lab.ports(2, egress=chain).replace('egress', 'placement = "entry"\negress', 1) + PATCH)
    shown = weir.ask("devmap", "list")["ports"]
    assert [each["placement"] for each in shown] == ["entry", "fused"]
    for entry in shown:
        ids = {program["id"] for program in entry["chain"]}
        assert len(entry["chain"]) == 3 and len(ids) == 1
        assert json.loads(run("bpftool", "-j", "prog", "show", "id", ids.pop()).stdout)["name"] == "chain"
    assert shown[0]["program"]["name"] == "chain"
    for wire, there in ((left, right), (right, left)):
        wire.send(frame(mac(1), mac(2)))
        assert there.hear(1) == [frame(mac(0xAA), mac(2))]
    assert [each["frames"] for each in weir.conserved()["egress"]] == [1] * 6


def test_devmap_list_shows_what_an_entry_dropped(lab):
    left, _ = lab.wires()
    weir = lab.weir(lab.ports(2, egress='["ttl"]') + PATCH)
    for _ in range(3):
        left.send(frame(mac(1), mac(2), b"\x45" + bytes(7) + b"\x01\x11" + bytes(10), 0x0800))
    weir.conserved()
    row = next(line for line in run(WEIR, "devmap", "list", "--instance", weir.name).stdout.splitlines() if " p1 " in line)
    assert row.split()[-2:] == ["ttl.expired", "3"]
