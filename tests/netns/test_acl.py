# SPDX-License-Identifier: BSD-3-Clause
"""acl: real hosts that talk through rules, and frames that say what became of them."""
import contextlib
import pathlib
import socket
import tempfile

import pytest
from lab import WEIR, frame, iperf, mac, ping, run, wait_until
from test_router import network

BOTH = pytest.mark.parametrize("flags", [[], ["--user-only"]], ids=["kernel", "user_only"])
NEIGHBOURS = "permit type 0x0806 name arp\npermit protocol icmpv6 name icmpv6\n"


@pytest.fixture
def rules(tmp_path):
    return tmp_path / "rules.acl"


def through(lab, rules, text, otherwise="drop", more=""):
    """Two ports with a wire between them, behind rules."""
    rules.write_text(text)
    return (lab.ports(2) + '[[pipeline]]\nname = "main"\n'
            f'[[pipeline.stage]]\nplugin = "acl"\nfile = "{rules}"\notherwise = "{otherwise}"\n{more}'
            '[[pipeline.stage]]\nplugin = "patch"\npairs = [["p0", "p1"]]\n')


def stage(weir):
    return next(each for each in weir.stats()["stages"] if each["plugin"] == "acl")


def hits(weir):
    return {name.removeprefix("hits."): value for name, value in stage(weir)["gauges"].items() if name.startswith("hits.")}


def expect_by_the_kernel(weir, flags):
    now = weir.conserved()
    kernel, punted = (sum(port[key] for port in now["ports"]) for key in ("redirect", "punt"))
    assert (kernel == 0) if flags else (kernel > 0 and punted == 0), now["ports"]
    return now


@contextlib.contextmanager
def nginx(server, *listen):
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        (root / "page").write_text("the dam lets most of the water flow " * 2000)
        listens = " ".join(f"listen {each};" for each in listen)
        (root / "nginx.conf").write_text(
            f"daemon off; pid {root}/pid; error_log {root}/log; user root;\nevents {{}}\n"
            f"http {{ access_log off; client_body_temp_path {root}/a; proxy_temp_path {root}/b; fastcgi_temp_path {root}/c;\n"
            f"uwsgi_temp_path {root}/d; scgi_temp_path {root}/e; server {{ {listens} root {root}; }} }}\n")
        server.start("nginx", "-c", root / "nginx.conf", "-e", root / "log")
        wait_until(lambda: (root / "pid").exists() and (root / "pid").read_text().strip(), "nginx starts")
        yield (root / "page").read_text()


def curl(client, url, seconds=10):
    return client.run("curl", "-sS", "--max-time", seconds, url, check=False)


@BOTH
def test_ping_is_permitted_and_denied(lab, rules, flags):
    server, client = lab.hosts
    server.run("ip", "addr", "add", "10.9.0.11/24", "dev", "eth0")
    server.run("ip", "addr", "add", "fd09::11/64", "dev", "eth0", "nodad")
    weir = lab.weir(through(lab, rules, "permit type 0x0806 name arp\n"
                                        "drop dst 10.9.0.11 protocol icmp name no-ping\npermit src 10.9.0.0/24 protocol icmp name ping\n"
                                        "drop src fd09::2 dst fd09::11 protocol icmpv6 name no-ping6\npermit protocol icmpv6 name icmpv6\n"), *flags)
    assert ping(client, "10.9.0.1") == 3
    assert ping(client, "fd09::1") == 3
    assert ping(client, "10.9.0.11") == 0
    assert ping(client, "fd09::11") == 0
    now = expect_by_the_kernel(weir, flags)
    counted = hits(weir)
    assert counted["ping"] == 6 and counted["no-ping"] == 3
    assert counted["no-ping6"] >= 3 and counted["icmpv6"] >= 6 and counted["arp"] >= 2
    denied = next(drop["frames"] for drop in now["drops"] if (drop["where"], drop["reason"]) == ("stage main.acl", "denied"))
    assert denied == counted["no-ping"] + counted["no-ping6"] + counted["otherwise"]
    shown = run(WEIR, "stats", "--instance", weir.name).stdout
    assert "hits.ping 6" in shown and "hits.no-ping 3" in shown, shown


@BOTH
def test_a_web_server_is_reached_on_one_port_alone(lab, rules, flags):
    server, client = lab.hosts
    weir = lab.weir(through(lab, rules, NEIGHBOURS + "permit protocol tcp dport 80 name web\npermit protocol tcp sport 80 flags ack name answers\n"
                                        "drop protocol tcp dport 81 flags syn,!ack name knocks\n"), *flags)
    with nginx(server, "80", "81", "[::]:80", "[::]:81") as page:
        assert curl(client, "http://10.9.0.1/page").stdout == page
        assert curl(client, "http://[fd09::1]/page").stdout == page
        assert curl(client, "http://10.9.0.1:81/page", 2).returncode != 0
        assert curl(client, "http://[fd09::1]:81/page", 2).returncode != 0
    counted = hits(weir)
    assert counted["web"] > 10 and counted["answers"] > 10 and counted["knocks"] >= 2
    expect_by_the_kernel(weir, flags)


@BOTH
def test_a_transfer_at_full_speed_goes_through_many_rules(lab, rules, flags):
    server, client = lab.hosts
    blocked = "".join(f"drop src 172.{16 + i // 65536}.{i // 256 % 256}.{i % 256}\n" for i in range(3000))
    weir = lab.weir(through(lab, rules, blocked + NEIGHBOURS + "permit protocol tcp dport 5201\npermit protocol tcp sport 5201\n"
                                        "permit protocol udp dport 5201 name udp\npermit protocol udp sport 5201\npermit protocol icmp\n"), *flags)
    assert iperf(server, client, "10.9.0.1")["sum_received"]["bytes"] > 1_000_000
    assert iperf(server, client, "fd09::1")["sum_received"]["bytes"] > 1_000_000
    sent = iperf(server, client, "10.9.0.1", "-u", "-b", "20M", "-l", "1200")["sum"]
    assert sent["packets"] > 500 and sent["lost_percent"] < 20
    now = expect_by_the_kernel(weir, flags)
    assert stage(weir)["gauges"]["rules"] == stage(weir)["gauges"]["kernel_rules"] == 3007
    assert hits(weir)["udp"] >= sent["packets"]
    assert {drop["reason"] for drop in now["drops"] if drop["frames"]} <= {"device_refused", "ring_full", "punt_failed"}, now["drops"]


@BOTH
def test_what_is_logged_goes_through_user_space_and_is_bounded(lab, rules, flags):
    weir = lab.weir(through(lab, rules, NEIGHBOURS + "permit protocol icmp log\n", more="log_rate = 2\n"), *flags)
    assert ping(lab.hosts[1], "10.9.0.1", 20) == 20
    now = weir.conserved()
    counters = stage(weir)["counters"]
    assert hits(weir)["3"] == 40 and counters["logged"] + counters["unlogged"] == 40
    punted = sum(port["punt"] for port in now["ports"])
    assert (counters["unlogged"] == 0) if flags else (punted == counters["logged"] >= 2 and counters["unlogged"] > 0)
    samples = weir.ask("stage", "ask", "main.acl", "samples")["answer"]
    assert len(samples) == counters["logged"] and {sample["in"] for sample in samples} <= {"p0", "p1"}
    assert {(sample["rule"], sample["action"]) for sample in samples} == {("3", "permit")}
    assert all(bytes.fromhex(sample["bytes"])[12:14] == b"\x08\x00" for sample in samples)
    assert weir.ask("stage", "ask", "main.acl", "hits")["answer"][2]["hits"] == 40
    assert "hits" in run(WEIR, "stage", "ask", "main.acl", "--instance", weir.name).stdout
    said = run(WEIR, "stage", "ask", "main.patch", "hits", "--instance", weir.name, check=False)
    assert said.returncode == 2 and "stage main.patch: it answers no questions" in said.stderr
    said = run(WEIR, "stage", "ask", "main.nothing", "--instance", weir.name, check=False)
    assert said.returncode == 2 and "there are: main.acl, main.patch" in said.stderr


@BOTH
def test_rules_are_replaced_while_frames_flow(lab, rules, flags):
    server, client = lab.hosts
    weir = lab.weir(through(lab, rules, NEIGHBOURS + "permit protocol icmp name ping\n"), *flags)
    assert ping(client, "10.9.0.1") == 3
    rules.write_text("drop dst 10.9.0.1 protocol icmp\n" + rules.read_text())
    assert weir.ask("reload")["changed"] == ["stage main.acl"]
    assert ping(client, "10.9.0.1", 2) == 0
    assert hits(weir)["ping"] == 6 and hits(weir)["1"] == 2
    rules.write_text("permit protocol icmp dport 1\nallow\n")
    said = run(WEIR, "reload", "--instance", weir.name, check=False)
    assert said.returncode == 2 and f"{rules}:1:28: dport: " in said.stderr and f"{rules}:2:1: action is" in said.stderr, said.stderr
    assert ping(client, "10.9.0.1", 1) == 0, "what was there stays"
    rules.write_text(NEIGHBOURS + "permit protocol icmp name ping\npermit protocol tcp name one\n")
    assert weir.ask("reload")["changed"] == ["stage main.acl"]
    assert weir.ask("reload")["changed"] == []
    listening = server.start("iperf3", "-s", "-1", "--forceflush")
    wait_until(lambda: "listening" in listening.text(), "iperf3 listens")
    running = client.start("iperf3", "-c", "10.9.0.1", "-t", "2")
    for number in range(20):
        rules.write_text(NEIGHBOURS + f"drop dst 10.8.0.{number}\npermit protocol icmp name ping\npermit protocol tcp name one\n")
        assert weir.ask("reload")["changed"] == ["stage main.acl"]
    assert running.wait() == 0, running.text()
    listening.wait()
    assert ("stage main.acl", "denied") in weir.drops()
    before = weir.drops()[("stage main.acl", "denied")]
    assert ping(client, "10.9.0.1") == 3
    assert weir.drops()[("stage main.acl", "denied")] == before
    assert hits(weir)["ping"] == 12
    weir.conserved()


@BOTH
def test_a_reload_may_bring_many_more_rules(lab, rules, flags):
    weir = lab.weir(through(lab, rules, NEIGHBOURS + "permit protocol icmp name ping\n"), *flags)
    assert ping(lab.hosts[1], "10.9.0.1") == 3
    rules.write_text("".join(f"drop protocol udp dport {port}\n" for port in range(5000)) + NEIGHBOURS + "permit protocol icmp name ping\n")
    assert weir.ask("reload")["changed"] == ["stage main.acl"]
    assert ping(lab.hosts[1], "10.9.0.1") == 3
    assert hits(weir)["ping"] == 12
    assert stage(weir)["gauges"]["rules"] == stage(weir)["gauges"]["kernel_rules"] == 5003


def test_hits_are_counted_on_while_no_daemon_runs(lab, rules):
    client = lab.hosts[1]
    weir = lab.weir(through(lab, rules, NEIGHBOURS + "permit protocol icmp name ping\n"))
    assert ping(client, "10.9.0.1") == 3
    weir.kill()
    assert ping(client, "10.9.0.1", 5) == 5
    weir.start()
    assert hits(weir)["ping"] == 16
    assert ping(client, "10.9.0.1") == 3
    assert hits(weir)["ping"] == 22


@BOTH
def test_frames_that_lie_are_dropped_by_name(lab, rules, flags):
    left, right = lab.wires()
    weir = lab.weir(through(lab, rules, "drop protocol udp dport 7\n", "permit"), *flags)
    ipv4 = bytes.fromhex("4500001c0000000040110000c0000201c0000202" "00010008" "00080000")
    left.send(frame(mac(1), mac(2), ipv4, 0x0800))
    left.send(frame(mac(1), mac(2), b"\x46" + ipv4[1:3] + b"\x14" + ipv4[4:], 0x0800))  # shorter in all than its header
    left.send(frame(mac(1), mac(2), ipv4[:2] + b"\xff" + ipv4[3:], 0x0800))              # longer than the frame
    left.send(frame(mac(1), mac(2), ipv4[:23] + b"\x07" + ipv4[24:], 0x0800))            # to port 7
    left.send(frame(mac(1), mac(2), b"end"))
    assert right.hear(2) == [frame(mac(1), mac(2), ipv4, 0x0800), frame(mac(1), mac(2), b"end")]
    wait_until(lambda: weir.drops() == {("stage main.acl", reason): 1 for reason in ("bad_header", "truncated", "denied")}, "three drops by name")
    weir.conserved()


def test_a_hundred_thousand_rules_start_and_forward(lab, rules):
    blocked = "".join(f"drop src {1 + i % 8}.{i >> 16 & 255}.{i >> 8 & 255}.{i & 255}\n" for i in range(99996))
    weir = lab.weir(through(lab, rules, blocked + NEIGHBOURS + "permit protocol icmp name ping\npermit protocol tcp\n"))
    assert ping(lab.hosts[1], "10.9.0.1") == 3
    assert iperf(*lab.hosts, "10.9.0.1")["sum_received"]["bytes"] > 1_000_000
    assert stage(weir)["gauges"]["kernel_rules"] == 100000
    assert hits(weir)["ping"] == 6
    expect_by_the_kernel(weir, [])


EDGE = {"in": "permit type 0x0806\npermit src 10.0.0.0/24 state name open\npermit src fd00:0::/64 dst fd00:1::/64 state name open6\n"
              "permit protocol icmpv6 name neighbours\n",
        "out": "permit type 0x0806\npermit dst fd00:1::/64 protocol icmpv6\npermit dst fe80::/10 protocol icmpv6\n"
               "permit dst ff02::/16 protocol icmpv6\n"}


def edge(lab, folder, *flags, more=""):
    """A router whose inside, 10.0.0.2 and fd00::2, may open, and whose outside, 10.0.1.2 and fd00:1::2, may answer."""
    network(lab)
    config = more
    for number, name in enumerate(("in", "out")):
        (folder / f"{name}.acl").write_text(EDGE[name])
        config += f'[[port]]\nname = "p{number}"\ndevice = "p{number}"\npipeline = "{name}"\n'
        config += (f'[[pipeline]]\nname = "{name}"\n[[pipeline.stage]]\nplugin = "acl"\nfile = "{folder / name}.acl"\notherwise = "drop"\n'
                   'states = "edge"\n[[pipeline.stage]]\nplugin = "router"\nmax_routes = 65536\n')
    return lab.weir(config, *flags)


def acl_of(weir, pipeline):
    return next(each for each in weir.stats()["stages"] if (each["plugin"], each["pipeline"]) == ("acl", pipeline))


def states(weir, *words):
    return weir.ask("stage", "ask", "out.acl", "states", *words)["answer"]["states"]


class Connection:
    """TCP from one host to a port of another."""

    def __init__(self, here, there, address, port):
        listening = there.inside(lambda: socket.create_server(("", port)))
        listening.settimeout(5)
        self.near = here.inside(lambda: socket.create_connection((address, port), 5))
        self.far, _ = listening.accept()
        listening.close()

    def speaks(self, seconds=5):
        try:
            for one, other in ((self.near, self.far), (self.far, self.near)):
                one.settimeout(seconds)
                other.settimeout(seconds)
                one.sendall(b"there")
                if other.recv(100) != b"there":
                    return False
        except TimeoutError:
            return False
        return True


def is_told_of_a_closed_port(host, address):
    """UDP, where ICMP says that nobody listens."""
    made = host.inside(lambda: socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM))
    made.settimeout(5)
    made.connect((address, 9))
    made.send(b"who")
    try:
        made.recv(100)
    except ConnectionRefusedError:
        return True
    except TimeoutError:
        return False
    return False


@pytest.mark.parametrize("flags,more", [([], ""), (["--user-only"], ""), ([], "flows = 0\n")], ids=["kernel", "user_only", "no_flows"])
def test_the_inside_of_an_edge_opens_and_the_outside_answers(lab, tmp_path, flags, more):
    weir = edge(lab, tmp_path, *flags, more=more)
    inside, outside = lab.hosts
    for address in ("10.0.1.2", "fd00:1::2"):
        wait_until(lambda at=address: ping(inside, at, 1) == 1, f"{address} is reached")
        assert ping(inside, address, 5) == 5
        assert is_told_of_a_closed_port(inside, address)
    assert ping(outside, "10.0.0.2", 1) == 0 and ping(outside, "fd00::2", 1) == 0
    with nginx(outside, "80", "[::]:80") as page:
        for address in ("10.0.1.2", "[fd00:1::2]"):
            assert curl(inside, f"http://{address}/page").stdout == page
    with nginx(inside, "80"):
        assert curl(outside, "http://10.0.0.2/page", 1).returncode == 28, "no answer, not even a refusal"
    assert iperf(outside, inside, "10.0.1.2")["sum_received"]["bytes"] > 1_000_000
    assert iperf(outside, inside, "fd00:1::2", "-R")["sum_received"]["bytes"] > 1_000_000
    assert iperf(outside, inside, "10.0.1.2", "-u", "-R", "-b", "10M", "-l", "1200")["sum"]["packets"] > 100
    talk, other = Connection(inside, outside, "10.0.1.2", 7), Connection(inside, outside, "10.0.1.2", 8)
    for _ in range(20):
        assert talk.speaks() and other.speaks()
    out = acl_of(weir, "out")
    assert out["counters"]["related"] >= 2 and out["counters"]["established"] > 20 and out["user"]["drop"] + out["kernel"]["drop"] >= 3
    assert [(each["to_port"], each["answered"], each["over"]) for each in states(weir, "10.0.1.2") if each.get("to_port") in (7, 80)] in (
        [(7, True, False), (80, True, True)], [(80, True, True), (7, True, False)])
    now = weir.conserved()
    kernel = sum(port["redirect"] for port in now["ports"])
    assert kernel == 0 if flags else kernel > 1000
    assert (now["flows"]["hits"] > 500) if not flags and not more else now["flows"]["hits"] == 0
    (tmp_path / "in.acl").write_text("permit src 10.99.0.0/16 name another\n" + EDGE["in"])
    assert weir.ask("reload")["changed"] == ["stage in.acl"]
    assert talk.speaks() and other.speaks(), "what rules still permit stays over a reload"
    if not flags:
        weir.kill()
        assert talk.speaks(), "the kernel goes on by itself"
        weir.start()
        assert talk.speaks() and other.speaks(), "and over a restart"
    (tmp_path / "in.acl").write_text("drop protocol tcp dport 7 name shut\n" + EDGE["in"])
    assert weir.ask("reload")["changed"] == ["stage in.acl"]
    assert {each["to_port"] for each in states(weir) if each.get("to_port") in (7, 8)} == {8}
    assert other.speaks() and not talk.speaks(1)
    talk.far.sendall(b"and")
    talk.near.settimeout(0.5)
    with pytest.raises(TimeoutError):
        talk.near.recv(100)
    assert weir.ask("stage", "ask", "in.acl", "flush")["answer"]["flushed"] > 0
    assert states(weir) == [] and not other.speaks(0.5)
    assert acl_of(weir, "in")["gauges"]["states"] == 0
    weir.conserved()


@BOTH
def test_what_finds_no_room_in_the_table_of_flows_is_dropped_by_name(lab, rules, flags):
    weir = lab.weir(through(lab, rules, NEIGHBOURS + "permit src 10.9.0.2 protocol udp state\n", more='states = "few"\nmax_states = 64\n'), *flags)
    sender = lab.hosts[1].inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    assert ping(lab.hosts[1], "10.9.0.1", 1) == 0
    for port in range(200):
        sender.sendto(b"who", ("10.9.0.1", 2000 + port))
    wait_until(lambda: sum(frames for (where, _), frames in weir.drops().items() if where == "stage main.acl") >= 100, "they are dropped")
    gauges = stage(weir)["gauges"]
    assert weir.drops()[("stage main.acl", "states_full")] == gauges["states_refused"] >= 100
    assert gauges["states"] == 64 and gauges["states_opened"] == 64 + gauges["states_evicted"]
    weir.conserved()
