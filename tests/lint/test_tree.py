# SPDX-License-Identifier: BSD-3-Clause
"""What can be said of every file without running it."""
import json
import os
import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get("WEIR_BUILD", ROOT / "build"))
LISTED = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True).stdout
FILES = sorted(ROOT / name.decode() for name in LISTED.split(b"\0") if name and (ROOT / name.decode()).exists())
CODE = [path for path in FILES if path.suffix in (".cc", ".hh", ".c", ".h")]
SCRIPTS = [path for path in FILES if path.suffix == ".py" or path.name in ("demo", "check", "run", "prepare", "meson.build", "meson.options")]
# Dataflow order (the README's layout): a folder looks at itself and at those before it.
ORDER = ["bpf/abi", "bpf/lib", "bpf/ingress", "bpf/egress", "core/base", "core/frame", "core/config", "core/kernel", "core/port",
         "core/pipeline", "core/worker", "core/control", "plugins", "apps"]
# Each library has one home; tests may use what they test.
HOMES = {"toml++": ["core/config"], "bpf/libbpf.h": ["core/kernel", "bench"], "xdp/": ["core/port"], "tbb/": ["core/worker"], "pcap/": ["core/port"],
         "CLI/": ["apps"], "libmnl/": ["plugins/router"], "rte_": ["core/port", "plugins", "bench"]}


def name(path):
    return str(path.relative_to(ROOT)) if isinstance(path, pathlib.Path) else str(path)


def text(path):
    return path.read_text(encoding="utf-8")


def folder(path):
    return next((each for each in ORDER if name(path).startswith(each + "/")), None)


def includes(path):
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', text(path), re.MULTILINE)


@pytest.mark.parametrize("path", CODE + SCRIPTS, ids=name)
def test_has_its_licence_in_the_first_lines(path):
    head = "\n".join(text(path).splitlines()[:2])
    kernel = name(path).startswith("bpf/") or path.name.endswith((".bpf.c", ".bpf.h")) or (path.suffix == ".h" and "plugins/" in name(path))
    wanted = "GPL-2.0-only OR BSD-3-Clause" if kernel and path.suffix in (".c", ".h") else "BSD-3-Clause"
    assert f"SPDX-License-Identifier: {wanted}" in head


@pytest.mark.parametrize("path", CODE, ids=name)
def test_says_what_it_is(path):
    assert re.match(r"(//|/\*) [\w. ,+-]+: \w.*", text(path).splitlines()[1]), text(path).splitlines()[1]


@pytest.mark.parametrize("path", CODE + SCRIPTS, ids=name)
def test_lines_are_short_and_clean(path):
    for number, line in enumerate(text(path).splitlines(), 1):
        width = len(line.expandtabs(8)) if path.suffix in (".c", ".h") else len(line)
        assert width <= 150, f"line {number} has {width} characters"
        assert line == line.rstrip(), f"line {number} ends in blanks"
    assert text(path).endswith("\n")


def test_the_user_side_is_formatted_as_the_file_clang_format_says():
    formatter = shutil.which("clang-format-14")
    if formatter is None:
        pytest.skip("needs clang-format-14: other versions break lines elsewhere")
    files = [path for path in CODE if path.suffix in (".cc", ".hh")]
    done = subprocess.run([formatter, "--dry-run", *files], cwd=ROOT, capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if "warning:" in line] == []


@pytest.mark.parametrize("path", [path for path in CODE if folder(path)], ids=name)
def test_looks_only_at_folders_before_its_own(path):
    allowed = ORDER[:ORDER.index(folder(path)) + 1]
    if path.name.endswith("_test.cc"):
        return
    for include in includes(path):
        target = next((each for each in ORDER if include.startswith(each + "/")), None)
        # An egress program's skeleton is built from the folder of its source.
        assert target is None or target in allowed, f"{include}: {target} comes after {folder(path)}"
        assert not include.startswith("../"), include


@pytest.mark.parametrize("library", HOMES)
def test_a_library_has_one_home(library):
    strangers = [name(path) for path in CODE for include in includes(path)
                 if include.startswith(library) and not name(path).startswith((*HOMES[library], "tests/"))]
    assert strangers == []


@pytest.mark.parametrize("path", [path for path in CODE if path.suffix in (".hh", ".h") and not path.name.endswith(".bpf.h")], ids=name)
def test_a_header_compiles_alone(path):
    compiler = shutil.which("g++")
    commands = json.loads((BUILD / "compile_commands.json").read_text())
    own = str(path.relative_to(ROOT).with_suffix(".cc"))  # a driver's needs the library of the driver
    flags = next((entry for entry in commands if entry["file"].endswith(own)), None)
    flags = flags or next(entry for entry in commands if entry["file"].endswith("core/pipeline/kernel_side.cc"))
    words = flags["command"].split()
    keep = [word for word in words if word.startswith(("-I", "-isystem", "-std", "-W", "-D"))]
    keep += [part for word, argument in zip(words, words[1:]) if word == "-include" for part in (word, argument)]
    keep = [word for word in keep if word != "-Winvalid-pch"] + [f"-I{ROOT / 'tests'}"]
    done = subprocess.run([compiler, *keep, "-fsyntax-only", "-x", "c++", "-"], cwd=flags["directory"], input=f'#include "{path}"\n',
                          capture_output=True, text=True, check=False)
    complaint = [line for line in done.stderr.splitlines() if "error" in line]
    assert complaint == [], complaint


def test_the_top_level_is_what_the_layout_says():
    known = {"meson.build", "meson.options", "meson_options.txt", "README.md", "LICENSE", "demo", "check", "core", "plugins", "bpf", "apps", "config",
             "bench", "tests"}
    top = {path.relative_to(ROOT).parts[0] for path in FILES}
    assert {each for each in top if not each.startswith(".")} <= known


def test_nothing_large_is_kept():
    assert [name(path) for path in FILES if path.stat().st_size > 1 << 20] == []


def test_no_path_of_a_machine_and_no_unfinished_work():
    words = re.compile(r"(^|[^\w.])/(work|home|farm)/|\b(TODO|FIXME|XXX|HACK)\b|not implemented")
    found = [f"{name(path)}:{number}" for path in FILES if path.suffix != ".pcap" and "config_" not in name(path)
             for number, line in enumerate(text(path).splitlines(), 1) if words.search(line) and path != pathlib.Path(__file__).resolve()]
    assert found == []


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "README.md"], ids=name)
def test_links_of_a_document_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text(path)):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_every_example_configuration_is_valid():
    plugins = subprocess.run([BUILD / "apps" / "weir", "plugins", "--json"], capture_output=True, check=True)
    known = {each["name"] for kind in ("plugins", "drivers") for each in json.loads(plugins.stdout)[kind]} | {"xdp"}
    for path in sorted((ROOT / "config").glob("*.toml")):
        if not set(re.findall(r'^\s*(?:plugin|driver) = "(\w+)"', text(path), re.MULTILINE)) <= known:
            continue  # of a build without DPDK
        done = subprocess.run([BUILD / "apps" / "weir", "check", path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
