#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""egress: nanoseconds per frame of each egress program and of chains, by test runs in the kernel.

    fresh: the frame as it was ── nothing, or one program ── tail call ── the next … up to 8

Each round is a process of its own, so that where programs and maps lie in memory changes from round to round; every other one goes through
the cases backwards. What a chain costs is the difference to `none` within a round. Time is the thread's CPU time around whole calls.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys

from figures import HEADS, machine, spread, text

ROOT = pathlib.Path(__file__).resolve().parent.parent
REWRITES, TARGET_NS = ("dscp", "mac_rewrite", "ttl", "vlan_pop", "vlan_push", "vlan_rewrite"), 10.0


def time_round(program, number, given):
    """By case, in the program's order: its chain and nanoseconds per frame."""
    words = [program, given.repeat, given.passes, *(["--reverse"] if number % 2 else [])]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().removeprefix("bench egress: ") or f"{program} ended with {done.returncode}").splitlines()[-1])
    said = json.loads(done.stdout)
    return {case["name"]: case for case in (said[::-1] if number % 2 else said)}


def above(rounds, name, base):
    return spread([cases[name]["ns"] - cases[base]["ns"] for cases in rounds])


def measure(given):
    rounds = []
    for number in range(given.rounds):
        rounds.append(time_round(given.build / "bench" / "egress", number, given))
        print(f"round {number + 1}/{given.rounds}", file=sys.stderr, flush=True)
    return {"bench": "egress", "machine": machine(), "cpu": given.cpu, "rounds": given.rounds, "repeat": given.repeat, "passes": given.passes,
            "cases": [{"name": name, "chain": case["chain"], "ns": spread([cases[name]["ns"] for cases in rounds]),
                       "above_none": above(rounds, name, "none"), "above_empty": above(rounds, name, "empty"),
                       "target_ns": TARGET_NS if name in REWRITES else None} for name, case in rounds[0].items()]}


def show(report):
    print(f"bench egress: test runs of {report['repeat']} frames of 64 bytes, {report['passes']} in each of {report['rounds']} rounds\n"
          f"{report['machine']}, on CPU {report['cpu']}; nanoseconds per frame\n\n"
          f"{'':<14}{'all':>7}{'above empty':>13}   above none{HEADS}".rstrip())
    for row in report["cases"]:
        target = row["target_ns"]
        verdict = f"   target at most {target:.0f} ns: {'met' if row['above_none']['median'] <= target else 'missed'}" if target else ""
        beside = "" if row["name"] in ("none", "empty") else f"{row['above_empty']['median']:.1f}"
        beyond = "" if row["name"] == "none" else f"             {text(row['above_none'])}{verdict}"
        print(f"{row['name']:<14}{row['ns']['median']:>7.1f}{beside:>13}{beyond}".rstrip())
    alone = {row["name"]: row["above_none"]["median"] for row in report["cases"]}
    print()
    for row in report["cases"]:
        if row["name"].endswith(" programs"):
            print(f"{row['name']}: {', '.join(row['chain'])}; the sum of what each costs alone is {sum(alone[part] for part in row['chain']):.1f}")


def arguments():
    parser = argparse.ArgumentParser(description="Nanoseconds per frame of egress programs and chains, by test runs in the kernel.")
    build = pathlib.Path(os.environ.get("WEIR_BUILD", ROOT / "build"))
    parser.add_argument("--build", type=pathlib.Path, default=build, help="build folder (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--passes", type=int, default=3, help="calls of each case in a round, of which the median counts (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=300000, help="frames of a call (default: %(default)s)")
    parser.add_argument("--cpu", type=int, default=max(os.sched_getaffinity(0)), help="to run on (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="for programs")
    given = parser.parse_args()
    if min(given.rounds, given.passes, given.repeat) < 1 or given.cpu not in os.sched_getaffinity(0):
        parser.error("--rounds, --passes and --repeat are at least 1, --cpu one of this process's CPUs")
    return given


def main():
    given = arguments()
    os.sched_setaffinity(0, {given.cpu})
    report = measure(given)
    print(json.dumps(report, indent=2)) if given.json else show(report)


if __name__ == "__main__":
    try:
        main()
    except RuntimeError as error:
        sys.exit(f"bench egress: {error}")
