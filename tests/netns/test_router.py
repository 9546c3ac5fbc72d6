# SPDX-License-Identifier: BSD-3-Clause
"""router: real hosts in networks of their own, the kernel's routes and neighbours, BIRD, and changes while frames flow."""
import contextlib
import json
import pathlib
import re
import signal
import socket
import tempfile
import time

import pytest
from lab import frame, iperf, ping, run, wait_until

ROUTER = '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "router"\n'
BOTH = pytest.mark.parametrize("flags", [[], ["--user-only"]], ids=["kernel", "user_only"])


def network(lab, forwarding=False):
    """Host n is 10.0.n.2 and fd00:n::2; the router's port there is 10.0.n.1 and fd00:n::1."""
    lab.switch.run("sysctl", "-qw", f"net.ipv4.ip_forward={int(forwarding)}", f"net.ipv6.conf.all.forwarding={int(forwarding)}")
    for number, host in enumerate(lab.hosts):
        host.run("ip", "addr", "flush", "dev", "eth0")
        host.run("ip", "addr", "add", f"10.0.{number}.2/24", "dev", "eth0")
        host.run("ip", "addr", "add", f"fd00:{number}::2/64", "dev", "eth0", "nodad")
        host.run("ip", "route", "replace", "default", "via", f"10.0.{number}.1")
        host.run("ip", "-6", "route", "replace", "default", "via", f"fd00:{number}::1")
        lab.switch.run("sysctl", "-qw", f"net.ipv6.conf.p{number}.disable_ipv6=0")
        lab.switch.run("ip", "addr", "add", f"10.0.{number}.1/24", "dev", f"p{number}")
        lab.switch.run("ip", "addr", "add", f"fd00:{number}::1/64", "dev", f"p{number}", "nodad")


def router(lab, *flags, keys="", forwarding=False):
    network(lab, forwarding)
    return lab.weir(lab.ports(len(lab.hosts)) + ROUTER + keys, *flags)


def stage(weir):
    return weir.stats()["stages"][0]


def gauge(weir, name):
    return stage(weir)["gauges"].get(name, 0)


def reaches(host, address):
    return wait_until(lambda: ping(host, address, 1) == 1, f"{address} is reached")


@BOTH
def test_hosts_of_different_networks_talk(lab3, flags):
    weir = router(lab3, *flags)
    one, two, three = lab3.hosts
    for address in ("10.0.1.2", "fd00:1::2"):
        reaches(one, address)
    assert "ttl=63" in one.run("ping", "-c", "1", "10.0.1.2").stdout
    for address in ("10.0.2.2", "fd00:2::2"):
        reaches(two, address)
    assert iperf(one, two, "10.0.0.2")["sum_received"]["bytes"] > 1_000_000
    assert iperf(one, three, "fd00::2")["sum_received"]["bytes"] > 1_000_000
    now = weir.conserved()
    counters = stage(weir)["counters"]
    if flags:
        assert counters["forwarded_ipv4"] > 100 and counters["forwarded_ipv6"] > 100
    else:
        assert counters["forwarded_ipv4"] > 5 and counters["forwarded_ipv6"] > 5, "each flow's first frames"
        assert now["flows"]["hits"] > 200, "and the others"
    kernel = sum(port["redirect"] for port in now["ports"])
    punted = sum(port["punt"] for port in now["ports"])
    assert (kernel == 0) if flags else (kernel > 100 * punted), now["ports"]


@BOTH
def test_nothing_is_lost_while_a_neighbour_is_looked_for_when_the_host_forwards(lab, flags):
    router(lab, *flags, forwarding=True)
    for address in ("10.0.1.2", "fd00:1::2"):
        assert ping(lab.hosts[0], address, 3) == 3


@BOTH
def test_a_web_page_arrives_whole(lab, flags):
    router(lab, *flags)
    client, server = lab.hosts
    page = "the dam lets most of the water flow " * 20000
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        (root / "page").write_text(page)
        (root / "nginx.conf").write_text(
            f"daemon off; pid {root}/pid; error_log {root}/log; user root;\nevents {{}}\n"
            f"http {{ access_log off; client_body_temp_path {root}/a; proxy_temp_path {root}/b; fastcgi_temp_path {root}/c;\n"
            f"uwsgi_temp_path {root}/d; scgi_temp_path {root}/e; server {{ listen 80; listen [::]:80; root {root}; }} }}\n")
        server.start("nginx", "-c", root / "nginx.conf", "-e", root / "log")
        wait_until(lambda: (root / "pid").exists() and (root / "pid").read_text().strip(), "nginx starts")
        for address in ("10.0.1.2", "[fd00:1::2]"):
            assert client.run("curl", "-sS", "--max-time", "20", f"http://{address}/page").stdout == page


@BOTH
def test_the_router_is_a_hop_that_traceroute_sees(lab, flags):
    router(lab, *flags)
    one = lab.hosts[0]
    for address, hop in (("10.0.1.2", "10.0.0.1"), ("fd00:1::2", "fd00::1")):
        reaches(one, address)
        shown = one.run("traceroute", "-n", "-q", "1", "-w", "2", "-m", "4", address).stdout
        hops = re.findall(r"^\s*\d+\s+(\S+)", shown.split("\n", 1)[1], re.MULTILINE)
        assert hops == [hop, address], shown


@BOTH
def test_a_sender_finds_the_mtu_of_the_path(lab, flags):
    network(lab)
    lab.switch.run("ip", "link", "set", "p1", "mtu", "1300")
    weir = lab.weir(lab.ports(2) + ROUTER, *flags)
    one, two = lab.hosts
    for address in ("10.0.1.2", "fd00:1::2"):
        reaches(one, address)
        assert iperf(two, one, address)["sum_received"]["bytes"] > 500_000
        assert "mtu 1300" in one.run("ip", "route", "get", address).stdout
    assert {("stage main.router", "too_big")} <= set(weir.drops()), weir.drops()
    assert gauge(weir, "icmp_answered") >= 2


@BOTH
def test_what_leads_nowhere_is_told(lab, flags):
    weir = router(lab, *flags)
    one = lab.hosts[0]
    switch = lab.switch
    switch.run("ip", "route", "add", "blackhole", "10.5.0.0/16")
    switch.run("ip", "route", "add", "unreachable", "10.6.0.0/16")
    switch.run("ip", "route", "add", "prohibit", "10.7.0.0/16")
    reaches(one, "10.0.1.2")
    said = {}
    for address in ("10.4.0.1", "10.5.0.1", "10.6.0.1", "10.7.0.1", "fd04::1"):
        said[address] = one.run("ping", "-c", "1", "-W", "1", address, check=False).stdout
    assert "Net Unreachable" in said["10.4.0.1"]
    assert "From" not in said["10.5.0.1"]
    assert "Host Unreachable" in said["10.6.0.1"]
    assert "filtered" in said["10.7.0.1"]
    assert "No route" in said["fd04::1"]
    drops = weir.drops()
    for reason in ("no_route", "blackhole", "unreachable", "prohibited"):
        assert drops[("stage main.router", reason)] > 0, drops


@BOTH
def test_a_host_that_does_not_answer_is_told_to_be_unreachable_until_it_does(lab, flags):
    weir = router(lab, *flags)
    one, two = lab.hosts
    wait_until(lambda: "Host Unreachable" in one.run("ping", "-c", "1", "-W", "1", "10.0.1.9", check=False).stdout,
               "it is told to be unreachable", 15)
    assert weir.drops()[("stage main.router", "host_unreachable")] > 0
    two.run("ip", "addr", "add", "10.0.1.9/24", "dev", "eth0")
    wait_until(lambda: ping(one, "10.0.1.9", 1) == 1, "it answers", 15)


@BOTH
def test_a_route_is_withdrawn_and_comes_back(lab, flags):
    weir = router(lab, *flags)
    one, two = lab.hosts
    two.run("ip", "addr", "add", "10.77.0.1/32", "dev", "lo")
    two.run("ip", "addr", "add", "fd77::1/128", "dev", "eth0", "nodad")
    for round_ in range(3):
        lab.switch.run("ip", "route", "add", "10.77.0.0/24", "via", "10.0.1.2")
        lab.switch.run("ip", "-6", "route", "add", "fd77::/64", "via", "fd00:1::2")
        reaches(one, "10.77.0.1")
        reaches(one, "fd77::1")
        lab.switch.run("ip", "route", "del", "10.77.0.0/24")
        lab.switch.run("ip", "-6", "route", "del", "fd77::/64")
        wait_until(lambda: ping(one, "10.77.0.1", 1) == 0 and ping(one, "fd77::1", 1) == 0, f"round {round_}: the routes are gone")
    assert gauge(weir, "changes") > 10


@BOTH
def test_a_neighbour_with_another_address_is_followed(lab, flags):
    router(lab, *flags)
    one, two = lab.hosts
    reaches(one, "10.0.1.2")
    reaches(one, "fd00:1::2")
    two.run("ip", "link", "set", "eth0", "address", "02:00:00:00:77:77")
    two.run("ip", "route", "replace", "default", "via", "10.0.1.1")
    two.run("ip", "-6", "route", "replace", "default", "via", "fd00:1::1")
    assert ping(two, "10.0.1.1", 2) > 0 and ping(two, "fd00:1::1", 2) > 0
    reaches(one, "10.0.1.2")
    reaches(one, "fd00:1::2")


@BOTH
def test_flows_spread_over_paths_and_leave_one_that_goes_down(lab3, flags):
    weir = router(lab3, *flags)
    one, two, three = lab3.hosts
    for host in (two, three):
        host.run("ip", "addr", "add", "10.77.0.1/32", "dev", "lo")
    lab3.switch.run("ip", "route", "add", "10.77.0.0/24", "nexthop", "via", "10.0.1.2", "nexthop", "via", "10.0.2.2")
    reaches(one, "10.0.1.2")
    reaches(one, "10.0.2.2")
    wait_until(lambda: gauge(weir, "routes_ipv4") > 0 and "via 10.0.2.2 p2 frames" in stage(weir)["gauges"], "the route is there")

    def send_flows():
        def work():
            for port in range(20000, 20200):
                with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as made:
                    made.bind(("", port))
                    made.sendto(b"flow", ("10.77.0.1", 9))
        before = [gauge(weir, f"via 10.0.{number}.2 p{number} frames") for number in (1, 2)]
        one.inside(work)
        wait_until(lambda: sum(gauge(weir, f"via 10.0.{number}.2 p{number} frames") for number in (1, 2)) - sum(before) >= 200, "all are sent", 5)
        return [gauge(weir, f"via 10.0.{number}.2 p{number} frames") - before[number - 1] for number in (1, 2)]

    assert min(send_flows()) > 60
    lab3.switch.run("ip", "link", "set", "p2", "down")
    wait_until(lambda: "via 10.0.2.2 p2 frames" not in stage(weir)["gauges"], "the path is left out")
    assert ping(one, "10.77.0.1", 3) == 3


def test_a_nexthop_object_is_followed(lab3):
    router(lab3)
    one, two, three = lab3.hosts
    two.run("ip", "addr", "add", "10.77.0.1/32", "dev", "lo")
    lab3.switch.run("ip", "nexthop", "add", "id", "7", "via", "10.0.2.2", "dev", "p2")
    lab3.switch.run("ip", "route", "add", "10.77.0.0/24", "nhid", "7")
    reaches(one, "10.0.1.2")
    assert ping(one, "10.77.0.1", 1) == 0
    lab3.switch.run("ip", "nexthop", "replace", "id", "7", "via", "10.0.1.2", "dev", "p1")
    reaches(one, "10.77.0.1")
    lab3.switch.run("ip", "nexthop", "del", "id", "7")
    wait_until(lambda: ping(one, "10.77.0.1", 1) == 0, "the route went with its nexthop")
    del three


def test_routes_of_a_device_that_goes_down_are_left(lab3):
    router(lab3)
    one, two, three = lab3.hosts
    for host in (two, three):
        host.run("ip", "addr", "add", "10.77.0.1/32", "dev", "lo")
    lab3.switch.run("ip", "route", "add", "10.77.0.0/24", "via", "10.0.1.2", "metric", "10")
    lab3.switch.run("ip", "route", "add", "10.77.0.0/24", "via", "10.0.2.2", "metric", "20")
    reaches(one, "10.77.0.1")
    reaches(one, "10.0.2.2")
    lab3.switch.run("ip", "link", "set", "p1", "down")
    wait_until(lambda: ping(one, "10.77.0.1", 1) == 1, "the other route is taken")


def full_buffers(host):
    names, numbers = [line.split() for line in host.run("cat", "/proc/net/snmp").stdout.splitlines() if line.startswith("Udp:")]
    return int(numbers[names.index("RcvbufErrors")])


@BOTH
def test_ten_thousand_changes_a_second_lose_no_frame(lab, flags):
    weir = router(lab, *flags)
    one, two = lab.hosts
    reaches(one, "10.0.1.2")
    reaches(two, "10.0.0.2")
    routes = [f"10.{100 + i // 256}.{i % 256}.0/{24 + i % 9}" for i in range(2500)]
    with tempfile.TemporaryDirectory() as folder:
        batch = pathlib.Path(folder) / "batch"
        batch.write_text("".join(f"route {verb} {to} via 10.0.1.2\n" for _ in range(8) for verb in ("add", "del") for to in routes))
        before, earlier = gauge(weir, "changes"), weir.drops()
        server = two.start("iperf3", "-s", "-1", "--forceflush")
        wait_until(lambda: "listening" in server.text(), "iperf3 listens")
        client = one.start("iperf3", "-c", "10.0.1.2", "-u", "-b", "12M", "-l", "200", "-t", "6", "-J")
        begin = time.monotonic()
        lab.switch.run("ip", "-batch", batch)
        took = time.monotonic() - begin
        client.wait()
        server.wait()
    number = 8 * 2 * len(routes)
    sent = json.loads(client.text())["end"]["sum"]
    assert sent["packets"] > 5000
    # The router loses none. On a machine that is busy with other things a ring of user space may fill, and the receiver's buffer; both count.
    drops = weir.drops()
    assert {key: frames for key, frames in drops.items() if key[0] == "stage main.router"} == earlier
    full_rings = sum(frames for key, frames in drops.items() if key[0] != "stage main.router")
    assert sent["lost_packets"] == full_buffers(two) + full_rings, (sent, drops)
    assert flags or not full_rings, drops
    wait_until(lambda: gauge(weir, "changes") - before >= number or gauge(weir, "fetches") > 1, "all changes are taken")
    wait_until(lambda: gauge(weir, "routes_ipv4") < 50, "and are in the tables")
    weir.conserved()
    if number / took < 10000:
        pytest.skip(f"{number} changes in {took:.1f} s: the kernel itself takes no more here now")


def test_what_netlink_has_lost_is_fetched(lab):
    """While the process stands still, more changes come than its socket holds; redirects go on."""
    weir = router(lab)
    one = lab.hosts[0]
    reaches(one, "10.0.1.2")
    routes = [f"10.{100 + i // 256}.{i % 256}.0/24" for i in range(15000)]
    with tempfile.TemporaryDirectory() as folder:
        batch = pathlib.Path(folder) / "batch"
        verbs = ["add", "del"] * 3
        batch.write_text("".join(f"route {verb} {to} via 10.0.1.2\n" for verb in verbs for to in routes)
                         + "".join(f"route add {to} via 10.0.1.2\n" for to in routes[:100]))
        weir.process.popen.send_signal(signal.SIGSTOP)
        try:
            lab.switch.run("ip", "-batch", batch)
            # For two seconds the kernel half may still hand first frames of flows to a process that stands still.
            wait_until(lambda: ping(one, "10.0.1.2", 3) == 3, "the kernel half goes on by itself", 20)
        finally:
            weir.process.popen.send_signal(signal.SIGCONT)
    wait_until(lambda: gauge(weir, "fetches") >= 2, "all is fetched")
    own = gauge(weir, "routes_ipv4") - 100
    assert 0 < own < 50
    lab.hosts[1].run("ip", "addr", "add", "10.100.7.1/32", "dev", "lo")
    reaches(one, "10.100.7.1")


@BOTH
def test_the_host_fragments_what_may_be_fragmented(lab, flags):
    network(lab, forwarding=True)
    for namespace, device in ((lab.switch, "p1"), (lab.hosts[1], "eth0")):
        namespace.run("ip", "link", "set", device, "mtu", "1300")
    weir = lab.weir(lab.ports(2) + ROUTER, *flags)
    one = lab.hosts[0]
    reaches(one, "10.0.1.2")
    answered = one.run("ping", "-c", "2", "-i", "0.1", "-s", "1400", "-M", "dont", "10.0.1.2").stdout
    assert "2 received" in answered
    assert stage(weir)["counters"]["by_host"] >= 2
    lab.switch.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
    wait_until(lambda: one.run("ping", "-c", "1", "-W", "1", "-s", "1400", "-M", "dont", "10.0.1.2", check=False)
               and ("stage main.router", "cannot_fragment") in weir.drops(), "then it is dropped by name")


def bird(namespace, folder, name, text):
    file = pathlib.Path(folder) / f"{name}.conf"
    file.write_text(text)
    control = pathlib.Path(folder) / f"{name}.ctl"
    process = namespace.start("bird", "-f", "-c", file, "-s", control, "-P", pathlib.Path(folder) / f"{name}.pid")
    wait_until(lambda: control.exists() or process.popen.poll() is not None, "BIRD starts")
    return process


BIRD = """
router id {id};
protocol device {{ scan time 1; }}
protocol kernel k4 {{ ipv4 {{ export all; }}; }}
protocol kernel k6 {{ ipv6 {{ export all; }}; }}
protocol bgp peer {{
  local {own} as {own_as};
  neighbor {other} as {other_as};
  {hop}
  connect delay time 1;
  connect retry time 1;
  ipv4 {{ import all; export {exports}; next hop self; extended next hop on; }};
  ipv6 {{ import all; export {exports}; next hop self; }};
}}
"""


@BOTH
def test_bird_exchanges_routes_with_the_router_and_through_it(lab3, flags):
    """BIRD beside weir and on a host: routes for IPv4 and IPv6 of one session. Two hosts exchange theirs across the router."""
    weir = router(lab3, *flags)
    one, two, three = lab3.hosts
    two.run("ip", "addr", "add", "10.88.0.1/32", "dev", "lo")
    two.run("ip", "addr", "add", "fd88::1/128", "dev", "eth0", "nodad")
    statics = "protocol static { ipv4; route 10.88.0.0/24 blackhole; }\nprotocol static { ipv6; route fd88::/64 blackhole; }\n"
    quiet = "protocol kernel k4 {{ ipv4 {{ export all; }}; }}\nprotocol kernel k6 {{ ipv6 {{ export all; }}; }}\n"
    reaches(one, "fd00:1::2")
    with tempfile.TemporaryDirectory() as folder:
        bird(lab3.switch, folder, "router", BIRD.format(id="10.0.1.1", own="fd00:1::1", own_as=65001, other="fd00:1::2", other_as=65002, hop="",
                                                        exports="none"))
        speaker = bird(two, folder, "host", statics + BIRD.replace(quiet, "").format(
            id="10.0.1.2", own="fd00:1::2", own_as=65002, other="fd00:1::1", other_as=65001, hop="", exports="all"))
        for address in ("10.88.0.1", "fd88::1"):
            wait_until(lambda: ping(one, address, 1) == 1, f"the route to {address} is learned", 30)
        assert "bird" in lab3.switch.run("ip", "route", "show", "10.88.0.0/24").stdout
        speaker.stop()
        for address in ("10.88.0.1", "fd88::1"):
            wait_until(lambda: ping(one, address, 1) == 0, f"the route to {address} is withdrawn", 30)
        # And a session of two hosts across the router.
        bird(one, folder, "left", BIRD.replace(quiet, "").format(
            id="10.0.0.2", own="10.0.0.2", own_as=65003, other="10.0.2.2", other_as=65004, hop="multihop 3;", exports="all"))
        right = statics.replace("88", "99") + BIRD.replace(quiet, "").format(
            id="10.0.2.2", own="10.0.2.2", own_as=65004, other="10.0.0.2", other_as=65003, hop="multihop 3;", exports="all")
        bird(three, folder, "right", right)
        control = pathlib.Path(folder) / "left.ctl"
        wait_until(lambda: "10.99.0.0/24" in run("birdc", "-s", control, "show", "route", check=False).stdout, "the hosts exchange routes", 30)
    assert stage(weir)["counters"]["forwarded_ipv4"] > 0


@BOTH
def test_what_is_not_routed_goes_to_the_host(lab, flags):
    weir = router(lab, *flags)
    one = lab.hosts[0]
    assert ping(one, "10.0.0.1", 2) == 2
    assert ping(one, "10.0.1.1", 2) == 2, "an address of another port"
    assert ping(one, "fd00:1::1", 2) == 2
    tap = one.tap("eth0")
    tap.send(frame("02:00:00:00:00:01", lab.switch.mac("p0"), b"other"))
    wait_until(lambda: stage(weir)["counters"]["not_routed"] > 0, "it is counted")
    tap.close()


def test_redirects_go_on_while_no_daemon_runs_and_the_next_takes_over(lab):
    weir = router(lab)
    one = lab.hosts[0]
    reaches(one, "10.0.1.2")
    reaches(one, "fd00:1::2")
    weir.kill()
    assert ping(one, "10.0.1.2", 3) == 3 and ping(one, "fd00:1::2", 3) == 3
    pinging = one.start("ping", "-i", "0.01", "-c", "300", "10.0.1.2")
    weir.start()
    pinging.wait()
    assert " 0% packet loss" in pinging.text(), pinging.text()
    assert ping(one, "fd00:1::2", 3) == 3
