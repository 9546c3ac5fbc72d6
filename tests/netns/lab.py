# SPDX-License-Identifier: BSD-3-Clause
"""lab: network namespaces joined by veth, made for one test and gone after it.

    host0 ── p0 ┐
    host1 ── p1 ┤ switch namespace, where weir runs
    host2 ── p2 ┘
"""
import contextlib
import ctypes
import json
import os
import pathlib
import re
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

from guardian import forget_instance

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = pathlib.Path(os.environ.get("WEIR_BUILD", ROOT / "build"))
WEIR = BUILD / "apps" / "weir"
LIBC = ctypes.CDLL(None, use_errno=True)
ETH_P_ALL = 3
SO_RCVBUFFORCE = 33
PACKET_IGNORE_OUTGOING = 23
PACKET_AUXDATA = 8
SOL_PACKET = 263


def run(*words, check=True, timeout=60, **options):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=timeout, check=False, **options)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, words))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def wait_until(claim, what, timeout=10.0):
    """Waits for a condition, not for a time. Returns its first true value."""
    deadline = time.monotonic() + timeout
    while True:
        value = claim()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}; last value {value!r}")
        time.sleep(0.02)


class Namespace:
    def __init__(self, lab, name):
        self.lab = lab
        self.name = name
        lab.guard(f"ns {name}")
        run("ip", "netns", "add", name)
        self.run("ip", "link", "set", "lo", "up")
        for key in ("net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.accept_dad=0"):
            self.run("sysctl", "-qw", key)

    def words(self, *words):
        return ["nsenter", f"--net=/run/netns/{self.name}", *map(str, words)]

    def run(self, *words, **options):
        return run(*self.words(*words), **options)

    def start(self, *words, **options):
        return self.lab.start(*self.words(*words), **options)

    def inside(self, function):
        """Calls a function on a thread that is in this namespace."""
        box = {}

        def work():
            try:
                with open(f"/run/netns/{self.name}", "rb") as file:
                    if LIBC.setns(file.fileno(), 0x40000000) != 0:
                        raise OSError(ctypes.get_errno(), "setns")
                box["value"] = function()
            except BaseException as error:  # handed to the caller below
                box["error"] = error

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if "error" in box:
            raise box["error"]
        return box["value"]

    def tap(self, device):
        return Tap(self, device)

    def mac(self, device):
        return json.loads(self.run("ip", "-j", "link", "show", device).stdout)[0]["address"]

    def delete(self):
        """Ends what still runs there, such as children of what was killed, and removes it."""
        for pid in run("ip", "netns", "pids", self.name, check=False).stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        run("ip", "netns", "del", self.name, check=False)


class Tap:
    """A raw socket on a device: sends frames as they are and hears the frames that come in, in order."""

    def __init__(self, namespace, device):
        def open_socket():
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            made.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            made.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
            made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
            made.bind((device, ETH_P_ALL))
            made.setblocking(False)
            return made

        self.socket = namespace.inside(open_socket)

    def send(self, frame):
        while True:
            try:
                self.socket.send(frame)
                return
            except BlockingIOError:
                select.select([], [self.socket], [], 1)

    def waiting(self):
        """The frames that have come in since the last call."""
        frames = []
        while True:
            try:
                raw, extra, _, _ = self.socket.recvmsg(65536, 64)
            except BlockingIOError:
                return frames
            frames.append(with_tag(raw, extra))

    def hear(self, number, timeout=5.0):
        """The next `number` frames, or fewer when no more come within the time."""
        frames = []
        deadline = time.monotonic() + timeout
        while len(frames) < number and time.monotonic() < deadline:
            select.select([self.socket], [], [], 0.05)
            frames += self.waiting()
        return frames

    def hear_up_to(self, mark, timeout=5.0):
        """The next frames, the first one that holds these bytes included."""
        frames = []
        wait_until(lambda: frames.extend(self.waiting()) or any(mark in raw for raw in frames), f"a frame with {mark!r} comes", timeout)
        return frames

    def hear_of(self, raw, timeout=5.0):
        """Whether this very frame comes; what came before it is forgotten."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            select.select([self.socket], [], [], 0.05)
            if raw in self.waiting():
                return True
        return False

    def close(self):
        self.socket.close()


def with_tag(raw, extra):
    """The frame as it was on the wire: the kernel takes an outer VLAN tag off before it shows a frame, and tells it beside."""
    for level, kind, data in extra:
        if level != SOL_PACKET or kind != PACKET_AUXDATA:
            continue
        status, _, _, _, _, tag, protocol = struct.unpack("=IIIHHHH", data[:20])  # struct tpacket_auxdata
        if status & 0x10:                                                           # TP_STATUS_VLAN_VALID
            return raw[:12] + (protocol if status & 0x40 else 0x8100).to_bytes(2, "big") + tag.to_bytes(2, "big") + raw[12:]
    return raw


class Process:
    def __init__(self, lab, words, **options):
        self.lab = lab
        self.output = tempfile.TemporaryFile("w+")
        self.popen = subprocess.Popen(words, stdout=self.output, stderr=subprocess.STDOUT, text=True, **options)
        lab.guard(f"pid {self.popen.pid}")

    def text(self):
        self.output.seek(0)
        return self.output.read()

    def wait(self, timeout=20):
        try:
            code = self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.popen.args} still runs after {timeout} s:\n{self.text()}") from None
        self.lab.guard(f"ended {self.popen.pid}")
        return code

    def stop(self, number=signal.SIGTERM):
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        return self.wait()


class Weir:
    """A running weir in a namespace, and what it says of itself."""

    def __init__(self, namespace, config, *flags, env=None, program=WEIR):
        self.namespace = namespace
        self.program = program
        self.name = f"t{secrets.token_hex(4)}"
        self.file = pathlib.Path(tempfile.mkstemp(suffix=".toml")[1])
        namespace.lab.guard(f"file {self.file}")
        namespace.lab.add_instance(self.name)
        self.file.write_text(f'[weir]\nname = "{self.name}"\n' + config)
        self.env = {**os.environ, **(env or {})}
        self.start(*flags)

    def start(self, *flags):
        self.process = self.namespace.start(self.program, "run", self.file, *flags, env=self.env)
        wait_until(lambda: "forwarding" in self.process.text() or self.process.popen.poll() is not None, "weir starts", 30)
        if self.process.popen.poll() is not None:
            raise AssertionError(f"weir ended at start with {self.process.popen.returncode}:\n{self.process.text()}")

    def ask(self, *words):
        return json.loads(run(WEIR, *words, "--json", "--instance", self.name).stdout)

    def stats(self):
        return self.ask("stats")

    def port(self, name):
        return next(port for port in self.stats()["ports"] if port["name"] == name)

    def drops(self):
        return {(drop["where"], drop["reason"]): drop["frames"] for drop in self.stats()["drops"] if drop["frames"]}

    def settled(self, received):
        """Whether so many frames have come in, and each has come to its end."""
        now = self.stats()
        return sum(port["rx"] for port in now["ports"]) == received and now["account"]["difference"] == 0 and now["account"]["held"] == 0

    def conserved(self):
        """Every frame accounted for: waits until nothing travels, then claims all the sums. Returns the stats."""
        def sums():
            now = self.stats()
            return now if now["account"]["difference"] == 0 and now["account"]["held"] == 0 else None

        try:
            now = wait_until(sums, "all frames accounted for", 5)
        except AssertionError:
            raise AssertionError("frames unaccounted for: " + json.dumps(self.stats(), indent=1)) from None
        frames = now["frames"]
        assert frames["total"] == frames["free"] + frames["rings"] + frames["bursts"] + frames["lanes"], frames
        for port in now["ports"]:
            of_kernel = port["driver"] == "xdp"  # of others the kernel decides nothing
            assert not of_kernel or port["rx"] == port["redirect"] + port["flood"] + port["punt"] + port["to_stack"] + port["drop"], port
            user = port["user"]
            assert user["rx"] == user["redirect"] + user["flood"] + user["to_stack"] + user["drop"], port
            assert of_kernel or port["rx"] == user["rx"], port
        for stage in now["stages"]:
            for half in ("kernel", "user"):
                sides = stage[half]
                assert sides["in"] == sum(count for key, count in sides.items() if key != "in"), stage
        return now

    def stop(self, number=signal.SIGTERM):
        code = self.process.stop(number)
        assert code == 0, self.process.text()
        self.file.unlink(missing_ok=True)

    def kill(self):
        self.process.popen.kill()
        self.process.wait()


class Lab:
    def __init__(self, ports=2, mtu=1500):
        self.id = secrets.token_hex(3)
        self.guardian = subprocess.Popen([sys.executable, HERE / "guardian.py"], stdin=subprocess.PIPE, text=True, start_new_session=True)
        self.processes, self.weirs, self.hosts = [], [], []
        self.namespaces, self.instances = [], []
        self.switch = self.namespace("sw")
        for number in range(ports):
            self.add_host(number, mtu)

    def guard(self, line):
        self.guardian.stdin.write(line + "\n")
        self.guardian.stdin.flush()

    def add_instance(self, name):
        self.instances.append(name)
        self.guard(f"instance {name}")

    def namespace(self, name):
        made = Namespace(self, f"weir-{self.id}-{name}")
        self.namespaces.append(made)
        return made

    def add_host(self, number, mtu=1500):
        """A namespace whose eth0 is joined to p<number>, with 10.9.0.<number+1> and fd09::<number+1>."""
        host = self.namespace(f"h{number}")
        self.join(host, number, mtu)
        self.hosts.append(host)
        return host

    def join(self, host, number, mtu=1500):
        """The wire of a host; again after it was deleted."""
        host.run("ip", "link", "add", "eth0", "mtu", mtu, "type", "veth", "peer", "name", f"p{number}", "mtu", mtu, "netns", self.switch.name)
        # Checksums are computed before the frame leaves, since a redirect carries no request to compute them; GRO gives the device NAPI.
        host.run("ethtool", "-K", "eth0", "tx", "off", "gro", "on")
        self.switch.run("ethtool", "-K", f"p{number}", "tx", "off")
        host.run("ip", "link", "set", "eth0", "address", f"02:00:00:00:00:{number + 1:02x}")
        host.run("ip", "addr", "add", f"10.9.0.{number + 1}/24", "dev", "eth0")
        host.run("ip", "addr", "add", f"fd09::{number + 1}/64", "dev", "eth0", "nodad")
        host.run("ip", "link", "set", "eth0", "up")
        self.switch.run("sysctl", "-qw", f"net.ipv6.conf.p{number}.disable_ipv6=1")
        self.switch.run("ip", "link", "set", f"p{number}", "up")

    def wires(self):
        """A raw socket on every host's device. Takes the hosts' addresses away first, so that nothing is on the wire but what the test
        sends; before weir starts, so that it counts nothing else either."""
        for host in self.hosts:
            self.silence(host)
        return [host.tap("eth0") for host in self.hosts]

    def silence(self, host):
        host.run("sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=1")
        host.run("ip", "addr", "flush", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "arp", "off")

    def wire(self, host):
        self.silence(host)
        return host.tap("eth0")

    def start(self, *words, **options):
        process = Process(self, list(map(str, words)), **options)
        self.processes.append(process)
        return process

    def weir(self, config, *flags, **options):
        made = Weir(self.switch, config, *flags, **options)
        self.weirs.append(made)
        return made

    def ports(self, number, **keys):
        """The [[port]] tables of the first ports."""
        lines = []
        for index in range(number):
            lines.append(f'[[port]]\nname = "p{index}"\ndevice = "p{index}"\npipeline = "main"')
            lines += [f"{key} = {value}" for key, value in keys.items()]
        return "\n".join(lines) + "\n"

    def close(self):
        """Ends what the test has left running, and removes the lab. What went wrong: a weir that runs must account for every frame, and must
        end with 0, as it would not after a leak or another error that a sanitizer finds."""
        wrong = []
        for weir in self.weirs:
            if weir.process.popen.poll() is None:
                try:
                    weir.conserved()
                except AssertionError as error:
                    wrong.append(str(error))
                try:
                    code = weir.process.stop()
                    if code != 0:
                        wrong.append(f"weir ended with {code}:\n{weir.process.text()}")
                except AssertionError as error:
                    wrong.append(str(error))
            weir.file.unlink(missing_ok=True)
        for process in self.processes:
            if process.popen.poll() is None:
                process.stop(signal.SIGKILL)
        for namespace in self.namespaces:
            namespace.delete()
        for name in self.instances:
            forget_instance(name)
        self.guard("done")
        self.guardian.stdin.close()
        self.guardian.wait(10)
        return wrong


def ping(host, address, count=3):
    done = host.run("ping", "-c", count, "-i", "0.05", "-W", "2", address, check=False)
    got = re.search(r"(\d+) received", done.stdout)
    return int(got.group(1)) if got else 0


def iperf(server, client, address, *flags, seconds=1):
    """Runs iperf3 from client to server; its JSON."""
    listening = server.start("iperf3", "-s", "-1", "--forceflush")
    wait_until(lambda: "listening" in listening.text(), "iperf3 listens")
    done = client.run("iperf3", "-c", address, "-t", seconds, "-J", *flags, check=False, timeout=30)
    listening.wait()
    answer = json.loads(done.stdout)
    assert "error" not in answer, answer["error"]
    return answer["end"]


def mac(number):
    return f"02:00:00:00:00:{number:02x}"


def frame(source, destination, payload=b"", ethertype=0x88B5):
    """An Ethernet frame, by default of the EtherType that IEEE keeps for experiments; at least 60 bytes."""
    raw = bytes.fromhex(destination.replace(":", "")) + bytes.fromhex(source.replace(":", "")) + ethertype.to_bytes(2, "big") + payload
    return raw.ljust(60, b"\0")
