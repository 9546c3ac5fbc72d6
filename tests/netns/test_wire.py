# SPDX-License-Identifier: BSD-3-Clause
"""What a wire may bring: a verdict and a named counter for each frame, and never a crash."""
import os
import random

import pytest
from lab import frame, mac, ping, wait_until
from scapy.all import ARP, IP, TCP, UDP, Dot1Q, Ether, IPv6, Raw, fuzz

PATCH = '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "patch"\npairs = [["p0", "p1"]]\n'
SWITCH = '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "l2_switch"\n'
STACK = ""  # ports without a pipeline: everything goes to the host stack
BOTH = pytest.mark.parametrize("flags", [[], ["--user-only"]], ids=["kernel", "user_only"])


@BOTH
@pytest.mark.parametrize("mode", ["native", "generic"])
def test_garbage_is_accounted_for(lab, flags, mode):
    seed = int(os.environ.get("WEIR_TEST_SEED", random.randrange(1 << 32)))
    print(f"seed {seed}")
    dice = random.Random(seed)
    random.seed(seed)  # scapy's own
    left, right = lab.wires()
    weir = lab.weir(lab.ports(2, egress='["count"]', mode=f'"{mode}"') + SWITCH, *flags)
    kinds = [lambda: bytes(Ether(dst=mac(2), src=mac(1)) / Dot1Q(vlan=7) / Dot1Q(vlan=8) / IP(dst="10.1.1.1") / UDP() / Raw(dice.randbytes(20))),
             lambda: bytes(Ether(dst=mac(2), src=mac(1)) / fuzz(IP() / TCP())),
             lambda: bytes(Ether(dst=mac(2), src=mac(1)) / fuzz(IPv6() / UDP())),
             lambda: bytes(Ether(dst="ff:ff:ff:ff:ff:ff", src=mac(1)) / ARP())[:dice.randrange(14, 42)],
             lambda: dice.randbytes(dice.randrange(14, 1514)),
             lambda: frame(mac(1), mac(2), dice.randbytes(6), 0x0800)[:dice.randrange(14, 34)]]
    number = 400
    for _ in range(number):
        left.send(dice.choice(kinds)())
    now = wait_until(lambda: (lambda stats: stats if stats["ports"][0]["rx"] >= number else None)(weir.stats()), "all frames are in")
    weir.conserved()
    assert now["ports"][0]["rx"] == number
    marker = frame(mac(1), mac(3), b"still alive")
    left.send(marker)
    right.waiting()
    left.send(marker)
    assert right.hear_of(marker)


@BOTH
@pytest.mark.parametrize("ethertype", [0x88B5, 0x0800, 0x86DD, 0x8100])
def test_frames_that_end_in_a_header_arrive_as_they_are(lab, flags, ethertype):
    """From a bare Ethernet header to one byte less than IPv4's behind it, and the same of IPv6 and of VLAN tags. Runts, which are shorter, no
    packet socket sends: the suites of the plugins bring them in."""
    left, right = lab.wires()
    weir = lab.weir(lab.ports(2, egress='["count"]') + PATCH, *flags)
    # The receiver's stack, not weir, drops a tagged frame that is shorter (net/core/skbuff.c, skb_vlan_untag).
    shortest = 20 if ethertype == 0x8100 else 14
    sent = [frame(mac(1), mac(2), bytes(range(1, 21)), ethertype)[:size] for size in range(shortest, 34)]
    for raw in sent:
        left.send(raw)
    assert right.hear(len(sent)) == sent
    now = weir.conserved()
    assert now["ports"][1]["tx_user" if flags else "tx_kernel"] == len(sent)
    assert now["account"]["drop"] == 0


@BOTH
def test_a_port_without_a_pipeline_belongs_to_the_host_stack(lab, flags):
    lab.switch.run("ip", "addr", "add", "10.9.0.100/24", "dev", "p0")
    text = lab.ports(2).replace('pipeline = "main"', "")
    weir = lab.weir(text, *flags)
    assert ping(lab.hosts[0], "10.9.0.100") == 3
    port = weir.conserved()["ports"][0]
    assert port["to_stack"] == port["rx"] > 0


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_user_space_hands_frames_to_the_host_stack_as_they_came(lab, mode):
    left, _ = lab.wires()
    host = lab.switch.tap("p0")
    weir = lab.weir(lab.ports(2, mode=f'"{mode}"') + SWITCH, "--user-only")
    sent = [frame(mac(1), "01:80:c2:00:00:03", number.to_bytes(2, "big") + bytes(number * 13 % 1400)) for number in range(200)]
    for start in range(0, len(sent), 20):
        for raw in sent[start:start + 20]:
            left.send(raw)
        assert host.hear(20) == sent[start:start + 20]
    port = weir.conserved()["ports"][0]
    assert port["user"]["to_stack"] == 200
    assert port["rx"] == 200, "in generic mode the kernel shows such a frame to the program again: it must not count as another"


@BOTH
def test_generic_mode_forwards_and_accounts(lab, flags):
    weir = lab.weir(lab.ports(2, mode='"generic"', egress='["count"]') + SWITCH, *flags)
    assert ping(lab.hosts[0], "10.9.0.2") == 3
    assert ping(lab.hosts[1], "fd09::1") == 3
    now = weir.conserved()
    assert {port["mode"] for port in now["ports"]} == {"generic"}
    assert sum(port["tx_kernel"] + port["tx_user"] for port in now["ports"]) > 10


def test_native_and_generic_ports_account_together(lab):
    ports = lab.ports(2).replace('name = "p1"', 'name = "p1"\nmode = "generic"')
    weir = lab.weir(ports + SWITCH)
    assert ping(lab.hosts[0], "10.9.0.2") == 3
    now = weir.conserved()
    assert [port["mode"] for port in now["ports"]] == ["native", "generic"]
    native, generic = now["ports"]
    assert native["tx_kernel"] >= 3
    assert (generic["tx_kernel"], generic["tx_user"] >= 3) == (0, True), "whether its driver takes redirects nobody tells"


def test_a_device_without_native_xdp_falls_back_and_says_so(lab):
    lab.switch.run("ip", "link", "add", "br9", "type", "bridge")
    lab.switch.run("ip", "link", "set", "br9", "up")
    weir = lab.weir(lab.ports(2).replace('device = "p1"', 'device = "br9"') + PATCH)
    assert "port p1: br9 runs in generic mode, which is slower, since its driver has no native XDP" in weir.process.text()
    assert [port["mode"] for port in weir.stats()["ports"]] == ["native", "generic"]


def test_a_null_port_takes_what_the_kernel_cannot_redirect_to(lab):
    left, _ = lab.wires()
    text = '[[port]]\nname = "p0"\ndevice = "p0"\npipeline = "main"\n[[port]]\nname = "p1"\ndriver = "null"\negress = ["count"]\n'
    weir = lab.weir(text + PATCH)
    for _ in range(50):
        left.send(frame(mac(1), mac(2)))
    wait_until(lambda: weir.port("p1")["tx_user"] == 50, "all frames went to the null port")
    now = weir.conserved()
    assert now["egress"][0]["frames"] == 50
