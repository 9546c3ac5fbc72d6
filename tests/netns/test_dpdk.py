# SPDX-License-Identifier: BSD-3-Clause
"""Ports of driver dpdk, by DPDK's own drivers of virtual devices, beside ports of XDP. No hugepages and no device of the machine's."""
import json
import os
import pathlib
import random
import shutil
import signal
import struct

import pytest
from lab import WEIR, frame, iperf, mac, ping, run, wait_until

DRIVERS = {driver["name"] for driver in json.loads(run(WEIR, "plugins", "--json").stdout)["drivers"]}
pytestmark = pytest.mark.skipif("dpdk" not in DRIVERS, reason="needs a build with DPDK")


@pytest.fixture(autouse=True, name="runtime")
def of_its_own(tmp_path, monkeypatch):
    """Where DPDK's processes have their files, so that those of others do not count."""
    folder = tmp_path / "runtime"
    folder.mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(folder))
    # net_af_xdp forgets the program that libxdp has loaded for it (rte_eth_af_xdp.c of 22.11), 80 bytes each time.
    forgotten = tmp_path / "forgotten"
    forgotten.write_text("leak:libxdp.so\n")
    monkeypatch.setenv("LSAN_OPTIONS", f"suppressions={forgotten}:print_suppressions=0")


def xdp(name, egress="[]"):
    return f'[[port]]\nname = "{name}"\ndevice = "{name}"\npipeline = "main"\negress = {egress}\n'


def dpdk(name, device, more="", pipeline="main"):
    return f'[[port]]\nname = "{name}"\ndriver = "dpdk"\ndevice = "{device}"\n' + (f'pipeline = "{pipeline}"\n' if pipeline else "") + more + "\n"


def patch(*pairs):
    listed = ", ".join(f'["{one}", "{other}"]' for one, other in pairs)
    return f'[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "patch"\npairs = [{listed}]\n'


def links(namespace):
    return {link["ifname"]: "xdp" in link for link in json.loads(namespace.run("ip", "-j", "link").stdout)}


def left(lab):
    """What DPDK could leave behind: devices, programs on them, and files of its own."""
    return links(lab.switch), sorted(pathlib.Path(os.environ["RUNTIME_DIRECTORY"]).rglob("*"))


def some_frames(number, longest, rng):
    return [frame(mac(1), mac(2), struct.pack("!I", each) + rng.randbytes(rng.randrange(42, longest - 17))) for each in range(number)]


def seeded():
    seed = random.randrange(1 << 32)
    print("seed", seed)
    return random.Random(seed)


def fact(weir, port, key):
    return weir.port(port)[key]


# A device of the kernel's: net_tap


def with_tap(lab, more="", **options):
    """p0 joined to a tap device, which has addresses beside those of the hosts."""
    weir = lab.weir(xdp("p0") + dpdk("t", "net_tap0,iface=t0", more) + patch(("p0", "t")), **options)
    lab.switch.run("ip", "addr", "add", "10.9.0.50/24", "dev", "t0")
    lab.switch.run("ip", "link", "set", "t0", "up")
    return weir


def test_an_xdp_port_and_a_tap_of_dpdk_are_one_wire(lab):
    before = left(lab)
    weir = with_tap(lab)
    assert ping(lab.hosts[0], "10.9.0.50") == 3
    assert iperf(lab.switch, lab.hosts[0], "10.9.0.50")["sum_received"]["bytes"] > 100_000
    now = weir.conserved()
    assert fact(weir, "t", "mode") == "net_tap" and fact(weir, "t", "copied") == "no"
    assert now["ports"][1]["tx_user"] > 700 and now["ports"][0]["tx_user"] > 100
    weir.stop()
    assert left(lab) == before


def test_nothing_is_left_of_one_that_was_killed(lab):
    before = left(lab)
    weir = with_tap(lab)
    assert "t0" in links(lab.switch)
    weir.kill()
    wait_until(lambda: left(lab) == (before[0] | {"p0": True}, before[1]), "all but the kernel path of p0 is gone")


def test_a_device_that_goes_away_takes_only_its_port_along(lab):
    text = xdp("p0") + xdp("p1") + dpdk("t", "net_tap0,iface=t0") + dpdk("r", "net_ring0") + patch(("p0", "p1"), ("t", "r"))
    weir = lab.weir(text)
    lab.switch.run("ip", "link", "del", "t0")
    assert ping(lab.hosts[0], "10.9.0.2") == 3
    wait_until(lambda: any("port t: device net_tap0 has no link" in each for each in weir.stats()["warnings"]), "a warning of the device")
    weir.conserved()


def test_what_a_tap_does_not_take_is_counted_once(lab):
    """Its driver counts it as an error of the device, and gives it back too."""
    near, _ = lab.wires()
    weir = with_tap(lab)
    lab.switch.run("ip", "link", "set", "t0", "down")
    for each in range(50):
        near.send(frame(mac(1), mac(2), bytes([each])))
    wait_until(lambda: weir.port("p0")["rx"] >= 50, "all frames have come in")
    weir.conserved()
    assert weir.drops() == {("port t", "ring_full"): 50}


CHAINS = {
    "tags": '["count", { program = "vlan_push", vid = 100 }, { program = "mac_rewrite", src = "02:00:00:00:00:aa", dst = "02:00:00:00:00:bb" }]',
    # More in front of a frame than an mbuf can say.
    "outer headers": "[" + ", ".join(['{ program = "encap_vxlan", vni = 7, dst = "02:00:00:00:00:bb", src = "02:00:00:00:00:aa", '
                                      'local = "10.0.0.1", remote = "10.0.0.2" }'] * 3) + "]",
}


@pytest.mark.parametrize("chain", CHAINS)
def test_a_frame_leaves_as_the_same_bytes_as_by_xdp(lab, chain):
    rng = seeded()
    near, far = lab.wires()
    sent = some_frames(60, 1300, rng)
    weir = lab.weir(xdp("p0") + xdp("p1", CHAINS[chain]) + patch(("p0", "p1")))
    for raw in sent:
        near.send(raw)
    by_xdp = far.hear(len(sent))
    weir.stop()
    weir = lab.weir(xdp("p0") + dpdk("t", "net_tap0,iface=t0", f"egress = {CHAINS[chain]}") + patch(("p0", "t")))
    lab.switch.run("sysctl", "-qw", "net.ipv6.conf.t0.disable_ipv6=1")
    lab.switch.run("ip", "link", "set", "t0", "up")
    tap = lab.switch.tap("t0")
    for raw in sent:
        near.send(raw)
    assert tap.hear(len(sent)) == by_xdp and len(by_xdp) == len(sent)
    programs = [program for program in weir.conserved()["egress"] if program["port"] == "t"]
    assert {program["user"] for program in programs} == {len(sent)}


# Devices in memory: net_null, net_ring


def test_null_devices_forward_and_every_frame_is_counted(lab):
    weir = lab.weir(dpdk("a", "net_null0,size=64") + dpdk("b", "net_null1,size=100", 'egress = ["count"]') + patch(("a", "b")))
    wait_until(lambda: weir.port("a")["rx"] > 100_000 and weir.port("b")["rx"] > 100_000, "frames come in by both")
    now = weir.conserved()
    a, b = now["ports"]
    assert (a["copied"], a["spread"]) == ("no", "one queue")
    assert (a["tx_user"], b["tx_user"]) == (b["rx"], a["rx"]) and weir.drops() == {}
    assert now["egress"][0]["user"] == a["rx"]


def test_each_queue_has_its_frames(lab):
    weir = lab.weir("workers = 2\n" + dpdk("a", "net_null0", "queues = 3") + dpdk("b", "net_null1", pipeline="")
                    + patch(("a", "b")))
    wait_until(lambda: weir.port("a")["rx"] > 10_000, "frames come in")
    now = weir.conserved()
    assert now["ports"][0]["queues"] == "3" and now["ports"][1]["tx_user"] == now["ports"][0]["rx"]
    assert now["ports"][1]["rx"] == 0, "what comes in by a port without a pipeline is not asked for"


def test_a_ring_gives_back_what_it_was_given_without_a_copy(lab):
    """What goes to the ring comes in by it, and out of the port that it came from."""
    rng = seeded()
    near, _ = lab.wires()
    weir = lab.weir(xdp("p0") + dpdk("r", "net_ring0") + patch(("p0", "r")))
    sent = some_frames(300, 1514, rng)
    for raw in sent:
        near.send(raw)
    assert near.hear(len(sent)) == sent
    now = weir.conserved()
    assert [port["tx_user"] for port in now["ports"]] == [300, 300] and weir.drops() == {}


# Files: net_pcap


def write_capture(path, frames):
    with open(path, "wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for raw in frames:
            file.write(struct.pack("<IIII", 0, 0, len(raw), len(raw)) + raw)


def read_capture(path):
    raw, at, frames = path.read_bytes(), 24, []
    while at < len(raw):
        size = struct.unpack_from("<I", raw, at + 8)[0]
        frames.append(raw[at + 16:at + 16 + size])
        at += 16 + size
    return frames


def test_a_capture_file_is_read_and_written(lab, tmp_path):
    """A frame in several pieces is too long, by name. Its end is not the end of the run: that is what driver pcap is for."""
    rng = seeded()
    frames = some_frames(500, 1500, rng)
    write_capture(tmp_path / "in.pcap", [*frames[:200], frame(mac(1), mac(2), bytes(4000)), *frames[200:]])
    weir = lab.weir(dpdk("a", f"net_pcap0,rx_pcap={tmp_path}/in.pcap") + dpdk("b", f"net_pcap1,tx_pcap={tmp_path}/out.pcap") + patch(("a", "b")))
    wait_until(lambda: weir.port("b")["tx_user"] == len(frames), "all frames are written")
    now = weir.conserved()
    assert now["ports"][0]["rx"] == len(frames) + 1
    assert weir.drops() == {("port a", "too_long"): 1}
    weir.stop()
    assert read_capture(tmp_path / "out.pcap") == frames


# Another process: net_memif, net_virtio_user


def test_two_instances_are_joined_by_memif(lab, tmp_path):
    socket = tmp_path / "memif.sock"
    device = f"net_memif0,socket={socket},socket-abstract=no,role="
    first = lab.weir(xdp("p0") + dpdk("m", device + "server") + patch(("p0", "m")))
    wait_until(lambda: any("port m: device net_memif0 has no link" in each for each in first.stats()["warnings"]), "a warning of the missing peer")
    second = lab.weir(xdp("p1") + dpdk("m", device + "client") + patch(("p1", "m")))
    wait_until(lambda: first.port("m")["link"] == second.port("m")["link"] == "up", "the two have found each other")
    assert ping(lab.hosts[0], "10.9.0.2") == 3
    assert iperf(lab.hosts[1], lab.hosts[0], "10.9.0.2")["sum_received"]["bytes"] > 100_000
    first.conserved()
    second.conserved()
    second.kill()
    wait_until(lambda: first.port("m")["link"] == "down", "the first sees that the other has gone")
    ping(lab.hosts[0], "10.9.0.2", 1)
    first.conserved()
    second.start()
    wait_until(lambda: first.port("m")["link"] == "up", "they have found each other again")
    assert ping(lab.hosts[0], "10.9.0.2") == 3
    second.stop()
    first.stop()
    assert not socket.exists()


def test_a_vhost_backend_takes_frames_where_they_are(lab, tmp_path):
    """The other process maps the memory of the frames: they reach it, and what it sends back, without a copy of weir's."""
    if shutil.which("dpdk-testpmd") is None:
        pytest.skip("needs dpdk-testpmd")
    rng = seeded()
    near, _ = lab.wires()
    socket = tmp_path / "vhost.sock"
    peer = lab.start("dpdk-testpmd", "--no-huge", "-m", "256", "--no-pci", "--no-shconf", "--no-telemetry", f"--file-prefix={lab.id}", "-l", "0,1",
                     f"--vdev=net_vhost0,iface={socket}", "--", "--port-topology=loop", "--forward-mode=io", "--auto-start", "--stats-period=1",
                     "--total-num-mbufs=4096")
    wait_until(socket.exists, "the backend listens", 20)
    weir = lab.weir(xdp("p0") + dpdk("v", f"net_virtio_user0,path={socket}") + patch(("p0", "v")))
    assert fact(weir, "v", "copied") == "no"
    first = frame(mac(1), mac(2), b"the first")

    def reflected():
        near.send(first)
        return near.hear_of(first, 0.3)

    wait_until(reflected, "the backend sends frames back")
    near.hear(1000, 0.5)
    sent = some_frames(100, 1500, rng)
    for raw in sent:
        near.send(raw)
    assert near.hear(len(sent)) == sent
    weir.conserved()
    weir.stop()
    peer.stop(signal.SIGINT)


# A device of the kernel's by AF_XDP: net_af_xdp


def test_af_xdp_of_dpdk_forwards_by_copies_and_says_so(lab):
    before = left(lab)
    weir = lab.weir(xdp("p0") + dpdk("a", "net_af_xdp0,iface=p1") + patch(("p0", "a")))
    assert fact(weir, "a", "copied") == "yes: its driver wants the bytes behind their mbuf"
    assert ping(lab.hosts[0], "10.9.0.2") == 3
    assert iperf(lab.hosts[1], lab.hosts[0], "10.9.0.2")["sum_received"]["bytes"] > 100_000
    weir.conserved()
    weir.stop()
    assert left(lab) == before


def test_what_a_device_misses_has_a_name(lab):
    """While the process stands still, the kernel has but a ring full of places for what comes in."""
    near, far = lab.wires()
    weir = lab.weir(xdp("p0") + dpdk("a", "net_af_xdp0,iface=p1") + patch(("p0", "a")))
    weir.process.popen.send_signal(signal.SIGSTOP)
    sent = 6000
    for each in range(sent):
        far.send(frame(mac(2), mac(1), struct.pack("!I", each)))
    weir.process.popen.send_signal(signal.SIGCONT)
    wait_until(lambda: weir.port("a")["rx"] == sent, "each frame is counted")
    weir.conserved()
    missed = weir.drops()[("port a", "punt_failed")]
    assert 0 < missed < sent and len(near.hear(sent - missed)) == sent - missed


def test_what_af_xdp_leaves_when_it_is_killed_comes_off_as_the_readme_says(lab):
    weir = lab.weir(dpdk("a", "net_af_xdp0,iface=p1") + '[[port]]\nname = "z"\ndriver = "null"\n' + patch(("a", "z")))
    weir.kill()
    assert links(lab.switch)["p1"]
    lab.switch.run("ip", "link", "set", "dev", "p1", "xdp", "off")
    assert not links(lab.switch)["p1"]
    weir.start()
    weir.stop()


# Mistakes

REFUSED = {
    "no driver": (dpdk("a", "net_nothing0"), "", "port a: device net_nothing0: bring it into DPDK"),
    "no device": (dpdk("a", "net_af_xdp0,iface=nothing"), "", "port a: device net_af_xdp0,iface=nothing: bring it into DPDK"),
    "no PCI device": (dpdk("a", "0000:99:00.0"), "", "port a: device 0000:99:00.0: "),
    "no option": (dpdk("a", "net_null0"), 'eal = ["--no-huge", "--nothing"]', "unrecognized option '--nothing'"),
    "no core": (dpdk("a", "net_null0"), 'eal = ["--no-huge", "-l", "77"]', "start DPDK's environment by --no-huge -l 77"),
    "no hugepages": (dpdk("a", "net_null0"), "eal = []", "; reserve hugepages, or add \"--no-huge\" to [dpdk] eal"),
    "no memory": (dpdk("a", "net_null0"), 'eal = ["--no-huge", "-m", "16"]', "frames: DPDK has no 33554432 bytes for them; give it more, by -m"),
    "two ports": (dpdk("a", "net_ring0") + dpdk("b", "net_ring0"), "", "port b: device net_ring0: it is port a's; a device is one port"),
    "queues": (dpdk("a", "net_tap0,iface=t0", "queues = 64"), "", "port a: device net_tap0,iface=t0: queues = 64: it has at most 16"),
    "mtu": (dpdk("a", "net_tap0,iface=t0", "mtu = 3000"), "", "mtu = 3000: with [frames] size = 2048 it is at most 1774"),
    "small ring": (dpdk("a", "net_af_xdp0,iface=p1", "rx_ring = 1024"), "", "rx_ring = 1024: its driver does not count what a ring of less"),
    "ring": (dpdk("a", "net_tap0,iface=t0", "rx_ring = 32768"), "", "port a: device net_tap0,iface=t0: "),
    "the second": (dpdk("a", "net_tap0,iface=t0") + dpdk("b", "net_af_xdp0,iface=nothing"), "", "port b: device net_af_xdp0,iface=nothing: "),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(lab, tmp_path, mistake):
    ports, settings, says = REFUSED[mistake]
    before = left(lab)
    file = tmp_path / "wrong.toml"
    file.write_text(f'[weir]\nname = "t{lab.id}"\n[dpdk]\n{settings}\n{ports}' + xdp("p0") + patch(("a", "p0")))
    done = lab.switch.run(WEIR, "run", file, check=False)
    assert done.returncode in (1, 2) and done.stdout == "" and len(done.stderr.splitlines()) == 1, done.stdout + done.stderr
    assert done.stderr.startswith("weir: ") and says in done.stderr, done.stderr
    assert left(lab) == before


def test_the_options_of_the_environment_are_those_of_the_file(lab):
    weir = lab.weir('[dpdk]\neal = ["--no-huge", "-m", "128", "--vdev", "net_null7,size=77"]\n' + dpdk("a", "net_null7")
                    + '[[port]]\nname = "z"\ndriver = "null"\n' + patch(("a", "z")))
    wait_until(lambda: weir.port("a")["rx"] > 0, "frames come in")
    port = weir.port("a")
    assert port["rx_bytes"] == 77 * port["rx"], "the device that the option has made, and not another one of its name"
