# SPDX-License-Identifier: BSD-3-Clause
"""Ports that are capture files, and the null source: what foreign software writes and reads, what is wrong with a file, and a user without
privileges. No namespaces but for a full disk."""
import json
import os
import pathlib
import random
import secrets
import struct
import subprocess
import time

import pytest
from lab import ROOT, WEIR, run, wait_until
from scapy.all import PcapReader, PcapWriter, RawPcapReader, wrpcapng

CAPTURE = ROOT / "tests" / "data" / "conversation.pcap"
PATCH = '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "patch"\npairs = [["in", "out"]]\n'
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all")


def config(tmp_path, read, write, more="", pipeline=PATCH, head="", sink=""):
    """A file whose ports are `in` and `out`. Its instance has a name that no other test has."""
    file = tmp_path / "files.toml"
    source = f'driver = "pcap"\nread = "{read}"\n' if isinstance(read, (str, pathlib.Path)) else read[0]
    target = f'driver = "pcap"\nwrite = "{write}"\n' if write else 'driver = "null"\n'
    file.write_text(f'[weir]\nname = "t{secrets.token_hex(4)}"\n{head}[[port]]\nname = "in"\npipeline = "main"\n{source}{more}'
                    f'[[port]]\nname = "out"\n{target}{sink}{pipeline}')
    return file


def weir_run(file, *flags, before=(), **options):
    return run(*before, WEIR, "run", file, *flags, check=False, **options)


def summary(done):
    """What a run says at its end, whose sum must be right."""
    words = done.stdout.strip().splitlines()[-1].split()
    frames = [int(word) for word in words[2:] if word.isdigit()]
    came, out, to_stack, dropped = frames[:4]
    assert came == out + to_stack + dropped, done.stdout
    return came, out, to_stack, dropped


def raw_pcap(path, frames, magic=0xA1B23C4D, link_type=1, snap=65535):
    """A file of (nanoseconds, bytes, length on the wire), written without the code under test."""
    data = struct.pack("<IHHiIII", magic, 2, 4, 0, 0, snap, link_type)
    for ns, raw, length in frames:
        data += struct.pack("<IIII", ns // 10**9, ns % 10**9, len(raw), length) + raw
    path.write_bytes(data)
    return path


def random_frames(number):
    seed = int(os.environ.get("WEIR_TEST_SEED", secrets.randbits(32)))
    print(f"WEIR_TEST_SEED={seed}")
    dice = random.Random(seed)
    frames = []
    now = 1_700_000_000_123_456_789
    for _ in range(number):
        raw = dice.randbytes(dice.choice((14, 60, 61, 62, 63, 1514, 1518)))
        frames.append((now, raw, len(raw)))
        now += dice.randrange(1, 10**9)
    return frames


def tcpdump(path):
    return run("tcpdump", "-tt", "-n", "-xx", "--nano", "-r", path).stdout


@pytest.mark.parametrize("form", ["out.pcap", "out.pcapng"])
def test_what_is_written_is_what_was_read_to_the_nanosecond(tmp_path, form):
    frames = random_frames(3000)
    source = raw_pcap(tmp_path / "in.pcap", frames)
    done = weir_run(config(tmp_path, "in.pcap", form))
    assert done.returncode == 0, done.stderr
    assert summary(done) == (3000, 3000, 0, 0)
    assert tcpdump(tmp_path / form) == tcpdump(source)
    if form == "out.pcapng":
        read = [(meta.tshigh << 32 | meta.tslow, raw) for raw, meta in RawPcapReader(str(tmp_path / form))]
        assert 'ifname' not in read and [each[1] for each in read] == [raw for _, raw, _ in frames]
        assert b"\x02\x00\x03\x00out\x00" in (tmp_path / form).read_bytes()[:200], "the interface is named after the port"
        assert [each[0] for each in read] == [ns for ns, _, _ in frames]


def test_pcapng_and_microseconds_of_foreign_software_are_read(tmp_path):
    packets = list(PcapReader(str(CAPTURE)))
    wrpcapng(str(tmp_path / "in.pcapng"), packets)
    with PcapWriter(str(tmp_path / "micro.pcap")) as writer:
        writer.write(packets)
    for source in ("in.pcapng", "micro.pcap"):
        assert summary(weir_run(config(tmp_path, source, "out.pcap"))) == (86, 86, 0, 0)
        assert tcpdump(tmp_path / "out.pcap") == tcpdump(tmp_path / source)


def test_a_file_is_read_as_often_as_it_is_told(tmp_path):
    for number, source in enumerate(("in.pcap", "in.pcapng")):
        frames = random_frames(10)
        raw_pcap(tmp_path / "in.pcap", frames)
        if number == 1:
            assert weir_run(config(tmp_path, "in.pcap", "in.pcapng")).returncode == 0
        assert summary(weir_run(config(tmp_path, source, "out.pcap", "loop = 1000\n"))) == (10000, 10000, 0, 0)
        assert [raw for raw, _ in RawPcapReader(str(tmp_path / "out.pcap"))] == [raw for _, raw, _ in frames] * 1000


def test_a_pace_is_kept(tmp_path):
    frames = [(10**18 + place * 100_000_000, bytes(60), 60) for place in range(6)]
    raw_pcap(tmp_path / "in.pcap", frames)
    for pace, least in (("recorded", 0.5), ("5x", 0.1), ("20/s", 0.25), ("full", 0)):
        begun = time.monotonic()
        done = weir_run(config(tmp_path, "in.pcap", "out.pcap", f'pace = "{pace}"\n'))
        assert summary(done) == (6, 6, 0, 0)
        assert least <= time.monotonic() - begun, pace


def test_frames_of_no_length_that_a_frame_may_have_are_dropped_by_name(tmp_path):
    raw_pcap(tmp_path / "in.pcap", [(10**18, bytes(size), size) for size in (13, 14, 1792, 1793, 20000, 0)])
    done = weir_run(config(tmp_path, "in.pcap", "out.pcap"))
    assert summary(done) == (6, 2, 0, 4)
    assert "port in runt 2, port in too_long 2" in done.stdout
    assert [len(raw) for raw, _ in RawPcapReader(str(tmp_path / "out.pcap"))] == [14, 1792]


def test_frames_that_were_cut_come_in_short_and_are_told_of(tmp_path):
    raw_pcap(tmp_path / "in.pcap", [(10**18, bytes(60), 1500), (10**18, bytes(64), 64)])
    done = weir_run(config(tmp_path, "in.pcap", "out.pcap", sink="snap_bytes = 62\n"))
    assert summary(done) == (2, 2, 0, 0)
    assert [(len(raw), meta.wirelen) for raw, meta in RawPcapReader(str(tmp_path / "out.pcap"))] == [(60, 60), (62, 64)]


def broken(tmp_path, name):
    whole = CAPTURE.read_bytes()
    file = tmp_path / name
    if name == "text.pcap":
        file.write_text("this is no capture\n" * 9)
    elif name == "empty.pcap":
        file.write_bytes(b"")
    elif name == "half_head.pcap":
        file.write_bytes(whole[:20])
    elif name == "zipped.pcap":
        file.write_bytes(b"\x1f\x8b" + bytes(40))
    elif name == "cooked.pcap":
        raw_pcap(file, [], link_type=113)
    elif name == "folder.pcap":
        file.mkdir()
    return name


@pytest.mark.parametrize("name, says", [("text.pcap", "unknown file format"), ("empty.pcap", "truncated"), ("half_head.pcap", "truncated"),
                                        ("zipped.pcap", "it is compressed: gunzip it first"), ("cooked.pcap", "LINUX_SLL"),
                                        ("folder.pcap", "it is a folder; name a file"), ("absent.pcap", "No such file")])
def test_what_is_no_capture_is_one_line_and_leaves_nothing(tmp_path, name, says):
    (tmp_path / "kept.pcap").write_text("what stood there before")
    for target in ("new.pcap", "kept.pcap"):
        done = weir_run(config(tmp_path, broken(tmp_path, name) if target == "new.pcap" else name, target))
        assert done.returncode == 1 and done.stdout == ""
        assert len(done.stderr.splitlines()) == 1 and "port in: read capture" in done.stderr and says in done.stderr
    assert not (tmp_path / "new.pcap").exists()
    assert (tmp_path / "kept.pcap").read_text() == "what stood there before"


def test_a_start_that_fails_later_leaves_the_file_that_it_would_have_written(tmp_path):
    (tmp_path / "kept.pcap").write_text("what stood there before")
    for target in ("new.pcap", "kept.pcap"):
        file = config(tmp_path, CAPTURE, target, pipeline='[[port]]\nname = "third"\ndriver = "pcap"\nwrite = "no/such/folder.pcap"\n' + PATCH)
        done = weir_run(file)
        assert done.returncode == 1 and "port third: write capture" in done.stderr, done.stderr
    assert not (tmp_path / "new.pcap").exists() and (tmp_path / "kept.pcap").read_text() == "what stood there before"


def test_a_truncated_file_gives_what_is_whole_and_ends_with_1(tmp_path):
    (tmp_path / "in.pcap").write_bytes(CAPTURE.read_bytes()[:-7])
    done = weir_run(config(tmp_path, "in.pcap", "out.pcap"))
    assert done.returncode == 1 and "truncated dump file" in done.stderr
    assert summary(done) == (85, 85, 0, 0)
    assert len(list(RawPcapReader(str(tmp_path / "out.pcap")))) == 85


def test_one_file_is_not_read_and_written(tmp_path):
    file = config(tmp_path, "in.pcap", "out.pcap", 'write = "./in.pcap"\n')
    (tmp_path / "in.pcap").write_bytes(CAPTURE.read_bytes())
    done = run(WEIR, "check", file, check=False)
    assert done.returncode == 2 and "port[0]: it reads and writes one file, in.pcap" in done.stderr
    done = weir_run(config(tmp_path, "in.pcap", "in.pcap"))  # by two ports
    assert done.returncode == 1 and "another port or another weir reads or writes it" in done.stderr
    assert (tmp_path / "in.pcap").read_bytes() == CAPTURE.read_bytes()


@pytest.mark.parametrize("more, says", [('pace = "2"\n', 'pace is "2", must be'), ('pace = "0x"\n', 'pace is "0x"'), ("loop = -1\n", "loop"),
                                        ('pace = "0/s"\n', 'pace is "0/s"')])
def test_a_wrong_key_is_refused_at_check(tmp_path, more, says):
    done = run(WEIR, "check", config(tmp_path, "in.pcap", "out.pcap", more), check=False)
    assert done.returncode == 2 and says in done.stderr, done.stderr


def full_disk(tmp_path, form, frames):
    """A run in a mount namespace, whose output is on a file system of 256 KiB. What is in the file in the end, and the run."""
    raw_pcap(tmp_path / "in.pcap", [(10**18 + place, bytes(1000), 1000) for place in range(frames)])
    (tmp_path / "small").mkdir()
    file = config(tmp_path, "in.pcap", f"small/{form}")
    script = f"cd {tmp_path} && mount -t tmpfs -o size=256k none small && {{ {WEIR} run {file}; code=$?; cp small/{form} .; exit $code; }}"
    return run("unshare", "-m", "sh", "-c", script, check=False)


@pytest.mark.parametrize("form", ["out.pcap", "out.pcapng"])
def test_a_full_disk_is_told_and_counted_and_leaves_whole_frames(tmp_path, form):
    done = full_disk(tmp_path, form, 4000)
    assert done.returncode == 1 and f"write capture {tmp_path}/small/{form}: No space left on device" in done.stderr, done.stderr
    came, out, to_stack, dropped = summary(done)
    assert (came, to_stack) == (4000, 0) and f"port out device_refused {dropped}" in done.stdout
    assert 200 <= out < 262 and len(list(RawPcapReader(str(tmp_path / form)))) == out
    assert "truncated" not in run("tcpdump", "-n", "-r", tmp_path / form).stderr


def start(file, *flags, **options):
    return subprocess.Popen([WEIR, "run", file, *flags], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)


def test_a_killed_process_leaves_a_file_that_can_be_read(tmp_path):
    raw_pcap(tmp_path / "in.pcap", [(10**18, bytes(60), 60)])
    out = tmp_path / "out.pcap"
    process = start(config(tmp_path, "in.pcap", "out.pcap", 'loop = 0\npace = "1000/s"\n'))
    try:
        wait_until(lambda: out.exists() and out.stat().st_size > 24 + 5 * 76, "frames are in the file")
    finally:
        process.kill()
        process.communicate()
    assert "truncated" not in run("tcpdump", "-n", "-r", out).stderr
    assert out.stat().st_size % 76 == 24


def test_standard_input_and_output_carry_captures(tmp_path):
    file = config(tmp_path, "-", "-")
    with CAPTURE.open("rb") as capture:
        done = subprocess.run([WEIR, "run", file], stdin=capture, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0 and b"86 frames in, 86 out" in done.stderr
    (tmp_path / "out.pcap").write_bytes(done.stdout)
    assert tcpdump(tmp_path / "out.pcap") == tcpdump(CAPTURE)


def test_a_pipe_that_says_nothing_for_a_while_is_waited_for_and_does_not_stand_in_the_way(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    file = config(tmp_path, "pipe", "out.pcap")
    name = json.loads(run("sed", "-n", 's/^name = \\("t.*"\\)/\\1/p', file).stdout)
    process = start(file)
    try:
        wait_until(lambda: run(WEIR, "stats", "--json", "--instance", name, check=False).returncode == 0, "it answers")
        whole = CAPTURE.read_bytes()
        with (tmp_path / "pipe").open("wb", buffering=0) as pipe:
            pipe.write(whole[:1000])  # ends within a frame
            came = lambda: json.loads(run(WEIR, "stats", "--json", "--instance", name).stdout)["account"]["rx"]
            first = wait_until(came, "frames come in")
            assert 0 < first < 86
            pipe.write(whole[1000:])
        said = process.communicate(timeout=30)[0]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0 and "86 frames in, 86 out" in said, said


def test_the_null_source_gives_its_frames_in_turn(tmp_path):
    one, two = "020000000002 020000000001 88b5" + "00" * 46, "ff:ff:ff:ff:ff:ff" + "020000000001" + "88b6" + "11" * 50
    source = (f'driver = "null"\nframes = ["{one}", "{two}"]\ncount = 1001\n',)
    done = weir_run(config(tmp_path, source, "out.pcap"))
    assert summary(done) == (1001, 1001, 0, 0), done.stderr
    raw = [bytes.fromhex(each.replace(" ", "").replace(":", "")) for each in (one, two)]
    assert [each for each, _ in RawPcapReader(str(tmp_path / "out.pcap"))] == (raw * 501)[:1001]
    begun = time.monotonic()
    assert summary(weir_run(config(tmp_path, (source[0].replace("1001", "11") + 'pace = "40/s"\n',), ""))) == (11, 11, 0, 0)
    assert time.monotonic() - begun >= 0.25
    for wrong in ("0123", "0" * 27, "xy" * 20):
        done = run(WEIR, "check", config(tmp_path, (f'driver = "null"\nframes = ["{wrong}"]\n',), ""), check=False)
        assert done.returncode == 2 and f'"{wrong}" is no frame: 14 to 3840 bytes' in done.stderr


# Without privileges


@pytest.fixture
def open_path(tmp_path):
    """A folder that everybody may enter and write to."""
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents:
        if parent.owner() == "root" and str(parent).startswith("/tmp/pytest"):
            parent.chmod(0o755)
    return tmp_path


ROUTER = ('[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "acl"\notherwise = "permit"\n'
          'rules = [{ action = "drop", protocol = "tcp" }]\n[[pipeline.stage]]\nplugin = "patch"\npairs = [["in", "out"]]\n')


def test_a_user_without_privileges_runs_a_plugin_with_tables_from_file_to_file(open_path):
    (open_path / "in.pcap").write_bytes(CAPTURE.read_bytes())
    runtime = open_path / "runtime"
    runtime.mkdir()
    os.chown(runtime, 65534, 65534)
    file = config(open_path, "in.pcap", "out.pcapng", pipeline=ROUTER, sink='egress = ["count"]\n')
    done = weir_run(file, before=NOBODY, env={**os.environ, "XDG_RUNTIME_DIR": str(runtime)})
    assert done.returncode == 0, done.stderr
    came, out, _, dropped = summary(done)
    tcp = sum(1 for packet in PcapReader(str(CAPTURE)) if packet.haslayer("TCP"))
    assert (came, out, dropped) == (86, 86 - tcp, tcp) and tcp > 0
    assert (runtime / "weir").stat().st_mode & 0o777 == 0o700 and list((runtime / "weir").iterdir()) == []


def test_one_line_tries_a_plugin_on_a_capture(tmp_path):
    out = tmp_path / "out.pcapng"
    done = run(WEIR, "run", "--read", CAPTURE, "--write", out, 'acl,otherwise=permit,rules=[{action="drop",protocol="tcp"}]', check=False)
    assert done.returncode == 0, done.stderr
    came, left, _, dropped = summary(done)
    assert came == 86 and left == len(list(RawPcapReader(str(out)))) and "stage main.acl denied" in done.stdout and dropped > 0
    done = run(WEIR, "run", "--read", CAPTURE, "l2_switch")
    assert "86 frames in" in done.stdout
    done = run(WEIR, "run", "--read", CAPTURE, "acl,otherwise=perhaps", check=False)
    assert done.returncode == 2 and "otherwise" in done.stderr and len(done.stderr.splitlines()) == 1
    assert run(WEIR, "run", check=False).returncode == 2
