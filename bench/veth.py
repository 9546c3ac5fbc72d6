#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""veth: frames per second over veth, contenders in turn, compared as ratios.

    source namespace   forwarder namespace   sink namespace
       live_source s0 ── f0  contender  f1 ── k0 sink (XDP: counts, drops)

A slot is one contender in one round: it starts, probe frames must arrive whole, then a short warm-up, then the window. The slots of
a round share what the machine does meanwhile: ratios are taken within a round, and the median over many rounds is what counts. The two
of a ratio that has a target lie next to each other in time, each in front of the other in turn (A B, B A), and each round starts
elsewhere. The sink counts only frames that equal what was sent, in the kernel.
"""
import argparse
import contextlib
import functools
import json
import os
import pathlib
import re
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

from figures import HEADS, machine, rounds, spread, text

ROOT = pathlib.Path(__file__).resolve().parent.parent
FROM_MAC, TO_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
SOURCE_CPU, POLLER_CPU = 0, 1
PLACEMENT = (f"CPU {SOURCE_CPU}: the source and, inline, XDP forwarders and the sink; "
             f"CPU {POLLER_CPU}: pollers (weir's worker, testpmd's lcores) and what they transmit, up to the sink")
PROBES, PROBE_LIMIT_S, STOP_LIMIT_S, WARM_UP_S = 32, 15, 10, 0.3
PAIR_TURNS = 3  # windows of one contender differ by a tenth and more, from one start of it to the next: many short ones tell more than long ones
AGAIN = 4  # a quarter of all slots at most is measured again when something else used the CPU: a run must end
DISTURBED = "something else used the CPU"
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
RATIOS = [("weir_entry", "bare_egress", 0.95), ("weir_kernel", "weir_entry", 1.2), ("weir_kernel", "bare", 0.88),
          ("mac_rewrite", "mac_rewrite_entry", 1.2), ("mac_rewrite", "bare", 0.88), ("four_rewrites", "bare", 0.8),
          ("four_rewrites", "four_rewrites_entry", None), ("weir_none", "bare", None),
          ("weir_kernel", "xdp_bench", None), ("weir_kernel", "bridge", None), ("weir_af_xdp", "testpmd", 1.0), ("weir_af_xdp", "bridge", None),
          ("weir_pump", "weir_af_xdp", None),
          ("bare_egress", "bare", None), ("bare", "null", None)]
MAC_REWRITE = {"program": "mac_rewrite", "src": "02:00:00:00:00:66", "dst": "02:00:00:00:00:77"}
REWRITES = ["ttl", {"program": "dscp", "set": 46}, MAC_REWRITE, {"program": "vlan_push", "vid": 100}]


class CannotRun(Exception):
    """The contender is not there, or does not work here; says why on one line."""


def run(*words, check=True):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=60, check=False)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr.strip() or done.stdout.strip() or done.returncode}")
    return done.stdout


def wait_until(claim, limit):
    deadline = time.monotonic() + limit
    while not claim():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def checksum(data):
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF or 0xFFFF


def rewritten(frame, chain):
    """What a chain of REWRITES makes of a frame of udp_frame()."""
    for program in chain:
        name = program if isinstance(program, str) else program["program"]
        ip = bytearray(frame[14:34])
        if name == "ttl":
            ip[8] -= 1
        elif name == "dscp":
            ip[1] = program["set"] << 2
        elif name == "mac_rewrite":
            frame = bytes.fromhex((program["dst"] + program["src"]).replace(":", "")) + frame[12:]
        elif name == "vlan_push":  # the last one: behind it the header is elsewhere
            frame = frame[:12] + struct.pack("!HH", 0x8100, program["vid"]) + frame[12:]
            continue
        ip[10:12] = b"\0\0"
        frame = frame[:14] + bytes(ip[:10]) + struct.pack("!H", checksum(ip)) + bytes(ip[12:]) + frame[34:]
    return frame


def udp_frame(size):
    """A UDP frame with valid checksums whose payload nothing else on the machine would send."""
    payload = (secrets.token_bytes(16) * (size // 16 + 1))[:size - 42]
    addresses = bytes([10, 99, 0, 1, 10, 99, 0, 2])
    udp = struct.pack("!HHHH", 9000, 9001, 8 + len(payload), 0)
    sum_udp = checksum(addresses + struct.pack("!HH", 17, 8 + len(payload)) + udp + payload)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, size - 14, 1, 0, 64, 17, 0) + addresses
    ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    return bytes.fromhex(f"{TO_MAC}{FROM_MAC}0800".replace(":", "")) + ip + udp[:6] + struct.pack("!H", sum_udp) + payload


class Process:
    """A program in a namespace; what it says goes to a file, unless it is one that talks. Its input stays open until it stops."""

    def __init__(self, lab, namespace, *words, cpu=POLLER_CPU, talks=False):
        self.log = open(lab.folder / f"log-{secrets.token_hex(4)}", "w+")
        self.counted = None  # asks how many frames the egress program has counted, where there is one
        place = ["setpriv", "--pdeathsig", "TERM", "taskset", "-c", str(cpu), "nsenter", f"--net=/run/netns/{lab.names[namespace]}"]
        self.popen = subprocess.Popen([*place, *map(str, words)], stdin=subprocess.PIPE, stderr=self.log,
                                      stdout=subprocess.PIPE if talks else self.log, text=True, env=lab.environment)

    def wait_ready(self):
        if self.popen.stdout.readline() != "ready\n":
            self.popen.wait(STOP_LIMIT_S)
            raise RuntimeError(self.complaint())

    def ask(self):
        self.popen.stdin.write("\n")
        self.popen.stdin.flush()
        return [int(word) for word in self.popen.stdout.readline().split()]

    def ended(self):
        return self.popen.poll() is not None

    def said(self):
        self.log.seek(0)
        return self.log.read()

    def complaint(self):
        """The first line in which it complains, or else its first line."""
        lines = [line.strip() for line in self.said().splitlines() if line.strip()]
        if gone := re.search(r"failed to find kernel BTF type ID of '(\w+)'", "".join(lines)):
            return f"this version needs the tracepoint {gone[1]}, which this kernel does not have"
        complaints = [line for line in lines if re.search(r"error|fail|cannot|could ?n.t|unable", line, re.IGNORECASE)]
        return (complaints + lines + [f"no message, exit code {self.popen.returncode}"])[0]

    def stop(self):
        with contextlib.suppress(ProcessLookupError):
            self.popen.terminate()
        try:
            self.popen.communicate(timeout=STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        self.log.close()


class Lab:
    """The namespaces and veths, and all that runs in them; nothing of it is left behind."""

    def __init__(self, build, weir, size):
        self.id = secrets.token_hex(3)
        self.bench, self.weir = build / "bench", weir
        for program in ("reference", "live_source"):
            if not (self.bench / program).exists():
                raise RuntimeError(f"there is no {self.bench / program}: build it first: ninja -C {build}")
        self.names = {role: f"bench-{self.id}-{role}" for role in ("source", "forwarder", "sink")}
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix=f"bench-{self.id}-", dir="/run"))
        # DPDK keeps its files here; libxdp attaches alone, as cheap as it can, without a dispatcher in front.
        self.environment = {**os.environ, "RUNTIME_DIRECTORY": str(self.folder), "LIBXDP_SKIP_DISPATCHER": "1"}
        self.frame = self.folder / "frame"
        self.frame.write_bytes(udp_frame(size))
        self.mtu = max(1500, size - 14)

    def __enter__(self):
        try:
            for name in self.names.values():
                run("ip", "netns", "add", name)
            for role in self.names:
                for key in ("ipv4.ip_forward=0", "ipv6.conf.all.disable_ipv6=1", "ipv6.conf.default.disable_ipv6=1"):
                    self.run(role, "sysctl", "-qw", f"net.{key}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for name in self.names.values():
            run("ip", "netns", "del", name, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, role, *words, check=True):
        return run("nsenter", f"--net=/run/netns/{self.names[role]}", *words, check=check)

    def join(self, role, device, peer_role, peer):
        end = ["mtu", self.mtu, "numtxqueues", 1, "numrxqueues", 1]
        self.run(role, "ip", "link", "add", device, *end, "type", "veth", "peer", "name", peer, *end, "netns", self.names[peer_role])
        for where, which in ((role, device), (peer_role, peer)):
            self.run(where, "ip", "link", "set", which, "up")
            # A redirect into a veth is lost unless the other end has NAPI: from an XDP program, or from this, once the device is up.
            self.run(where, "ethtool", "-K", which, "gro", "on")

    @contextlib.contextmanager
    def wires(self, sinks=1):
        """Devices for one slot: the kernel frees an AF_XDP socket's queue some time after the socket has gone."""
        self.join("source", "s0", "forwarder", "f0")
        try:
            for number in range(sinks):
                self.join("forwarder", f"f{number + 1}", "sink", f"k{number}")
            yield
        finally:
            for device in (f"f{number}" for number in range(sinks + 1)):
                self.run("forwarder", "ip", "link", "del", device, check=False)

    @contextlib.contextmanager
    def running(self, role, *words, **options):
        process = Process(self, role, *words, **options)
        try:
            yield process
        finally:
            process.stop()

    @contextlib.contextmanager
    def sink(self, role, device, chain):
        expected = self.folder / "expected"
        expected.write_bytes(rewritten(self.frame.read_bytes(), chain))
        with self.running(role, self.bench / "reference", "sink", device, expected, talks=True) as process:
            process.wait_ready()
            yield process

    def forwarder(self, *words, **options):
        if not shutil.which(words[0]):
            raise CannotRun(f"{words[0]} is not there")
        return self.running("forwarder", *words, **options)


# Contenders: each forwards from f0 to f1 while its context lasts, and gives the process to watch, if there is one.

def null(_):
    """Nothing: the sink sits on f0, and the source alone is measured."""
    return contextlib.nullcontext()


def bare(lab):
    return lab.forwarder(lab.bench / "reference", "bare", "f0", "f1")


@contextlib.contextmanager
def bare_egress(lab):
    with lab.forwarder(lab.bench / "reference", "bare_egress", "f0", "f1", talks=True) as process:
        process.wait_ready()
        process.counted = lambda: process.ask()[3]
        yield process


def inline(value):
    """A chain as TOML."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {inline(each)}" for key, each in value.items()) + " }"
    return f"[{', '.join(map(inline, value))}]" if isinstance(value, list) else json.dumps(value)


def weir(lab, egress, *flags, placement="auto", tx="af_xdp"):
    ports = "".join(f'[[port]]\nname = "{name}"\ndevice = "{device}"\npipeline = "p"\nplacement = "{placement}"\ntx = "{tx}"\n'
                    f'egress = {inline(egress)}\n'
                    for name, device in (("in", "f0"), ("out", "f1")))
    file = lab.folder / "weir.toml"
    file.write_text(f'[weir]\nname = "bench-{lab.id}"\nworkers = 1\n{ports}[[pipeline]]\nname = "p"\n'
                    '[[pipeline.stage]]\nplugin = "patch"\npairs = [["in", "out"]]\n')
    return lab.forwarder(lab.weir, "run", file, *flags)


@contextlib.contextmanager
def weir_chain(lab, chain, placement):
    """Weir's kernel path. Each program of the chain must count every frame."""
    with weir(lab, chain, placement=placement) as process:
        stats = [lab.weir, "stats", "--json", "--instance", f"bench-{lab.id}"]
        if chain:
            process.counted = lambda: min(row["frames"] for row in json.loads(lab.run("forwarder", *stats))["egress"] if row["port"] == "out")
        yield process


def weir_af_xdp(lab):
    return weir(lab, [], "--user-only")


def weir_pump(lab):
    return weir(lab, [], "--user-only", tx="pump")


def testpmd(lab):
    eal = ["--lcores", f"0@{POLLER_CPU},1@{POLLER_CPU}", "--no-huge", "-m", 512, "--no-pci",
           "--vdev", "net_af_xdp0,iface=f0", "--vdev", "net_af_xdp1,iface=f1"]
    return lab.forwarder("dpdk-testpmd", *eal, "--", "--forward-mode=io", "--auto-start", "--total-num-mbufs=32768")


def xdp_bench(lab):
    return lab.forwarder("xdp-bench", "redirect-map", "f0", "f1")


@contextlib.contextmanager
def bridge(lab):
    lab.run("forwarder", "ip", "link", "add", "br0", "type", "bridge", "stp_state", 0, "mcast_snooping", 0)
    try:
        for device in ("f0", "f1"):
            lab.run("forwarder", "ip", "link", "set", device, "master", "br0")
        lab.run("forwarder", "bridge", "fdb", "add", TO_MAC, "dev", "f1", "master", "static")
        lab.run("forwarder", "ip", "link", "set", "br0", "up")
        yield
    finally:
        lab.run("forwarder", "ip", "link", "del", "br0")


# A chain, and where it runs.
CHAINS = {"weir_none": ([], "auto"), "weir_kernel": (["count"], "auto"), "weir_entry": (["count"], "entry"),
          "mac_rewrite": ([MAC_REWRITE], "fused"), "mac_rewrite_entry": ([MAC_REWRITE], "entry"),
          "four_rewrites": (REWRITES, "fused"), "four_rewrites_entry": (REWRITES, "entry")}
CONTENDERS = {**{function.__name__: function for function in (null, bare, bare_egress)},
              **{name: functools.partial(weir_chain, chain=chain, placement=placement) for name, (chain, placement) in CHAINS.items()},
              **{function.__name__: function for function in (weir_af_xdp, weir_pump, testpmd, xdp_bench, bridge)}}
OPTIONAL = {"testpmd", "xdp_bench"}  # other projects' programs: their absence or failure is reported, and is no failure of ours


def foreign_seconds():
    """CPU time that others have used so far: the hypervisor, and processes that are neither ours nor the kernel's."""
    tick, own, used = os.sysconf("SC_CLK_TCK"), os.getpid(), 0
    for entry in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            words = entry.read_text().rpartition(")")[2].split()
            kernels = int(words[1]) in (0, 2) and entry.parent.name != "1"
            if not kernels and own not in (int(entry.parent.name), int(words[1])):
                used += sum(map(int, words[11:15]))
    return (used + int(pathlib.Path("/proc/stat").read_text().split(maxsplit=9)[8])) / tick


def probe(lab, sink, watched):
    """Sends a few frames at a time until all of them come through whole."""
    deadline = time.monotonic() + PROBE_LIMIT_S
    while True:
        if watched and watched.ended():
            raise CannotRun(watched.complaint())
        before = sink.ask()[1]
        with lab.running("source", lab.bench / "live_source", "s0", lab.frame, PROBES, cpu=SOURCE_CPU) as source:
            source.popen.wait(STOP_LIMIT_S)
            if source.popen.returncode != 0:
                raise RuntimeError(source.complaint())
        if wait_until(lambda: sink.ask()[1] - before == PROBES, 0.1):
            return
        if time.monotonic() > deadline:
            _, whole, other, *_ = sink.ask()
            raise CannotRun(f"never did {PROBES} of {PROBES} probe frames come through whole within {PROBE_LIMIT_S} s "
                            f"({whole} came whole, {other} changed)" + (f"; it says: {watched.complaint()}" if watched else ""))


def measure(lab, name, seconds):
    """One slot: frames per second, in millions; the share of a CPU that others took in the window; all frames that came whole, and how many
    the contender's egress program counted, if it has one."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(lab.wires())
        chain, _ = CHAINS.get(name, ([], None))
        sink = stack.enter_context(lab.sink(*("forwarder", "f0") if name == "null" else ("sink", "k0"), chain))
        watched = stack.enter_context(CONTENDERS[name](lab))
        return window(lab, sink, watched, seconds)


def window(lab, sink, watched, seconds):
    """Sends through a contender that runs already."""
    with contextlib.ExitStack() as stack:
        probe(lab, sink, watched)
        probed = sink.ask()[1]
        source = stack.enter_context(lab.running("source", lab.bench / "live_source", "s0", lab.frame, cpu=SOURCE_CPU))
        if not wait_until(lambda: sink.ask()[1] > probed or source.ended(), PROBE_LIMIT_S):
            raise CannotRun(f"no frame came through within {PROBE_LIMIT_S} s, after {probed} probe frames")
        time.sleep(WARM_UP_S)
        foreign, (start, frames, *_) = foreign_seconds(), sink.ask()
        time.sleep(seconds)
        (end, whole, other, *_), foreign = sink.ask(), foreign_seconds() - foreign
        if source.ended():
            raise RuntimeError(source.complaint())
        if watched and watched.ended():
            raise CannotRun(f"ended while it forwarded: {watched.complaint()}")
        counted = watched.counted() if watched and watched.counted else None
        if counted is not None and counted < whole:
            raise CannotRun(f"its egress program counted {counted} frames, but {whole} came through")
        if other > whole // 1000:
            raise CannotRun(f"{other} frames came changed, {whole} whole")
        return {"mpps": (whole - frames) * 1e3 / (end - start), "others": foreign / seconds, "frames": whole, "counted": counted}


def groups_of(names):
    """Contenders that stay next to each other in time, and how often a round measures them: those of ratios that have a target, which is to be
    told from what lies near it; each other one alone."""
    groups = []
    for above, below, target in RATIOS:
        if target and {above, below} <= set(names):
            joined = [group for group in groups if {above, below} & set(group)]
            groups = [group for group in groups if group not in joined]
            groups.append(list(dict.fromkeys([*(name for group in joined for name in group), above, below])))
    return [(group, PAIR_TURNS) for group in groups] + [([name], 1) for name in names if not any(name in group for group in groups)]


def in_turn(groups, number):
    """A round's order, with the turn of each: a round starts with the next group, goes through all of them, and then through those that have
    another turn. Each turn turns the pairs round."""
    at = number % len(groups)
    return [(group[::-1] if (number + turn) % 2 else group, turn) for turn in range(PAIR_TURNS)
            for group, turns in groups[at:] + groups[:at] if turn < turns]


def measure_group(lab, group, given, results, measure_one):
    """A slot of each contender that runs. Whether something else used the CPU in one."""
    slots = {}
    for name in group:
        if not results[name]["error"]:
            try:
                slots[name] = measure_one(lab, name, given.seconds)
                slots[name]["disturbed"] = slots[name]["others"] > given.others
            except CannotRun as reason:
                results[name]["error"] = str(reason)
    return slots, any(slot["disturbed"] for slot in slots.values())


def measure_rounds(lab, given, measure_one=measure):
    """By contender: its slots, each with its round and turn, and why it does not run."""
    results = {name: {"slots": [], "error": None} for name in given.contenders}
    groups = groups_of(given.contenders)
    again = sum(turns for _, turns in groups) * given.rounds // AGAIN
    for number in range(given.rounds):
        for group, turn in in_turn(groups, number):
            slots, disturbed = measure_group(lab, group, given, results, measure_one)
            if disturbed and again > 0:
                again -= 1
                slots, _ = measure_group(lab, group, given, results, measure_one)
            for name in group:
                says = results[name]["error"]
                if not says:
                    slot = {"round": number, "turn": turn, **slots[name]}
                    results[name]["slots"].append(slot)
                    says = f"{slot['mpps']:.3f}{f', left out: {DISTURBED}' if slot['disturbed'] else ''}"
                print(f"round {number + 1}/{given.rounds} {name}: {says}", file=sys.stderr, flush=True)
    return results


def figures_of(result):
    """By round and turn."""
    return {(slot["round"], slot["turn"]): slot["mpps"] for slot in result["slots"] if not slot["disturbed"]}


def summarise(results):
    for result in results.values():
        result["summary"] = spread(list(figures_of(result).values()))
        result["disturbed"] = sum(slot["disturbed"] for slot in result["slots"])


def ratios(results, wanted=RATIOS):
    made = []
    for above, below, target in wanted:
        if above in results and below in results:
            one, other = figures_of(results[above]), figures_of(results[below])
            if seen := spread([one[when] / other[when] for when in one if other.get(when)]):
                made.append({"ratio": f"{above}/{below}", **seen, "target": target})
    return made


def remark(result):
    if result["error"]:
        return f"does not run: {result['error']}"
    return f"{result['disturbed']} of {len(result['slots'])} windows left out: {DISTURBED}" if result["disturbed"] else ""


def show(report):
    print(f"bench veth: {report['size']}-byte UDP frames, {rounds(report['rounds'])}, windows of {report['seconds']:g} s; "
          f"{report['machine']}\n{PLACEMENT}\n\n{'M frames/s':<26}{HEADS}")
    for name, result in report["contenders"].items():
        print(f"{name:<26}{text(result['summary']) if result['summary'] else ''}   {remark(result)}".rstrip())
    if report["ratios"]:
        print(f"\n{'ratio within a round':<26}{HEADS}   windows")
    for row in report["ratios"]:
        target = f"   target {row['target']:.2f}: {'met' if row['median'] >= row['target'] else 'missed'}" if row["target"] else ""
        print(f"{row['ratio']:<26}{text(row)}   {row['values']:>7}{target}")


def stop(number, _):
    for other in STOPS:
        signal.signal(other, signal.SIG_IGN)  # a second one must not break off the clearing up
    sys.exit(128 + number)


def arguments():
    parser = argparse.ArgumentParser(description="Frames per second over veth, contenders in turn, compared as ratios.")
    build = pathlib.Path(os.environ.get("WEIR_BUILD", ROOT / "build"))
    parser.add_argument("--build", type=pathlib.Path, default=build, help="build folder (default: %(default)s)")
    parser.add_argument("--weir", type=pathlib.Path, help="the weir program (default: apps/weir in the build folder)")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="which, with commas (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=21, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a window (default: %(default)s)")
    parser.add_argument("--others", type=float, default=0.05, metavar="SHARE",
                        help="of a CPU that others may use in a window, or it is left out (default: %(default)s)")
    parser.add_argument("--size", type=int, default=60, help="bytes of a frame, 60 to 1514")
    parser.add_argument("--json", action="store_true", help="for programs")
    given = parser.parse_args()
    given.contenders = given.contenders.split(",")
    if unknown := set(given.contenders) - set(CONTENDERS):
        parser.error(f"no such contender: {', '.join(sorted(unknown))}; there are {', '.join(CONTENDERS)}")
    if not 60 <= given.size <= 1514 or given.rounds < 1 or given.seconds <= 0:
        parser.error("--size is 60 to 1514, --rounds at least 1, --seconds above 0")
    return given


def enter_own_mounts():
    """Goes on in mounts of its own. All that is made lies in them and goes with the last process in them, whatever ends it."""
    if "WEIR_BENCH_MOUNTS" not in os.environ:
        os.environ["WEIR_BENCH_MOUNTS"] = "own"
        os.execvp("unshare", ["unshare", "--mount", sys.executable, *sys.argv])
    run("mount", "-t", "tmpfs", "tmpfs", "/run")
    run("mount", "-t", "bpf", "bpf", "/sys/fs/bpf")
    os.mkdir("/run/netns")


def main():
    given = arguments()
    if os.geteuid() != 0 or not {SOURCE_CPU, POLLER_CPU} <= os.sched_getaffinity(0):
        sys.exit(f"bench veth: needs root, and CPUs {SOURCE_CPU} and {POLLER_CPU}")
    enter_own_mounts()
    for number in STOPS:
        signal.signal(number, stop)
    with Lab(given.build.resolve(), (given.weir or given.build / "apps" / "weir").resolve(), given.size) as lab:
        results = measure_rounds(lab, given)
    summarise(results)
    report = {"bench": "veth", "size": given.size, "seconds": given.seconds, "rounds": given.rounds, "others": given.others,
              "machine": machine(), "placement": PLACEMENT, "contenders": results, "ratios": ratios(results)}
    print(json.dumps(report, indent=2)) if given.json else show(report)
    return 1 if any((result["error"] or not result["summary"]) and name not in OPTIONAL for name, result in results.items()) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RuntimeError as error:
        sys.exit(f"bench veth: {error}")
