# SPDX-License-Identifier: BSD-3-Clause
"""A start that fails when devices are touched already: one line that says why, and the world is as it was, be it empty or a kernel path that an
earlier run left."""
import json
import pathlib
import secrets

import pytest
from lab import BUILD, WEIR, frame, mac, wait_until
from test_start import everything, unchanged

PINS = pathlib.Path("/sys/fs/bpf/weir")
RUN = pathlib.Path("/run/weir")
PATCH = '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "patch"\npairs = [["p0", "p1"]]\n'


def refuse_the_last_device(lab, _):
    """A veth takes no program when its peer's MTU is over a page: the others have theirs by then."""
    lab.hosts[2].run("ip", "link", "set", "eth0", "mtu", 9000)
    return lambda: lab.hosts[2].run("ip", "link", "set", "eth0", "mtu", 1500)


def stand_in_the_way(path):
    path.mkdir(parents=True)
    return path.rmdir


def stand_in_the_way_of_a_pin(_, instance):
    clear = stand_in_the_way(PINS / instance / "accounts~")

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
    lab3.add_instance(name)
    clear = obstacle(lab3, name)
    try:
        was = everything(lab3)
        assert says in failed(lab3, name, lab3.ports(3, egress='["count"]') + PATCH, tmp_path)
        assert unchanged(lab3, was)
    finally:
        clear()


def fails_over_a_kept_path(lab3, tmp_path, obstacle, says, change=lambda text: text):
    left, right, _ = lab3.wires()
    weir = lab3.weir(lab3.ports(2, egress='["count"]') + PATCH, "--keep")
    forwards(left, right, 0)
    assert weir.process.stop() == 0
    programs = lab3.switch.run("bpftool", "net", "show").stdout
    clear = obstacle(lab3, weir.name)
    try:
        was = everything(lab3)
        assert says in failed(lab3, weir.name, change(lab3.ports(3, egress='["count"]')) + PATCH, tmp_path)
        assert everything(lab3)[0] == was[0] and lab3.switch.run("bpftool", "net", "show").stdout == programs, "each device has its program"
        forwards(left, right, 1)
    finally:
        clear()
    weir.start()
    forwards(left, right, 2)
    weir.conserved()
    weir.stop()


@OBSTACLES
def test_a_start_that_fails_behind_attaching_leaves_the_kernel_path_that_ran(lab3, tmp_path, obstacle, says):
    fails_over_a_kept_path(lab3, tmp_path, obstacle, says)


def test_a_start_in_another_mode_that_fails_gives_the_old_program_back(lab3, tmp_path):
    fails_over_a_kept_path(lab3, tmp_path, refuse_the_last_device, "port p2, device p2: attach XDP",
                           lambda text: text.replace('device = "p0"', 'device = "p0"\nmode = "generic"'))


def sanitized():
    options = BUILD / "meson-info" / "intro-buildoptions.json"
    return options.exists() and any(each["name"] == "b_sanitize" and each["value"] != "none" for each in json.loads(options.read_text()))


# It opens a pipe to see whether an object's memory is there, and takes an object for none when it cannot.
DESCRIPTORS = pytest.mark.skipif(sanitized(), reason="the sanitizer needs descriptors of its own")


def starved(lab, name, tmp_path):
    """Starts with one descriptor more each time, so that each step of a start fails once, until there are enough. What each one said, and
    claims that it left the world as it was."""
    file = tmp_path / "config.toml"
    file.write_text(f'[weir]\nname = "{name}"\n' + lab.ports(2, egress='["count"]') + PATCH)
    was, said = everything(lab), []
    for number in range(48, 256):
        process = lab.switch.start("prlimit", f"--nofile={number}", WEIR, "run", file)
        wait_until(lambda process=process: "forwarding" in process.text() or process.popen.poll() is not None, "weir starts or ends")
        if process.popen.poll() is None:
            assert process.stop() == 0, process.text()
            return said
        assert (process.wait(), len(process.text().splitlines())) == (1, 1), (number, process.popen.returncode, process.text())
        assert everything(lab) == was, f"with {number} descriptors: {process.text()}"
        said.append(process.text().strip())
    raise AssertionError("weir never starts")


@DESCRIPTORS
def test_a_start_without_descriptors_enough_leaves_nothing(lab, tmp_path):
    name = "t" + secrets.token_hex(4)
    lab.add_instance(name)
    said = starved(lab, name, tmp_path)
    steps = {each.split(":")[1].strip() for each in said}
    assert {"port p0, device p0", "port p1, device p1"} <= steps, steps
    socket = [each for each in said if "control socket" in each]
    assert socket and all(each.endswith("Too many open files") for each in socket), said
    assert everything(lab)[0] == [(link, None) for link, _ in everything(lab)[0]]


@pytest.fixture(name="kept")
def make_kept(lab):
    """A kernel path that --keep has left: its weir, and what its frames have been counted to."""
    wires = lab.wires()
    weir = lab.weir(lab.ports(2, egress='["count"]') + PATCH, "--keep")
    forwards(*wires, 0)
    assert weir.process.stop() == 0
    return weir, wires


def test_a_control_socket_that_cannot_be_opened_leaves_the_kernel_path_that_ran(lab, kept, tmp_path):
    weir, wires = kept
    clear = stand_in_the_way(RUN / f"{weir.name}.sock")
    try:
        was = everything(lab)
        assert "control socket" in failed(lab, weir.name, lab.ports(2, egress='["count"]') + PATCH, tmp_path)
        assert unchanged(lab, was)
        forwards(*wires, 1)
    finally:
        clear()


@DESCRIPTORS
def test_a_start_without_descriptors_enough_leaves_the_kernel_path_that_ran(lab, kept, tmp_path):
    weir, _ = kept
    said = starved(lab, weir.name, tmp_path)
    assert any("which an earlier run has pinned" in each for each in said), said


def test_a_pin_that_cannot_be_made_leaves_the_counters_for_the_next_start(lab, kept, tmp_path):
    weir, wires = kept
    clear = stand_in_the_way(PINS / weir.name / "accounts~")
    try:
        assert "pin" in failed(lab, weir.name, lab.ports(2, egress='["count"]') + PATCH, tmp_path)
        forwards(*wires, 1)
    finally:
        clear()
    weir.start("--detach-on-exit")
    assert weir.conserved()["account"]["rx"] == 40
    weir.stop()


def test_a_layout_that_cannot_be_noted_leaves_nothing(lab, tmp_path):
    lab.wires()
    weir = lab.weir(lab.ports(2) + PATCH)  # for its name
    weir.process.stop()
    clear = stand_in_the_way(RUN / f"{weir.name}.layout")
    try:
        was = everything(lab)
        assert ".layout" in failed(lab, weir.name, lab.ports(2) + PATCH, tmp_path)
        assert unchanged(lab, was)
    finally:
        clear()
        weir.start()
        weir.stop()
