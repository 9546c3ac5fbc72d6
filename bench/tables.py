#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""tables: nanoseconds per frame of a look-up, by the number of entries, in the kernel half and in the user half.

    ring of frames, each for an entry of dice ── test run: vary ── tail call ── kernel half
                                              └─ bursts of 64 ── user half

A table's sizes are all there at once, in one process, and each round goes through them, every other one backwards. What the ring alone costs
is measured in the same round and subtracted; the ratio of the last size to the first is taken within a round too.
"""
import argparse
import json
import os
import pathlib
import secrets
import subprocess
import sys

from figures import HEADS, machine, spread, text

ROOT = pathlib.Path(__file__).resolve().parent.parent
SIZES = {"lines": (1000, 100000, 4000000), "flows": (1000, 100000, 4000000), "router_ipv4": (10, 10000, 1000000), "router_ipv6": (10, 10000, 100000),
         "acl": (10, 1000, 100000), "l2_switch": (1000, 1000000)}
TARGET, TARGET_TABLES = 2.0, ("flows", "router_ipv4", "router_ipv6")
LONGEST_SET_UP_S, MOST_BYTES = 60, 6 << 30


def measure_table(table, given):
    words = [given.build / "bench" / "tables", table, given.repeat, given.rounds, given.seed, *(given.sizes or SIZES[table])]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        why = done.stderr.strip() or f"{table}: {words[0]} ended with {done.returncode}"
        raise RuntimeError(why.splitlines()[-1].removeprefix("bench tables: "))
    return json.loads(done.stdout)


def row_of(table, row):
    """Of one half, version and draw: what is above the ring alone, by size, and the ratio of the last to the first."""
    above = [[ns - none for ns, none in zip(of_size, row["none"])] for of_size in row["ns"]]
    ratios = [last / first for first, last in zip(above[0], above[-1]) if first > 0]
    target = TARGET if table in TARGET_TABLES and not row["hot"] else None
    return {"half": row["half"], "version": row["version"], "hot": row["hot"], "ring": spread(row["none"]),
            "ns": [spread(of_size) for of_size in above], "ratio": spread(ratios), "target": target}


def measure(given):
    made = {}
    for table in given.tables:
        print(f"{table}: {', '.join(map(str, given.sizes or SIZES[table]))} entries, {given.rounds} rounds", file=sys.stderr, flush=True)
        try:
            said = measure_table(table, given)
        except RuntimeError as error:  # the others can be measured all the same
            made[table] = {"error": str(error)}
            continue
        made[table] = {"error": None, "sizes": said["tables"], "rows": [row_of(table, row) for row in said["rows"]]}
    return {"bench": "tables", "machine": machine(), "cpu": given.cpu, "rounds": given.rounds, "repeat": given.repeat, "seed": given.seed,
            "tables": made}


def show_table(name, table):
    print(f"\n{name}")
    for size in table["sizes"]:
        too_much = [*([f"more than {LONGEST_SET_UP_S} s"] if size["seconds"] > LONGEST_SET_UP_S else []),
                    *([f"more than {MOST_BYTES >> 30} GB"] if size["bytes"] > MOST_BYTES else [])]
        print(f"  {size['size']:>9,}: made in {size['seconds']:.1f} s of CPU time, {size['bytes'] / 1e6:,.0f} MB"
              f"{'; ' + size['says'] if size['says'] else ''}{''.join(f'; {each}, which is not sensible' for each in too_much)}")
    heads = "".join(f"{size['size']:>11,}" for size in table["sizes"])
    print(f"{'':<22}{'ring':>7}{heads}   last/first{HEADS}".rstrip())
    for row in table["rows"]:
        version = f" IPv{row['version']}" if len({each["version"] for each in table["rows"]}) > 1 else ""
        cells = "".join(f"{ns['median']:>11.1f}" for ns in row["ns"])
        target = row["target"]
        ratio = f"             {text(row['ratio'])}" if row["ratio"] else ""
        verdict = f"   target under {target:.0f}: {'met' if row['ratio'] and row['ratio']['median'] < target else 'missed'}" if target else ""
        print(f"{row['half'] + version + (', 64 of them' if row['hot'] else ''):<22}{row['ring']['median']:>7.1f}{cells}{ratio}{verdict}".rstrip())


def show(report):
    print(f"bench tables: {report['repeat']} frames of 64 bytes a case, behind as many to warm up; {report['rounds']} rounds, seed {report['seed']}\n"
          f"{report['machine']}, on CPU {report['cpu']}; nanoseconds per frame above those of the ring alone, median")
    for name, table in report["tables"].items():
        if table["error"] is None:
            show_table(name, table)
        else:
            print(f"\n{name}\n  no figures: {table['error']}")


def arguments():
    parser = argparse.ArgumentParser(description="Nanoseconds per frame of a look-up, by the number of entries, in both halves.")
    build = pathlib.Path(os.environ.get("WEIR_BUILD", ROOT / "build"))
    parser.add_argument("--build", type=pathlib.Path, default=build, help="build folder (default: %(default)s)")
    parser.add_argument("--tables", type=lambda words: words.split(","), default=list(SIZES), help=f"of {','.join(SIZES)} (default: all)")
    parser.add_argument("--sizes", type=lambda words: [int(word) for word in words.split(",")], help="instead of each table's own, ascending")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeat", type=int, default=100000, help="frames of a case in a round (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), help="of entries and frames (default: dice)")
    parser.add_argument("--cpu", type=int, default=max(os.sched_getaffinity(0)), help="to run on (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="for programs")
    given = parser.parse_args()
    if min(given.rounds, given.repeat, *(given.sizes or [2])) < 1 or given.cpu not in os.sched_getaffinity(0) or not set(given.tables) <= set(SIZES):
        parser.error(f"--rounds, --repeat and --sizes are at least 1, --cpu is one of this process's CPUs, --tables of {', '.join(SIZES)}")
    return given


def main():
    given = arguments()
    os.sched_setaffinity(0, {given.cpu})
    report = measure(given)
    print(json.dumps(report, indent=2)) if given.json else show(report)
    sys.exit(any(table["error"] for table in report["tables"].values()))


if __name__ == "__main__":
    main()
