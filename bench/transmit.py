#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""transmit: frames per second that one thread sends from user space over veth: by AF_XDP in copy mode, and by a pump.

    forwarder namespace           sink namespace
       transmit f1 ─────────────── k0 sink (XDP: counts, drops)

Every frame differs from the others, and is written whole before it is sent. The sink counts, in the kernel, those that came whole. One
thread on one CPU sends and, inline, receives. Rounds, windows and what is left out of them are those of veth.py.
"""
import argparse
import contextlib
import json
import os
import pathlib
import signal
import sys
import time

from figures import HEADS, machine, text
from veth import (POLLER_CPU, PROBE_LIMIT_S, ROOT, SOURCE_CPU, STOPS, WARM_UP_S, CannotRun, Lab, enter_own_mounts, foreign_seconds,
                  measure_rounds, ratios, remark, stop, summarise, udp_frame, wait_until)

WAYS, SIZES = ("pump", "af_xdp"), (64, 1500)
CONTENDERS = {f"{way}_{size}": (way, size) for size in SIZES for way in WAYS}
RATIOS = [(f"pump_{size}", f"af_xdp_{size}", 2.0) for size in SIZES]
NUMBER_AT = 50  # of the bytes that differ, in the payload


def measure_one(lab, name, seconds):
    way, size = CONTENDERS[name]
    frame = lab.folder / f"frame-{size}"
    if not frame.exists():
        content = bytearray(udp_frame(size))
        content[NUMBER_AT:NUMBER_AT + 4] = bytes(4)
        frame.write_bytes(content)
    with contextlib.ExitStack() as stack:
        stack.enter_context(lab.wires())
        sink = stack.enter_context(lab.running("sink", lab.bench / "reference", "flows", "k0", frame, NUMBER_AT, talks=True))
        sink.wait_ready()
        sender = stack.enter_context(lab.running("forwarder", lab.bench / "transmit", "f1", frame, NUMBER_AT, way))
        if not wait_until(lambda: sink.ask()[1] > 0 or sender.ended(), PROBE_LIMIT_S) or sender.ended():
            raise CannotRun(f"sends nothing: {sender.complaint()}")
        time.sleep(WARM_UP_S)
        foreign, (start, frames, *_) = foreign_seconds(), sink.ask()
        time.sleep(seconds)
        (end, whole, other, *_), foreign = sink.ask(), foreign_seconds() - foreign
        if sender.ended():
            raise CannotRun(f"ended while it sent: {sender.complaint()}")
        if other > whole // 1000:
            raise CannotRun(f"{other} frames came changed, {whole} whole")
        return {"mpps": (whole - frames) * 1e3 / (end - start), "others": foreign / seconds, "frames": whole}


def show(report):
    print(f"bench transmit: UDP frames of {' and '.join(map(str, SIZES))} bytes, {report['rounds']} rounds, windows of "
          f"{report['seconds']:g} s; {report['machine']}\nCPU {POLLER_CPU}: all of it, inline\n\n{'M frames/s':<24}{HEADS}")
    for name, result in report["contenders"].items():
        print(f"{name:<24}{text(result['summary']) if result['summary'] else ''}   {remark(result)}".rstrip())
    if report["ratios"]:
        print(f"\n{'ratio within a round':<24}{HEADS}   windows")
    for row in report["ratios"]:
        print(f"{row['ratio']:<24}{text(row)}   {row['values']:>7}   target {row['target']:.2f}: "
              f"{'met' if row['median'] >= row['target'] else 'missed'}")


def arguments():
    parser = argparse.ArgumentParser(description="Frames per second that leave from user space, by AF_XDP and by a pump.")
    build = pathlib.Path(os.environ.get("WEIR_BUILD", ROOT / "build"))
    parser.add_argument("--build", type=pathlib.Path, default=build, help="build folder (default: %(default)s)")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="which, with commas (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=11, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a window (default: %(default)s)")
    parser.add_argument("--others", type=float, default=0.05, metavar="SHARE",
                        help="of a CPU that others may use in a window, or it is left out (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="for programs")
    given = parser.parse_args()
    given.contenders = given.contenders.split(",")
    if unknown := set(given.contenders) - set(CONTENDERS):
        parser.error(f"no such contender: {', '.join(sorted(unknown))}; there are {', '.join(CONTENDERS)}")
    if given.rounds < 1 or given.seconds <= 0:
        parser.error("--rounds is at least 1, --seconds above 0")
    return given


def main():
    given = arguments()
    if os.geteuid() != 0 or not {SOURCE_CPU, POLLER_CPU} <= os.sched_getaffinity(0):
        sys.exit(f"bench transmit: needs root, and CPUs {SOURCE_CPU} and {POLLER_CPU}")
    enter_own_mounts()
    for number in STOPS:
        signal.signal(number, stop)
    build = given.build.resolve()
    with Lab(build, build / "apps" / "weir", max(SIZES)) as lab:
        results = measure_rounds(lab, given, measure_one)
    summarise(results)
    report = {"bench": "transmit", "seconds": given.seconds, "rounds": given.rounds, "others": given.others, "machine": machine(),
              "contenders": results, "ratios": ratios(results, RATIOS)}
    print(json.dumps(report, indent=2)) if given.json else show(report)
    return 1 if any(result["error"] or not result["summary"] for result in results.values()) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RuntimeError as error:
        sys.exit(f"bench transmit: {error}")
