# SPDX-License-Identifier: BSD-3-Clause
"""What `weir new plugin` writes: it builds against an installed weir with the plain commands, its test passes, and weir runs it."""
import json
import os
import pathlib
import re
import shutil
import sys

import pytest

from installed import CLEAN, ROOT, run

for suite in ("netns", "lint"):
    sys.path.insert(0, str(ROOT / "tests" / suite))

WAYS = {"user": [], "kernel": ["--kernel"], "egress": ["--egress"], "all": ["--kernel", "--egress"], "flows": ["--flows"]}
KERNEL = {"user": 0, "kernel": 2, "egress": 1, "all": 3, "flows": 2}  # tests that run programs in the kernel


def environment(prefix):
    return {**CLEAN, "PKG_CONFIG_PATH": str(next(prefix.rglob("weir.pc")).parent)}


def new_plugin(prefix, folder, *words, check=True):
    return run(prefix / "bin" / "weir", "new", "plugin", *words, cwd=folder, check=check)


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture(scope="module", params=WAYS)
def made(request, prefix, tmp_path_factory):
    """A plugin of each way, built by the commands of its README."""
    folder = tmp_path_factory.mktemp(request.param)
    folder.chmod(0o755)
    new_plugin(prefix, folder, "mill_race", *WAYS[request.param])
    plugin = folder / "mill_race"
    build = run("meson", "setup", "build", cwd=plugin, env=environment(prefix)).stdout
    build += run("nice", "ninja", "-C", "build", cwd=plugin, env=environment(prefix)).stdout
    return request.param, plugin, build


def programs(plugin):
    return sorted(path for path in (plugin / "build").glob("*_test") if path.is_file())


def test_it_builds_without_a_warning_and_its_test_passes(prefix, made):
    way, plugin, build = made
    assert "warning:" not in build, build
    done = run("meson", "test", "-C", "build", cwd=plugin, env=environment(prefix)).stdout
    number = 2 if "egress" in way or way == "all" else 1
    assert re.search(rf"^Ok: +{number} *$", done, re.MULTILINE), done
    assert len(programs(plugin)) == number


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv, to give up what root may do")
def test_its_test_passes_without_privileges_and_says_what_it_skips(made):
    way, plugin, _ = made
    said = ""
    for program in programs(plugin):
        said += run("setpriv", "--bounding-set=-all", "--inh-caps=-all", program).stdout
    assert said.count("kernel halves cannot run here: ") == KERNEL[way], said


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: BPF_PROG_TEST_RUN")
def test_as_root_nothing_is_skipped(made):
    way, plugin, _ = made
    said = "".join(run(program).stdout for program in programs(plugin))
    assert "SKIPPED" not in said and said.count("[       OK ] Kernel") == KERNEL[way], said


def test_its_test_can_fail(prefix, made, tmp_path):
    """The decision turned round: the claims, and with a kernel half the agreement, see it."""
    way, plugin, _ = made
    if way != "kernel":
        pytest.skip("the same for each way: looked at once")
    copy = tmp_path / "mill_race"
    shutil.copytree(plugin, copy, ignore=shutil.ignore_patterns("build"))
    half = copy / "mill_race.bpf.c"
    half.write_text(half.read_text().replace("type ? drop(MILL_RACE_REFUSED) : next()", "type ? next() : drop(MILL_RACE_REFUSED)"))
    run("meson", "setup", "build", cwd=copy, env=environment(prefix))
    run("nice", "ninja", "-C", "build", cwd=copy, env=environment(prefix))
    done = run(copy / "build" / "mill_race_test", check=False)
    if os.geteuid() != 0:
        pytest.skip("needs root: BPF_PROG_TEST_RUN")
    assert done.returncode == 1
    assert "a frame of the type is dropped: the verdict is next 0, not drop own reason 1" in done.stdout
    assert re.search(r"mill_race: frame \d+ in by port [ab], .*: with the kernel half the verdict is", done.stdout), done.stdout


def test_it_builds_by_cmake(prefix, made, tmp_path):
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake")
    _, plugin, _ = made
    done = run("cmake", "-S", plugin, "-B", tmp_path, env=environment(prefix))
    done = run("nice", "cmake", "--build", tmp_path, env=environment(prefix))
    assert "warning:" not in done.stdout + done.stderr, done.stdout + done.stderr
    assert "100% tests passed" in run("ctest", "--test-dir", tmp_path, env=environment(prefix)).stdout
    assert "mill_race" in run(prefix / "bin" / "weir", "plugins", "--dir", tmp_path).stdout


def test_weir_takes_the_configuration_of_its_readme(prefix, made):
    _, plugin, _ = made
    file = plugin / "readme.toml"
    file.write_text(re.search(r"^```toml\n(.*?)^```$", (plugin / "README.md").read_text(), re.MULTILINE | re.DOTALL).group(1))
    checked = run(prefix / "bin" / "weir", "check", file)
    file.unlink()
    assert "valid: 2 ports" in checked.stdout
    shown = run(prefix / "bin" / "weir", "plugins", "--dir", plugin / "build", "mill_race").stdout
    assert shown.startswith("mill_race: drop frames of one EtherType")


def test_it_is_written_in_the_style_of_the_tree(made):
    _, plugin, _ = made
    sources = [path for path in plugin.iterdir() if path.is_file()]
    for path in sources:
        text = path.read_text()
        assert "|" not in text.split("\n", maxsplit=1)[0] and not re.search(r"@\w+@", text.replace("@INPUT@", "").replace("@OUTPUT@", "").replace(
            "@DEPFILE@", "")), path
        assert max(len(line.expandtabs(8)) for line in text.splitlines()) <= 150, path
        assert path.suffix == ".md" or "SPDX-License-Identifier: " in text.splitlines()[0], path
    if shutil.which("clang-format-14"):
        shutil.copy(ROOT / ".clang-format", plugin / ".clang-format")
        done = run("clang-format-14", "--dry-run", *(path for path in sources if path.suffix == ".cc"), cwd=plugin)
        assert done.stderr == "", done.stderr


def test_a_session_of_the_documents_does_what_is_shown(prefix, tmp_path):
    from test_documents import DOCUMENTS, of_installed, printed_as, sessions
    found = [session for path in DOCUMENTS for session in sessions(path) if of_installed(session)]
    assert found
    for session in found:
        for _, command, prints in session:
            env = {**environment(prefix), "PATH": f"{prefix / 'bin'}:{CLEAN['PATH']}"}
            done = run("bash", "-c", command, cwd=tmp_path, env=env)
            said = "".join(line.rstrip() + "\n" for line in done.stdout.splitlines())
            assert not prints or printed_as([line.rstrip() for line in prints], said), f"{command}: {said}"


TAKEN = ["class", "weir", "stage", "patch"]


@pytest.mark.parametrize("name", ["Mill", "mill-race", "1mill", "_mill", "mill_", "mill__race", "", "a" * 25, "../mill", *TAKEN])
def test_a_name_that_does_not_do_is_refused_and_nothing_is_written(prefix, tmp_path, name):
    done = new_plugin(prefix, tmp_path, name, "--kernel", check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"weir: new plugin {name}: the" if name in TAKEN else f'weir: new plugin "{name}": a name is')
    assert files_of(tmp_path) == []


def test_a_folder_that_is_there_is_left_as_it_is(prefix, tmp_path):
    (tmp_path / "mill").mkdir()
    (tmp_path / "mill" / "wheel").write_text("turns")
    done = new_plugin(prefix, tmp_path, "mill", check=False)
    assert done.returncode == 2 and "mill is here already" in done.stderr
    assert files_of(tmp_path) == ["mill", "mill/wheel"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a mount that is full")
def test_nothing_half_written_is_left(prefix, tmp_path):
    """On a file system with room for two of the files."""
    script = f"mount -t tmpfs -o size=8k none {tmp_path} && cd {tmp_path} && {prefix}/bin/weir new plugin mill; echo $?; ls -A {tmp_path}"
    done = run("unshare", "--mount", "bash", "-c", script)
    assert done.stdout == "1\n", done.stdout
    assert "No space left on device" in done.stderr


def swap_under_a_flood(labs, lab, plugin, ask, folder):
    """The plugin is changed and built again, and both its halves take their place while frames come as fast as they can."""
    from test_change import Flood, bench
    if not (labs.BUILD / "bench" / "live_source").exists():
        return
    before = next(port for port in json.loads(ask("stats", "--json").stdout)["ports"] if port["name"] == "left")["rx"]
    sent = bench.udp_frame(60)
    flood = Flood(lab, folder, sent, bytes(60))
    flood.files[0].write_bytes(sent)
    flood.start()
    source = plugin / "mill_race.cc"
    source.write_text(source.read_text().replace('.says = "drop', '.says = "built again: drop'))
    run("ninja", "-C", plugin / "build", "mill_race.so")
    assert "changed stage main.mill_race" in ask("reload").stdout
    assert "nothing to change" in ask("reload").stdout
    flood.stop()

    def settled():
        now = json.loads(ask("stats", "--json").stdout)
        return now if now["account"]["difference"] == 0 and now["account"]["held"] == 0 else None

    now = labs.wait_until(settled, "all frames accounted for")
    seen = flood.seen()[0]
    flood.close()
    left = next(port for port in now["ports"] if port["name"] == "left")
    refused = sum(drop["frames"] for drop in now["drops"] if (drop["where"], drop["reason"]) == ("port right", "device_refused"))
    assert seen + refused == left["rx"] - before, "no frame is lost"
    assert seen > 1000


def readme_config(plugin, lab):
    """The configuration of its README, on the devices of the laboratory."""
    text = re.search(r"^```toml\n(.*?)^```$", (plugin / "README.md").read_text(), re.MULTILINE | re.DOTALL).group(1)
    text = text.replace('plugin_dirs = ["build"]', f'plugin_dirs = ["build"]\nname = "t{lab.id}"').replace("eth0", "p0").replace("eth1", "p1")
    (plugin / "lab.toml").write_text(text)
    return text


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces and XDP")
def test_the_kernel_has_the_later_frames_of_a_flow_that_it_offloads(prefix, made):
    import lab as labs
    way, plugin, _ = made
    if way != "flows":
        pytest.skip("the others offload nothing")
    weir = prefix / "bin" / "weir"
    lab = labs.Lab(2)
    try:
        readme_config(plugin, lab)
        process = lab.switch.start(weir, "run", "lab.toml", env=CLEAN, cwd=plugin)
        labs.wait_until(lambda: "forwarding" in process.text() or process.popen.poll() is not None, "weir starts")
        assert labs.ping(lab.hosts[0], "10.9.0.2", count=6) == 6, process.text()
        stats = json.loads(lab.switch.run(weir, "stats", "--json", "--instance", f"t{lab.id}", env=CLEAN).stdout)
        stage = next(each for each in stats["stages"] if each["stage"] == "mill_race")
        # The first 3 of the 6 requests; the answers come in by the other port, and go on.
        assert stage["counters"]["offloaded"] == 1 and stats["flows"]["hits"] == 3, stats
        assert process.stop() == 0, process.text()
    finally:
        wrong = lab.close()
    assert wrong == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces and XDP")
def test_weir_runs_it_from_the_folder_that_the_file_names(prefix, made, tmp_path):
    import lab as labs
    way, plugin, _ = made
    if way != "all":
        pytest.skip("the whole one is run")
    weir = prefix / "bin" / "weir"
    lab = labs.Lab(2)
    try:
        config = plugin / "lab.toml"
        text = readme_config(plugin, lab)
        process = lab.switch.start(weir, "run", "lab.toml", env=CLEAN, cwd=plugin)
        labs.wait_until(lambda: "forwarding" in process.text() or process.popen.poll() is not None, "weir starts")
        assert labs.ping(lab.hosts[0], "10.9.0.2") == 3, process.text()

        def ask(*words, **options):
            return lab.switch.run(weir, *words, "--instance", f"t{lab.id}", env=CLEAN, **options)

        stats = json.loads(ask("stats", "--json").stdout)
        stage = next(each for each in stats["stages"] if each["stage"] == "mill_race")
        assert stage["plugin"] == "mill_race" and stage["kernel"]["next"] >= 6
        egress = next(each for each in stats["egress"] if each["program"] == "mill_race_egress")
        assert egress["port"] == "right" and egress["frames"] >= 3
        assert "main.mill_race" in ask("stats").stdout

        # From another folder the same file is the same.
        assert "nothing to change" in ask("reload", config).stdout
        swap_under_a_flood(labs, lab, plugin, ask, tmp_path)
        config.write_text(text.replace('["build"]', '["build", "."]'))
        assert "nothing to change" in ask("reload", config).stdout
        assert process.stop() == 0, process.text()
    finally:
        wrong = lab.close()
    assert wrong == []
