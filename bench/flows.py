#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""flows: routed frames per second over veth, of many flows, IPv4 and IPv6, forwarders in turn; and new flows a second into the flow cache.

The laboratory and the method are those of veth.py. The frames are UDP's and go through all flows in turn, by their ports; the sink counts
those that are as a router leaves them, whatever their ports.
"""
import argparse
import contextlib
import functools
import ipaddress
import json
import os
import pathlib
import signal
import struct
import sys
import time

import veth
from figures import HEADS, machine, rounds, spread, text
from veth import CannotRun, POLLER_CPU, SOURCE_CPU, checksum, run, wait_until

SIZE = 64
FROM, GATEWAY, OUT, TO = "02:00:00:00:00:01", "02:00:00:00:00:f0", "02:00:00:00:00:f1", "02:00:00:00:00:02"
NETWORKS = {4: ("10.99.1", "10.99.2", "10.99.3.0/24"), 6: ("fd99:1::", "fd99:2::", "fd99:3::/64")}
ROUTER = 'plugin = "router"\nmax_next_hops = 4096\n'
RATIOS = [("acl_router_flows", "bare", 0.75), ("acl_router_flows", "fib", 1.3), ("acl_router_flows", "linux", 3.5),
          ("acl_router_flows", "testpmd", 4.0), ("router_flows", "bare", None), ("router", "bare", None), ("acl_router", "bare", None),
          ("router", "fib", None), ("router_flows", "router", None)]


def mac(text_of):
    return bytes.fromhex(text_of.replace(":", ""))


def ends(version):
    """Source and destination: behind the network of each wire there is one that is routed."""
    if version == 4:
        return "10.99.1.2", "10.99.3.9"
    return "fd99:1::2", "fd99:3::9"


def udp_frame(version, to, source, hops):
    """With no UDP checksum, which no forwarder looks at, and ports of 0, which the generator fills in."""
    addresses = b"".join(ipaddress.ip_address(end).packed for end in ends(version))
    length = SIZE - 14 - (20 if version == 4 else 40)
    udp = struct.pack("!HHHH", 0, 0, length, 0) + b"weir" * 16
    if version == 4:
        ip = struct.pack("!BBHHHBBH", 0x45, 0, SIZE - 14, 1, 0x4000, hops, 17, 0) + addresses
        ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    else:
        ip = struct.pack("!IHBB", 6 << 28, length, 17, hops) + addresses
    return (mac(to) + mac(source) + struct.pack("!H", 0x0800 if version == 4 else 0x86DD) + ip + udp)[:SIZE]


def ports_at(version):
    return 14 + (20 if version == 4 else 40)


class Lab(veth.Lab):
    """The same, with addresses, routes and neighbours in the middle."""
    version = 4

    @contextlib.contextmanager
    def wires(self, sinks=1):
        with super().wires(sinks):
            for role, device, address in (("source", "s0", FROM), ("forwarder", "f0", GATEWAY), ("forwarder", "f1", OUT), ("sink", "k0", TO)):
                self.run(role, "ip", "link", "set", device, "address", address)
            for key in ("ipv4.ip_forward=1", "ipv6.conf.all.disable_ipv6=0", "ipv6.conf.f0.disable_ipv6=0", "ipv6.conf.f1.disable_ipv6=0",
                        "ipv6.conf.all.forwarding=1", "ipv6.conf.f0.accept_dad=0", "ipv6.conf.f1.accept_dad=0"):
                self.run("forwarder", "sysctl", "-qw", f"net.{key}")
            for version, (near, far, behind) in NETWORKS.items():
                one, length = ((".1", 24) if version == 4 else ("1", 64))
                two = ".2" if version == 4 else "2"
                self.run("forwarder", "ip", "addr", "replace", f"{near}{one}/{length}", "dev", "f0", *(["nodad"] if version == 6 else []))
                self.run("forwarder", "ip", "addr", "replace", f"{far}{one}/{length}", "dev", "f1", *(["nodad"] if version == 6 else []))
                self.run("forwarder", "ip", "neigh", "replace", f"{far}{two}", "lladdr", TO, "dev", "f1", "nud", "permanent")
                self.run("forwarder", "ip", "neigh", "replace", f"{near}{two}", "lladdr", FROM, "dev", "f0", "nud", "permanent")
                self.run("forwarder", "ip", f"-{version}", "route", "replace", behind, "via", f"{far}{two}")
            yield

    def expect(self, changed):
        """What is sent, and what is to arrive: as it was sent, or as a router leaves it."""
        self.frame.write_bytes(udp_frame(self.version, GATEWAY, FROM, 64))
        expected = self.folder / "expected"
        expected.write_bytes(udp_frame(self.version, TO, OUT, 63) if changed else self.frame.read_bytes())
        return expected


def bare(lab):
    return lab.forwarder(lab.bench / "reference", "bare", "f0", "f1")


def fib(lab):
    return lab.forwarder(lab.bench / "reference", "fib", "f0", "f1")


def linux(_):
    """The kernel's own forwarding."""
    return contextlib.nullcontext()


@contextlib.contextmanager
def weir(lab, stages, flows=None):
    ports = "".join(f'[[port]]\nname = "{name}"\ndevice = "{device}"\npipeline = "p"\n' for name, device in (("in", "f0"), ("out", "f1")))
    file = lab.folder / "weir.toml"
    name = f"bench-{lab.id}"
    file.write_text(f'[weir]\nname = "{name}"\nworkers = 1\nflows = {flows or lab.places}\n{ports}[[pipeline]]\nname = "p"\n' +
                    "".join(f"[[pipeline.stage]]\n{stage}\n" for stage in stages))
    with lab.forwarder(lab.weir, "run", file) as process:
        # Before it stands on the devices the kernel forwards, which a probe cannot tell from it.
        if not wait_until(lambda: process.ended() or "forwarding" in process.said(), veth.PROBE_LIMIT_S) or process.ended():
            raise CannotRun(process.complaint())
        process.stats = lambda: json.loads(lab.run("forwarder", lab.weir, "stats", "--json", "--instance", name))
        yield process


def rules(number):
    """The last of them permits, and those before it are of other networks and ports."""
    made = [f'{{ action = "drop", src = "172.{16 + i // 4096 % 16}.{i // 16 % 256}.{i % 16 * 16}/28", protocol = "tcp", dport = {1 + i % 1024} }}'
            for i in range(number - 1)]
    return ", ".join([*made, '{ action = "permit" }'])


def acl(number):
    return f'plugin = "acl"\nrules = [{rules(number)}]\n'


def testpmd(lab):
    return veth.testpmd(lab)


CONTENDERS = {"bare": bare, "fib": fib, "linux": linux, "testpmd": testpmd,
              "router": functools.partial(weir, stages=[ROUTER + "offload = false"]), "router_flows": functools.partial(weir, stages=[ROUTER]),
              "acl_router": functools.partial(weir, stages=[acl(100), ROUTER + "offload = false"]),
              "acl_router_flows": functools.partial(weir, stages=[acl(100), ROUTER])}
UNCHANGED = {"bare", "testpmd"}  # they redirect, and route nothing
OPTIONAL = {"testpmd"}


@contextlib.contextmanager
def sink_of(lab, changed):
    with lab.running("sink", lab.bench / "reference", "flows", "k0", lab.expect(changed), ports_at(lab.version), talks=True) as process:
        process.wait_ready()
        yield process


def source_of(lab, count, flows):
    return lab.running("source", lab.bench / "live_source", "s0", lab.frame, count, ports_at(lab.version), flows, cpu=SOURCE_CPU)


def window(lab, sink, watched, given):
    """Every flow once, until all of its frames come through; then a window."""
    deadline = time.monotonic() + 3 * veth.PROBE_LIMIT_S
    chunk = 64
    while True:
        if watched and watched.ended():
            raise CannotRun(watched.complaint())
        before = sink.ask()[1]
        with source_of(lab, chunk, chunk) as source:
            source.popen.wait(veth.STOP_LIMIT_S)
        if wait_until(lambda: sink.ask()[1] - before == chunk, 0.2):
            break
        if time.monotonic() > deadline:
            _, whole, other, *_ = sink.ask()
            raise CannotRun(f"never did {chunk} of {chunk} probe frames come through whole ({whole} came whole, {other} changed)")
    with source_of(lab, 0, given.flows) as source:
        time.sleep(given.warm_up)
        hits = watched.stats()["flows"]["hits"] if given.cached else 0
        foreign, (start, frames, *_) = veth.foreign_seconds(), sink.ask()
        time.sleep(given.seconds)
        (end, whole, other, *_), foreign = sink.ask(), veth.foreign_seconds() - foreign
        if given.cached and watched.stats()["flows"]["hits"] - hits < 0.95 * (whole - frames):
            raise CannotRun("the flow cache had the fate of too few frames: a longer --warm-up, fewer --flows, or more --places")
        if source.ended():
            raise RuntimeError(source.complaint())
        if watched and watched.ended():
            raise CannotRun(f"ended while it forwarded: {watched.complaint()}")
        if other > whole // 1000:
            raise CannotRun(f"{other} frames came changed, {whole} whole")
        return {"mpps": (whole - frames) * 1e3 / (end - start), "others": foreign / given.seconds, "frames": whole}


def measure(lab, name, given):
    with contextlib.ExitStack() as stack:
        stack.enter_context(lab.wires())
        sink = stack.enter_context(sink_of(lab, name not in UNCHANGED))
        watched = stack.enter_context(CONTENDERS[name](lab))
        given.cached = name.endswith("_flows")
        return window(lab, sink, watched, given)


def new_flows(lab, given):
    """New flows a second into the cache, in thousands: every frame begins one. And the share of a CPU that others took meanwhile."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(lab.wires())
        stack.enter_context(sink_of(lab, True))
        watched = stack.enter_context(weir(lab, [ROUTER], flows=1 << 22))
        with source_of(lab, 0, 1 << 24):
            time.sleep(given.warm_up)
            foreign, start, before = veth.foreign_seconds(), time.monotonic(), watched.stats()["flows"]["added"]
            time.sleep(given.seconds)
            added, seconds = watched.stats()["flows"]["added"] - before, time.monotonic() - start
            return added / 1e3 / seconds, (veth.foreign_seconds() - foreign) / seconds


def arguments():
    parser = argparse.ArgumentParser(description="Routed frames per second over veth, of many flows.")
    build = pathlib.Path(os.environ.get("WEIR_BUILD", veth.ROOT / "build"))
    parser.add_argument("--build", type=pathlib.Path, default=build, help="build folder (default: %(default)s)")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="which, with commas (default: %(default)s)")
    parser.add_argument("--versions", default="4,6", help="of IP, with commas (default: %(default)s)")
    parser.add_argument("--flows", type=int, default=10000, help="(default: %(default)s)")
    parser.add_argument("--places", type=int, default=65536, help="of weir's flow cache (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a window (default: %(default)s)")
    parser.add_argument("--warm-up", type=float, default=0.7, help="seconds in front of it (default: %(default)s)")
    parser.add_argument("--others", type=float, default=0.05, metavar="SHARE",
                        help="of a CPU that others may use in a window, or it is left out (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="for programs")
    given = parser.parse_args()
    given.contenders = given.contenders.split(",")
    given.versions = [int(version) for version in given.versions.split(",")]
    if unknown := set(given.contenders) - set(CONTENDERS):
        parser.error(f"no such contender: {', '.join(sorted(unknown))}; there are {', '.join(CONTENDERS)}")
    if not set(given.versions) <= {4, 6} or given.rounds < 1 or given.seconds <= 0 or not 64 <= given.flows <= 1 << 24:
        parser.error("--versions are 4 and 6, --rounds at least 1, --seconds above 0, --flows 64 to 16777216")
    return given


def measure_rounds(lab, given):
    results = {name: {"slots": [], "error": None} for name in given.contenders}
    for number in range(given.rounds):
        order = given.contenders[number % len(given.contenders):] + given.contenders[:number % len(given.contenders)]
        for name in order if number % 2 == 0 else order[::-1]:
            result = results[name]
            if result["error"]:
                continue
            try:
                slot = measure(lab, name, given)
            except CannotRun as reason:
                result["error"] = str(reason)
                print(f"round {number + 1}/{given.rounds} IPv{lab.version} {name}: {reason}", file=sys.stderr, flush=True)
                continue
            slot = {"round": number, "turn": 0, "disturbed": slot["others"] > given.others, **slot}
            result["slots"].append(slot)
            print(f"round {number + 1}/{given.rounds} IPv{lab.version} {name}: {slot['mpps']:.3f}", file=sys.stderr, flush=True)
    veth.summarise(results)
    return results


def main():
    given = arguments()
    if os.geteuid() != 0 or not {SOURCE_CPU, POLLER_CPU} <= os.sched_getaffinity(0):
        sys.exit(f"bench flows: needs root, and CPUs {SOURCE_CPU} and {POLLER_CPU}")
    veth.enter_own_mounts()
    for number in veth.STOPS:
        signal.signal(number, veth.stop)
    report = {"bench": "flows", "flows": given.flows, "rounds": given.rounds, "seconds": given.seconds, "machine": machine(), "versions": {}}
    build = given.build.resolve()
    with Lab(build, build / "apps" / "weir", SIZE) as lab:
        lab.places = given.places
        for lab.version in given.versions:
            results = measure_rounds(lab, given)
            made = {"contenders": results, "ratios": veth.ratios(results, RATIOS)}
            if "router_flows" in given.contenders:
                windows = [new_flows(lab, given) for _ in range(given.rounds)]
                made["new_flows"] = spread([thousands for thousands, others in windows if others <= given.others])
                made["new_flows_disturbed"] = sum(others > given.others for _, others in windows)
            report["versions"][lab.version] = made
    print(json.dumps(report, indent=2)) if given.json else show(report)
    wrong = [name for each in report["versions"].values() for name, result in each["contenders"].items()
             if (result["error"] or not result["summary"]) and name not in OPTIONAL]
    return 1 if wrong else 0


def show(report):
    print(f"bench flows: {SIZE}-byte UDP frames of {report['flows']} flows, {rounds(report['rounds'])}, windows of {report['seconds']:g} s; "
          f"{report['machine']}\n{veth.PLACEMENT}")
    for version, made in report["versions"].items():
        print(f"\n{f'IPv{version}, M frames/s':<26}{HEADS}")
        for name, result in made["contenders"].items():
            print(f"{name:<26}{text(result['summary']) if result['summary'] else ''}   {veth.remark(result)}".rstrip())
        if "new_flows" in made:
            left_out = made["new_flows_disturbed"]
            remark = f"   {left_out} of {report['rounds']} windows left out: {veth.DISTURBED}" if left_out else ""
            print(f"{'new flows, thousands/s':<26}{text(made['new_flows']) if made['new_flows'] else ''}   target 200{remark}")
        for row in made["ratios"]:
            target = f"   target {row['target']:.2f}: {'met' if row['median'] >= row['target'] else 'missed'}" if row["target"] else ""
            print(f"{row['ratio']:<26}{text(row)}   {row['values']:>7}{target}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RuntimeError as error:
        sys.exit(f"bench flows: {error}")
