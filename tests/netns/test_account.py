# SPDX-License-Identifier: BSD-3-Clause
"""The account of an instance holds whatever else happens on the machine."""
import threading

import pytest
from lab import iperf

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
