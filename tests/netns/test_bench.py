# SPDX-License-Identifier: BSD-3-Clause
"""The benchmarks run, and check what they measure. How fast anything is, no test says."""
import json
import os
import pathlib
import secrets
import subprocess
import sys

import pytest
from lab import BUILD, ROOT, run, wait_until

sys.path.insert(0, str(ROOT / "bench"))
import figures

pytestmark = [pytest.mark.skipif(not (BUILD / "bench" / "pipeline").exists(), reason=f"needs the benchmarks in {BUILD}: -Dbench=true"),
              pytest.mark.skipif(not {0, 1} <= os.sched_getaffinity(0), reason="needs CPUs 0 and 1")]
VETH = [ROOT / "bench" / "veth.py", "--build", BUILD, "--rounds", "1", "--others", "99", "--contenders", "bare_egress,weir_entry,weir_af_xdp"]


def test_every_contender_delivers_frames_and_its_egress_program_counts_them():
    report = json.loads(run(*VETH, "--seconds", 0.2, "--json").stdout)
    assert set(report["contenders"]) == {"bare_egress", "weir_entry", "weir_af_xdp"}
    for name, contender in report["contenders"].items():
        assert contender["error"] is None, name
        assert len(contender["slots"]) == (1 if name == "weir_af_xdp" else 3), "the pair that has a target is measured three times in a round"
        for slot in contender["slots"]:
            assert slot["frames"] > 32, (name, "the probe frames are not all")
            assert slot["counted"] is None if name == "weir_af_xdp" else slot["counted"] >= slot["frames"], (name, slot)
    ratio, = [each for each in report["ratios"] if each["target"]]
    assert (ratio["ratio"], ratio["values"]) == ("weir_entry/bare_egress", 3)


def marked(marker):
    """The processes whose environment has this, and that still run."""
    found = []
    for file in pathlib.Path("/proc").glob("[0-9]*/environ"):
        try:
            if marker.encode() in file.read_bytes():
                found.append((file.parent / "comm").read_text().strip())
        except OSError:  # it ended meanwhile
            pass
    return found


def test_a_killed_run_leaves_nothing():
    marker = secrets.token_hex(8)
    with subprocess.Popen([*VETH, "--seconds", "60"], stderr=subprocess.DEVNULL, env={**os.environ, "WEIR_BENCH_TEST": marker}) as veth:
        wait_until(lambda: {"live_source", "reference", "weir"} <= set(marked(marker)), "a slot of weir_entry", 60)
        veth.kill()
    wait_until(lambda: not marked(marker), "every process has ended", 20)
    folders = ("/run", "/run/netns", "/run/weir", "/sys/fs/bpf", "/sys/fs/bpf/weir", "/tmp")
    assert [path for folder in folders for path in pathlib.Path(folder).glob("bench-*")] == []


@pytest.mark.skipif(not (BUILD / "plugins" / "router.so").exists(), reason="built without DPDK: no router")
def test_routed_frames_arrive_and_the_flow_cache_has_their_fate():
    names = ["bare", "fib", "linux", "router", "router_flows"]
    words = ["--build", BUILD, "--rounds", 1, "--others", 99, "--seconds", 0.1, "--flows", 64, "--contenders", ",".join(names), "--json"]
    report = json.loads(run(ROOT / "bench" / "flows.py", *words).stdout)
    for version in ("4", "6"):
        made = report["versions"][version]
        assert list(made["contenders"]) == names
        for name, contender in made["contenders"].items():
            assert contender["error"] is None, (version, name)
            assert contender["slots"][0]["frames"] > 64, (version, name)
        assert made["new_flows"]["median"] > 0


@pytest.mark.parametrize("bench", ["veth", "flows", "devmap"])
def test_a_tree_that_is_not_built_is_said(tmp_path, bench):
    done = run(ROOT / "bench" / f"{bench}.py", "--build", tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr == f"bench {bench}: there is no {tmp_path}/bench/reference: build it first: ninja -C {tmp_path}\n"


def test_every_entry_is_used_and_every_member_gets_every_frame():
    names = ["bare", "array_256", "hash_256", "group_array_1", "group_hash_2", "group_full_2"]
    words = ["--build", BUILD, "--rounds", 1, "--others", 99, "--seconds", 0.05, "--contenders", ",".join(names), "--json"]
    report = json.loads(run(ROOT / "bench" / "devmap.py", *words).stdout)
    assert list(report["contenders"]) == names
    for name, contender in report["contenders"].items():
        assert contender["error"] is None, name
        slot, = contender["slots"]
        assert slot["frames"] > 256, (name, "the frames of the window are enough for all entries")
        assert contender["members"] == (2 if name.endswith("_2") else 1)
        copies = slot["copies"] or []
        assert len(copies) == (contender["members"] if "group" in name else 0)
        assert len(set(copies)) <= 1 and all(copy >= slot["frames"] for copy in copies), (name, copies)
    assert [row["ratio"] for row in report["ratios"]] == [f"{name}/bare" for name in names[1:]]


@pytest.mark.parametrize("form, number", [("list", 2), ("array", 3), ("hash", 0)])
def test_the_reference_refuses_entries_that_it_cannot_use_in_turn(form, number):
    done = run(BUILD / "bench" / "reference", "entries", "lo", "lo", form, number, check=False)
    assert done.returncode == 1 and "Invalid argument" in done.stderr


def test_every_egress_program_is_timed_and_makes_the_frame_that_the_host_build_makes():
    programs = {path.name.removesuffix(".bpf.c") for path in (ROOT / "bpf" / "egress").glob("*.bpf.c")}
    report = json.loads(run(ROOT / "bench" / "egress.py", "--build", BUILD, "--rounds", 2, "--passes", 1, "--repeat", 1000, "--json").stdout)
    chains = {case["name"]: case["chain"] for case in report["cases"]}
    assert list(chains)[:2] == ["none", "empty"]
    assert {name.split()[0] for name, chain in chains.items() if chain == [name]} == programs | {"empty"}, "filter is there by its number of rules"
    assert sorted(len(chain) for chain in chains.values() if len(chain) != 1) == [0, 2, 2, 4, 4, 8, 8, 8]
    assert {case["name"] for case in report["cases"] if case["target_ns"]} <= programs
    assert all(case["above_none"]["values"] == 2 for case in report["cases"])


@pytest.mark.parametrize("table, halves, versions", [("lines", {"kernel"}, {4}), ("flows", {"kernel"}, {4, 6}),
                                                     ("l2_switch", {"kernel", "user"}, {0})])
def test_every_entry_of_a_table_is_found_at_every_size(table, halves, versions):
    check_tables(table, halves, versions)


@pytest.mark.skipif(not (BUILD / "plugins" / "router.so").exists(), reason="built without DPDK: neither router nor acl")
@pytest.mark.parametrize("table, version", [("router_ipv4", 4), ("router_ipv6", 6), ("acl", 4)])
def test_every_entry_of_a_table_of_dpdk_is_found_at_every_size(table, version):
    check_tables(table, {"kernel", "user"}, {version})


def check_tables(table, halves, versions):
    words = ["--build", BUILD, "--tables", table, "--sizes", "10,1000", "--rounds", 2, "--repeat", 1000, "--json"]
    report = json.loads(run(ROOT / "bench" / "tables.py", *words).stdout)
    made = report["tables"][table]
    assert [size["size"] for size in made["sizes"]] == [10, 1000]
    rows = {(row["half"], row["version"], row["hot"]) for row in made["rows"]}
    assert rows == {(half, version, hot) for half in halves for version in versions for hot in (False, True)}
    for row in made["rows"]:
        assert [ns["values"] for ns in row["ns"]] == [2, 2]
        assert (row["target"] is not None) == (not row["hot"] and table in ("flows", "router_ipv4", "router_ipv6"))


def test_a_table_that_cannot_hold_as_many_entries_is_said_and_not_made_smaller():
    done = run(BUILD / "bench" / "tables", "flows", 1000, 1, 1, 16_000_000, check=False)
    assert done.returncode == 1 and "flows: a table of 16000000: " in done.stderr, done.stderr


def test_every_frame_of_the_user_pipeline_comes_out_unchanged():
    assert "63 cases" in run(BUILD / "bench" / "pipeline", "--check").stdout


def test_the_pipeline_bench_reports_every_case():
    report = json.loads(run(ROOT / "bench" / "pipeline.py", "--build", BUILD, "--rounds", 1, "--seconds", 0.0001, "--json").stdout)
    assert {(case["empty"], case["burst"]) for case in report["cases"]} == {(empty, 1 << burst) for empty in range(9) for burst in range(7)}
    assert [row["burst"] for row in report["stage"]] == [1, 2, 4, 8, 16, 32, 64]
    assert report["counter"] is None or all(case["instructions"] > 0 for case in report["cases"])


@pytest.mark.parametrize("number, low, high", [(5, None, None), (6, 1, 6), (15, 4, 12), (31, 10, 22)])
def test_the_interval_of_the_median_is_that_of_the_tables(number, low, high):
    seen = figures.spread(range(number, 0, -1))
    assert (seen["low"], seen["high"]) == (low, high)
    assert (seen["median"], seen["min"], seen["max"]) == ((number + 1) / 2, 1, number)
