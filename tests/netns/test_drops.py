# SPDX-License-Identifier: BSD-3-Clause
"""Each drop of the runtime that a network can provoke: provoked, with its exact number. What the account says was sent has arrived."""
import fcntl
import os
import pathlib
import re
import secrets
import signal
import struct
import threading

import pytest
from lab import frame, mac, run, wait_until

PATCH = '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "patch"\npairs = [["p0", "p1"]]\n'
SWITCH = '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "l2_switch"\n'
BROADCAST = "ff:ff:ff:ff:ff:ff"
OF_THE_HOST = "01:80:c2:00:00:03"  # no bridge forwards it: the switch gives it to the host's stack
BOTH = pytest.mark.parametrize("flags", [[], ["--user-only"]], ids=["kernel", "user_only"])
EGRESS = pytest.mark.parametrize("egress", ["[]", '["count"]'], ids=["bare", "count"])  # two ways to tell what the kernel has sent
RING = 2048  # entries of an AF_XDP ring, and frames that wait in it for receiving


def of_length(length, number=0, source=1, destination=2):
    destination = destination if isinstance(destination, str) else mac(destination)
    return frame(mac(source), destination, number.to_bytes(4, "big").ljust(length - 14, b"\xa5"))[:length]


def numbered(count, **options):
    return [of_length(60, number, **options) for number in range(count)]


def seen(lab, port):
    """How many frames the device of a port has shown to its program; a weir that stands still cannot be asked."""
    return int(re.search(r"rx_queue_0_xdp_packets: (\d+)", lab.switch.run("ethtool", "-S", f"p{port}").stdout).group(1))


def send(lab, wires, port, frames):
    """No faster than the device takes them: a veth holds 256, and loses more than that before weir."""
    before = seen(lab, port)
    for start in range(0, len(frames), 128):
        for raw in frames[start:start + 128]:
            wires[port].send(raw)
        sent = before + min(start + 128, len(frames))
        wait_until(lambda sent=sent: seen(lab, port) >= sent, "the device has them")


def accounted(weir, wires, expected, arrived):
    """All sums; every drop of a port, and no other; and that the ports have sent what `arrived` on their wires, by kernel and by user space:
    for each port the frames that arrived there."""
    now = weir.conserved()
    drops = {(each["where"].removeprefix("port "), each["reason"]): each["frames"] for each in now["drops"] if each["frames"]}
    assert drops == expected
    for port, wire, frames in zip(now["ports"], wires, arrived):
        assert wire.hear(len(frames)) == frames, port["name"]
        assert wire.waiting() == [], port["name"]
        assert port["tx_kernel"] + port["tx_user"] == len(frames), port
    return now


def starts(lab, text, *flags, **options):
    """weir on a lab whose hosts are silent, and the wires."""
    wires = lab.wires()
    return wires, lab.weir(text, *flags, **options)


@EGRESS
@BOTH
def test_a_frame_that_is_longer_than_the_targets_mtu_is_dropped_there(make_lab, flags, egress):
    lab = make_lab(2, mtu=1700)
    lab.switch.run("ip", "link", "set", "p1", "mtu", 1500)
    wires, weir = starts(lab, lab.ports(2, egress=egress) + PATCH, *flags)
    fits, too_long = of_length(1518), of_length(1519)  # with the room of one VLAN tag, as everywhere in the kernel
    send(lab, wires, 0, [fits] * 7 + [too_long] * 20 + [of_length(1600)] * 20 + [fits])
    now = accounted(weir, wires, {("p1", "too_long" if flags else "redirect_failed"): 40}, [[], [fits] * 8])
    assert now["ports"][1]["tx_user" if flags else "tx_kernel"] == 8
    assert now["ports"][0]["redirect" if not flags else "punt"] == 48


@EGRESS
@BOTH
def test_a_flood_reaches_those_whose_mtu_allows_it(make_lab, flags, egress):
    lab = make_lab(3, mtu=1700)
    lab.switch.run("ip", "link", "set", "p1", "mtu", 1500)
    wires, weir = starts(lab, lab.ports(3, egress=egress) + SWITCH, *flags)
    learned = of_length(60, destination=BROADCAST)
    long = [of_length(1600, number, destination=BROADCAST) for number in range(40)]
    short = [of_length(1518, number, destination=BROADCAST) for number in range(40)]
    send(lab, wires, 0, [learned])
    wait_until(lambda: weir.settled(1), "the address is learned")
    send(lab, wires, 0, long)
    wait_until(lambda: weir.settled(41), "the long ones are through")
    send(lab, wires, 0, short)
    now = accounted(weir, wires, {("p1", "too_long"): 40}, [[], [learned, *short], [learned, *long, *short]])
    assert now["ports"][0]["punt"] == (81 if flags else 41), "a broadcast would leave the port out without a word"
    assert (now["account"]["copies"], now["ports"][0]["flood"]) == (81, 0 if flags else 40)


@pytest.mark.parametrize("length", [3408, 3409, 3500])
def test_a_frame_too_long_for_the_way_from_user_space_to_the_host_stack_is_dropped(make_lab, length):
    lab = make_lab(2, mtu=3490)
    wires, stack = lab.wires(), lab.switch.tap("p0")
    weir = lab.weir("[frames]\nsize = 4096\n" + lab.ports(2) + SWITCH, "--user-only")
    sent = [of_length(length, number, destination=OF_THE_HOST) for number in range(20)]
    send(lab, wires, 0, sent)
    now = accounted(weir, wires, {("p0", "stack_failed"): 20} if length > 3408 else {}, [[], []])
    assert stack.hear(now["account"]["to_stack"]) == ([] if length > 3408 else sent)
    assert stack.waiting() == []


@EGRESS
def test_without_a_process_redirects_go_on_and_punts_have_no_socket(lab, egress):
    wires, weir = starts(lab, lab.ports(2, egress=egress) + SWITCH)
    learned = [of_length(60, 1, 1, BROADCAST), of_length(60, 2, 2, BROADCAST)]
    send(lab, wires, 0, learned[:1])
    send(lab, wires, 1, learned[1:])
    wait_until(lambda: weir.settled(2), "both addresses are learned")
    weir.kill()
    known, unknown = numbered(300), numbered(200, source=3)
    send(lab, wires, 0, [raw for pair in zip(known, unknown) for raw in pair] + known[200:])
    weir.start()
    send(lab, wires, 0, known[:5])
    now = accounted(weir, wires, {("p0", "no_socket"): 200}, [learned[1:], learned[:1] + known + known[:5]])
    assert (now["ports"][1]["tx_kernel"], now["ports"][1]["tx_user"]) == (305, 1)


def test_what_finds_no_room_in_the_receive_ring_has_failed_to_be_punted(lab):
    wires, weir = starts(lab, lab.ports(2) + PATCH, "--user-only")
    sent = numbered(RING + 500)
    weir.process.popen.send_signal(signal.SIGSTOP)
    try:
        send(lab, wires, 0, sent)
    finally:
        weir.process.popen.send_signal(signal.SIGCONT)
    now = accounted(weir, wires, {("p0", "punt_failed"): 500}, [[], sent[:RING]])
    assert (now["ports"][0]["punt"], now["ports"][0]["user"]["rx"]) == (RING + 500, RING)


@EGRESS
@pytest.mark.parametrize("beyond", [0, 300])
def test_what_was_in_the_receive_ring_has_died_with_the_process(lab, egress, beyond):
    wires, weir = starts(lab, lab.ports(2, egress=egress) + PATCH, "--user-only")
    before, lost, after = numbered(50), numbered(700) if not beyond else numbered(RING + beyond), numbered(60, source=3)
    send(lab, wires, 0, before)
    wait_until(lambda: weir.settled(50), "the first ones are through")
    weir.process.popen.send_signal(signal.SIGSTOP)
    try:
        send(lab, wires, 0, lost)
    finally:
        weir.kill()
    weir.start("--user-only")
    send(lab, wires, 0, after)
    expected = {("p0", "process_died"): len(lost) - beyond}
    if beyond:
        expected["p0", "punt_failed"] = beyond
    accounted(weir, wires, expected, [[], before + after])


@BOTH
def test_a_flood_whose_other_members_are_down_ends_with_a_name(make_lab, flags):
    lab = make_lab(3)
    wires, weir = starts(lab, lab.ports(3) + SWITCH, *flags)
    for port in ("p1", "p2"):
        lab.switch.run("ip", "link", "set", port, "down")
    wait_until(lambda: [port["up"] for port in weir.stats()["ports"]] == [True, False, False], "the ports are seen to be down")
    send(lab, wires, 0, numbered(1, destination=BROADCAST))  # it must be learned, so that the user half floods it
    wait_until(lambda: weir.settled(1), "the address is learned")
    send(lab, wires, 0, numbered(40, destination=BROADCAST))
    accounted(weir, wires, {("p0", "no_entry"): 41}, [[], [], []])


@EGRESS
@BOTH
def test_a_flood_goes_on_without_a_member_that_is_down(lab3, flags, egress):
    wires, weir = starts(lab3, lab3.ports(3, egress=egress) + SWITCH, *flags)
    lab3.switch.run("ip", "link", "set", "p1", "down")
    wait_until(lambda: not weir.port("p1")["up"], "the port is seen to be down")
    sent = numbered(41, destination=BROADCAST)
    send(lab3, wires, 0, sent[:1])
    wait_until(lambda: weir.settled(1), "the address is learned")
    send(lab3, wires, 0, sent[1:])
    accounted(weir, wires, {}, [[], [], sent])


@EGRESS
@BOTH
def test_a_frame_for_a_port_that_is_down_is_dropped_there(lab, flags, egress):
    wires, weir = starts(lab, lab.ports(2, egress=egress) + PATCH, *flags)
    lab.switch.run("ip", "link", "set", "p1", "down")
    wait_until(lambda: not weir.port("p1")["up"], "the port is seen to be down")
    send(lab, wires, 0, numbered(40))
    accounted(weir, wires, {("p1", "device_down" if flags else "redirect_failed"): 40}, [[], []])


@EGRESS
def test_what_is_redirected_to_a_veth_whose_peer_is_down_is_counted(lab, egress):
    """A veth gives its NAPI back when it goes down."""
    wires, weir = starts(lab, lab.ports(2, egress=egress) + PATCH)
    before, lost, after = numbered(40), numbered(200, source=3), numbered(50, source=4)
    send(lab, wires, 0, before)
    assert wires[1].hear(40) == before
    lab.hosts[1].run("ip", "link", "set", "eth0", "down")
    send(lab, wires, 0, lost)
    wait_until(lambda: weir.settled(240), "all are through")
    lab.hosts[1].run("ip", "link", "set", "eth0", "up")
    wires[1] = lab.hosts[1].tap("eth0")  # the other one was told that the device went down
    send(lab, wires, 0, after)
    accounted(weir, wires[:1], {("p1", "peer_no_napi"): 200}, [[]])
    assert wires[1].hear(50) == after
    assert weir.port("p1")["tx_kernel"] == 90


@EGRESS
def test_what_is_redirected_to_a_veth_whose_peer_lost_its_napi_is_counted(lab, egress):
    wires, weir = starts(lab, lab.ports(2, egress=egress) + PATCH)
    before, sent = numbered(40), numbered(200, source=3)
    send(lab, wires, 0, before)
    assert wires[1].hear(40) == before
    lab.hosts[1].run("ethtool", "-K", "eth0", "gro", "off")
    send(lab, wires, 0, sent)
    wait_until(lambda: weir.settled(240), "all are through")
    # Since Linux 6.3 such a device says that it takes no redirects, and the kernel refuses them (drivers/net/veth.c, veth_set_features).
    drops = weir.drops()
    lost = sum(drops.get(("port p1", reason), 0) for reason in ("peer_no_napi", "redirect_failed"))
    assert lost > 0 and sum(drops.values()) == lost, drops
    port = weir.conserved()["ports"][1]
    assert wires[1].hear(200 - lost) == sent[lost:] and wires[1].waiting() == []
    assert port["tx_kernel"] + port["tx_user"] == 240 - lost


class UnreadTap:
    """A tap device in weir's namespace, whose ring of `room` frames nobody reads before the test does."""

    def __init__(self, lab, name, room):
        def open_tap():
            made = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.ioctl(made, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1002))  # TUNSETIFF, IFF_TAP | IFF_NO_PI
            return made

        self.descriptor = lab.switch.inside(open_tap)
        lab.switch.run("sysctl", "-qw", f"net.ipv6.conf.{name}.disable_ipv6=1")
        lab.switch.run("ip", "link", "set", name, "txqueuelen", room, "up")

    def read(self):
        frames = []
        while True:
            try:
                frames.append(os.read(self.descriptor, 2048))
            except BlockingIOError:
                return frames

    def close(self):
        os.close(self.descriptor)


@EGRESS
def test_what_a_device_with_a_full_ring_refuses_is_counted(lab, egress):
    wires = lab.wires()
    tap = UnreadTap(lab, "t1", 100)
    weir = lab.weir(lab.ports(2, egress=egress).replace('device = "p1"', 'device = "t1"') + PATCH)
    sent = numbered(170)
    send(lab, wires, 0, sent)
    wait_until(lambda: weir.settled(170), "all are through")
    assert tap.read() == sent[:100]
    more = numbered(30, source=3)
    send(lab, wires, 0, more)
    wait_until(lambda: weir.settled(200), "all are through")
    assert tap.read() == more
    accounted(weir, wires[:1], {("p1", "device_refused"): 70}, [[]])
    assert weir.port("p1")["tx_kernel"] == 130
    weir.stop()
    tap.close()


def at_the_expense_of(thread, act):
    """Calls a function while a kernel thread cannot run: on that thread's own CPU, at a real-time priority."""
    cpu = min(os.sched_getaffinity(0))
    os.sched_setaffinity(thread, {cpu})
    errors = []

    def work():
        try:
            os.sched_setaffinity(0, {cpu})
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
            act()
        except BaseException as error:  # handed to the caller below
            errors.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    if errors:
        raise errors[0]


def read_if_there(file):
    try:
        return file.read_text()
    except OSError:
        return ""


@EGRESS
def test_what_a_veth_whose_peer_does_not_keep_up_refuses_is_counted(lab, egress):
    wires = lab.wires()
    host, name = lab.hosts[1], f"e{secrets.token_hex(2)}"
    host.run("ip", "link", "set", "eth0", "name", name)  # by which its thread is known
    run("ip", "netns", "exec", host.name, "sh", "-c", f"echo 1 > /sys/class/net/{name}/threaded")
    napi = [int(each.parent.name) for each in pathlib.Path("/proc").glob("[0-9]*/comm") if name in read_if_there(each)]
    assert len(napi) == 1
    weir = lab.weir(lab.ports(2, egress=egress) + PATCH)
    sent = numbered(400)
    at_the_expense_of(napi[0], lambda: [wires[0].send(raw) for raw in sent])
    now, drops = weir.conserved(), weir.drops()
    assert list(drops) == [("port p1", "device_refused")]
    taken = 400 - drops["port p1", "device_refused"]
    assert 256 <= taken < 400, "the ring holds 256 (VETH_RING_SIZE), and the thread may get its turn"
    arrived, rest = wires[1].hear(taken), iter(sent)
    assert len(arrived) == taken == now["ports"][1]["tx_kernel"] and wires[1].waiting() == []
    assert all(raw in rest for raw in arrived), "in their order"


@EGRESS
def test_a_flood_to_a_veth_whose_peer_is_down_is_counted_there(lab3, egress):
    wires, weir = starts(lab3, lab3.ports(3, egress=egress) + SWITCH)
    learned, lost = numbered(1, destination=BROADCAST), numbered(40, destination=BROADCAST, source=1)
    send(lab3, wires, 0, learned)
    assert wires[1].hear(1) == wires[2].hear(1) == learned
    lab3.hosts[2].run("ip", "link", "set", "eth0", "down")
    send(lab3, wires, 0, lost)
    wait_until(lambda: weir.settled(41), "all are through")
    now = weir.conserved()
    assert weir.drops() == {("port p2", "peer_no_napi"): 40}
    assert wires[1].hear(40) == lost
    assert [(port["tx_kernel"], port["tx_user"]) for port in now["ports"]] == [(0, 0), (40, 1), (0, 1)]
