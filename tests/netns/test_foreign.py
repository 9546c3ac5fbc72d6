# SPDX-License-Identifier: BSD-3-Clause
"""Egress programs of the user's own objects: where they run, and what is said of those that cannot."""
import json

import pytest
from lab import BUILD, WEIR, frame, mac, run, wait_until

PATCH = '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "patch"\npairs = [["p0", "p1"]]\n'
OBJECT = BUILD / "tests" / "foreign.bpf.o"


def step(program="signs", file=OBJECT):
    return f'{{ object = "{file}", program = "{program}" }}'


def checked(tmp_path, text):
    """What `weir check` says of a file: nothing, or each problem."""
    file = tmp_path / "x.toml"
    file.write_text(text)
    done = run(WEIR, "check", file, check=False)
    assert done.returncode == (2 if done.stderr else 0), done
    return [line.split(": ", 1)[1] for line in done.stderr.splitlines()]


def ports(chain, more=""):
    return (f'[[port]]\nname = "p0"\ndevice = "p0"\npipeline = "main"\n[[port]]\nname = "p1"\ndevice = "p1"\npipeline = "main"\n{more}'
            f'egress = [{chain}]\n')


def test_a_foreign_program_runs_on_the_entry(lab):
    left, right = lab.wires()
    weir = lab.weir(ports(f'"count", {step()}') + PATCH)
    for number in range(10):
        left.send(frame(mac(1), mac(2), bytes([number])))
    left.send(frame(mac(1), mac(2), b"", 0x1234))
    assert right.hear(10) == [frame("02:00:00:00:00:fe", mac(2), bytes([number])) for number in range(10)]
    now = weir.conserved()
    assert [(row["program"], row["frames"], row["drop"]) for row in now["egress"]] == [("count", 11, 0), ("signs", 11, 1)]
    assert weir.drops() == {("egress p1 signs", "dropped"): 1}
    shown = weir.ask("devmap", "list")["ports"][1]
    assert ([each["program"] for each in shown["chain"]], shown["placement"]) == (["count", "signs"], "entry")
    assert shown["chain"][0]["id"] == shown["chain"][1]["id"] == shown["program"]["id"]
    assert shown["drops"] == {"signs.dropped": 1, "signs.aborted": 0}


@pytest.mark.parametrize("mode", ["native", "generic"])
@pytest.mark.parametrize("chain", ["", '"count", ', '"count", { program = "mac_rewrite", src = "02:00:00:00:00:00", dst = "02:00:00:00:00:77" }, '])
def test_every_frame_of_it_is_accounted_for(lab, mode, chain):
    left, right = lab.wires()
    weir = lab.weir(ports(chain + step()).replace("device", f'mode = "{mode}"\ndevice') + PATCH)
    fates = {0x0800: 20, 0x1234: 5, 0x4321: 7}  # let go, XDP_DROP, XDP_ABORTED
    for kind, number in fates.items():
        for _ in range(number):
            left.send(frame(mac(1), mac(2), b"", kind))
    dst = mac(0x77) if "mac_rewrite" in chain else mac(2)
    assert right.hear(20) == [frame("02:00:00:00:00:fe", dst, b"", 0x0800)] * 20
    now = weir.conserved()
    assert {row["frames"] for row in now["egress"]} == {32}
    assert weir.drops() == {("egress p1 signs", "dropped"): 5, ("egress p1 signs", "aborted"): 7}
    assert now["ports"][1]["tx_kernel"] == 20
    weir.ask("egress", "set", "p1")
    assert weir.drops() == {("egress p1 signs", "dropped"): 5, ("egress p1 signs", "aborted"): 7}, "counters outlive the chain"


def test_a_foreign_program_is_set_while_running(lab):
    left, right = lab.wires()
    weir = lab.weir(ports("", 'placement = "entry"\n') + PATCH)
    shown, = weir.ask("egress", "set", "p1", step())["egress"][-1:]
    assert (shown["program"], shown["keys"]) == ("signs", f"object={OBJECT}")
    weir.ask("egress", "set", "p1", f"signs,{shown['keys']}")
    left.send(frame(mac(1), mac(2)))
    assert right.hear(1) == [frame("02:00:00:00:00:fe", mac(2))]
    weir.ask("egress", "set", "p1")
    left.send(frame(mac(1), mac(2)))
    assert right.hear(1) == [frame(mac(1), mac(2))]
    done = run(WEIR, "egress", "set", "p0", step(), "--instance", weir.name, check=False)
    assert (done.returncode, "the port's chain is fused" in done.stderr) == (2, True), done.stderr
    weir.conserved()


@pytest.mark.parametrize("chain,more,says", [
    (step("attached"), "", f'program attached of {OBJECT} is in section "xdp", and the kernel takes for a device entry only one whose attach '
                           'type is that of SEC("xdp/devmap"): write that'),
    (step("on_a_cpu"), "", f'program on_a_cpu of {OBJECT} is in section "xdp/cpumap", and the kernel'),
    (step("of_skbs"), "", f'program of_skbs of {OBJECT} is in section "tc", and the kernel'),
    (step("signs_frags"), "", f'program signs_frags of {OBJECT} is for frames in several buffers, and the instance\'s are not'),
    (step("nobody"), "", f"{OBJECT} has no program nobody; it has: signs, past_the_end, calls_back, signs_frags, attached, on_a_cpu, of_skbs"),
    (step(file="/nowhere.bpf.o"), "", "/nowhere.bpf.o: cannot be read, or is empty: No such file or directory"),
    (step(file="/etc/passwd"), "", "/etc/passwd is no ELF file; compile it by: clang"),
    (step(), 'placement = "fused"\n', "a foreign program runs on the device entry alone"),
    (f'{step()}, "count"', "", "a foreign program calls no other behind it; put it last"),
    ('{ object = "foreign.bpf.o" }', "", "egress[0].program: is missing"),
    ('{ object = 7, program = "signs" }', "", "object: "),
    (f'{{ object = "{OBJECT}", program = "signs", vid = 7 }}', "", "unknown key"),
])
def test_one_that_cannot_run_is_refused_by_check_with_the_reason(tmp_path, chain, more, says):
    lines = checked(tmp_path, ports(chain, more) + PATCH)
    assert len(lines) == 1 and says in lines[0], lines


@pytest.mark.parametrize("chain", ["", '"count", '])
def test_one_that_cannot_be_counted_is_refused_with_the_reason(tmp_path, lab, chain):
    lab.wires()
    file = tmp_path / "x.toml"
    file.write_text(ports(chain + step("calls_back")) + PATCH)
    done = lab.switch.run(WEIR, "run", file, check=False)
    assert done.returncode == 1 and "program calls_back cannot run within weir's, which counts what it drops: " in done.stderr, done.stderr


def test_a_program_without_frags_is_refused_where_frames_lie_in_several_buffers(tmp_path):
    line, = checked(tmp_path, "[weir]\nfrags = true\n" + ports(step()) + PATCH)
    assert 'is not for frames in several buffers, and the instance\'s are such: write SEC("xdp.frags/devmap")' in line
    assert checked(tmp_path, "[weir]\nfrags = true\n" + ports(step("signs_frags")) + PATCH) == []


def test_a_port_that_user_space_sends_to_as_well_is_refused(tmp_path, lab):
    switch = '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "l2_switch"\n'
    line, = checked(tmp_path, ports(step()) + switch)
    assert "stage main.l2_switch has user space send what it punts (new_address, moved), which would leave without it" in line
    file = tmp_path / "y.toml"
    file.write_text(ports(step()) + PATCH)
    done = lab.switch.run(WEIR, "run", file, "--user-only", check=False)
    assert (done.returncode, "kernel halves are off (--user-only)" in done.stderr) == (2, True), done.stderr


def test_a_file_that_is_read_again_gets_no_foreign_program_onto_a_fused_chain(lab):
    lab.wires()
    weir = lab.weir(ports('"count"') + PATCH)
    weir.file.write_text(weir.file.read_text().replace('egress = ["count"]', f'egress = ["count", {step()}]'))
    done = run(WEIR, "reload", "--instance", weir.name, check=False)
    assert (done.returncode, "the port's chain is fused" in done.stderr) == (2, True), done.stderr
    assert [row["program"] for row in weir.stats()["egress"]] == ["count"]


def test_an_object_that_was_built_anew_is_loaded_by_a_reload(lab, tmp_path):
    left, right = lab.wires()
    file = tmp_path / "mine.bpf.o"
    file.write_bytes(OBJECT.read_bytes())
    weir = lab.weir(ports(step(file=file)) + PATCH)
    assert weir.ask("reload")["changed"] == []
    file.write_bytes(OBJECT.read_bytes() + b"\0")
    before = weir.ask("devmap", "list")["ports"][1]["chain"][0]["id"]
    assert weir.ask("reload")["changed"] == ["egress of port p1"]
    assert weir.ask("devmap", "list")["ports"][1]["chain"][0]["id"] != before
    left.send(frame(mac(1), mac(2)))
    assert right.hear(1) == [frame("02:00:00:00:00:fe", mac(2))]
    weir.conserved()


def test_a_reload_keeps_the_chain_of_a_command_whose_object_was_built_anew(lab, tmp_path):
    left, right = lab.wires()
    file = tmp_path / "mine.bpf.o"
    file.write_bytes(OBJECT.read_bytes())
    weir = lab.weir(ports("", 'placement = "entry"\n') + PATCH)
    weir.ask("egress", "set", "p1", step(file=file))
    file.write_bytes(OBJECT.read_bytes() + b"\0")
    assert weir.ask("reload")["changed"] == ["egress of port p1"]
    left.send(frame(mac(1), mac(2)))
    assert right.hear(1) == [frame("02:00:00:00:00:fe", mac(2))]
    weir.conserved()


def test_a_relative_file_is_that_of_the_configurations_folder(tmp_path, lab):
    (tmp_path / "mine.bpf.o").write_bytes(OBJECT.read_bytes())
    assert checked(tmp_path, ports(step(file="mine.bpf.o")) + PATCH) == []
