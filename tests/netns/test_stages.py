# SPDX-License-Identifier: BSD-3-Clause
"""Two stages in one pipeline: the plugin that the README shows, and patch behind it."""
import pathlib
import random
import shutil
import sys

import pytest
from lab import BUILD, frame, mac, wait_until

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "lint"))
from test_documents import Tree

LISTED = [0x0800, 0x88B5]
TAGS = (0x8100, 0x88A8)
PIPELINE = ('[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "ethertypes"\ntypes = [0x0800, 0x88b5]\n'
            '[[pipeline.stage]]\nplugin = "patch"\npairs = [["p0", "p1"]]\n')


@pytest.fixture(scope="module", name="program")
def make_program(tmp_path_factory):
    """A weir that has the README's plugin beside its own."""
    missing = [tool for tool in ("meson", "ninja") if not shutil.which(tool)]
    if missing or not (BUILD / "compile_commands.json").exists():
        pytest.skip(f"needs {', '.join(missing) or f'a build in {BUILD}'}")
    return Tree(tmp_path_factory.mktemp("examples")).build / "apps" / "weir"


def fate(raw):
    """What the first stage does to a frame: "next", or the reason of its drop."""
    at = 12
    while int.from_bytes(raw[at:at + 2], "big") in TAGS:
        at += 4
        if len(raw) < at + 2:
            return "truncated"
    return "next" if int.from_bytes(raw[at:at + 2], "big") in LISTED else "other"


def mixed_frames():
    """Listed and other EtherTypes: bare, behind one tag, behind two; and tags that the frame's end cuts off."""
    dice = random.Random(7)
    frames = []
    for number in range(60):
        inner = dice.choice([0x0800, 0x88B5, 0x86DD, 0x1234])
        tags = dice.choice([[], [0x8100], [0x88A8, 0x8100]])
        payload = b"".join(bytes([0, 7]) + following.to_bytes(2, "big") for following in [*tags[1:], inner]) if tags else b""
        raw = frame(mac(1), mac(2), payload + bytes([number]) * 50, tags[0] if tags else inner)
        frames.append(raw[:dice.choice([14, 16])] if tags and dice.random() < 0.2 else raw)
    return frames


@pytest.mark.parametrize("flags", [[], ["--user-only"]], ids=["kernel", "user_only"])
def test_the_second_stage_gets_what_the_first_lets_go_on(lab, program, flags):
    left, right = lab.wires()
    weir = lab.weir(lab.ports(2, egress='["count"]') + PIPELINE, *flags, program=program)
    frames = mixed_frames()
    fates = [fate(raw) for raw in frames]
    count = {each: fates.count(each) for each in ("next", "other", "truncated")}
    assert all(count.values())
    for number, raw in enumerate(frames, 1):  # one by one: the kernel's redirects overtake what it punts
        left.send(raw)
        wait_until(lambda number=number: weir.settled(number), "the frame is through")
    expected = [raw for raw, each in zip(frames, fates) if each == "next"]
    assert right.hear(len(expected)) == expected
    now = weir.conserved()
    assert weir.drops() == {("stage main.ethertypes", each): count[each] for each in ("other", "truncated")}
    first, second = now["stages"]
    assert (first["stage"], second["stage"]) == ("ethertypes", "patch")
    punted = len(frames) if flags else sum(int.from_bytes(raw[12:14], "big") in TAGS for raw in frames)
    assert first["kernel"]["in"] == (0 if flags else len(frames)) and first["user"]["in"] == punted
    assert first["kernel"]["punt"] == (0 if flags else punted)
    assert first["kernel"]["next"] + first["user"]["next"] == second["kernel"]["in"] + second["user"]["in"] == count["next"]
    assert second["kernel"]["in"] == first["kernel"]["next"], "what the kernel lets go on the kernel's next half decides"
    assert second["kernel"]["redirect"] + second["user"]["redirect"] == count["next"]
    assert next(each["frames"] for each in now["egress"] if each["port"] == "p1") == count["next"]
