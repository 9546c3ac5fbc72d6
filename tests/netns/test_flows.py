# SPDX-License-Identifier: BSD-3-Clause
"""Flows that a user half has offloaded: their frames stay in the kernel, and everything about them adds up."""
import pytest
from lab import BUILD, WEIR, mac, run, wait_until
from scapy.all import IP, TCP, UDP, Dot1Q, Ether, ICMPv6EchoRequest, IPv6, Raw


def config(lab, keys="", flows="", ports=2):
    return (f'plugin_dirs = ["{BUILD}/tests/data"]\n{flows}\n' + lab.ports(ports) +
            f'\n[[pipeline]]\nname = "main"\n  [[pipeline.stage]]\n  plugin = "shortcut"\n  {keys}\n')


def udp(source, destination, sport=1000, dport=2000, size=20):
    return bytes(Ether(src=mac(1), dst=mac(2)) / IP(src=source, dst=destination) / UDP(sport=sport, dport=dport) / Raw(bytes(size)))


def punted(weir):
    return sum(port["punt"] for port in weir.stats()["ports"])


def test_frames_of_a_flow_stay_in_the_kernel_behind_the_first(lab):
    weir = lab.weir(config(lab))
    lab.hosts[0].run("ping", "-c", "1", "-W", "2", "10.9.0.2")
    before = punted(weir)
    ping = lab.hosts[0].run("ping", "-c", "50", "-i", "0.01", "-W", "2", "10.9.0.2")
    assert " 0% packet loss" in ping.stdout
    now = weir.conserved()
    echo = [flow for flow in weir.ask("flows", "list")["flows"] if flow["protocol"] == "icmp" and flow["hits"] >= 49]
    assert {(flow["port"], flow["from"], flow["to"], flow["out"]) for flow in echo} == {
        ("p0", "10.9.0.1", "10.9.0.2", "p1"), ("p1", "10.9.0.2", "10.9.0.1", "p0")}
    assert punted(weir) - before <= 10, "an echo, its answer, and ARP"
    assert now["flows"]["hits"] >= 98
    assert sum(stage["kernel"]["redirect"] for stage in now["stages"]) == now["flows"]["hits"]
    weir.stop()


@pytest.mark.parametrize("flags", [[], ["--user-only"]], ids=["kernel", "user_only"])
def test_a_page_is_fetched_over_ipv4_and_ipv6(lab, flags):
    weir = lab.weir(config(lab), *flags)
    server = lab.hosts[1].start("/usr/bin/python3", "-m", "http.server", "--bind", "::", "8080")
    for address in ("10.9.0.2", "[fd09::2]"):
        wait_until(lambda at=address: lab.hosts[0].run("curl", "-sf", "-o", "/dev/null", f"http://{at}:8080/", check=False).returncode == 0,
                   "the server answers")
    now = weir.conserved()
    if flags:
        assert now["flows"]["places"] == 0 and now["flows"]["added"] == 0
    else:
        assert now["flows"]["hits"] > 0
        wait_until(lambda: weir.stats()["flows"]["ended"] >= 4, "FIN ends both flows of both connections")
    server.stop()
    weir.stop()


def test_what_does_not_fit_a_flow_goes_the_long_way_and_arrives(lab):
    weir = lab.weir(config(lab))
    for address in ("10.9.0.2", "fd09::2"):
        ping = lab.hosts[0].run("ping", "-c", "20", "-i", "0.01", "-s", "4000", "-W", "2", address)
        assert " 0% packet loss" in ping.stdout
    now = weir.conserved()
    assert sum(port["punt"] for port in now["ports"]) >= 80, "fragments are of no flow"
    weir.stop()


def test_an_idle_flow_ends_and_its_stage_gets_the_counters(lab):
    wires = lab.wires()
    weir = lab.weir(config(lab, "idle_s = 2"))
    frame = udp("10.0.0.1", "10.0.0.2")
    wires[0].send(frame)
    assert wires[1].hear(1) == [frame]
    wait_until(lambda: weir.stats()["flows"]["count"] == 1, "the flow is there")
    for _ in range(10):
        wires[0].send(frame)
    assert len(wires[1].hear(10)) == 10
    assert [flow["hits"] for flow in weir.ask("flows", "list")["flows"]] == [10]
    wait_until(lambda: weir.stats()["stages"][0]["gauges"]["ended"] == 1, "the flow ends", 10)
    now = weir.conserved()
    assert now["stages"][0]["gauges"]["ended_frames"] == 10
    assert (now["flows"]["count"], now["flows"]["expired"], now["flows"]["hits"]) == (0, 1, 10)
    assert "no flows" in run(WEIR, "flows", "list", "--instance", weir.name).stdout
    weir.stop()


def test_without_a_cache_the_commands_say_so(lab):
    weir = lab.weir("flows = 0\n" + config(lab))
    for words in (["list"], ["flush"]):
        assert "no flow cache: " in run(WEIR, "flows", *words, "--instance", weir.name).stdout
    said = run(WEIR, "flows", "list", "--stage", "shortcut", "--instance", weir.name, check=False)
    assert said.returncode == 2 and "there is no stage shortcut; there are: main.shortcut" in said.stderr
    # In front of the command the option does the same.
    assert "no flow cache" in run(WEIR, "--instance", weir.name, "flows", "list").stdout
    refused = run(WEIR, "--instance", weir.name, "plugins", check=False)
    assert refused.returncode == 2 and "plugins takes no --instance" in refused.stderr


def test_a_plugin_that_would_offload_and_may_not_is_named(lab):
    weir = lab.weir(config(lab).replace('plugin = "shortcut"', 'plugin = "unfit"\nname = "shortcut"'))
    assert any("stage main.shortcut: plugin unfit would offload flows, and does not say per_flow" in each
               for each in weir.stats()["warnings"]), weir.stats()["warnings"]


def test_a_flow_is_dropped_under_its_stages_reason(lab):
    wires = lab.wires()
    weir = lab.weir(config(lab, "closed = 99"))
    for _ in range(5):
        wires[0].send(udp("10.0.0.1", "10.0.0.2", dport=99))
        wait_until(lambda: weir.conserved() and weir.stats()["flows"]["count"] == 1, "the flow is there")
    assert weir.drops() == {("stage main.shortcut", "closed"): 5}
    now = weir.conserved()
    assert now["flows"]["hits"] == 4
    assert weir.ask("flows", "list")["flows"][0]["reason"] == "closed"
    assert "drop closed" in run(WEIR, "flows", "list", "--instance", weir.name).stdout
    weir.stop()


def test_flows_are_listed_and_flushed_by_filters(lab):
    wires = lab.wires()
    weir = lab.weir(config(lab))
    frames = [udp("10.0.0.1", "10.1.0.2"), udp("10.0.1.1", "10.1.0.2", 3, 4),
              bytes(Ether(src=mac(1), dst=mac(2)) / IP(src="10.0.0.1", dst="10.2.0.2") / TCP(sport=5, dport=6, flags="A")),
              bytes(Ether(src=mac(1), dst=mac(2)) / Dot1Q(vlan=7) / IPv6(src="fd00::1", dst="fd01::2") / ICMPv6EchoRequest(id=9))]
    for frame in frames:
        wires[0].send(frame)
    wires[1].send(udp("10.1.0.2", "10.0.0.1"))
    wait_until(lambda: weir.stats()["flows"]["count"] == 5, "five flows")

    def listed(*words):
        return len(weir.ask("flows", "list", *words)["flows"])

    assert listed() == 5
    assert (listed("--port", "p0"), listed("--port", "p1"), listed("--stage", "main.shortcut")) == (4, 1, 5)
    assert (listed("--from", "10.0.0.0/24"), listed("--from", "10.0.0.0/23"), listed("--from", "10.0.0.1")) == (2, 3, 2)
    assert (listed("--to", "fd01::/16"), listed("--to", "::/0"), listed("--protocol", "udp"), listed("--protocol", "6")) == (1, 1, 3, 1)
    some = weir.ask("flows", "list", "--limit", "2")
    assert (len(some["flows"]), some["more"]) == (2, 3)
    text = run(WEIR, "flows", "list", "--protocol", "icmpv6", "--instance", weir.name).stdout.splitlines()
    assert text[1].split()[:6] == ["p0", "7", "icmpv6", "9", "fd00::1", "fd01::2"]
    for words, what in ((["--from", "10.0.0.0/33"], "0 to 32"), (["--to", "ten"], "no address"), (["--port", "p9"], "p9"),
                        (["--stage", "main.x"], "main.x"), (["--protocol", "tcq"], "no protocol"), (["--limit", "0"], "limit")):
        failed = run(WEIR, "flows", "list", *words, "--instance", weir.name, check=False)
        assert failed.returncode == 2 and what in failed.stderr, (words, failed.stderr)
    assert weir.ask("flows", "flush", "--protocol", "udp", "--port", "p0")["flushed"] == 2
    assert listed() == 3
    assert run(WEIR, "flows", "flush", "--instance", weir.name).stdout == "flushed 3 flows\n"
    before = punted(weir)
    wires[0].send(frames[0])
    wait_until(lambda: punted(weir) == before + 1, "the next frame comes to user space")
    now = weir.conserved()
    assert now["flows"]["flushed"] == 5
    weir.stop()


def test_a_flow_that_a_stage_keeps_stays_in_user_space(lab):
    wires = lab.wires()
    weir = lab.weir(config(lab, "kept = 99"))
    for _ in range(5):
        wires[0].send(udp("10.0.0.1", "10.0.0.2", dport=99))
    assert len(wires[1].hear(5)) == 5
    now = weir.conserved()
    assert (now["flows"]["added"], now["ports"][0]["punt"]) == (0, 5)
    weir.stop()


def test_a_stage_that_is_to_see_every_frame_keeps_flows_behind_it_in_user_space(lab):
    wires = lab.wires()
    text = config(lab).replace('  [[pipeline.stage]]\n', '  [[pipeline.stage]]\n  plugin = "watch"\n  [[pipeline.stage]]\n')
    weir = lab.weir(text)
    for _ in range(5):
        wires[0].send(udp("10.0.0.1", "10.0.0.2"))
    assert len(wires[1].hear(5)) == 5
    now = weir.conserved()
    assert (now["flows"]["places"], now["ports"][0]["punt"]) == (0, 5)
    assert any("main.shortcut" in warning and "watch" in warning for warning in now["warnings"])
    weir.stop()


def test_a_port_without_an_entry_sends_its_flows_the_long_way(lab):
    wires = lab.wires()
    weir = lab.weir(config(lab))
    frame = udp("10.0.0.1", "10.0.0.2")
    wires[0].send(frame)
    assert wires[1].hear(1) == [frame]
    wait_until(lambda: weir.stats()["flows"]["count"] == 1, "the flow is there")
    weir.ask("devmap", "delete", "p1")
    wires[0].send(frame)
    wait_until(lambda: weir.drops() == {("port p0", "no_entry"): 1}, "it is a miss")
    weir.ask("devmap", "set", "p1")
    wires[0].send(frame)
    assert wires[1].hear(1) == [frame]
    assert weir.conserved()["flows"]["hits"] == 1
    weir.stop()


@pytest.mark.parametrize("placement", ["entry", "fused"])
def test_flows_leave_through_the_ports_egress_programs(lab, placement):
    wires = lab.wires()
    text = config(lab).replace('name = "p1"\n', f'name = "p1"\nplacement = "{placement}"\negress = ["ttl", "count"]\n')
    weir = lab.weir(text)
    wires[0].send(udp("10.0.0.1", "10.0.0.2"))
    wait_until(lambda: weir.stats()["flows"]["count"] == 1, "the flow is there")
    for _ in range(4):
        wires[0].send(udp("10.0.0.1", "10.0.0.2"))
    heard = wires[1].hear(5)
    assert [Ether(raw)[IP].ttl for raw in heard] == [63] * 5
    assert len(set(heard)) == 1
    now = weir.conserved()
    assert [program["frames"] for program in now["egress"]] == [5, 5]
    assert now["flows"]["hits"] == 4
    weir.stop()


def test_more_flows_than_there_are_places_lose_no_frame(lab):
    wires = lab.wires()
    weir = lab.weir(config(lab, flows="flows = 64"))
    sent = 0
    for turn in range(4):
        if turn == 2:  # those of the first turns are no longer in use
            wait_until(lambda: min(flow["idle_s"] for flow in weir.ask("flows", "list")["flows"]) >= 2, "all are idle")
        for sport in range(turn // 2 * 1000 + 1, turn // 2 * 1000 + 401):
            wires[0].send(udp("10.0.0.1", "10.0.0.2", sport=sport))
            sent += 1
            if sent % 100 == 0:
                wait_until(lambda at=sent: weir.settled(at), "they are through")
    assert len(wires[1].hear(sent)) == sent
    now = weir.conserved()
    flows = now["flows"]
    assert flows["evicted"] > 0 and flows["refused"] > 0 and flows["hits"] > 0
    assert flows["count"] + flows["evicted"] == flows["added"]
    assert flows["hits"] + now["ports"][0]["punt"] == sent
    weir.stop()


def test_a_new_start_knows_no_flow_of_the_one_before(lab):
    wires = lab.wires()
    weir = lab.weir(config(lab))
    frame = udp("10.0.0.1", "10.0.0.2")
    wires[0].send(frame)
    assert wires[1].hear(1) == [frame]
    wait_until(lambda: weir.stats()["flows"]["count"] == 1, "the flow is there")
    weir.kill()
    wires[0].send(frame)
    assert wires[1].hear(1) == [frame], "it goes on while there is no process"
    weir.start()
    assert weir.stats()["flows"]["count"] == 0
    wires[0].send(frame)
    assert wires[1].hear(1) == [frame]
    assert weir.conserved()["flows"]["added"] == 1
    weir.stop()


@pytest.mark.skipif(not (BUILD / "plugins" / "acl.so").exists(), reason="built without DPDK: no acl")
@pytest.mark.parametrize("rule, offload, udp_goes, tcp_goes", [
    ('action = "permit", protocol = "udp"', "true", True, True),
    ('action = "permit", protocol = "udp", log = true', "true", False, True),
    ('action = "drop", protocol = "tcp", flags = "syn,fin"', "true", True, False),
    ('action = "permit", dport = 9', "false", False, False)], ids=["plain", "log", "flags", "kept"])
@pytest.mark.parametrize("flags", [[], ["--user-only"]], ids=["kernel", "user_only"])
def test_an_acl_in_front_keeps_the_flows_that_it_must_see(lab, rule, offload, udp_goes, tcp_goes, flags):
    wires = lab.wires()
    stage = f'  [[pipeline.stage]]\n  plugin = "acl"\n  offload = {offload}\n  rules = [{{ {rule} }}]\n  [[pipeline.stage]]\n'
    weir = lab.weir(config(lab).replace("  [[pipeline.stage]]\n", stage), *flags)
    tcp = bytes(Ether(src=mac(1), dst=mac(2)) / IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=1, dport=2, flags="A") / Raw(bytes(20)))
    for goes, frame in ((udp_goes, udp("10.0.0.1", "10.0.0.2")), (tcp_goes, tcp)):
        before = weir.stats()["flows"]["count"]
        for _ in range(3):
            wires[0].send(frame)
            assert wires[1].hear(1) == [frame]
        weir.conserved()
        assert weir.stats()["flows"]["count"] - before == (1 if goes and not flags else 0)
    weir.stop()
