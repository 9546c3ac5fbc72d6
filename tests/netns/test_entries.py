# SPDX-License-Identifier: BSD-3-Clause
"""Device entries by index and by key, many groups at once, and frames in several buffers."""
import pytest
from lab import frame, mac, ping, wait_until

PATCH = '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "patch"\npairs = [["p0", "p1"]]\n'
BOTH = pytest.mark.parametrize("flags", [[], ["--user-only"]], ids=["kernel", "user_only"])


def keyed(lab, keys, more="", placement="auto"):
    text = lab.ports(2, egress='["count"]', placement=f'"{placement}"')
    for number, key in enumerate(keys):
        text = text.replace(f'device = "p{number}"', f'device = "p{number}"\nkey = {key}')
    return more + text + PATCH


@pytest.mark.parametrize("placement", ["entry", "fused"])
@pytest.mark.parametrize("keys,form", [((4000000000, 70), "hash"), ((1, 0), "array"), ((9, 40), "array")])
def test_frames_find_the_entry_of_their_port_by_any_key(lab, keys, form, placement):
    left, right = lab.wires()
    weir = lab.weir(keyed(lab, keys, placement=placement))
    for number in range(20):
        left.send(frame(mac(1), mac(2), bytes([number])))
        right.send(frame(mac(2), mac(1), bytes([number])))
    assert right.hear(20) == [frame(mac(1), mac(2), bytes([number])) for number in range(20)]
    assert left.hear(20) == [frame(mac(2), mac(1), bytes([number])) for number in range(20)]
    shown = weir.ask("devmap", "list")
    assert shown["form"] == form
    assert {row["port"]: (row["key"], row["frames"]) for row in shown["ports"]} == {"p0": (keys[0], 20), "p1": (keys[1], 20)}
    now = weir.conserved()
    assert now["ports"][1]["tx_kernel"] == 20
    weir.ask("devmap", "delete", "p1")
    left.send(frame(mac(1), mac(2)))
    wait_until(lambda: weir.drops().get(("port p0", "no_entry")) == 1, "its entry is gone")
    weir.conserved()


@pytest.mark.parametrize("placement", ["entry", "fused"])
def test_a_frame_that_does_not_fit_is_counted_at_the_port_of_the_key(lab, placement):
    left, _ = lab.wires()
    lab.switch.run("ip", "link", "set", "p1", "mtu", "1000")
    weir = lab.weir(keyed(lab, (70, 4000000000), placement=placement))
    left.send(frame(mac(1), mac(2), bytes(1200)))
    wait_until(lambda: weir.drops() == {("port p1", "redirect_failed"): 1}, "the drop is counted")
    weir.conserved()


def test_a_hash_may_be_asked_for_without_keys(lab):
    left, right = lab.wires()
    weir = lab.weir('devmap = "hash"\n' + lab.ports(2) + PATCH)
    left.send(frame(mac(1), mac(2)))
    assert right.hear(1) == [frame(mac(1), mac(2))]
    shown = weir.ask("devmap", "list")
    assert (shown["form"], [row["key"] for row in shown["ports"]]) == ("hash", [0, 1])
    weir.conserved()


def test_floods_reach_their_members_over_keys_beyond_an_array(make_lab):
    lab = make_lab(3)
    wires = lab.wires()
    text = "".join(f'[[port]]\nname = "p{n}"\ndevice = "p{n}"\nkey = {1000 * n}\npipeline = "main"\negress = ["count"]\n' for n in range(3))
    weir = lab.weir(text + '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "l2_switch"\n')
    wires[0].send(frame(mac(1), "ff:ff:ff:ff:ff:ff"))
    assert [wire.hear(1) for wire in wires[1:]] == [[frame(mac(1), "ff:ff:ff:ff:ff:ff")]] * 2
    wires[1].send(frame(mac(2), mac(1)))
    assert wires[0].hear(1) == [frame(mac(2), mac(1))]
    shown = weir.ask("devmap", "list")
    assert [entry["key"] for entry in shown["groups"][0]["entries"]] == [0, 1000, 2000]
    weir.conserved()


def test_sixteen_groups_at_once_each_have_their_members(make_lab):
    lab = make_lab(4)
    lab.wires()
    sets = {f"g{number}": [f"p{bit}" for bit in range(4) if number + 1 >> bit & 1] or ["p0"] for number in range(16)}
    groups = "".join(f'[[group]]\nname = "{name}"\nports = [{", ".join(map(repr, members))}]\n'.replace("'", '"') for name, members in sets.items())
    weir = lab.weir(lab.ports(4) + groups + '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "l2_switch"\n')
    shown = {group["name"]: group for group in weir.ask("devmap", "list")["groups"]}
    assert {name: shown[name]["members"] for name in sets} == sets
    assert {name: [entry["port"] for entry in shown[name]["entries"]] for name in sets} == sets
    weir.ask("devmap", "group", "join", "g0", "p3")
    weir.ask("devmap", "group", "leave", "g15", "p0")
    after = {group["name"]: [entry["port"] for entry in group["entries"]] for group in weir.ask("devmap", "list")["groups"]}
    assert (after["g0"], after["g1"]) == (["p0", "p3"], ["p1"])


@pytest.mark.parametrize("placement", ["entry", "fused"])
def test_jumbo_frames_in_several_buffers_pass_through_the_kernel(make_lab, placement):
    lab = make_lab(2, mtu=9000)
    chain = '["count", "ttl", { program = "dscp", set = 10 }, { program = "mtu_guard", mtu = 8000 }]'
    weir = lab.weir("frags = true\n" + lab.ports(2, egress=chain, placement=f'"{placement}"') + PATCH)
    assert ping(lab.hosts[0], "10.9.0.2") == 3
    done = lab.hosts[0].run("ping", "-c", "3", "-i", "0.2", "-W", "2", "-M", "do", "-s", "7900", "10.9.0.2")
    assert " 3 received" in done.stdout
    lab.hosts[0].run("ping", "-c", "2", "-i", "0.2", "-W", "1", "-M", "do", "-s", "8500", "10.9.0.2", check=False)
    now = weir.conserved()
    assert weir.drops()["egress p1 mtu_guard", "too_long"] == 2, "the whole length counts, in how many buffers it may lie"
    counted = next(row for row in now["egress"] if (row["port"], row["program"]) == ("p1", "count"))
    assert counted["counters"]["bytes"] > 3 * 7900 + 2 * 8500
    assert now["ports"][1]["tx_user"] == 0
