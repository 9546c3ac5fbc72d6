# SPDX-License-Identifier: BSD-3-Clause
"""A start that fails when devices are touched already: one line that says why, and the world is as it was, be it empty or a kernel path that an
earlier run left."""
import pathlib
import secrets

import pytest
from lab import WEIR, frame, mac
from test_start import everything, unchanged

PINS = pathlib.Path("/sys/fs/bpf/weir")
PATCH = '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "patch"\npairs = [["p0", "p1"]]\n'


def refuse_the_last_device(lab, _):
    """A veth takes no program when its peer's MTU is over a page: the others have theirs by then."""
    lab.hosts[2].run("ip", "link", "set", "eth0", "mtu", 9000)
    return lambda: lab.hosts[2].run("ip", "link", "set", "eth0", "mtu", 1500)


def stand_in_the_way(path):
    path.mkdir(parents=True)
    return path.rmdir


def stand_in_the_way_of_a_pin(_, instance):
    clear = stand_in_the_way(PINS / instance / "accounts_new")

    def clear_all():
        clear()
        if not any((PINS / instance).iterdir()):
            (PINS / instance).rmdir()

    return clear_all


def failed(lab, name, text, tmp_path, *before):
    """A start that must fail: what it said."""
    file = tmp_path / "config.toml"
    file.write_text(f'[weir]\nname = "{name}"\n' + text)
    done = lab.switch.run(*before, WEIR, "run", file, "--detach-on-exit", check=False, timeout=20)
    said = done.stderr.strip().splitlines()
    assert (done.returncode, len(said)) == (1, 1) and said[0].startswith("weir: "), (done.returncode, done.stdout, done.stderr)
    return said[0]


def forwards(left, right, number):
    """Frames go through, each once and in order."""
    sent = [frame(mac(1), mac(2), bytes([number, each])) for each in range(20)]
    for raw in sent:
        left.send(raw)
    assert right.hear(len(sent)) == sent


OBSTACLES = pytest.mark.parametrize("obstacle, says", [(refuse_the_last_device, "port p2, device p2: attach XDP"),
                                                       (stand_in_the_way_of_a_pin, "pin /sys/fs/bpf/weir/")],
                                    ids=["device", "pin"])


@OBSTACLES
def test_a_start_that_fails_behind_attaching_leaves_nothing(lab3, tmp_path, obstacle, says):
    name = "t" + secrets.token_hex(4)
    lab3.instances.append(name)
    clear = obstacle(lab3, name)
    try:
        was = everything(lab3)
        assert says in failed(lab3, name, lab3.ports(3, egress='["count"]') + PATCH, tmp_path)
        assert unchanged(lab3, was)
    finally:
        clear()


@OBSTACLES
def test_a_start_that_fails_behind_attaching_leaves_the_kernel_path_that_ran(lab3, tmp_path, obstacle, says):
    left, right, _ = lab3.wires()
    weir = lab3.weir(lab3.ports(2, egress='["count"]') + PATCH, "--keep")
    forwards(left, right, 0)
    assert weir.process.stop() == 0
    clear = obstacle(lab3, weir.name)
    try:
        was = everything(lab3)
        assert says in failed(lab3, weir.name, lab3.ports(3, egress='["count"]') + PATCH, tmp_path)
        assert everything(lab3)[0] == was[0], "each device has the program that it had"
        forwards(left, right, 1)
    finally:
        clear()
    weir.start()
    forwards(left, right, 2)
    weir.conserved()
    weir.stop()


def test_a_start_without_descriptors_enough_leaves_nothing(lab, tmp_path):
    """With one more each time, so that each step of a start fails once, up to the last device's program."""
    name = "t" + secrets.token_hex(4)
    lab.instances.append(name)
    was, steps = everything(lab), set()
    for number in range(48, 256):
        said = failed(lab, name, lab.ports(2, egress='["count"]') + PATCH, tmp_path, "prlimit", f"--nofile={number}")
        if "control socket" in said:
            break
        assert everything(lab) == was, f"with {number} descriptors: {said}"
        steps.add(said.split(":")[1].strip())
    assert {"port p0, device p0", "port p1, device p1"} <= steps
