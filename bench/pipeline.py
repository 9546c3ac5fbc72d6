#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""pipeline: nanoseconds and instructions per frame of the user pipeline, in memory.

    source port ── Runner: 0 to 8 empty stages, the real patch ── null port

Each round is a process of its own, so that where things lie in memory changes from round to round; every other one goes through the cases
backwards. What an empty stage costs is the difference between 8 of them and none, an eighth of it, taken within a round: the two
cases lie next to each other in time. Time is the thread's CPU time. Instructions are the CPU's own count, or callgrind's where it has none.
"""
import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from figures import HEADS, machine, spread, text

ROOT = pathlib.Path(__file__).resolve().parent.parent
MOST, TARGET_BURST, TARGET_NS = 8, 64, 2.0
POLLS = 200


def run(*words):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip() or f"{words[0]} ended with {done.returncode}").splitlines()[-1])
    return done.stdout


def case_of(name):
    return tuple(int(number) for number in re.fullmatch(r"pipeline/empty:(\d+)/burst:(\d+)", name.split("/min_time")[0]).groups())


def time_round(program, number, seconds):
    """The compiler; and by case (empty stages, burst) nanoseconds per frame, and instructions where the CPU counts them."""
    words = [program, *(["--reverse"] if number % 2 else []), f"--benchmark_min_time={seconds}", "--benchmark_format=json"]
    said, timed, counted = json.loads(run(*words)), {}, {}
    for row in said["benchmarks"]:
        if row.get("error_occurred"):
            raise RuntimeError(f"{row['name']}: {row['error_message']}")
        case = case_of(row["name"])
        timed[case] = row["cpu_time"] / case[1]
        if "instructions" in row:
            counted[case] = row["instructions"]
    return said["context"]["compiler"], timed, counted


def count_by_callgrind(program):
    """By case: instructions per frame; nothing without valgrind."""
    if not shutil.which("valgrind"):
        return {}
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "count"
        said = run("valgrind", "--tool=callgrind", f"--callgrind-out-file={file}", "--toggle-collect=counted_polls",
                   "--dump-after=counted_polls", program, "--count", POLLS)
        counted = {}
        for number, line in enumerate(said.splitlines(), 1):
            name, frames = line.split()
            total = re.search(r"^totals: (\d+)", file.with_suffix(f".{number}").read_text(), re.MULTILINE)
            counted[case_of(name)] = int(total[1]) / int(frames)
    return counted


def dpdk_round(program, bursts, seconds):
    """By burst: nanoseconds per frame of DPDK's own loop; nothing where it was not built (-Ddpdk) or does not start."""
    if not program.exists():
        return {}
    with tempfile.TemporaryDirectory() as folder:  # DPDK keeps its files there
        words = [str(word) for word in (program, seconds, *bursts)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, "RUNTIME_DIRECTORY": folder})
    if done.returncode != 0:
        return {}
    return {int(burst): float(ns) for burst, ns in (line.split() for line in done.stdout.splitlines())}


def beside_dpdk(rounds, dpdk, burst):
    """The pipeline without empty stages beside DPDK's loop, both in nanoseconds per frame, and their ratio within a round."""
    pairs = [(timed[0, burst], peer[burst]) for timed, peer in zip(rounds, dpdk) if burst in peer]
    return {"burst": burst, "weir_ns": spread([ours for ours, _ in pairs]), "dpdk_ns": spread([theirs for _, theirs in pairs]),
            "ratio": spread([ours / theirs for ours, theirs in pairs])}


def stage_cost(rounds, counted, burst):
    ends = (MOST, burst), (0, burst)
    instructions = (counted[ends[0]] - counted[ends[1]]) / MOST if counted else None
    return {"burst": burst, "ns": spread([(timed[ends[0]] - timed[ends[1]]) / MOST for timed in rounds]), "instructions": instructions,
            "target_ns": TARGET_NS if burst == TARGET_BURST else None}


def measure(given):
    program = given.build / "bench" / "pipeline"
    rounds, dpdk, counter = [], [], "the CPU"
    for number in range(given.rounds):
        compiler, timed, counted = time_round(program, number, given.seconds)
        rounds.append(timed)
        dpdk.append(dpdk_round(program.with_name("dpdk_io"), sorted({burst for _, burst in timed}), given.seconds))
        print(f"round {number + 1}/{given.rounds}", file=sys.stderr, flush=True)
    if not counted:
        counted = count_by_callgrind(program)
        counter = "callgrind" if counted else None
    cases = sorted(rounds[0])
    return {"bench": "pipeline", "machine": machine(), "compiler": compiler, "cpu": given.cpu, "rounds": given.rounds,
            "seconds": given.seconds, "counter": counter,
            "cases": [{"empty": empty, "burst": burst, "ns": spread([timed[empty, burst] for timed in rounds]),
                       "instructions": counted.get((empty, burst))} for empty, burst in cases],
            "dpdk": [beside_dpdk(rounds, dpdk, burst) for burst in sorted({burst for _, burst in rounds[0]})] if all(dpdk) else [],
            "stage": [stage_cost(rounds, counted, burst) for burst in sorted({burst for _, burst in cases})]}


def show_cases(report, title, value):
    print(f"\n{title}\n{'burst':<6}" + "".join(f"{f'{empty} empty':>10}" for empty in range(MOST + 1)))
    for row in report["stage"]:
        cells = [value(case) for case in report["cases"] if case["burst"] == row["burst"]]
        print(f"{row['burst']:<6}" + "".join(f"{cell:>10.1f}" for cell in cells))


def show(report):
    print(f"bench pipeline: source port, empty stages, patch, null port; {report['rounds']} rounds, {report['seconds'] * 1e3:g} ms a case\n"
          f"{report['machine']}, on CPU {report['cpu']}; {report['compiler']}\n"
          f"instructions counted by {report['counter'] or 'nobody: neither the CPU nor valgrind'}")
    show_cases(report, "nanoseconds per frame, median", lambda case: case["ns"]["median"])
    if report["counter"]:
        show_cases(report, "instructions per frame", lambda case: case["instructions"])
    if report["dpdk"]:
        print(f"\nno empty stage, beside DPDK's own loop (net_null, rx burst to tx burst), ns per frame; ratio weir / DPDK within a round\n"
              f"{'burst':<6}{'weir':>8}{'DPDK':>8}   ratio {HEADS}".rstrip())
        for row in report["dpdk"]:
            print(f"{row['burst']:<6}{row['weir_ns']['median']:>8.1f}{row['dpdk_ns']['median']:>8.1f}         {text(row['ratio'])}".rstrip())
    print(f"\nan empty stage, per frame: ({MOST} of them - none) / {MOST}, within a round\n"
          f"{'burst':<6}{'instructions':>12}   ns {HEADS}".rstrip())
    for row in report["stage"]:
        instructions = "" if row["instructions"] is None else f"{row['instructions']:.2f}"
        target = row["target_ns"]
        verdict = f"   target at most {target:.2f} ns: {'met' if row['ns']['median'] <= target else 'missed'}" if target else ""
        print(f"{row['burst']:<6}{instructions:>12}      {text(row['ns'])}{verdict}".rstrip())


def arguments():
    parser = argparse.ArgumentParser(description="Nanoseconds and instructions per frame of the user pipeline, in memory.")
    build = pathlib.Path(os.environ.get("WEIR_BUILD", ROOT / "build"))
    parser.add_argument("--build", type=pathlib.Path, default=build, help="build folder (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--seconds", type=float, default=0.01, help="for each case in each round (default: %(default)s)")
    parser.add_argument("--cpu", type=int, default=max(os.sched_getaffinity(0)), help="to run on (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="for programs")
    given = parser.parse_args()
    if given.rounds < 1 or given.seconds <= 0 or given.cpu not in os.sched_getaffinity(0):
        parser.error("--rounds is at least 1, --seconds above 0, --cpu one of this process's CPUs")
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
        sys.exit(f"bench pipeline: {error}")
