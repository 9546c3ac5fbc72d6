# SPDX-License-Identifier: BSD-3-Clause
"""The kernel path outlives the process, and ends cleanly when it is asked to."""
import json
import pathlib
import signal
import time

import pytest
from lab import BUILD, Lab, frame, mac, ping, run, wait_until
from test_start import everything, unchanged

PATCH = '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "patch"\npairs = [["p0", "p1"]]\n'
SWITCH = '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "l2_switch"\n'


def attached(lab, device):
    link = json.loads(lab.switch.run("ip", "-j", "link", "show", device).stdout)[0]
    return link["xdp"]["prog"]["id"] if link.get("xdp") else None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_signal_leaves_nothing_behind(lab, number):
    was = everything(lab)
    weir = lab.weir(lab.ports(2, egress='["count"]') + SWITCH)
    assert ping(lab.hosts[0], "10.9.0.2") == 3
    weir.stop(number)
    assert unchanged(lab, was)


def test_stopping_under_load_leaves_nothing_behind(lab):
    was = everything(lab)
    server, client = lab.hosts
    listening = server.start("iperf3", "-s", "--forceflush")
    wait_until(lambda: "listening" in listening.text(), "iperf3 listens")
    for flags in ([], ["--user-only"]):
        weir = lab.weir(lab.ports(2, egress='["count"]') + SWITCH, *flags)
        load = client.start("iperf3", "-c", "10.9.0.1", "-u", "-b", "0", "-l", "64", "-t", "3", "--connect-timeout", "3000")
        wait_until(lambda: weir.port("p1")["rx"] > 5000, "load")
        weir.stop()
        load.stop(signal.SIGKILL)
        listening.stop(signal.SIGKILL)
        listening = server.start("iperf3", "-s", "--forceflush")
        wait_until(lambda: "listening" in listening.text(), "iperf3 listens")
    assert unchanged(lab, was)


def test_redirects_go_on_when_the_process_is_killed(lab):
    left, right = lab.wires()
    weir = lab.weir(lab.ports(2, egress='["count"]') + PATCH)
    weir.kill()
    for number in range(200):
        left.send(frame(mac(1), mac(2), number.to_bytes(2, "big")))
    assert len(right.hear(200)) == 200
    weir.start()  # adopts what it finds
    weir.stop()


def test_a_new_start_adopts_without_losing_a_frame(lab):
    left, right = lab.wires()
    weir = lab.weir(lab.ports(2, egress='["count"]') + PATCH)
    for number in range(100):
        left.send(frame(mac(1), mac(2), number.to_bytes(2, "big")))
    weir.kill()
    before = attached(lab, "p0")
    import threading
    done = threading.Event()
    sent = [100]

    def keep_sending():
        while not done.is_set():
            left.send(frame(mac(1), mac(2), sent[0].to_bytes(4, "big")))
            sent[0] += 1
            time.sleep(0.0005)

    sender = threading.Thread(target=keep_sending)
    sender.start()
    weir.start()
    done.set()
    sender.join()
    heard = len(right.hear(sent[0]))
    assert heard == sent[0], f"{sent[0] - heard} of {sent[0]} frames lost"
    assert attached(lab, "p0") != before, "the new program took over"
    now = weir.conserved()
    assert next(port for port in now["ports"] if port["name"] == "p1")["tx_kernel"] == sent[0], "counters go on"
    assert next(program for program in now["egress"] if program["port"] == "p1")["frames"] == sent[0]


def test_a_restarted_switch_still_knows_its_addresses(lab3):
    wires = lab3.wires()
    weir = lab3.weir(lab3.ports(3) + SWITCH)
    wires[1].send(frame(mac(0x22), "ff:ff:ff:ff:ff:ff"))
    wires[0].hear(1), wires[2].hear(1)
    weir.kill()
    weir.start()
    assert weir.stats()["stages"][0]["gauges"]["addresses"] == 1
    wires[0].send(frame(mac(0x11), mac(0x22), b"to one port"))
    assert wires[1].hear(1) == [frame(mac(0x11), mac(0x22), b"to one port")]
    wires[0].send(frame(mac(0x11), "ff:ff:ff:ff:ff:ff", b"end"))
    assert wires[2].hear(1) == [frame(mac(0x11), "ff:ff:ff:ff:ff:ff", b"end")], "the third port heard what was for the second"
    weir.conserved()


def test_keep_leaves_the_kernel_path_and_the_next_run_takes_it(lab):
    was = everything(lab)
    weir = lab.weir(lab.ports(2) + PATCH, "--keep")
    weir.process.stop()
    assert ping(lab.hosts[0], "10.9.0.2") == 3
    weir.start("--detach-on-exit")
    assert ping(lab.hosts[0], "10.9.0.2") == 3
    weir.stop()
    assert unchanged(lab, was)


def test_a_changed_configuration_takes_over_what_was_killed(lab3):
    was = everything(lab3)
    weir = lab3.weir(lab3.ports(3, egress='["count"]') + SWITCH)
    weir.kill()
    weir.file.write_text(f'[weir]\nname = "{weir.name}"\n' + lab3.ports(2) + PATCH)
    weir.start()
    assert ping(lab3.hosts[0], "10.9.0.2") == 3
    assert attached(lab3, "p2") is None, "the port that is no longer in the file is let go of"
    weir.stop()
    assert unchanged(lab3, was)


def test_a_failed_start_leaves_what_ran(lab):
    weir = lab.weir(lab.ports(2) + PATCH)
    weir.kill()
    good = weir.file.read_text()
    weir.file.write_text(good.replace('device = "p1"', 'device = "p7"'))
    with pytest.raises(AssertionError, match="no device p7"):
        weir.start()
    assert ping(lab.hosts[0], "10.9.0.2") == 3
    weir.file.write_text(good)
    weir.start()
    weir.stop()


def test_a_device_that_goes_away_is_survived_and_counted(make_lab):
    lab = make_lab(3)
    wires = lab.wires()
    weir = lab.weir(lab.ports(3) + SWITCH)
    wires[2].send(frame(mac(0x33), "ff:ff:ff:ff:ff:ff"))
    wires[0].hear(1)
    lab.switch.run("ip", "link", "del", "p2")
    wait_until(lambda: not weir.port("p2")["up"], "the port is seen to be gone")
    wires[0].send(frame(mac(0x11), mac(0x33), b"into the void"))
    wait_until(lambda: weir.stats()["stages"][0]["gauges"]["addresses"] == 2, "the sender is learned")
    wires[0].send(frame(mac(0x11), "ff:ff:ff:ff:ff:ff", b"after it"))
    assert wires[1].hear_of(frame(mac(0x11), "ff:ff:ff:ff:ff:ff", b"after it"))
    now = weir.conserved()
    assert {"where": "port p2", "reason": "device_down", "frames": 1} in now["drops"]
    weir.stop()


def test_a_device_that_comes_back_with_another_program_is_taken_when_that_is_gone(lab):
    wires = lab.wires()
    weir = lab.weir(lab.ports(2) + PATCH)
    free = weir.conserved()["frames"]["free"]
    lab.switch.run("ip", "link", "del", "p1")
    wait_until(lambda: not weir.port("p1")["up"], "the port is seen to be gone")
    lab.switch.run("ip", "link", "add", "tmp1", "type", "veth", "peer", "name", "eth0", "netns", lab.hosts[1].name)
    lab.hosts[1].run("sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=1")  # its stack would send frames of its own
    lab.switch.run("sysctl", "-qw", "net.ipv6.conf.tmp1.disable_ipv6=1")
    lab.hosts[1].run("ip", "link", "set", "eth0", "up")
    lab.hosts[1].run("ethtool", "-K", "eth0", "gro", "on", "tx", "off")
    lab.switch.run("ip", "link", "set", "tmp1", "xdpdrv", "obj", BUILD / "tests" / "xdp_stack.bpf.o", "sec", "xdp")
    lab.switch.run("ip", "link", "set", "tmp1", "name", "p1", "up")
    wait_until(lambda: any("another XDP program is attached" in warning for warning in weir.stats()["warnings"]), "it is said why")
    time.sleep(3)  # it tries again every second
    assert weir.conserved()["frames"]["free"] >= free, "a try that fails keeps no frames"
    lab.switch.run("ip", "link", "set", "p1", "xdpdrv", "off")
    wait_until(lambda: weir.port("p1")["up"], "the port is taken again")
    wires[1] = lab.wire(lab.hosts[1])
    wires[0].send(frame(mac(1), mac(2)))
    assert wires[1].hear(1) == [frame(mac(1), mac(2))]
    weir.conserved()


@pytest.mark.parametrize("flags", [[], ["--user-only"]], ids=["kernel", "user_only"])
def test_a_device_that_comes_back_under_its_name_is_taken_again(make_lab, flags):
    lab = make_lab(3)
    wires = lab.wires()
    weir = lab.weir(lab.ports(3, egress='["count"]') + SWITCH, *flags)
    for times in range(3):
        index = weir.port("p2")["ifindex"]
        lab.switch.run("ip", "link", "del", "p2")
        wait_until(lambda: not weir.port("p2")["up"], "the port is seen to be gone")
        lab.join(lab.hosts[2], 2)
        wires[2] = lab.wire(lab.hosts[2])
        wait_until(lambda: weir.port("p2")["up"], "the port is taken again")
        assert weir.port("p2")["ifindex"] != index
        there, back = frame(mac(0x11), "ff:ff:ff:ff:ff:ff", bytes([times])), frame(mac(0x33), mac(0x11), bytes([times]))
        wires[0].send(there)
        assert wires[2].hear_of(there), "what floods reaches it"
        wires[2].send(back)
        assert wires[0].hear_of(back), "what it sends comes in"
        answer = frame(mac(0x11), mac(0x33), bytes([times]))
        wires[0].send(answer)
        assert wires[2].hear_of(answer), "what is for it goes out"
        assert weir.conserved()["account"]["drop"] == 0
        assert weir.stats()["warnings"] == []
    links = [path.name for path in pathlib.Path("/sys/fs/bpf/weir", weir.name).glob("link_*")]
    assert len(links) == 3, links
    weir.stop()


def test_a_device_that_is_down_leaves_the_floods(lab3):
    wires = lab3.wires()
    weir = lab3.weir(lab3.ports(3) + SWITCH)
    lab3.switch.run("ip", "link", "set", "p2", "down")
    wait_until(lambda: not weir.port("p2")["up"], "the port is seen to be down")
    assert len(weir.ask("devmap", "list")["groups"][0]["entries"]) == 2
    for number in range(20):
        wires[0].send(frame(mac(0x11), "ff:ff:ff:ff:ff:ff", bytes([number])))
    assert len(wires[1].hear(20)) == 20
    weir.conserved()
    lab3.switch.run("ip", "link", "set", "p2", "up")
    wait_until(lambda: len(weir.ask("devmap", "list")["groups"][0]["entries"]) == 3, "the group with the port again")
    wires[0].send(frame(mac(0x11), "ff:ff:ff:ff:ff:ff", b"again"))
    assert wires[2].hear_of(frame(mac(0x11), "ff:ff:ff:ff:ff:ff", b"again"))
    weir.stop()


def test_a_lab_ends_what_its_processes_have_started():
    made = Lab(1)
    left = made.hosts[0].run("sh", "-c", "setsid sleep 1000 > /dev/null 2>&1 & echo $!").stdout.strip()
    assert pathlib.Path(f"/proc/{left}").exists()
    assert made.close() == []
    wait_until(lambda: not pathlib.Path(f"/proc/{left}").exists(), "the process is gone")


def test_a_killed_test_leaves_nothing():
    """The guardian: what the laboratory promises to every other test here."""
    import os
    import subprocess
    import sys
    code = ("import sys, lab, time; made = lab.Lab(1); w = made.start('sleep', '1000'); "
            "print(made.switch.name, w.popen.pid, flush=True); time.sleep(100)")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=os.path.dirname(__file__))
    name, pid = process.stdout.readline().split()
    process.kill()
    process.wait()
    process.stdout.close()
    wait_until(lambda: name not in run("ip", "netns", "list").stdout, "the namespace is gone")
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "the process is gone")
