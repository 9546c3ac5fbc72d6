# SPDX-License-Identifier: BSD-3-Clause
"""Ports that the kernel cannot send to, or not as it is: frames reach them all the same, by user space, and each is accounted for."""
import pytest
from lab import frame, mac, ping, wait_until
from test_start import refused

SWITCH = '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "l2_switch"\n'
PATCH = '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "patch"\npairs = [["p0", "br9"]]\n'
BROADCAST = "ff:ff:ff:ff:ff:ff"
BOTH = pytest.mark.parametrize("flags", [[], ["--user-only"]], ids=["kernel", "user_only"])


def bridge(lab):
    """A bridge, which has no native XDP and no ndo_xdp_xmit, with the last host behind it in place of that host's own port."""
    lab.switch.run("ip", "link", "add", "br9", "type", "bridge", "mcast_snooping", "0")
    lab.switch.run("sysctl", "-qw", "net.ipv6.conf.br9.disable_ipv6=1")
    lab.switch.run("ip", "link", "set", f"p{len(lab.hosts) - 1}", "master", "br9")
    lab.switch.run("ip", "link", "set", "br9", "up")
    return lab.ports(len(lab.hosts)).replace(f'"p{len(lab.hosts) - 1}"', '"br9"')


@BOTH
@pytest.mark.parametrize("mode", ["auto", "generic"])
def test_a_device_without_native_xdp_gets_what_is_for_it(lab, flags, mode):
    left, behind = lab.wires()
    text = bridge(lab).replace('pipeline = "main"', f'pipeline = "main"\nmode = "{mode}"\negress = ["count"]')
    weir = lab.weir(text + PATCH, *flags)
    assert [port["mode"] for port in weir.stats()["ports"]] == ["native" if mode == "auto" else "generic", "generic"]
    there = [frame(mac(1), BROADCAST, bytes([number])) for number in range(30)]
    back = [frame(mac(2), BROADCAST, bytes([number])) for number in range(30)]
    for raw in there:
        left.send(raw)
    assert behind.hear(30) == there
    for raw in back:
        behind.send(raw)
    assert left.hear(30) == back
    now = weir.conserved()
    assert now["account"]["drop"] == 0
    to_bridge = now["ports"][1]
    by_kernel = mode == "generic" and not flags  # among generic ports the kernel needs no ndo_xdp_xmit
    assert (to_bridge["tx_kernel"], to_bridge["tx_user"]) == ((30, 0) if by_kernel else (0, 30))
    assert [each["key"] for each in weir.ask("devmap", "list")["ports"]] == ([0, 1] if mode == "generic" else [0])
    assert [each["frames"] for each in now["egress"]] == [30, 30]


@pytest.mark.parametrize("own", ["", '\nmode = "generic"'], ids=["auto", "generic"])
def test_a_device_without_native_xdp_gets_no_redirects_after_a_restart_either(lab, own):
    left, behind = lab.wires()
    text = bridge(lab).replace('device = "br9"', f'device = "br9"{own}')
    weir = lab.weir(text + PATCH)
    for _ in range(2):
        assert [port["mode"] for port in weir.stats()["ports"]] == ["native", "generic"]
        assert [each["key"] for each in weir.ask("devmap", "list")["ports"]] == [0]
        there = [frame(mac(1), BROADCAST, bytes([number])) for number in range(30)]
        for raw in there:
            left.send(raw)
        assert behind.hear(30) == there
        assert weir.conserved()["account"]["drop"] == 0
        weir.kill()
        weir.start()


def test_a_peer_that_loses_its_napi_gets_frames_from_user_space_again(lab):
    weir = lab.weir(lab.ports(2) + PATCH.replace("br9", "p1"))
    assert ping(lab.hosts[0], "10.9.0.2") == 3 and weir.port("p1")["tx_kernel"] > 0
    lab.hosts[1].run("ethtool", "-K", "eth0", "gro", "off")
    lab.hosts[0].run("ping", "-c", "3", "-W", "1", "10.9.0.2", check=False)  # what is lost tells weir to look again
    wait_until(lambda: len(weir.ask("devmap", "list")["ports"]) == 1, "the entry is gone")
    assert ping(lab.hosts[0], "10.9.0.2") == 3
    now = weir.conserved()
    assert now["ports"][1]["redirectable"] is False and now["ports"][1]["tx_user"] >= 3
    assert {drop["reason"] for drop in now["drops"] if drop["frames"]} <= {"peer_no_napi", "redirect_failed"}


def test_frames_that_a_device_without_carrier_does_not_take_are_named(lab):
    left, _ = lab.wires()
    weir = lab.weir(lab.ports(2) + PATCH.replace("br9", "p1"), "--user-only")
    lab.hosts[1].run("ip", "link", "set", "eth0", "down")
    for number in range(100):
        left.send(frame(mac(1), mac(2), bytes([number])))
    wait_until(lambda: weir.settled(100), "all frames are in")
    assert weir.drops() == {("port p1", "device_refused"): 100}
    assert weir.port("p1")["tx_user"] == 0


@BOTH
def test_a_flood_reaches_a_device_without_native_xdp(lab3, flags):
    wires = lab3.wires()
    weir = lab3.weir(bridge(lab3) + SWITCH, *flags)
    for number in range(20):
        sent = frame(mac(0x11), BROADCAST, bytes([number]))
        wires[0].send(sent)
        assert wires[1].hear(1) == [sent] and wires[2].hear(1) == [sent]
    wires[1].send(frame(mac(0x22), BROADCAST, b"end"))
    assert wires[0].hear(1) == [frame(mac(0x22), BROADCAST, b"end")], "no echo"
    now = weir.conserved()
    assert (now["account"]["rx"], now["account"]["tx"], now["account"]["drop"]) == (21, 42, 0)


@BOTH
def test_a_flood_reaches_a_veth_whose_peer_has_no_napi(lab3, flags):
    wires = lab3.wires()
    lab3.hosts[2].run("ethtool", "-K", "eth0", "gro", "off")
    weir = lab3.weir(lab3.ports(3) + SWITCH, *flags)
    for number in range(20):
        sent = frame(mac(0x11), BROADCAST, bytes([number]))
        wires[0].send(sent)
        assert wires[1].hear(1) == [sent] and wires[2].hear(1) == [sent]
    assert weir.port("p2")["tx_kernel"] == 0
    lab3.hosts[2].run("ethtool", "-K", "eth0", "gro", "on")
    wait_until(lambda: len(weir.ask("devmap", "list")["groups"][0]["entries"]) == 3, "the port is in its group")
    for number in range(20):
        sent = frame(mac(0x11), BROADCAST, bytes([100 + number]))
        wires[0].send(sent)
        assert wires[1].hear(1) == [sent] and wires[2].hear(1) == [sent]
    now = weir.conserved()
    assert (now["account"]["rx"], now["account"]["tx"], now["account"]["drop"]) == (40, 80, 0)
    assert now["ports"][2]["tx_kernel"] == (0 if flags else 20)


@BOTH
def test_a_flood_in_generic_mode_gets_each_ports_own_chain(make_lab, flags):
    """The kernel's clones share their bytes there: a chain that writes would write into those of all ports."""
    lab = make_lab(4)
    wires = lab.wires()
    weir = lab.weir(lab.ports(4, mode='"generic"', egress='["count", "mac_rewrite"]') + SWITCH, *flags)
    own = [lab.switch.mac(f"p{number}") for number in range(4)]
    for number in range(20):
        wires[0].send(frame(mac(0x11), BROADCAST, bytes([number])))
        for port in (1, 2, 3):
            assert wires[port].hear(1) == [frame(own[port], BROADCAST, bytes([number]))]
    wires[1].send(frame(mac(0x22), BROADCAST, b"end"))
    assert wires[0].hear(1) == [frame(own[0], BROADCAST, b"end")], "no echo"
    now = weir.conserved()
    assert (now["account"]["rx"], now["account"]["tx"], now["account"]["drop"]) == (21, 63, 0)
    assert sum(port["flood"] for port in now["ports"]) == 0, "by user space"
    assert [(each["program"], each["frames"]) for each in now["egress"]] == \
        [("count", 1), ("mac_rewrite", 1), ("count", 20), ("mac_rewrite", 20), ("count", 21), ("mac_rewrite", 21), ("count", 21), ("mac_rewrite", 21)]


def test_zero_copy_that_the_driver_has_not_is_refused_with_the_remedy(lab, tmp_path):
    code, said = refused(lab, lab.ports(2, zero_copy='"on"') + PATCH.replace("br9", "p1"), tmp_path)
    assert code == 1
    assert said.startswith("weir: port p0, device p0: queue 0: bind AF_XDP socket") and 'set zero_copy = "auto"' in said and "\n" not in said


def test_zero_copy_of_one_port_that_the_umem_has_not_is_refused_with_the_remedy(lab, tmp_path):
    text = lab.ports(2).replace('name = "p1"', 'name = "p1"\nzero_copy = "on"')
    code, said = refused(lab, text + PATCH.replace("br9", "p1"), tmp_path)
    assert code == 1
    assert said.startswith("weir: port p1, device p1: queue 0: bind AF_XDP socket") and "\n" not in said
    assert 'zero_copy = "on", but the first port of the umem works with copies; give all ports one value' in said
