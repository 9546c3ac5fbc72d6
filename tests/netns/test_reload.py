# SPDX-License-Identifier: BSD-3-Clause
"""Stages that give their place to others while frames flow: with other keys, or of a module that was built again."""
import os
import shutil

import pytest
from lab import BUILD, frame, mac, wait_until
from test_change import BOTH, bench, flood_of, needs_flood, refused, refused_by
from test_flows import config as flows_config
from test_flows import udp

PATCH = '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "patch"\npairs = [["p0", "p1"]]\n'
SWITCH = '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "l2_switch"\nports = ["p0", "p1", "p2"]\n'


def rewrite(weir, before, after):
    text = weir.file.read_text()
    assert before in text
    weir.file.write_text(text.replace(before, after))


def gauge(weir, name, stage=0):
    return weir.stats()["stages"][stage]["gauges"][name]


@BOTH
def test_a_stage_gets_other_keys(make_lab, flags):
    lab = make_lab(3)
    wires = lab.wires()
    weir = lab.weir(lab.ports(3) + PATCH, *flags)
    sent = frame(mac(1), mac(2))
    wires[0].send(sent)
    assert wires[1].hear(1) == [sent]
    rewrite(weir, '[["p0", "p1"]]', '[["p0", "p2"]]')
    assert weir.ask("reload")["changed"] == ["stage main.patch"]
    wires[0].send(sent)
    assert wires[2].hear(1) == [sent]
    assert wires[1].waiting() == []
    assert weir.ask("reload")["changed"] == []
    now = weir.conserved()
    assert sum(now["stages"][0][half]["redirect"] for half in ("kernel", "user")) == 2, "its counters go on"
    rewrite(weir, '[["p0", "p2"]]', '[["p0", "p0"]]')
    assert "is its own partner" in refused(weir, "reload")
    wires[0].send(sent)
    assert wires[2].hear(1) == [sent], "what is not right changes nothing"
    weir.conserved()
    weir.stop()


@BOTH
def test_a_switch_keeps_what_it_has_learned(make_lab, flags):
    lab = make_lab(4)
    wires = lab.wires()
    weir = lab.weir(lab.ports(4) + SWITCH, *flags)
    for number in range(3):
        wires[number].send(frame(mac(0x10 + number), mac(0x99)))
    wait_until(lambda: gauge(weir, "addresses") == 3, "three addresses")
    weir.conserved()
    for wire in wires:
        wire.waiting()
    rewrite(weir, 'ports = ["p0", "p1", "p2"]', 'ports = ["p0", "p1", "p3"]\nstatic = [{ mac = "02:00:00:00:00:77", port = "p3" }]')
    assert weir.ask("reload")["changed"] == ["stage main.l2_switch"]
    assert gauge(weir, "addresses") == 3, "two of them, and the static one"
    there, unknown = frame(mac(0x10), mac(0x11)), frame(mac(0x10), mac(0x88))
    wires[0].send(there)
    assert wires[1].hear(1) == [there]
    wires[0].send(frame(mac(0x10), mac(0x77)))
    assert wires[3].hear(1) == [frame(mac(0x10), mac(0x77))]
    wires[0].send(unknown)
    assert wires[1].hear(1) == [unknown] and wires[3].hear(1) == [unknown], "it floods to its members of now"
    assert wires[2].waiting() == []
    weir.conserved()
    weir.stop()


@BOTH
def test_a_new_start_adopts_the_tables_of_the_stage_that_ran_last(make_lab, flags):
    lab = make_lab(3)
    wires = lab.wires()
    weir = lab.weir(lab.ports(3) + SWITCH, *flags)
    wires[0].send(frame(mac(0x10), mac(0x99)))
    wait_until(lambda: gauge(weir, "addresses") == 1, "one address")
    rewrite(weir, 'ports = ', 'ageing_s = 200\nports = ')
    assert weir.ask("reload")["changed"] == ["stage main.l2_switch"]
    wires[1].send(frame(mac(0x11), mac(0x99)))
    wait_until(lambda: gauge(weir, "addresses") == 2, "two addresses")
    weir.kill()
    weir.start(*flags)
    assert gauge(weir, "addresses") == (0 if flags else 2)
    weir.conserved()
    weir.stop()


@needs_flood
def test_a_stage_gets_other_keys_under_a_flood(make_lab, flood_of):
    lab = make_lab(3)
    sent = bench.udp_frame(60)
    flood = flood_of(lab, sent, bytes(60))
    flood.files[0].write_bytes(sent)
    weir = lab.weir(lab.ports(3) + PATCH)
    flood.source = lab.hosts[0].start("taskset", "-c", "0", BUILD / "bench" / "live_source", "eth0", flood.files[0])
    wait_until(lambda: flood.seen()[0] > 0, "the first frames come through")
    for number in range(20):
        one, other = ("p1", "p2") if number % 2 == 0 else ("p2", "p1")
        rewrite(weir, f'[["p0", "{one}"]]', f'[["p0", "{other}"]]')
        assert weir.ask("reload")["changed"] == ["stage main.patch"]
    flood.stop()
    now = weir.conserved()
    first, second = flood.seen(0)[0], flood.seen(1)[0]
    assert first + second + sum(refused_by(now, 1, 2)) == now["ports"][0]["rx"], "no frame is lost"
    assert min(first, second) > 1000


@pytest.fixture
def modules(tmp_path):
    """A folder with the first build of a plugin, and what puts another build in its place, as a linker does."""
    folder = tmp_path / "modules"
    folder.mkdir()
    shutil.copy(BUILD / "tests" / "data" / "shortcut.so", folder)

    def build(name):
        shutil.copy(BUILD / "tests" / "variants" / f"{name}.so", folder / "new")
        os.replace(folder / "new", folder / "shortcut.so")

    return folder, build


@BOTH
def test_a_module_that_was_built_again_takes_its_place(lab, modules, flags):
    folder, build = modules
    wires = lab.wires()
    weir = lab.weir(flows_config(lab).replace(f"{BUILD}/tests/data", str(folder)), *flags)
    sent = udp("10.0.0.1", "10.0.0.2")
    for _ in range(3):
        wires[0].send(sent)
    assert wires[1].hear(3) == [sent] * 3
    assert weir.ask("reload")["changed"] == []
    assert gauge(weir, "build") == 1
    build("shortcut_second")
    assert weir.ask("reload")["changed"] == ["stage main.shortcut"]
    assert gauge(weir, "build") == 2
    if not flags:
        flows = weir.stats()["flows"]
        assert (flows["count"], flows["taken_back"]) == (0, 1), "flows of the one before are taken back at once"
    wires[0].send(sent)
    assert wires[1].hear(1) == [sent]
    if not flags:
        wait_until(lambda: weir.stats()["flows"]["count"] == 1, "the new one offloads")
        since = weir.stats()["uptime_s"]
        wait_until(lambda: weir.stats()["uptime_s"] > since + 4, "flows that have ended are told")
        assert gauge(weir, "ended") == 0, "it is not told of flows that were not its own"
    build("shortcut_third")
    assert "plugin shortcut of stage main.shortcut has other drop reasons, which takes a new start; nothing was changed" in refused(
        weir, "reload", code=1)
    assert gauge(weir, "build") == 2
    (folder / "shortcut.so").unlink()
    (folder / "shortcut.so").write_text("no module")
    assert "shortcut.so" in refused(weir, "reload")
    wires[0].send(sent)
    assert wires[1].hear(1) == [sent], "what runs goes on"
    weir.conserved()
    weir.stop()


@needs_flood
def test_a_module_takes_its_place_under_a_flood(lab, flood_of, modules):
    folder, build = modules
    sent = bench.udp_frame(60)
    flood = flood_of(lab, sent, bytes(60))
    flood.files[0].write_bytes(sent)
    weir = lab.weir(flows_config(lab).replace(f"{BUILD}/tests/data", str(folder)))
    flood.wires[0].send(sent)  # the flow is offloaded before there are more frames than user space can take
    wait_until(lambda: weir.stats()["flows"]["count"] == 1, "the flow is there")
    flood.start()
    build("shortcut_second")
    assert weir.ask("reload")["changed"] == ["stage main.shortcut"]
    wait_until(lambda: weir.stats()["flows"]["count"] == 1, "the new one has offloaded it")
    flood.stop()
    now = weir.conserved()
    dropped = sum(drop["frames"] for drop in now["drops"])  # user space gets more than it can take for a moment
    assert flood.seen()[0] + dropped == now["ports"][0]["rx"], "no frame is lost without a name"
    assert set(weir.drops()) <= {("port p0", "punt_failed"), ("port p1", "ring_full"), ("port p1", "device_refused")}
    weir.stop()


@pytest.mark.skipif(not (BUILD / "plugins" / "acl.so").exists(), reason="built without DPDK: no acl")
def test_what_an_acl_no_longer_permits_has_no_flow(lab):
    wires = lab.wires()
    rules = '  [[pipeline.stage]]\n  plugin = "acl"\n  rules = [{ action = "permit", protocol = "udp" }]\n  [[pipeline.stage]]\n'
    weir = lab.weir(flows_config(lab).replace("  [[pipeline.stage]]\n", rules))
    sent, other = udp("10.0.0.1", "10.0.0.2"), udp("10.0.0.1", "10.0.0.2", sport=7)
    for frame_of in (sent, other):
        wires[0].send(frame_of)
        assert wires[1].hear(1) == [frame_of]
    wait_until(lambda: weir.stats()["flows"]["count"] == 2, "the flows are there")
    rewrite(weir, '"permit"', '"drop"')
    assert weir.ask("reload")["changed"] == ["stage main.acl"]
    assert weir.stats()["flows"]["count"] == 0
    for _ in range(3):
        wires[0].send(sent)
    wait_until(lambda: weir.drops() == {("stage main.acl", "denied"): 3}, "they are denied")
    assert wires[1].waiting() == []
    assert weir.conserved()["flows"]["count"] == 0
    weir.stop()
