# SPDX-License-Identifier: BSD-3-Clause
"""The account of an instance holds whatever else happens on the machine."""
import contextlib
import struct
import threading

import pytest
from lab import SOL_PACKET, frame, iperf, mac, wait_until

SWITCH = '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "l2_switch"\n'


@pytest.mark.parametrize("egress", ["[]", '["count"]'], ids=["bare", "count"])
def test_an_instance_that_comes_and_goes_costs_another_no_count(make_lab, egress):
    """Linux 6.18 runs a tracepoint's programs for most events only while another one is attached or detached: nothing that is sent may be
    counted by such a program."""
    lab, other = make_lab(2), make_lab(2)
    weir = lab.weir(lab.ports(2, egress=egress) + SWITCH)
    done = threading.Event()

    def come_and_go():
        while not done.is_set():
            other.weir(other.ports(2) + SWITCH).stop()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        iperf(lab.hosts[1], lab.hosts[0], "10.9.0.2", seconds=4)
    finally:
        done.set()
        thread.join()
    assert weir.conserved()["account"]["tx"] > 50_000


def heard_of(tap):
    """How many frames have come to a tap, with those that found no room there, since the last call."""
    packets, _ = struct.unpack("II", tap.socket.getsockopt(SOL_PACKET, 6, 8))  # PACKET_STATISTICS; the first number has the second in it
    return packets


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_a_killed_process_leaves_what_is_on_its_way_to_the_host_stack_to_the_next(lab, mode):
    left, _ = lab.wires()
    stack = lab.switch.tap("p0")
    weir = lab.weir(lab.ports(2, mode=f'"{mode}"') + SWITCH, "--user-only")
    of_the_link = frame(mac(1), "01:80:c2:00:00:0e", b"no bridge forwards it", 0x88CC)  # so that the switch gives it to the host
    done, rounds = threading.Event(), 10

    def keep_sending():
        while not done.is_set():
            with contextlib.suppress(OSError):  # no room in the device's ring
                left.send(of_the_link)

    senders = [threading.Thread(target=keep_sending) for _ in range(2)]
    for sender in senders:
        sender.start()
    try:
        for _ in range(rounds):
            before = weir.stats()["account"]["to_stack"]
            wait_until(lambda: weir.stats()["account"]["to_stack"] > before, "frames go to the host stack")
            weir.kill()
            weir.start("--user-only")
    finally:
        done.set()
        for sender in senders:
            sender.join()
    counted = weir.conserved()["account"]["to_stack"]
    heard = heard_of(stack)
    # A frame that a killed worker has handed over and not yet counted is among "process_died" too.
    assert 0 <= heard - counted <= rounds, f"{counted} counted, {heard} arrived"
