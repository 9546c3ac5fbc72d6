# SPDX-License-Identifier: BSD-3-Clause
"""Taps: the host's own traffic through a pipeline, alone and beside a netdev under XDP, and devices that go."""
import pathlib

import pytest
from lab import WEIR, frame, iperf, mac, ping, wait_until
from test_start import refused

PATCH = '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "patch"\npairs = [["p0", "p1"]]\n'


def tap(name, device, **keys):
    lines = [f'[[port]]\nname = "{name}"\ndriver = "tap"\ndevice = "{device}"\npipeline = "main"']
    return "\n".join([*lines, *(f"{key} = {value}" for key, value in keys.items())]) + "\n"


def devices(namespace):
    return [line.split(":")[1].strip().split("@")[0] for line in namespace.run("ip", "-o", "link").stdout.splitlines()]


def in_host(lab, device, number):
    """A namespace that has the tap, as a container would."""
    host = lab.namespace(f"t{number}")
    lab.switch.run("ip", "link", "set", device, "netns", host.name)
    host.run("ip", "addr", "add", f"10.9.0.{number}/24", "dev", device)
    host.run("ip", "link", "set", device, "up")
    return host


@pytest.mark.parametrize("queues", [1, 3])
def test_two_taps_speak_to_each_other_and_are_gone_in_the_end(make_lab, queues):
    lab = make_lab(0)
    weir = lab.weir(tap("p0", "t0", queues=queues) + tap("p1", "t1", queues=queues) + PATCH)
    hosts = [in_host(lab, f"t{number}", number + 1) for number in range(2)]
    assert ping(hosts[0], "10.9.0.2") == 3
    sent = iperf(hosts[1], hosts[0], "10.9.0.2")["sum_received"]["bytes"]
    assert sent > 1_000_000, "TCP, whose checksums and segments are the host's own affair"
    for host in hosts:
        host.run("ip", "addr", "flush", "dev", devices(host)[-1])
    now = weir.conserved()
    assert now["account"]["to_stack"] == 0 and now["ports"][0]["tx_user"] > 3
    weir.stop()
    assert [devices(host) for host in hosts] == [["lo"], ["lo"]]


def test_a_tap_beside_a_netdev(make_lab):
    lab = make_lab(1)
    weir = lab.weir(lab.ports(1) + tap("p1", "t1", mac='"02:00:00:00:00:99"') + PATCH)
    lab.switch.run("ip", "addr", "add", "10.9.0.9/24", "dev", "t1")
    assert ping(lab.hosts[0], "10.9.0.9") == 3
    assert lab.switch.mac("t1") == "02:00:00:00:00:99"
    assert iperf(lab.hosts[0], lab.switch, "10.9.0.1")["sum_received"]["bytes"] > 1_000_000
    assert iperf(lab.switch, lab.hosts[0], "10.9.0.9")["sum_received"]["bytes"] > 1_000_000
    lab.switch.run("ip", "link", "set", "t1", "down")
    wait_until(lambda: "port p1: tap device t1 is down" in weir.process.text(), "it warns")
    lab.silence(lab.hosts[0])
    wire = lab.hosts[0].tap("eth0")
    before = weir.drops().get(("port p1", "device_refused"), 0)
    for _ in range(5):
        wire.send(frame(mac(1), mac(9)))
    wait_until(lambda: weir.drops().get(("port p1", "device_refused"), 0) >= before + 5, "they are counted")
    wire.close()
    weir.conserved()


def asleep(weir):
    return all(line.rsplit(") ", 1)[1].startswith("S") for line in
               (each.read_text() for each in pathlib.Path(f"/proc/{weir.process.popen.pid}/task").glob("*/stat")))


def test_a_tap_that_is_deleted_is_warned_of_and_lets_the_worker_sleep(make_lab):
    lab = make_lab(0)
    weir = lab.weir(tap("p0", "t0") + tap("p1", "t1") + PATCH)
    lab.switch.run("ip", "link", "del", "t1")
    wait_until(lambda: "port p1: tap device t1 is gone" in weir.process.text(), "it warns")
    wait_until(lambda: asleep(weir), "nothing spins")
    lab.switch.run("ip", "addr", "add", "10.9.0.1/24", "dev", "t0")
    lab.switch.run("ping", "-c", "1", "-W", "1", "10.9.0.2", check=False)
    wait_until(lambda: weir.drops().get(("port p1", "device_refused"), 0) > 0, "what goes there is counted")
    lab.switch.run("ip", "addr", "flush", "dev", "t0")
    weir.conserved()
    weir.stop()


def test_what_stands_in_the_way_of_a_tap_is_said(lab, tmp_path):
    text = tap("p0", "t0") + tap("p1", "t1") + PATCH
    nobody = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    code, said = refused(lab, text, tmp_path, before=nobody)
    assert code == 1 and "port p0: tap device t0: make or open it (it needs CAP_NET_ADMIN" in said
    code, said = refused(lab, text.replace('"t1"', '"p0"'), tmp_path)
    assert code == 1 and "port p1: tap device p0: make or open it (there is a device of this name that is no tap" in said
    code, said = refused(lab, text.replace('"t1"', '"t0"'), tmp_path)
    assert code == 1 and "port p1: tap device t0: make or open it (another program has it open)" in said
    code, said = refused(lab, tap("p0", "t0", mtu=3000) + tap("p1", "t1") + PATCH, tmp_path)
    assert code == 2 and "mtu = 3000 does not fit into a frame; set [frames] size = 4096, or mtu = 1773" in said
    assert "t0" not in devices(lab.switch)


def test_a_persistent_tap_is_used_without_privileges_and_stays(make_lab, tmp_path):
    lab = make_lab(0)
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.owner() == "root" and str(parent).startswith("/tmp/pytest"):
            parent.chmod(0o755)
    lab.switch.run("ip", "tuntap", "add", "mode", "tap", "user", "65534", "name", "t0")
    lab.switch.run("sysctl", "-qw", "net.ipv6.conf.t0.disable_ipv6=1")
    lab.switch.run("ip", "link", "set", "t0", "up")
    file = tmp_path / "null.toml"
    source = 'driver = "null"\nframes = ["ffffffffffff 020000000001 88b5' + "00" * 46 + '"]\ncount = 1000'
    file.write_text(f'[weir]\nname = "{lab.id}"\n[[port]]\nname = "p0"\n{source}\npipeline = "main"\n' +
                    tap("p1", "t0").replace('pipeline = "main"', "") + PATCH)
    heard = lab.switch.tap("t0")
    done = lab.switch.run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", WEIR, "run",
                          file, check=False)
    assert done.returncode == 0, done.stderr
    assert ": 1000 frames in, 1000 out, 0 to_stack, 0 dropped" in done.stdout
    assert len(heard.hear(1000)) == 1000
    heard.close()
    assert "t0" in devices(lab.switch)
