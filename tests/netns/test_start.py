# SPDX-License-Identifier: BSD-3-Clause
"""Bad input at start: one clear line with the remedy, the right exit code, and nothing left behind or changed."""
import json
import os
import pathlib
import secrets

import pytest
from lab import BUILD, WEIR, ping, run, wait_until

PATCH = '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "patch"\npairs = [["p0", "p1"]]\n'


def everything(lab):
    """All that a start could leave behind: programs on devices, and files and pins of the lab's instances. What is neither attached nor
    pinned lives no longer than its process."""
    xdp = [(link["ifname"], link.get("xdp")) for link in json.loads(lab.switch.run("ip", "-j", "link").stdout)]
    paths = [str(path) for path in pathlib.Path("/run/weir").rglob("*")] + [str(path) for path in pathlib.Path("/sys/fs/bpf").rglob("*")]
    return xdp, sorted(path for path in paths if any(name in path for name in lab.instances))


def unchanged(lab, was):
    now = everything(lab)
    assert now == was
    return True


def refused(lab, text, tmp_path, *flags, name=None, before=(), instance=None):
    """Runs a configuration that must be refused, and claims that the world is as it was. Exit code and what it said."""
    file = tmp_path / (name or "bad.toml")
    instance = instance or "t" + secrets.token_hex(4)
    lab.add_instance(instance)
    file.write_text(f'[weir]\nname = "{instance}"\n' + text)
    was = everything(lab)
    done = lab.switch.run(*before, WEIR, "run", file, *flags, check=False)
    assert unchanged(lab, was)
    assert done.stdout == ""
    return done.returncode, done.stderr.strip()


def test_a_missing_device_is_named_with_those_that_are_there(lab, tmp_path):
    code, said = refused(lab, lab.ports(2).replace('device = "p1"', 'device = "p9"') + PATCH, tmp_path)
    assert code == 1
    assert said == "weir: port p1: no device p9 in this network namespace; there are: lo, p0, p1"


def test_a_configuration_error_is_exit_code_2_with_its_position(lab, tmp_path):
    code, said = refused(lab, lab.ports(2, mdoe='"auto"') + PATCH, tmp_path)
    assert code == 2
    lines = said.splitlines()
    assert len(lines) == 2, "one for each port"
    assert lines[0].startswith(f"{tmp_path}/bad.toml:7:1: port[0].mdoe: unknown key (did you mean \"mode\"?); allowed: ")


XDP_STACK = BUILD / "tests" / "xdp_stack.bpf.o"


@pytest.mark.parametrize("load", [("xdp-loader", "load", "-m", "native", "p1", XDP_STACK), ("xdp-loader", "load", "-m", "skb", "p1", XDP_STACK),
                                  ("ip", "link", "set", "dev", "p1", "xdpgeneric", "obj", XDP_STACK, "sec", "xdp")],
                         ids=["libxdp_native", "libxdp_generic", "iproute2"])
def test_a_device_that_carries_another_program_is_left_to_its_owner(lab, tmp_path, load):
    lab.switch.run(*load)
    try:
        code, said = refused(lab, lab.ports(2) + PATCH, tmp_path)
        assert code == 1
        assert said.startswith("weir: port p1, device p1: another XDP program is attached (id ")
        lab.switch.run(*said.split("detach it with: ")[1].split())
        lab.weir(lab.ports(2) + PATCH).stop()
    finally:
        lab.switch.run("xdp-loader", "unload", "-a", "p1", check=False)


def test_a_second_instance_of_the_name_is_refused_and_the_first_goes_on(lab, tmp_path):
    weir = lab.weir(lab.ports(2) + PATCH)
    code, said = refused(lab, lab.ports(2) + PATCH, tmp_path, instance=weir.name)
    assert code == 1
    assert said == f"weir: instance {weir.name} is already running (process {weir.process.popen.pid}); stop it, or give this one another [weir] name"
    assert ping(lab.hosts[0], "10.9.0.2") == 3


def test_a_device_of_another_instance_is_refused_and_the_first_goes_on(lab, tmp_path):
    weir = lab.weir(lab.ports(2) + PATCH)
    code, said = refused(lab, lab.ports(2) + PATCH, tmp_path)
    assert code == 1 and "another XDP program is attached" in said and f", of weir's instance {weir.name})" in said
    assert ping(lab.hosts[0], "10.9.0.2") == 3


def test_what_a_killed_instance_left_on_a_device_comes_off_by_the_command_that_is_said(lab, tmp_path):
    lab.weir(lab.ports(2) + PATCH).kill()
    for device in ("p0", "p1"):
        code, said = refused(lab, lab.ports(2) + PATCH, tmp_path)
        assert code == 1 and f"device {device}: another XDP program" in said, said
        lab.switch.run(*said.split("detach it with: ")[1].split())
    lab.weir(lab.ports(2) + PATCH).stop()


def test_without_privileges_it_says_what_it_needs(lab, tmp_path):
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.owner() == "root" and str(parent).startswith("/tmp/pytest"):
            parent.chmod(0o755)
    code, said = refused(lab, lab.ports(2) + PATCH, tmp_path, before=("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"))
    assert code == 1 and "root" in said and len(said.splitlines()) == 1, said


def test_a_user_without_privileges_has_a_run_folder_that_nobody_else_enters(lab, tmp_path):
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents:
        if parent.owner() == "root" and str(parent).startswith("/tmp/pytest"):
            parent.chmod(0o755)
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    file, name = tmp_path / "null.toml", f"t{secrets.token_hex(4)}"
    file.write_text(f'[weir]\nname = "{name}"\n[[port]]\nname = "sink"\ndriver = "null"\n')
    (tmp_path / "weir").mkdir()
    done = lab.switch.run(*nobody, WEIR, "run", file, check=False, env=env)
    assert done.returncode == 1
    assert done.stderr == (f"weir: {tmp_path}/weir: it must be a folder of this user that nobody else may enter: remove it, or set "
                           "XDG_RUNTIME_DIR\n")
    (tmp_path / "weir").rmdir()
    process = lab.switch.start(*nobody, WEIR, "run", file, env=env)
    wait_until(lambda: "forwarding" in process.text(), "it starts")
    assert json.loads(lab.switch.run(*nobody, WEIR, "stats", "--json", env=env).stdout)["instance"] == name
    second = lab.switch.run(*nobody, WEIR, "run", file, check=False, env=env)
    assert second.returncode == 1 and f"instance {name} is already running" in second.stderr
    folder = (tmp_path / "weir").stat()
    assert (folder.st_uid, folder.st_mode & 0o777) == (65534, 0o700)
    assert process.stop() == 0 and list((tmp_path / "weir").iterdir()) == []


def test_root_without_capabilities_is_told_which(lab, tmp_path):
    code, said = refused(lab, lab.ports(2) + PATCH, tmp_path, before=("setpriv", "--bounding-set=-all", "--inh-caps=-all"))
    assert code == 1 and "CAP_" in said and len(said.splitlines()) == 1, said


def test_a_jumbo_mtu_is_refused_with_the_command_that_mends_it(make_lab, tmp_path):
    lab = make_lab(2, mtu=9000)
    code, said = refused(lab, lab.ports(2) + PATCH, tmp_path)
    assert code == 1
    assert "device p0 has MTU 9000" in said and "ip link set dev p0 mtu 1774" in said


def test_native_mode_on_a_driver_without_it_is_refused_with_the_alternative(lab, tmp_path):
    lab.switch.run("ip", "link", "add", "br9", "type", "bridge")
    text = lab.ports(2, mode='"native"').replace('device = "p1"', 'device = "br9"')
    code, said = refused(lab, text + PATCH, tmp_path)
    assert code == 1
    assert "port p1, device br9: " in said and "no native XDP" in said and 'mode = "auto"' in said


def test_a_stage_that_refuses_its_keys_says_where(lab, tmp_path):
    code, said = refused(lab, lab.ports(2) + PATCH.replace('["p0", "p1"]', '["p0", "p0"]'), tmp_path)
    assert code == 2
    assert said == f'{tmp_path}/bad.toml:15:9: pipeline[0].stage[0].pairs: port "p0" is its own partner; name two ports'


def test_a_file_that_is_not_there_is_said(lab):
    done = run(WEIR, "run", "/nonexistent.toml", check=False)
    assert done.returncode == 2 and "/nonexistent.toml: cannot read: No such file or directory" in done.stderr


def test_too_few_frames_for_the_queues_are_refused_with_the_number(lab, tmp_path):
    code, said = refused(lab, "[frames]\ncount = 64\n" + lab.ports(2) + PATCH, tmp_path)
    assert code == 2 and "at least" in said


def test_nothing_is_lost_to_a_veth_peer_without_napi(lab):
    """The kernel loses what is redirected there: it goes through user space until the remedy is followed, and then no more."""
    lab.hosts[1].run("ethtool", "-K", "eth0", "gro", "off")
    weir = lab.weir(lab.ports(2) + PATCH)
    said = weir.stats()["warnings"]
    assert len(said) == 1 and "port p1: the veth peer of p1 has neither GRO nor an XDP program" in said[0]
    assert weir.process.text().startswith(f"weir: warning: {said[0]}\n")
    assert ping(lab.hosts[0], "10.9.0.2") == 3
    assert weir.port("p1")["tx_kernel"] == 0
    run(*said[0].split("until: ")[1].split())
    wait_until(lambda: len(weir.ask("devmap", "list")["ports"]) == 2, "the port has its entry")
    assert weir.stats()["warnings"] == []
    assert ping(lab.hosts[0], "10.9.0.2") == 3
    assert weir.port("p1")["tx_kernel"] >= 3
    assert weir.conserved()["account"]["drop"] == 0


def test_checksums_that_a_veth_peer_leaves_to_the_receiver_are_told(lab):
    """XDP cannot tell the receiver to compute them: a TCP handshake never ends until the remedy is followed."""
    lab.hosts[0].run("ethtool", "-K", "eth0", "tx", "on")
    weir = lab.weir(lab.ports(2) + PATCH)
    said = weir.stats()["warnings"]
    assert len(said) == 1 and "port p0: the veth peer of p0 leaves TCP and UDP checksums to the receiver" in said[0]
    lab.hosts[1].start("/usr/bin/python3", "-m", "http.server", "--bind", "10.9.0.2", "8000")
    wait_until(lambda: "LISTEN" in lab.hosts[1].run("ss", "-ltn").stdout, "the server listens")
    fetch = ("curl", "-sS", "-o", "/dev/null", "--max-time", "2", "http://10.9.0.2:8000/")
    assert lab.hosts[0].run(*fetch, check=False).returncode != 0
    run(*said[0].split("until: ")[1].split())
    assert lab.hosts[0].run(*fetch, check=False).returncode == 0
    wait_until(lambda: weir.stats()["warnings"] == [], "the warning is withdrawn")


def test_a_device_that_goes_down_is_told_until_it_is_up(lab):
    weir = lab.weir(lab.ports(2) + PATCH)
    said = "port p1: device p1 is down; nothing is received or sent until: ip link set dev p1 up"
    for _ in range(2):
        lab.switch.run("ip", "link", "set", "p1", "down")
        wait_until(lambda: weir.stats()["warnings"] == [said], "the warning")
        lab.switch.run("ip", "link", "set", "p1", "up")
        wait_until(lambda: weir.stats()["warnings"] == [], "the warning is withdrawn")
    assert weir.process.text().count(f"weir: warning: {said}\n") == 2
    lab.switch.run("ip", "link", "del", "p1")
    wait_until(lambda: len(weir.stats()["warnings"]) == 1 and "device p1 is gone" in weir.stats()["warnings"][0], "the warning")


@pytest.mark.parametrize("words", [[], ["nonsense"], ["run"], ["run", "a", "--keep", "--detach-on-exit"], ["stats", "--nonsense"], ["devmap"]])
def test_bad_usage_is_exit_code_2(words):
    assert run(WEIR, *words, check=False).returncode == 2


@pytest.mark.parametrize("words,says", [
    ([], "weir: no command; there are: run, check, "), (["foo"], 'weir: unknown command "foo"; there are: run, check, '),
    (["devmap", "group", "foo"], 'weir: unknown command "devmap group foo"; there are: devmap group list, devmap group join, '),
    (["egress", "list", "--foo"], "weir: The following argument was not expected: --foo; see: weir egress list --help\n")])
def test_bad_usage_names_what_there_is(words, says):
    assert run(WEIR, *words, check=False).stderr.startswith(says)


def test_asking_an_instance_that_does_not_run_is_exit_code_1():
    done = run(WEIR, "stats", "--instance", "nobody", check=False)
    assert done.returncode == 1 and "instance nobody is not running" in done.stderr


def test_weir_runs_without_a_bpffs_of_the_host(lab, tmp_path):
    """`ip netns exec` gives a fresh /sys: weir mounts what it needs, and nothing stays mounted."""
    file = tmp_path / "good.toml"
    name = "t" + secrets.token_hex(4)
    file.write_text(f'[weir]\nname = "{name}"\n' + lab.ports(2) + PATCH)
    def mounts():  # of a kind that weir makes: other laboratories come and go
        return [line for line in pathlib.Path("/proc/mounts").read_text().splitlines() if line.split()[2] in ("bpf", "sysfs")]

    was = mounts()
    process = lab.start("ip", "netns", "exec", lab.switch.name, WEIR, "run", file)
    wait_until(lambda: "forwarding" in process.text(), "weir starts")
    assert ping(lab.hosts[0], "10.9.0.2") == 3
    assert process.stop() == 0, process.text()
    assert mounts() == was
