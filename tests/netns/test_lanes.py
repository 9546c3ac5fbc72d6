# SPDX-License-Identifier: BSD-3-Clause
"""A stage that is parallel: its frames go through lanes, each flow in order; while it does not return, all else goes on."""
import collections
import random

import pytest
from lab import BUILD, frame, mac, wait_until

STALLING = 0x88B6


def config(lab, keys, workers=""):
    """p0 and p1 over toil, p2 and p3 without it."""
    ports = lab.ports(4)
    for number in (2, 3):
        ports = ports.replace(f'device = "p{number}"\npipeline = "main"', f'device = "p{number}"\npipeline = "plain"')
    return (f'plugin_dirs = ["{BUILD}/tests/data"]\n{workers}\n{ports}'
            f'[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "toil"\nparallel = true\n{keys}\n'
            '[[pipeline.stage]]\nplugin = "patch"\npairs = [["p0", "p1"]]\n'
            '[[pipeline]]\nname = "plain"\n[[pipeline.stage]]\nplugin = "patch"\npairs = [["p2", "p3"]]\n')


@pytest.fixture
def lab4(make_lab):
    return make_lab(4)


def flow_frame(flow, number):
    return frame(mac(flow), mac(200), flow.to_bytes(2, "big") + number.to_bytes(4, "big"))


def lanes_of(now):
    return next(each for each in now["lanes"] if each["stage"] == "toil")


def test_each_flow_keeps_its_order_through_lanes(lab4):
    wires = lab4.wires()
    weir = lab4.weir(config(lab4, "ns = 3000"))
    dice = random.Random(3)
    numbers = collections.Counter()
    for _ in range(4000):
        flow = dice.randrange(1, 60)
        wires[0].send(flow_frame(flow, numbers[flow]))
        numbers[flow] += 1
    heard = wires[1].hear(4000, timeout=20)
    assert len(heard) == 4000
    seen = collections.Counter()
    for raw in heard:
        flow, number = int.from_bytes(raw[14:16], "big"), int.from_bytes(raw[16:20], "big")
        assert number == seen[flow], f"flow {flow}"
        seen[flow] += 1
    now = weir.conserved()
    lanes = lanes_of(now)
    assert lanes["spread"] and lanes["frames"] == 0 and lanes["overflow"] == 0
    assert sum(each["drained"] for each in now["workers"]) > 0
    assert sum(each["frames"] for each in now["workers"]) == sum(port["user"]["rx"] for port in now["ports"])
    toil = next(each for each in now["stages"] if each["stage"] == "toil")
    assert toil["gauges"]["frames"] == toil["user"]["in"] == 4000
    assert toil["timed"]["frames"] > 0 and toil["timed"]["ns"] >= 3000 * toil["timed"]["frames"]


def test_a_stage_that_does_not_return_stops_no_other_port_and_is_named(lab4):
    wires = lab4.wires()
    weir = lab4.weir(config(lab4, "ns = 0\nstall_ms = 6000", workers="workers = 1"))
    wires[0].send(frame(mac(1), mac(200), ethertype=STALLING))
    wait_until(lambda: any("main.toil: it has not returned" in each for each in weir.stats()["warnings"]), "the stage is named")
    for number in range(50):
        wires[2].send(flow_frame(3, number))
    assert wires[3].hear(50) == [flow_frame(3, number) for number in range(50)]
    for number in range(20):
        wires[0].send(flow_frame(4, number))
    now = weir.stats()
    assert now["frames"]["total"] == sum(now["frames"][key] for key in ("free", "rings", "bursts", "lanes"))
    assert wires[1].hear(21, timeout=20) == [frame(mac(1), mac(200), ethertype=STALLING)] + [flow_frame(4, number) for number in range(20)]
    wait_until(lambda: "main.toil: it has gone on" in weir.process.text(), "it is said that it has gone on")
    assert weir.process.text().count("it has not returned") == 1
    now = weir.conserved()
    assert not any("toil" in each for each in now["warnings"])


def test_what_lanes_have_no_room_for_has_a_name(lab4):
    wires = lab4.wires()
    weir = lab4.weir(config(lab4, "ns = 0\nstall_ms = 3000", workers="workers = 1"))
    wires[0].send(frame(mac(1), mac(200), ethertype=STALLING))
    for number in range(1500):  # which the receive ring holds until somebody polls in the worker's place
        wires[0].send(flow_frame(5, number))
    wait_until(lambda: lanes_of(weir.stats())["overflow"] > 0, "a lane is full")
    wait_until(lambda: weir.stats()["account"]["held"] == 0, "it has gone on", 20)
    now = weir.conserved()
    lost = weir.drops().get(("port p0", "lane_full"), 0)
    assert lost > 0 and lanes_of(now)["overflow"] == lost
    numbers = [int.from_bytes(raw[16:20], "big") for raw in wires[1].hear(1501 - lost, timeout=20) if raw[12:14] != STALLING.to_bytes(2, "big")]
    assert numbers == sorted(numbers) and len(numbers) == 1500 - lost
