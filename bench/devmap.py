#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""devmap: what a redirect costs by the number of device entries, in both forms of the map, and a broadcast by the number of members.

    source namespace   forwarder namespace   sink namespace
       live_source s0 ── f0  reference  f1 ── k0 sink
                                        f2 ── k1 sink, and so on: as many as the group has members

The machinery, rounds, windows and what is left out of them, is that of veth.py. All of the ways lie in one program, `reference`, so that
they differ by the map alone. Everything runs inline on the CPU of the source.
"""
import argparse
import contextlib
import json
import os
import pathlib
import re
import signal
import sys

from figures import HEADS, machine, rounds, spread, text
from veth import (POLLER_CPU, ROOT, SOURCE_CPU, STOPS, CannotRun, Lab, enter_own_mounts, figures_of, measure_rounds, ratios, remark, stop,
                  summarise, wait_until, window)

FORMS, ENTRIES, MEMBERS, FRAME_SIZE = ("array", "hash"), (2, 16, 256, 4096), (1, 2, 4, 8, 16), 60
PORTS = int(re.search(r"#define WEIR_MAX_PORTS (\d+)", (ROOT / "bpf" / "abi" / "link.h").read_text())[1])
ALL_ARRIVE_LIMIT_S = 2


def group(form, room, members):
    return ["group", "f0", form, room, *(f"f{member + 1}" for member in range(members))], members


# Words of `reference`, and how many sinks there are. A group of one is what Weir makes a plain redirect of: `bare`.
CONTENDERS = {"bare": (["bare", "f0", "f1"], 1),
              **{f"{form}_{number}": (["entries", "f0", "f1", form, number], 1) for form in FORMS for number in ENTRIES},
              **{f"group_{form}_{members}": group(form, PORTS, members) for form in FORMS for members in MEMBERS},
              **{f"group_full_{members}": group("array", members, members) for members in MEMBERS}}
RATIOS = [(name, "bare", None) for name in CONTENDERS if name != "bare"]


class Sinks:
    """Sinks that all get the same frames, as one: a frame is there when the last of them has it."""

    def __init__(self, sinks):
        self.sinks = sinks

    def ask(self):
        answers = [sink.ask() for sink in self.sinks]
        return [answers[0][0], min(answer[1] for answer in answers), max(answer[2] for answer in answers)]

    def each(self):
        return [sink.ask()[1] for sink in self.sinks]


def forwarded(forwarder):
    """How many frames it redirected, and how many found no entry."""
    return forwarder.ask()[5:7]


def check(words, forwarder, sinks):
    """All entries were used, and each member of a group got every frame."""
    sent, missed = forwarded(forwarder)
    if missed:
        raise CannotRun(f"{missed} frames found no entry")
    if words[0] == "entries" and sent < words[-1]:
        raise CannotRun(f"{sent} frames do not use all of {words[-1]} entries")
    if words[0] == "group" and not wait_until(lambda: set(sinks.each()) == {forwarded(forwarder)[0]}, ALL_ARRIVE_LIMIT_S):
        raise CannotRun(f"{forwarded(forwarder)[0]} frames were broadcast, and the members got {', '.join(map(str, sinks.each()))}")


def measure_one(lab, name, seconds):
    words, members = CONTENDERS[name]
    with contextlib.ExitStack() as stack:
        stack.enter_context(lab.wires(members))
        sinks = Sinks([stack.enter_context(lab.sink("sink", f"k{number}", [])) for number in range(members)])
        forwarder = stack.enter_context(lab.running("forwarder", lab.bench / "reference", *words, talks=True))
        forwarder.wait_ready()
        slot = window(lab, sinks, forwarder, seconds)
        check(words, forwarder, sinks)
        return {**slot, "copies": sinks.each() if words[0] == "group" else None}


def nanoseconds(results):
    """Of each frame that comes in, and of each that goes out."""
    for name, result in results.items():
        result["members"] = CONTENDERS[name][1]
        result["ns"] = spread([1e3 / mpps for mpps in figures_of(result).values()])
        result["ns_per_copy"] = spread([1e3 / mpps / result["members"] for mpps in figures_of(result).values()])


def show(report):
    print(f"bench devmap: {FRAME_SIZE}-byte UDP frames, {rounds(report['rounds'])}, windows of {report['seconds']:g} s; {report['machine']}\n"
          f"CPU {SOURCE_CPU}: all of it, inline\n\n{'M frames/s that come in':<24}{HEADS}   ns per frame   ns per copy")
    for name, result in report["contenders"].items():
        figures = f"{text(result['summary'])}   {result['ns']['median']:>12.1f}   " if result["summary"] else ""
        copy = f"{result['ns_per_copy']['median']:>11.1f}" if result["summary"] and name.startswith("group") else ""
        print(f"{name:<24}{figures}{copy:<11}   {remark(result)}".rstrip())
    if report["ratios"]:
        print(f"\n{'ratio within a round':<24}{HEADS}   windows")
    for row in report["ratios"]:
        print(f"{row['ratio']:<24}{text(row)}   {row['values']:>7}")


def arguments():
    parser = argparse.ArgumentParser(description="Frames per second through devmaps, by entries, by form and by members of a group.")
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
        sys.exit(f"bench devmap: needs root, and CPUs {SOURCE_CPU} and {POLLER_CPU}")
    enter_own_mounts()
    for number in STOPS:
        signal.signal(number, stop)
    build = given.build.resolve()
    with Lab(build, build / "apps" / "weir", FRAME_SIZE) as lab:
        results = measure_rounds(lab, given, measure_one)
    summarise(results)
    nanoseconds(results)
    report = {"bench": "devmap", "size": FRAME_SIZE, "seconds": given.seconds, "rounds": given.rounds, "others": given.others,
              "machine": machine(), "contenders": results, "ratios": ratios(results, RATIOS)}
    print(json.dumps(report, indent=2)) if given.json else show(report)
    return 1 if any(result["error"] or not result["summary"] for result in results.values()) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RuntimeError as error:
        sys.exit(f"bench devmap: {error}")
