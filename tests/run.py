#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""run: the test suites by their names, and one count of all.

    tests/run.py [--build build] [SUITE ...]

    unit      GoogleTest programs; no privileges
    bpf       the same programs' tests that run BPF programs in the kernel; CAP_BPF
    lint      what can be said of every file, and of the documents
    install   what `meson install` gives
    netns     real traffic through network namespaces; root
    sanitize  unit, bpf and netns once more with the build in build-sanitize
    threads   the tests in which threads meet, with the build in build-threads
    vm        Debian's other kernels under qemu; tests/vm/fetch brings them

What cannot run says what it misses and counts as skipped."""
import argparse
import collections
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as xml

ROOT = pathlib.Path(__file__).resolve().parent.parent
SUITES = ["unit", "bpf", "lint", "install", "netns", "sanitize", "threads", "vm"]
SANITIZED = ["unit", "bpf", "netns"]
# The first finding ends a program, so that its test fails.
SANITIZERS = {"ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}
PYTHON = "/usr/bin/python3"  # the distribution's, which has the distribution's pytest and scapy
# Tests of laboratories wait most of their time, and have namespaces of their own: so many of them run beside each other.
BESIDE = {"netns": 3}


def programs(build):
    """The GoogleTest programs. Test suites whose names begin with Kernel run programs in the kernel."""
    return sorted(path for path in (build / "tests").rglob("*_tests") if os.access(path, os.X_OK) and path.is_file())


def commands(suite, build, report):
    if suite in ("unit", "bpf", "threads"):
        chosen = "Kernel*" if suite == "bpf" else "-Kernel*"
        return [[program, f"--gtest_filter={chosen}", f"--gtest_output=xml:{report}.{number}.xml", "--gtest_brief=1"]
                for number, program in enumerate(programs(build))]
    beside = ["-n", BESIDE[suite]] if suite in BESIDE and has("xdist") else []
    return [[PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", *beside, f"--junit-xml={report}.xml", ROOT / "tests" / suite]]


def has(module):
    return subprocess.run([PYTHON, "-c", f"import {module}"], capture_output=True, check=False).returncode == 0


def read(file):
    """(name, outcome, why) of each test in a report."""
    for case in xml.parse(file).getroot().iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        bad = case.find("failure") if case.find("failure") is not None else case.find("error")
        skipped = case.find("skipped")
        if bad is not None:
            yield name, "failed", bad.get("message", "")
        elif skipped is not None or case.get("status") == "notrun":
            yield name, "skipped", (skipped.get("message", "") if skipped is not None else "disabled").strip()
        else:
            yield name, "passed", ""


def run_suite(suite, build, folder, environment):
    """Runs a suite with its output on the terminal; the outcome of each of its tests."""
    if suite == "sanitize":
        return run_sanitized(build.parent / "build-sanitize", folder, environment)
    if suite == "threads":
        build = build.parent / "build-threads"
        if not (build / "tests" / "unit" / "worker_tests").exists():
            return [("threads", "skipped", "needs ./build-threads: .ci/prepare --threads makes it")]
    results = []
    environment = {**environment, "WEIR_BUILD": str(build)}
    todo = commands(suite, build, folder / suite)
    folder.mkdir(exist_ok=True)
    if not todo:
        return [(suite, "failed", f"no test programs under {build}: build them first")]
    for number, command in enumerate(todo):
        done = subprocess.run(list(map(str, command)), env=environment, check=False)
        file = folder / (f"{suite}.{number}.xml" if suite in ("unit", "bpf", "threads") else f"{suite}.xml")
        found = list(read(file)) if file.exists() else []
        results += found
        if done.returncode != 0 and not any(outcome == "failed" for _, outcome, _ in found):
            results.append((f"{suite} {pathlib.Path(command[0]).name}", "failed", f"ended with {done.returncode} and names no test"))
    return results


def run_sanitized(build, folder, environment):
    if not (build / "build.ninja").exists():
        return [("sanitize", "skipped", "needs ./build-sanitize: .ci/prepare --sanitize makes it")]
    results = []
    for suite in SANITIZED:
        print(f"== sanitize {suite}", flush=True)
        found = run_suite(suite, build, folder / "sanitize", {**environment, **SANITIZERS})
        results += [(f"sanitize {name}", outcome, why) for name, outcome, why in found]
    return results


def main():
    parser = argparse.ArgumentParser(description="Runs test suites.")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build")
    parser.add_argument("suites", nargs="*", choices=[[], *SUITES], metavar="SUITE", help=", ".join(SUITES))
    arguments = parser.parse_args()
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for suite in arguments.suites or SUITES:
            print(f"== {suite}", flush=True)
            start = time.monotonic()
            results += run_suite(suite, arguments.build.resolve(), pathlib.Path(folder), environment)
            print(f"== {suite}: {time.monotonic() - start:.0f} s", flush=True)
    for name, outcome, why in results:
        if outcome != "passed":
            print(f"{outcome}: {name}: {why.splitlines()[0] if why else ''}")
    count = collections.Counter(outcome for _, outcome, _ in results)
    print(f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped")
    sys.exit(1 if count["failed"] or not results else 0)


main()
