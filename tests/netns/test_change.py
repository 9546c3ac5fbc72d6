# SPDX-License-Identifier: BSD-3-Clause
"""What commands change while frames flow: egress chains, device entries, members of groups, and what a file read again changes. Nothing is
lost over it, and no frame sees half of a change; what does not apply changes nothing."""
import json
import os
import subprocess
import sys

import pytest
from lab import BUILD, ROOT, WEIR, frame, mac, run, wait_until

sys.path.insert(0, str(ROOT / "bench"))
import veth as bench

PATCH = '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "patch"\npairs = [["p0", "p1"]]\n'
BOTH = pytest.mark.parametrize("flags", [[], ["--user-only"]], ids=["kernel", "user_only"])
PLACES = pytest.mark.parametrize("placement", ["entry", "fused"])
CHANGES = int(os.environ.get("WEIR_TEST_CHANGES", "100"))  # under a flood
ONE = [bench.MAC_REWRITE]
OTHER = ["ttl", {"program": "dscp", "set": 46}, {"program": "mac_rewrite", "src": "02:00:00:00:00:01", "dst": "02:00:00:00:00:88"},
         {"program": "vlan_push", "vid": 7}]
FLOODS = '[[group]]\nname = "all"\nports = ["p0", "p1", "p2", "p3"]\n[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "l2_switch"\n'
needs_flood = pytest.mark.skipif(not (BUILD / "bench" / "live_source").exists(), reason=f"needs the benchmarks in {BUILD}: -Dbench=true")


def config(lab, placement="auto", egress="[]", ports=2):
    return lab.ports(ports, placement=json.dumps(placement), egress=egress) + PATCH


def refused(weir, *words, code=2):
    done = run(WEIR, *words, "--instance", weir.name, check=False)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stderr


def chain_of(weir, port="p1"):
    return [program["program"] for program in weir.ask("egress", "list")["egress"] if program["port"] == port]


@BOTH
@PLACES
def test_a_chain_is_replaced(lab, placement, flags):
    left, right = lab.wires()
    weir = lab.weir(config(lab, placement, '["count"]'), *flags)
    left.send(frame(mac(1), mac(2)))
    assert right.hear(1) == [frame(mac(1), mac(2))]
    shown = weir.ask("egress", "set", "p1", "mac_rewrite,src='02:00:00:00:00:aa'", '{ program = "vlan_push", vid = 100 }')["egress"]
    assert [(each["place"], each["program"]) for each in shown] == [(0, "mac_rewrite"), (1, "vlan_push")]
    assert shown[0]["placement"] == placement
    left.send(frame(mac(1), mac(2)))
    assert right.hear(1) == [frame(mac(0xAA), bytes.fromhex("81000064") and mac(2))[:12] + bytes.fromhex("81000064") + frame(mac(1), mac(2))[12:]]
    weir.ask("egress", "set", "p1")
    assert chain_of(weir) == []
    table = '{ program = "filter", otherwise = "drop", ' \
            'rules = [{ action = "permit", src = "10.0.0.0/8", protocol = "tcp", dport = "80-90" }, { action = "drop" }] }'
    words = ["vlan_push,vid=100", "mac_rewrite,dst=02:00:00:00:00:09", "encap_ipip,local=2001:db8::1,remote=2001:db8::2"]
    for given in ([*words, table], [table.replace("drop", "permit", 1)]):
        shown = weir.ask("egress", "set", "p1", *given)["egress"]
        listed = [f"{each['program']},{each['keys']}" for each in shown]
        assert listed[:-1] == words[:len(given) - 1]
        again = weir.ask("egress", "set", "p1", *listed)["egress"]
        assert [f"{each['program']},{each['keys']}" for each in again] == listed, "what is listed can be set"
    weir.ask("egress", "set", "p1")
    left.send(frame(mac(1), mac(2)))
    assert right.hear(1) == [frame(mac(1), mac(2))]
    weir.ask("egress", "set", "p1", "count")
    left.send(frame(mac(1), mac(2)))
    assert right.hear(1) == [frame(mac(1), mac(2))]
    counted, = [program for program in weir.conserved()["egress"] if program["port"] == "p1"]
    assert (counted["frames"], counted["counters"]["other"]) == (2, 2), "what it counted before it left the chain is still there"


@BOTH
def test_what_a_program_dropped_stays_in_the_account_when_it_goes(lab, flags):
    left, _ = lab.wires()
    weir = lab.weir(config(lab, egress='["ttl"]'), *flags)
    left.send(frame(mac(1), mac(2), bytes.fromhex("4500001400000000010000000a0000010a000002"), 0x0800))  # its last hop
    wait_until(lambda: weir.drops().get(("egress p1 ttl", "expired")) == 1, "the frame has expired")
    weir.ask("egress", "set", "p1", "count")
    assert weir.conserved()["account"]["drop"] == 1
    assert weir.drops()["egress p1 ttl", "expired"] == 1


@PLACES
def test_a_chain_that_is_not_right_changes_nothing(lab, placement):
    left, right = lab.wires()
    weir = lab.weir(config(lab, placement, '["count"]'))
    assert "there is no port p7; there are: p0, p1" in refused(weir, "egress", "set", "p7", "count")
    assert 'egress program "cuont" does not exist (did you mean "count"?)' in refused(weir, "egress", "set", "p1", "cuont")
    assert "egress[0].vid: is 5000, must be an integer from 0 to 4094" in refused(weir, "egress", "set", "p1", "vlan_push,vid=5000")
    assert "is neither NAME, NAME,KEY=VALUE nor a table" in refused(weir, "egress", "set", "p1", "vlan_push,vid=")
    assert "vlan_pop stands behind vlan_push" in refused(weir, "egress", "set", "p1", "vlan_push,vid=1", "vlan_pop")
    assert "must have at most 8" in refused(weir, "egress", "set", "p1", *["count"] * 9)
    assert chain_of(weir) == ["count"]
    left.send(frame(mac(1), mac(2)))
    assert right.hear(1) == [frame(mac(1), mac(2))]
    weir.conserved()


def test_a_chain_that_the_kernel_refuses_changes_nothing(lab):
    left, right = lab.wires()
    weir = lab.weir(config(lab, "entry", '["count"]'))
    counted = 0
    for _ in range(3):
        assert "the kernel's verifier refuses its program" in refused(
            weir, "egress", "set", "p1", "count", f'{{ object = "{BUILD}/tests/foreign.bpf.o", program = "past_the_end" }}', code=1)
        left.send(frame(mac(1), mac(2)))
        assert right.hear(1) == [frame(mac(1), mac(2))]
        counted += 1
        row, = [each for each in weir.conserved()["egress"] if each["port"] == "p1"]
        assert (row["program"], row["frames"]) == ("count", counted)
    weir.ask("egress", "set", "p1", "count", "ttl")
    assert [row["frames"] for row in weir.conserved()["egress"] if row["port"] == "p1"] == [counted, 0]


@BOTH
def test_a_chain_that_a_port_of_a_group_gets_later_is_gone_through_by_floods_too(make_lab, flags):
    lab = make_lab(3)
    wires = lab.wires()
    weir = lab.weir(lab.ports(3, placement='"fused"') + FLOODS.replace(', "p3"', ""), *flags)
    sent, signed = frame(mac(1), mac(9)), frame(mac(0xAA), mac(9))

    def heard():
        wires[0].send(sent)
        return [wires[number].hear(1) for number in (1, 2)]

    assert heard() == [[sent], [sent]]
    weir.ask("egress", "set", "p2", "mac_rewrite,src='02:00:00:00:00:aa'")
    assert heard() == [[sent], [signed]]
    weir.ask("egress", "set", "p2")
    assert heard() == [[sent], [sent]]
    assert weir.conserved()["account"]["drop"] == 0


def test_a_group_that_a_stage_floods_to_takes_a_new_start(make_lab):
    lab = make_lab(4)
    lab.wires()
    weir = lab.weir(lab.ports(4) + FLOODS)
    weir.file.write_text(weir.file.read_text().replace('ports = ["p0", "p1", "p2", "p3"]', 'ports = ["p0", "p1"]'))
    said = refused(weir, "reload", code=1)
    assert "changes group all, which a stage floods to (for its members alone: weir devmap group join or leave), which takes a new start" in said


class Flood:
    """Frames from the first host to the others, as fast as one CPU sends them from inside the kernel; each other host counts what it gets: as
    the first of the expected frames, as the second, as neither."""

    def __init__(self, lab, folder, expected, second):
        self.lab = lab
        self.files = [folder / name for name in ("sent", "expected", "second")]
        for file, raw in zip(self.files, (bench.udp_frame(60), expected, second)):
            file.write_bytes(raw)
        self.wires = lab.wires()
        self.sinks = [host.start(BUILD / "bench" / "reference", "sink", "eth0", *self.files[1:], stdin=subprocess.PIPE) for host in lab.hosts[1:]]
        for sink in self.sinks:
            wait_until(lambda sink=sink: sink.text() == "ready\n", "the sink is there")

    def start(self):
        self.source = self.lab.hosts[0].start("taskset", "-c", "0", BUILD / "bench" / "live_source", "eth0", self.files[0])
        wait_until(lambda: all(sum(self.seen(number)) for number in range(len(self.sinks))), "the first frames come through")

    def seen(self, number=0):
        sink = self.sinks[number]
        before = sink.text().count("\n")
        sink.popen.stdin.write("\n")
        sink.popen.stdin.flush()
        wait_until(lambda: sink.text().count("\n") > before, "the sink answers")
        _, whole, other, _, second, *_ = map(int, sink.text().splitlines()[-1].split())
        return whole, second, other

    def stop(self):
        self.source.stop()

    def close(self):
        for sink in self.sinks:
            sink.popen.stdin.close()
            sink.wait()


@pytest.fixture
def flood_of(tmp_path):
    made = []

    def make(lab, expected, second):
        made.append(Flood(lab, tmp_path, expected, second))
        return made[-1]

    yield make
    for flood in made:
        flood.close()


def refused_by(now, *numbers):
    """What a veth's ring of 256 had no room for, of frames for these ports: when others want the CPU, a flood is faster than who empties it.
    Every other drop is one too many."""
    drops = {(drop["where"], drop["reason"]): drop["frames"] for drop in now["drops"] if drop["frames"]}
    refused = [drops.pop((f"port p{number}", "device_refused"), 0) for number in numbers]
    assert not drops
    return refused


def words(chain):
    return [program if isinstance(program, str) else bench.inline(program) for program in chain]


@needs_flood
@PLACES
def test_chains_are_replaced_under_a_flood(lab, flood_of, placement):
    sent = bench.udp_frame(60)
    flood = flood_of(lab, bench.rewritten(sent, ONE), bench.rewritten(sent, OTHER))
    flood.files[0].write_bytes(sent)
    weir = lab.weir(config(lab, placement, bench.inline(ONE)))
    flood.start()
    for number in range(CHANGES):
        weir.ask("egress", "set", "p1", *words([OTHER, ONE][number % 2]))
    flood.stop()
    now = weir.conserved()
    one, other, neither = flood.seen()
    refused, = refused_by(now, 1)
    print(f"{CHANGES} changes; {one} frames through the one chain, {other} through the other; {refused} refused by a full ring")
    assert neither == 0, "no frame saw a part of a chain, or none"
    assert one + other + refused == now["ports"][0]["rx"], "no frame is lost"
    assert min(one, other) > 1000


@needs_flood
@PLACES
def test_a_chain_comes_and_goes_under_a_flood(lab, flood_of, placement):
    sent = bench.udp_frame(60)
    flood = flood_of(lab, sent, bench.rewritten(sent, ONE))
    flood.files[0].write_bytes(sent)
    weir = lab.weir(config(lab, placement))
    flood.start()
    for number in range(CHANGES // 2):
        weir.ask("egress", "set", "p1", *words([ONE, []][number % 2]))
    flood.stop()
    now = weir.conserved()
    without, through, neither = flood.seen()
    refused, = refused_by(now, 1)
    assert (neither, without + through + refused) == (0, now["ports"][0]["rx"])
    assert min(without, through) > 1000


@needs_flood
def test_members_join_and_leave_under_a_flood(make_lab, flood_of):
    lab = make_lab(4)
    sent = bench.udp_frame(60)
    flood = flood_of(lab, sent, bytes(60))
    flood.files[0].write_bytes(sent)
    weir = lab.weir(lab.ports(4, egress='["count"]') + FLOODS)
    flood.wires[0].send(sent)  # its station is learned before there are more frames than user space can take
    wait_until(lambda: weir.settled(1), "the first frame is through")
    flood.start()
    for number in range(CHANGES // 2):
        weir.ask("devmap", "group", ["leave", "join"][number % 2], "all", "p3")
    flood.stop()
    now = weir.conserved()
    rx = now["ports"][0]["rx"]
    refused = refused_by(now, 1, 2, 3)
    assert [flood.seen(number)[0] + refused[number] for number in range(2)] == [rx, rx], "those that stay get every frame"
    assert 0 < flood.seen(2)[0] < rx
    assert flood.seen(2)[0] == now["ports"][3]["tx_kernel"] + now["ports"][3]["tx_user"]


@BOTH
def test_a_deleted_entry_is_a_miss_until_it_is_set_again(lab, flags):
    left, right = lab.wires()
    weir = lab.weir(config(lab, egress='["count"]'), *flags)
    assert refused(weir, "devmap", "set", "p1", "--noexist") == f"weir: instance {weir.name}: port p1 has an entry already\n"
    rows = weir.ask("devmap", "delete", "p1")["ports"]
    assert [row["port"] for row in rows] == ["p0"]
    left.send(frame(mac(1), mac(2), b"lost"))
    wait_until(lambda: weir.drops().get(("port p0", "no_entry")) == 1, "the miss is counted")
    assert "port p1 has no entry" in refused(weir, "devmap", "delete", "p1", code=1)
    assert "port p1 has no entry to replace" in refused(weir, "devmap", "set", "p1", "--exist", code=1)
    weir.ask("devmap", "set", "p1", "--noexist")
    left.send(frame(mac(1), mac(2), b"found"))
    assert right.hear(1) == [frame(mac(1), mac(2), b"found")]
    weir.ask("devmap", "set", "p1", "--exist")
    assert weir.conserved()["ports"][0]["miss"] == {"to_stack": 0, "drop": 1, "aborted": 0}


@BOTH
@pytest.mark.parametrize("miss", ["to_stack", "drop", "aborted"])
def test_the_verdict_of_a_miss_is_the_pipelines(lab, flags, miss):
    left, right = lab.wires()
    weir = lab.weir(config(lab).replace('name = "main"', f'name = "main"\nmiss = "{miss}"'), *flags)
    weir.ask("devmap", "delete", "p1")
    behind = lab.switch.tap("p0") if miss == "to_stack" and not flags else None  # behind XDP, where the host's stack begins
    for _ in range(3):
        left.send(frame(mac(1), mac(2)))
    wait_until(lambda: weir.port("p0")["miss"][miss] == 3, "the misses are counted")
    now = weir.conserved()
    assert now["ports"][0]["miss"] == {"to_stack": 0, "drop": 0, "aborted": 0} | {miss: 3}
    if miss == "to_stack":
        assert (now["account"]["to_stack"], now["account"]["drop"]) == (3, 0)
        assert behind is None or behind.hear(3) == [frame(mac(1), mac(2))] * 3
    else:
        assert weir.drops() == {("port p0", "no_entry"): 3}
    assert right.waiting() == []


@BOTH
def test_floods_follow_the_members_of_a_group(make_lab, flags):
    lab = make_lab(4)
    wires = lab.wires()
    weir = lab.weir(lab.ports(4) + FLOODS, *flags)

    def reached():
        wires[0].send(frame(mac(1), mac(9)))
        weir.conserved()
        return [number for number in range(1, 4) if wires[number].waiting()]

    assert reached() == [1, 2, 3]
    assert [group["members"] for group in weir.ask("devmap", "group", "leave", "all", "p2")["groups"]] == [["p0", "p1", "p3"]]
    assert reached() == [1, 3]
    weir.ask("devmap", "group", "leave", "0", "p3")
    assert reached() == [1], "a group with a single target is no broadcast"
    assert "port p3 is not in group all" in refused(weir, "devmap", "group", "leave", "all", "p3")
    assert "port p1 is in group all already" in refused(weir, "devmap", "group", "join", "all", "p1")
    assert "there is no group none; there are: 0 (all)" in refused(weir, "devmap", "group", "join", "none", "p1")
    weir.ask("devmap", "group", "join", "all", "p3")
    assert reached() == [1, 3]
    weir.ask("devmap", "delete", "p3")
    assert reached() == [1]
    weir.conserved()


@BOTH
def test_what_a_command_changed_survives_a_reload_that_does_not_touch_it(lab, flags):
    lab.wires()
    weir = lab.weir(config(lab, egress='["count"]') + '[[group]]\nname = "all"\nports = ["p0"]\n', *flags)
    weir.ask("egress", "set", "p1", "ttl")
    weir.ask("devmap", "group", "join", "all", "p1")
    weir.ask("devmap", "delete", "p1")
    assert weir.ask("reload")["changed"] == []
    text = weir.file.read_text()
    weir.file.write_text(text.replace('egress = ["count"]', 'egress = ["dscp,set=1"]', 1).replace('"dscp,set=1"', '{ program = "dscp", set = 1 }'))
    assert weir.ask("reload")["changed"] == ["egress of port p0"]
    assert (chain_of(weir, "p0"), chain_of(weir, "p1")) == (["dscp"], ["ttl"])
    assert weir.ask("devmap", "group", "list")["groups"][0]["members"] == ["p0", "p1"]
    assert [row["port"] for row in weir.ask("devmap", "list")["ports"]] == ["p0"]
    weir.file.write_text(weir.file.read_text().replace('ports = ["p0"]', 'ports = ["p1"]'))
    assert weir.ask("reload")["changed"] == ["group all"]
    assert weir.ask("devmap", "group", "list")["groups"][0]["members"] == ["p1"]
    weir.file.write_text(text.replace('device = "p1"', 'device = "p9"').replace('["count"]', '["ttl"]'))
    assert "changes device of port p1, which takes a new start; nothing was changed" in refused(weir, "reload", code=1)
    weir.file.write_text(text.replace('["count"]', '["cuont"]'))
    assert "cuont" in refused(weir, "reload")
    assert (chain_of(weir, "p0"), chain_of(weir, "p1")) == (["dscp"], ["ttl"])


def test_a_chain_that_was_set_forwards_on_when_the_process_is_killed(lab):
    left, right = lab.wires()
    weir = lab.weir(config(lab, egress='["count"]'))
    weir.ask("egress", "set", "p1", "vlan_push,vid=5")
    weir.kill()
    left.send(frame(mac(1), mac(2)))
    raw, = right.hear(1)
    assert raw[12:16] == bytes.fromhex("81000005")
    weir.start()  # by its file
    left.send(frame(mac(1), mac(2)))
    assert right.hear(1) == [frame(mac(1), mac(2))]
    weir.conserved()
