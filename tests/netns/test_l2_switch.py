# SPDX-License-Identifier: BSD-3-Clause
"""l2_switch: real hosts that talk through it, and frames that say where they went."""
import pytest
from lab import frame, iperf, mac, ping, wait_until

SWITCH = '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "l2_switch"\n'
BOTH = pytest.mark.parametrize("flags", [[], ["--user-only"]], ids=["kernel", "user_only"])
BROADCAST = "ff:ff:ff:ff:ff:ff"


def stage(weir):
    return weir.stats()["stages"][0]


@BOTH
def test_hosts_talk_over_ping_tcp_and_udp(lab3, flags):
    weir = lab3.weir(lab3.ports(3) + SWITCH, *flags)
    one, two, three = lab3.hosts
    assert ping(one, "10.9.0.2") == 3
    assert ping(two, "fd09::3") == 3
    assert iperf(one, two, "10.9.0.1")["sum_received"]["bytes"] > 1_000_000
    sent = iperf(two, three, "10.9.0.2", "-u", "-b", "20M", "-l", "1200")["sum"]
    assert sent["packets"] > 500 and sent["lost_percent"] < 1
    now = weir.conserved()
    # A transfer at full speed fills rings now and then: by name, and not often.
    assert sum(drop["frames"] for drop in now["drops"]) < now["account"]["rx"] / 50, now["drops"]
    assert {drop["reason"] for drop in now["drops"] if drop["frames"]} <= {"device_refused", "ring_full", "punt_failed"}, now["drops"]
    kernel = sum(port["redirect"] for port in now["ports"])
    punted = sum(port["punt"] for port in now["ports"])
    assert (kernel == 0) if flags else (kernel > 100 * punted), now["ports"]


@BOTH
def test_a_web_page_arrives_whole(lab, flags):
    lab.weir(lab.ports(2) + SWITCH, *flags)
    server, client = lab.hosts
    page = "the dam lets most of the water flow " * 20000
    import pathlib
    import tempfile
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        (root / "page").write_text(page)
        (root / "nginx.conf").write_text(
            f"daemon off; pid {root}/pid; error_log {root}/log; user root;\nevents {{}}\n"
            f"http {{ access_log off; client_body_temp_path {root}/a; proxy_temp_path {root}/b; fastcgi_temp_path {root}/c;\n"
            f"uwsgi_temp_path {root}/d; scgi_temp_path {root}/e; server {{ listen 10.9.0.1:80; root {root}; }} }}\n")
        server.start("nginx", "-c", root / "nginx.conf", "-e", root / "log")
        wait_until(lambda: (root / "pid").exists() and (root / "pid").read_text().strip(), "nginx starts")
        assert client.run("curl", "-sS", "--max-time", "20", "http://10.9.0.1/page").stdout == page


@BOTH
def test_an_unknown_address_is_flooded_to_all_but_the_sender(make_lab, flags):
    lab = make_lab(4)
    wires = lab.wires()
    lab.weir(lab.ports(4) + SWITCH, *flags)
    sent = frame(mac(0x11), mac(0x99), b"flood")
    wires[0].send(sent)
    for wire in wires[1:]:
        assert wire.hear(1) == [sent]
    wires[1].send(frame(mac(0x22), mac(0x11), b"answer"))  # behind the flood, so that an echo would have come before it
    assert wires[0].hear(1) == [frame(mac(0x22), mac(0x11), b"answer")]


@BOTH
def test_a_known_address_is_sent_to_its_port_alone(lab3, flags):
    wires = lab3.wires()
    weir = lab3.weir(lab3.ports(3) + SWITCH, *flags)
    wires[1].send(frame(mac(0x22), BROADCAST))
    assert len(wires[0].hear(1)) == 1 and len(wires[2].hear(1)) == 1
    wires[0].send(frame(mac(0x11), BROADCAST))
    assert len(wires[1].hear(1)) == 1 and len(wires[2].hear(1)) == 1
    for number in range(50):
        wires[0].send(frame(mac(0x11), mac(0x22), number.to_bytes(2, "big")))
    heard = wires[1].hear(50)
    assert [int.from_bytes(each[14:16], "big") for each in heard] == list(range(50))
    wires[0].send(frame(mac(0x11), BROADCAST, b"end"))
    assert wires[2].hear(1) == [frame(mac(0x11), BROADCAST, b"end")], "the third port heard what was for the second"
    weir.conserved()


@BOTH
def test_an_address_moves_with_its_station(lab3, flags):
    wires = lab3.wires()
    weir = lab3.weir(lab3.ports(3) + SWITCH, *flags)
    wires[1].send(frame(mac(0x22), BROADCAST))
    wires[0].hear(1)
    wires[2].send(frame(mac(0x22), BROADCAST))  # the same station, on another port
    assert len(wires[0].hear(1)) == 1 and len(wires[1].hear(1)) == 1
    wires[0].send(frame(mac(0x11), mac(0x22), b"where"))
    assert wires[2].hear_of(frame(mac(0x11), mac(0x22), b"where"))
    assert stage(weir)["counters"]["moved"] == 1
    wires[0].send(frame(mac(0x11), BROADCAST, b"end"))
    assert wires[1].hear(1) == [frame(mac(0x11), BROADCAST, b"end")], "the old port heard what was for the new one"


@BOTH
def test_an_address_ages(lab, flags):
    wires = lab.wires()
    weir = lab.weir(lab.ports(2) + SWITCH + "ageing_s = 1\n", *flags)
    wires[0].send(frame(mac(0x11), BROADCAST))
    wires[1].hear(1)
    assert stage(weir)["gauges"]["addresses"] == 1
    wait_until(lambda: stage(weir)["gauges"]["addresses"] == 0, "the address is forgotten", 10)
    assert stage(weir)["gauges"]["aged"] == 1


@BOTH
def test_an_address_in_use_does_not_age(lab, flags):
    wires = lab.wires()
    weir = lab.weir(lab.ports(2) + SWITCH + "ageing_s = 2\n", *flags)
    import time
    end = time.monotonic() + 5
    while time.monotonic() < end:
        wires[0].send(frame(mac(0x11), BROADCAST))
        wires[1].hear(1)
    assert stage(weir)["gauges"]["addresses"] == 1
    assert stage(weir)["gauges"]["aged"] == 0
    assert stage(weir)["counters"]["learned"] == 1


@BOTH
def test_a_full_table_floods_and_counts(lab3, flags):
    wires = lab3.wires()
    weir = lab3.weir(lab3.ports(3) + SWITCH + "table_size = 4\n", *flags)
    for number in range(40):
        wires[0].send(frame(mac(0x40 + number), BROADCAST, bytes([number])))
    assert len(wires[1].hear(40)) == 40
    wires[1].send(frame(mac(0x22), mac(0x40 + 39), b"unlearned"))
    assert wires[2].hear(41)[-1] == frame(mac(0x22), mac(0x40 + 39), b"unlearned"), "what is not in the table is flooded"
    now = stage(weir)
    assert now["gauges"]["addresses"] <= 4
    assert now["counters"]["table_full"] >= 36
    weir.conserved()


@BOTH
def test_a_port_learns_no_more_than_its_share(lab, flags):
    wires = lab.wires()
    weir = lab.weir(lab.ports(2) + SWITCH + "max_per_port = 3\n", *flags)
    for number in range(20):
        wires[0].send(frame(mac(0x40 + number), BROADCAST))
    wires[1].hear(20)
    assert stage(weir)["gauges"]["addresses"] == 3
    assert stage(weir)["counters"]["port_full"] == 17


@BOTH
def test_a_static_address_never_moves(lab3, flags):
    wires = lab3.wires()
    weir = lab3.weir(lab3.ports(3) + SWITCH + f'static = [{{ mac = "{mac(0x11)}", port = "p0" }}]\n', *flags)
    wires[1].send(frame(mac(0x11), BROADCAST))
    assert len(wires[0].hear(1)) == 1 and len(wires[2].hear(1)) == 1
    wires[1].send(frame(mac(0x22), mac(0x11), b"for the static one"))
    assert wires[0].hear(1) == [frame(mac(0x22), mac(0x11), b"for the static one")]
    assert stage(weir)["counters"]["static_moved"] == 1


@BOTH
def test_link_local_frames_go_to_the_host_stack(lab, flags):
    wires = lab.wires()
    weir = lab.weir(lab.ports(2) + SWITCH, *flags)
    host = lab.switch.tap("p0")
    lldp = frame(mac(0x11), "01:80:c2:00:00:0e", b"lldp", 0x88CC)
    for _ in range(10):
        wires[0].send(lldp)
    assert host.hear(10) == [lldp] * 10
    port = weir.conserved()["ports"][0]
    assert port["to_stack"] + port["user"]["to_stack"] == 10
    wires[0].send(frame(mac(0x11), BROADCAST, b"end"))
    assert wires[1].hear(1) == [frame(mac(0x11), BROADCAST, b"end")], "the other port heard what was for the host"


@BOTH
def test_frames_that_no_switch_forwards_are_dropped_by_name(lab, flags):
    wires = lab.wires()
    weir = lab.weir(lab.ports(2) + SWITCH, *flags)
    wires[0].send(frame("03:00:00:00:00:01", BROADCAST))  # a group address as source
    wires[0].send(frame("00:00:00:00:00:00", BROADCAST))
    wires[0].send(frame(mac(0x11), mac(0x12)))
    wires[0].send(frame(mac(0x12), mac(0x11)))             # both on this port
    wait_until(lambda: weir.drops() == {("stage main.l2_switch", "bad_source"): 2, ("stage main.l2_switch", "same_port"): 1}, "three drops by name")
    weir.conserved()


def test_the_kernel_punts_an_address_once(lab):
    wires = lab.wires()
    weir = lab.weir(lab.ports(2) + SWITCH)
    wires[0].send(frame(mac(0x11), BROADCAST))
    wires[1].hear(1)
    for _ in range(200):
        wires[0].send(frame(mac(0x11), BROADCAST))
    assert len(wires[1].hear(200)) == 200
    port = weir.conserved()["ports"][0]
    assert (port["punt"], port["redirect"] + port["flood"]) == (1, 200)
