# SPDX-License-Identifier: BSD-3-Clause
"""What `meson install` gives: it runs from anywhere, and a plugin outside of this tree builds against it."""
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from installed import BUILD, CLANGS, CLEAN, ROOT, run

sys.path.insert(0, str(ROOT / "tests" / "netns"))


@pytest.fixture(scope="module")
def flags(tree):
    """Of pkg-config for a program of another project."""
    folder = next(tree.rglob("weir.pc")).parent

    def ask(*words):
        return run("pkg-config", f"--define-variable=prefix={tree}", *words, "weir", env={**CLEAN, "PKG_CONFIG_PATH": str(folder)}).stdout.split()

    return ask


def test_everything_is_there(tree):
    names = {path.relative_to(tree).name for path in tree.rglob("*") if path.is_file()}
    wanted = {"weir", "weir.pc", "weir-kit.pc", "libweir_kit.a", "table.hh", "frames.hh", "traffic.hh", "plugin_kit.hh", "egress_kit.hh", "plugin.hh",
              "egress.hh", "stage.bpf.h", "egress.bpf.h", "account.h", "patch.so", "l2_switch.so", "egress_count.so",
              "egress_mac_rewrite.so", "driver_dpdk.so", "driver_pcap.so", "ingress.bpf.o", "l2_switch.bpf.o", "count.bpf.o",
              *(path.name for path in (ROOT / "config").glob("*.toml"))}
    assert wanted - names == set()
    headers, documents = tree / "include" / "weir", tree / "share" / "doc" / "weir"
    assert (headers / "core" / "frame" / "wire.hh").exists()
    for folder in ("", "bench", "bpf", "core", "plugins", "tests"):
        assert (documents / folder / "README.md").read_text() == (ROOT / folder / "README.md").read_text()


def test_the_program_runs_from_anywhere(tree):
    listed = run(tree / "bin" / "weir", "plugins").stdout
    plugins = sorted(path.parent.name for path in (ROOT / "plugins").glob("*/*.bpf.c"))
    programs = sorted(path.name.removesuffix(".bpf.c") for path in (ROOT / "bpf" / "egress").glob("*.bpf.c"))
    assert len(plugins) >= 2 and len(programs) >= 2
    listed = re.findall(r"^(\w+) ", listed, re.MULTILINE)[1:]
    drivers = ["dpdk", "null", "pcap", "tap"]
    assert listed[:-len(drivers)] == plugins + programs and listed[-len(drivers):] == drivers
    libraries = run("ldd", tree / "bin" / "weir").stdout
    assert str(tree) in next(line for line in libraries.splitlines() if "libweir" in line)
    assert "not found" not in libraries
    for path in tree.rglob("*"):
        if path.is_file() and path.suffix in ("", ".so"):
            assert str(BUILD).encode() not in path.read_bytes(), f"{path.name} names the build folder"


def test_its_example_configurations_are_valid(tree):
    files = sorted(tree.rglob("*.toml"))
    assert len(files) >= 3
    for file in files:
        assert "valid" in run(tree / "bin" / "weir", "check", file).stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces and XDP")
def test_it_forwards(tree):
    import lab as labs
    lab = labs.Lab(2)
    try:
        lab.switch.run("ip", "link", "set", "p0", "down")
        for old, new in (("p0", "eth0"), ("p1", "eth1")):
            lab.switch.run("ip", "link", "set", old, "down")
            lab.switch.run("ip", "link", "set", old, "name", new)
            lab.switch.run("ip", "link", "set", new, "up")
        text = next(tree.rglob("patch.toml")).read_text().replace('name = "patch"', f'name = "t{lab.id}"', 1)
        file = tree / f"{lab.id}.toml"
        file.write_text(text)
        process = lab.switch.start(tree / "bin" / "weir", "run", file, env=CLEAN, cwd="/")
        labs.wait_until(lambda: "forwarding" in process.text() or process.popen.poll() is not None, "weir starts")
        assert labs.ping(lab.hosts[0], "10.9.0.2") == 3, process.text()
        assert process.stop() == 0, process.text()
    finally:
        wrong = lab.close()
    assert wrong == []


def test_every_installed_header_compiles_alone(flags):
    include = pathlib.Path(next(flag[2:] for flag in flags("--cflags") if flag.endswith("/weir")))
    headers = sorted(include.rglob("*.hh")) + sorted((include / "bpf" / "abi").glob("*.h"))
    assert len(headers) > 20
    text = "".join(f'#include "{header.relative_to(include)}"\n' for header in headers)
    run("g++", *flags("--cflags"), "-fsyntax-only", "-x", "c++", "-", input=text)  # lint compiles each one alone


def test_a_plugin_outside_of_the_tree_builds_loads_and_is_checked(tree, flags, tmp_path):
    """The folder of patch under another name, with a kernel half: as a project of its own would build it."""
    folder = tmp_path / "plugins" / "wire"
    folder.mkdir(parents=True)
    for path in (ROOT / "plugins" / "patch").iterdir():
        if "test" not in path.name:
            text = path.read_text().replace("patch", "wire").replace("Patch", "Wire").replace("PATCH", "WIRE")
            (folder / path.name.replace("patch", "wire")).write_text(text)
    clang = next(clang for clang in CLANGS if shutil.which(clang))
    multiarch = run("gcc", "-dumpmachine").stdout.strip()
    include = [flag for flag in flags("--cflags") if flag.startswith("-I")]
    run(clang, *flags("--variable=bpfflags"), *include, f"-I/usr/include/{multiarch}", f"-I{tmp_path}", "-c", folder / "wire.bpf.c",
        "-o", folder / "wire.bpf.o")
    bpftool = shutil.which("bpftool") or "/usr/sbin/bpftool"
    (folder / "wire.skel.h").write_text(run(bpftool, "gen", "skeleton", folder / "wire.bpf.o", "name", "wire").stdout)
    plugins = pathlib.Path(flags("--variable=plugindir")[0])
    module = plugins / "wire.so"
    run("g++", "-shared", "-fPIC", *flags("--cflags"), f"-I{tmp_path}", f"-I{folder}", folder / "wire.cc", *flags("--libs"), "-o", module)
    try:
        assert run(tree / "bin" / "weir", "plugins", "wire").stdout.startswith("wire: ")
        file = tmp_path / "wire.toml"
        file.write_text((ROOT / "config" / "patch.toml").read_text().replace('"patch"', '"wire"'))
        assert "valid" in run(tree / "bin" / "weir", "check", file).stdout
        twin = plugins / "wire_again.so"
        shutil.copy(module, twin)
        try:
            done = run(tree / "bin" / "weir", "plugins", check=False)
        finally:
            twin.unlink()
        assert done.returncode == 1
        assert str(module) in done.stderr and str(twin) in done.stderr and "two plugins are named wire" in done.stderr
    finally:
        module.unlink()


def test_a_program_outside_of_the_tree_with_a_stage_of_its_own_builds_and_has_the_plugins_that_came_with_weir(tree, flags, tmp_path):
    """The example of apps/embed: its file is read by the schemas of its own stage and of patch, and fails for want of a device."""
    for path in (ROOT / "apps" / "embed").iterdir():
        shutil.copy(path, tmp_path)
    done = run("g++", "-Wall", "-Wextra", "embed.cc", *flags("--cflags", "--libs"), "-o", "embed", cwd=tmp_path)
    assert "warning:" not in done.stderr, done.stderr
    libraries = next(tree.rglob("libweir.so")).parent
    config = tmp_path / "embed.toml"
    config.write_text(config.read_text().replace("eth0", "nowhere0"))

    def embed():
        return run(tmp_path / "embed", config, env={**CLEAN, "LD_LIBRARY_PATH": str(libraries)}, check=False)

    assert "nowhere0" in embed().stderr and ":" + str(config) not in embed().stderr
    config.write_text(config.read_text().replace('"patch"', '"pitch"').replace('"udp"', '"upd"'))
    done = embed()
    assert done.returncode == 2
    assert "pitch" in done.stderr and '"upd"' in done.stderr
