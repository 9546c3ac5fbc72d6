# SPDX-License-Identifier: BSD-3-Clause
"""apps/embed: a program with libweir and a stage of its own in it forwards as weir does, answers weir's commands, and leaves nothing."""
import json
import socket

import pytest
from lab import BUILD, ROOT, Process, ping, wait_until

EMBED = BUILD / "apps" / "embed"
FILE = ROOT / "apps" / "embed" / "embed.toml"
pytestmark = pytest.mark.skipif(not EMBED.exists(), reason=f"needs {EMBED}")


@pytest.fixture(name="started")
def make_started(lab, tmp_path):
    """The program over the lab's two ports, by the example's own file."""
    name = f"t{lab.id}"
    lab.add_instance(name)
    file = tmp_path / "embed.toml"
    file.write_text(FILE.read_text().replace('name = "embed"', f'name = "{name}"').replace("eth0", "p0").replace("eth1", "p1"))
    process = lab.switch.start(EMBED, file)
    wait_until(lambda: "forwarding" in process.text() or process.popen.poll() is not None, "embed starts")
    assert process.popen.poll() is None, process.text()

    def ask(*words):
        return json.loads(lab.switch.run(BUILD / "apps" / "weir", *words, "--json", "--instance", name).stdout)

    return process, file, ask


def census(stats):
    return next(stage for stage in stats["stages"] if stage["plugin"] == "census")


def send_udp(lab, count):
    """From the first host to the second, whose neighbour it knows."""
    script = f"import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); [s.sendto(b'x', ('10.9.0.2', 9)) for _ in range({count})]"
    lab.hosts[0].run("python3", "-c", script)


def test_its_stage_counts_refuses_and_lets_go_on(lab, started):
    process, _, ask = started
    assert ping(lab.hosts[0], "10.9.0.2") == 3, process.text()
    assert ping(lab.hosts[0], "fd09::2") == 3, process.text()
    before = census(ask("stats"))
    send_udp(lab, 7)

    def refused():
        now = census(ask("stats"))
        return now if now["user"]["drop"] - before["user"]["drop"] >= 7 else None

    now = wait_until(refused, "the datagrams come to the stage")
    assert now["counters"]["icmp"] >= 12, "echoes and answers; and of IPv6 the neighbours' too"
    assert now["counters"]["other"] >= 2, "ARP"
    assert now["counters"]["udp"] == now["user"]["drop"] == 7
    assert {(drop["where"], drop["reason"]): drop["frames"] for drop in ask("stats")["drops"] if drop["frames"]} == \
        {("stage main.census", "refused"): 7}
    assert sum(now["counters"].values()) == now["user"]["in"]

    assert process.stop() == 0, process.text()
    told = json.loads(process.text().splitlines()[-1])
    assert told["udp"] == 7 and told["icmp"] >= now["counters"]["icmp"]
    links = json.loads(lab.switch.run("ip", "-json", "link", "show").stdout)
    assert not any("xdp" in link for link in links), "devices are as they were"


def test_a_reload_knows_its_stage(lab, started):
    process, file, ask = started
    file.write_text(file.read_text().replace('refuse = ["udp"]', 'refuse = ["icmp"]'))
    assert ask("reload")["changed"] == ["stage main.census"]
    assert ping(lab.hosts[0], "10.9.0.2", 2) == 0, process.text()
    file.write_text(file.read_text().replace('refuse = ["icmp"]', "refuse = []"))
    assert ask("reload")["changed"] == ["stage main.census"]
    assert ping(lab.hosts[0], "10.9.0.2", 2) == 2, process.text()
    assert process.stop() == 0, process.text()


@pytest.mark.parametrize("old, new, said", [('"udp"', '"sctp"', 'refuse[0]: is "sctp"; allowed: icmp, tcp, udp, other'),
                                            ('"census"', '"centsus"', "centsus")])
def test_a_wrong_file_is_refused_with_its_place(lab, tmp_path, old, new, said):
    file = tmp_path / "wrong.toml"
    file.write_text(FILE.read_text().replace(old, new))
    process = Process(lab, [EMBED, file])
    assert process.wait() == 2
    assert process.text().startswith(f"{file}:") and said in process.text(), process.text()
