# SPDX-License-Identifier: BSD-3-Clause
"""What the documents say, held against the code.

A block ```sh is a session: a line behind "$ " may be run by anyone, one behind "# " needs root, other lines are what the command above
prints, and "…" stands for lines that are left out. A block ```toml is a whole configuration. A block of code belongs to the file whose name
ends the paragraph above it. A table with the columns "file" and "function" names code that exists."""
import json
import os
import pathlib
import re
import secrets
import shlex
import shutil
import subprocess
import sys

import pytest

from test_tree import BUILD, FILES, HOMES, ORDER, ROOT, name, text

DOCUMENTS = sorted(path for path in FILES if path.name == "README.md")
README = ROOT / "README.md"
PLUGINS = ROOT / "plugins" / "README.md"
WEIR = BUILD / "apps" / "weir"
BUILDERS = ("meson", "ninja", "./check", "./demo", ".ci/prepare")  # take long, or change the build: what they name is looked at
SHELL = {"for", "do", "done", "kill"}
ELIDED = "…"
EXAMPLE_LISTS = {"plugins": ("plugins/meson.build", "plugin_names"), "bpf": ("bpf/egress/meson.build", "egress_programs")}


def run(*words, check=True, **options):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, **options)
    assert not check or done.returncode == 0, f"{' '.join(map(str, words))}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text(path), re.MULTILINE | re.DOTALL)


def sessions(path):
    """Each block as a list of (prompt, command, what it prints)."""
    for block in blocks(path, "sh"):
        lines = []
        for each in block.splitlines():
            if each[:2] in ("$ ", "# "):
                lines.append((each[0], each[2:], []))
            else:
                assert lines, f"{name(path)}: a session begins with a prompt, not with {each!r}"
                lines[-1][2].append(each)
        yield lines


def of_installed(session):
    """Whether a session is one with an installed weir: tests/install/test_sdk.py runs those."""
    return session[0][1].startswith("weir ")


def commands():
    return [(path, *line) for path in DOCUMENTS for session in sessions(path) if not of_installed(session) for line in session]


def section(path, title):
    found = re.search(rf"^#+ {re.escape(title)}$\n(.*?)(?=^## |\Z)", text(path), re.MULTILINE | re.DOTALL)
    assert found, f"{name(path)} has no section {title!r}"
    return found.group(1)


def tables(document):
    """Each table as rows, each a dict by the words of the head."""
    for table in re.findall(r"(?:^\|.*\|$\n?)+", document, re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.strip().splitlines()]
        head = [cell.strip(" |") for cell in rows[0]]
        yield [dict(zip(head, (cell.strip(" |") for cell in row))) for row in rows[2:]]


def table(path, title, *columns):
    return next(rows for rows in tables(section(path, title)) if set(columns) <= set(rows[0]))


def code(cell):
    return re.findall(r"`([^`]+)`", cell)


def command_id(value):
    return value if isinstance(value, str) else name(value) if isinstance(value, pathlib.Path) else ""


def examples_of(path):
    """The files that a document gives whole, by their names."""
    found = re.findall(r"`((?:plugins|bpf)/[\w./]+)`\n\n```\w+\n(.*?)^```$", text(path), re.MULTILINE | re.DOTALL)
    return {file: body for file, body in found if not (ROOT / file).exists()}


# Of the README and of that of the plugins, which has one without a kernel half.
EXAMPLE_FILES = {file: body for path in (README, PLUGINS) for file, body in examples_of(path).items()}
# The plugins and egress programs among them, each with the file and the list of the build that its name goes into.
EXAMPLES = {pathlib.Path(file).name.split(".")[0]: EXAMPLE_LISTS[file.split("/", maxsplit=1)[0]]
            for file in EXAMPLE_FILES if file.endswith(".bpf.c") or file == f"plugins/{pathlib.Path(file).stem}/{pathlib.Path(file).stem}.cc"}


# Commands


def simple_commands(line):
    """The words of each command of a line, without what runs it in a namespace."""
    for part in re.split(r";|&&|&$", line):
        words = shlex.split(part)
        while words and (words[0] in ("do", "done") or words[0] == "nsenter"):
            words = words[2:] if words[0] == "nsenter" else words[1:]
        if words and words[0] != "for":
            yield words


def helps(*words):
    return run(WEIR, *words, "--help").stdout


def options_of(help_text):
    return set(re.findall(r"--[a-z][a-z-]*", help_text))


def subcommands(help_text):
    found = re.search(r"Subcommands:\n(.*)", help_text, re.DOTALL)
    return re.findall(r"^  (\w+)", found.group(1), re.MULTILINE) if found else []


def weir_commands(words=()):
    """Every command by its words, with its options."""
    help_text = helps(*words)
    inner = subcommands(help_text)
    if not inner:
        return {" ".join(words): options_of(help_text) - {"--help"}}
    return {key: value for each in inner for key, value in weir_commands((*words, each)).items()}


def suites():
    return re.search(r"^SUITES = (\[.*\])", text(ROOT / "tests" / "run.py"), re.MULTILINE).group(1)


def must_name_a_weir_command(words):
    known = weir_commands()
    ours = next((key for key in known if words[:len(key.split())] == key.split()), None)
    assert ours is not None, f"weir has no command {' '.join(words)}"
    assert {word for word in words if word.startswith("--")} <= known[ours] | {"--help"}


def must_name_a_target(words):
    if not (BUILD / "build.ninja").exists():
        pytest.skip(f"needs a build in {BUILD}")
    known = {line.split(":")[0] for line in run("ninja", "-C", BUILD, "-t", "targets", "all").stdout.splitlines()}
    assert set(words) <= known


@pytest.mark.parametrize("path, prompt, command, prints", commands(), ids=command_id)
def test_a_command_names_what_exists(path, prompt, command, prints):
    del path, prompt, prints
    assert run("bash", "-n", input=command, check=False).returncode == 0 or command.startswith("for "), "no shell takes this"
    for program, *words in simple_commands(command):
        if program in SHELL:
            continue
        made = program.startswith("build/")
        if made:
            assert pathlib.Path(program).name.removesuffix("_tests") in EXAMPLES or (BUILD / program.removeprefix("build/")).exists(), program
        elif "/" in program:
            assert os.access(ROOT / program if program.startswith(".") else program, os.X_OK), program
        elif not shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/sbin"):
            pytest.skip(f"needs {program}")
        for word in words:
            if "/" in word and word[0] not in "-/" and not word.startswith("build"):
                assert (ROOT / word).exists() or re.fullmatch(r"[\d.:a-f]+/\d+", word), f"{word} is not there"
        if program == "build/apps/weir":
            must_name_a_weir_command(words)
        elif program == "ninja":
            must_name_a_target([word for word in words if word not in ("-C", "build")])
        elif program == "./check":
            assert set(words) <= set(json.loads(suites()))
        elif program == "./demo":
            assert set(words) <= options_of(run(ROOT / "demo", "--help").stdout)


def printed_as(shown, said):
    """Whether the lines are those, up to the ones that are left out."""
    pattern = "".join(r"(.*\n)*?" if line.strip() == ELIDED else re.escape(line) + r"\n" for line in shown)
    return re.fullmatch(pattern, said)


def runs_here(command):
    return not command.startswith(BUILDERS) and not any(example in command for example in EXAMPLES)


@pytest.mark.parametrize("path, prompt, command, prints", [each for each in commands() if each[1] == "$" and runs_here(each[2])],
                         ids=command_id)
def test_a_command_for_anyone_does_what_is_shown(path, prompt, command, prints):
    del path, prompt
    program, *words = shlex.split(command)
    program = BUILD / program.removeprefix("build/") if program.startswith("build/") else program
    done = run(program, *words, check=False, cwd=ROOT, env={**os.environ, "PYTEST_ADDOPTS": "-p no:cacheprovider"})
    said = done.stdout + done.stderr
    assert done.returncode == (2 if "config_errors" in command else 0) and "] 0 tests from" not in said, said
    assert not prints or printed_as(prints, said), said


# The quick start, in namespaces and under a name of its own


def quick_start():
    return next(session for session in sessions(README) if any("ip netns add" in command for _, command, _ in session))


def as_script(session, names, config, instance, log):
    yield f"set -e; cd {ROOT}; trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT"
    for _, command, prints in session:
        command = re.sub(r"\b(client|forwarder|server)\b", lambda found: names[found.group(1)], command)
        command = command.replace("config/patch.toml", str(config)).replace("build/apps/weir", str(WEIR))
        command = re.sub(r"(weir (stats|devmap list))$", rf"\1 --instance {instance}", command)
        yield f"echo '== {command.replace(chr(39), '')}'"
        if not command.endswith("&"):
            yield command
            continue
        yield f"{command[:-1]} >{log} 2>&1 &"
        ready = shlex.quote(prints[0].replace(": patch:", f": {instance}:"))
        yield f"for each in $(seq 200); do ! grep -qxF {ready} {log} || break; sleep 0.05; done; grep -xF {ready} {log}"
        yield f"if grep warning {log}; then exit 1; fi"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces and XDP")
def test_the_quick_start_forwards(tmp_path):
    gone = [tool for tool in ("ip", "nsenter", "ethtool", "ping") if not shutil.which(tool)]
    if gone:
        pytest.skip(f"needs {', '.join(gone)}")
    sys.path.insert(0, str(ROOT / "tests" / "netns"))
    import lab as labs
    lab = labs.Lab(0)  # for its guardian
    try:
        names = {each: f"weir-{lab.id}-{each}" for each in ("client", "forwarder", "server")}
        for each in names.values():
            lab.guard(f"ns {each}")
        config, instance = tmp_path / "patch.toml", f"t{secrets.token_hex(4)}"
        config.write_text(text(ROOT / "config" / "patch.toml").replace('name = "patch"', f'name = "{instance}"', 1))
        session = quick_start()
        done = run("bash", input="\n".join(as_script(session, names, config, instance, tmp_path / "log")), check=False, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "3 received" in done.stdout and "difference 0" in done.stdout
        said = {" ".join(line.split()) for line in done.stdout.splitlines()}
        for _, _, prints in session:
            for line in prints:
                words = line.split()
                if words and words != [ELIDED] and not re.search(r"\d", line) and words[0] != "weir:":
                    assert " ".join(words) in said, f"weir does not print {line!r} any more:\n{done.stdout}"
    finally:
        for each in names.values():
            run("ip", "netns", "del", each, check=False)
        wrong = lab.close()
    assert wrong == []


# The picture, and other tables of code


def defines(path, function):
    one = re.escape(function)
    return re.search(rf"#define {one}\(|BPF_PROG\({one},|\b{one}\([^;{{}}]*\)[^;(){{}}]*\{{|\b{one}\([^;{{}}]*\)[^;(){{}}]*:[^;]*\{{", text(path))


def places():
    for path in DOCUMENTS:
        for rows in tables(text(path)):
            if {"file", "function"} <= set(rows[0]):
                yield from ((path, file, function) for row in rows for file in code(row["file"]) for function in code(row["function"]))


@pytest.mark.parametrize("path, file, function", places(), ids=command_id)
def test_a_function_of_a_table_is_where_it_says(path, file, function):
    del path
    assert (ROOT / file).exists(), f"there is no {file}"
    assert defines(ROOT / file, function), f"{file} does not define {function}"


def test_every_arrow_of_the_picture_has_its_code():
    picture = next(block for block in blocks(README, "text") if "ingress program" in block)
    drawn = set(re.findall(r"(?<![\w])(\d+)(?![\w])", picture))
    rows = table(README, "How a frame travels", "arrow", "file", "function")
    assert {row["arrow"] for row in rows} == drawn
    assert drawn == {str(number) for number in range(1, len(drawn) + 1)}
    assert all(code(row["file"]) and code(row["function"]) for row in rows)


def test_paths_in_the_text_exist():
    tops = "|".join(sorted({path.relative_to(ROOT).parts[0] for path in FILES if path.parent != ROOT}))
    for path in DOCUMENTS:
        for span in code(re.sub(r"^```.*?^```$", "", text(path), flags=re.MULTILINE | re.DOTALL)):
            if re.fullmatch(rf"(?:{tops})/[\w./-]+", span) and not any(example in span for example in EXAMPLES):
                assert (ROOT / span).exists(), f"{name(path)}: {span}"


# Names


def test_every_drop_of_the_runtime_is_explained():
    listed = re.search(r"drop_names = \{(.*?)\};", text(ROOT / "core" / "control" / "report.cc"), re.DOTALL).group(1)
    assert [name for row in table(README, "Counters and drops", "reason", "what happened") for name in code(row["reason"])] == \
        re.findall(r'"(\w+)"', listed) + ["unnamed"]


def test_every_column_of_the_counters_is_explained():
    source = text(ROOT / "apps" / "weir" / "show.cc")
    shown = set()
    for function in ("ports_table", "ways_table", "stages_table", "egress_table", "drops_table", "workers_table", "lanes_table"):
        head = re.search(rf"std::string {function}\(.*?Table table\(\{{(.*?)\}}\)", source, re.DOTALL).group(1)
        shown |= set(re.findall(r'"([^"]+)"', head))
    explained = {word for row in table(README, "Counters and drops", "column", "what it counts") for word in code(row["column"])}
    names_of_rows = {"port", "device", "mode", "stage", "plugin", "egress of", "program", "tx of", "thread", "cpu", "parallel stage"}
    assert shown - names_of_rows == explained


CONFIG_OF_ALL_TABLES = """
nothing = 1
weir = { nothing = 1 }
frames = { nothing = 1 }
port = [{ name = "p", device = "d", nothing = 1, egress = [{ program = "count", nothing = 1 }], pipeline = "m" }]
group = [{ name = "g", ports = ["p"], nothing = 1 }]
pipeline = [{ name = "m", nothing = 1, stage = [{ plugin = "patch", pairs = [["p", "p"]], nothing = 1 }] }]
"""


def schema(tmp_path):
    """The keys of each table, as weir tells them of a file that has a wrong one in each."""
    file = tmp_path / "wrong.toml"
    file.write_text(CONFIG_OF_ALL_TABLES)
    said = run(WEIR, "check", file, check=False).stderr
    allowed = {path: keys.split(", ") for path, keys in re.findall(r": ([\w.\[\]]*)nothing: unknown key.*; allowed: (.*)", said)}
    paths = {"[weir]": "weir.", "[frames]": "frames.", "[[port]]": "port[0].", "egress = [{ }]": "port[0].egress[0].", "[[group]]": "group[0].",
             "[[pipeline]]": "pipeline[0].", "[[pipeline.stage]]": "pipeline[0].stage[0]."}
    return {each: [key for key in allowed[path] if key != "pairs"] for each, path in paths.items()}


def test_every_key_is_documented_and_no_other(tmp_path):
    documented = {}
    for row in table(README, "Configuration", "table", "key", "default"):
        documented.setdefault(code(row["table"])[0], []).append(code(row["key"])[0])
    assert {each: sorted(keys) for each, keys in documented.items()} == {each: sorted(keys) for each, keys in schema(tmp_path).items()}


def test_every_driver_is_documented_with_its_keys():
    drivers = json.loads(run(WEIR, "plugins", "--json").stdout)["drivers"]
    rows = table(README, "Drivers", "driver", "keys", "table")
    known = {each["name"]: tuple([key["name"] for key in each[kind]] for kind in ("keys", "settings")) for each in drivers}
    of_others = re.search(r"of_modules\{(.*?)\}", text(ROOT / "core" / "config" / "config.cc")).group(1)
    shown = {code(row["driver"])[0]: (code(row["keys"]), code(row["table"])[1:]) for row in rows}
    # A build without a library lacks its driver.
    assert set(known) <= set(shown) <= set(known) | set(re.findall(r'"(\w+)"', of_others))
    assert {name: shown[name] for name in known} == known


def test_every_key_of_a_driver_is_documented_and_no_other():
    documented = {}
    for row in table(README, "Captures, taps and frames of your own", "driver", "key", "default"):
        documented.setdefault(code(row["driver"])[0], []).append(code(row["key"])[0])
    drivers = json.loads(run(WEIR, "plugins", "--json").stdout)["drivers"]
    assert documented == {each["name"]: [key["name"] for key in each["keys"]] for each in drivers if each["name"] in documented}
    assert {"null", "pcap", "tap"} <= set(documented)


def test_defaults_are_those_of_the_code():
    rows = table(README, "Configuration", "table", "key", "default")
    source = text(ROOT / "core" / "config" / "config.cc")
    one_key = r'Key::\w+\("(\w+)"(?:(?!Key::)[^;])*?\)\.otherwise\("((?:[^"\\]|\\.)*)"\)'
    given = {key: value.replace('\\"', "") for key, value in re.findall(one_key, source)}
    assert {"name", "workers", "count", "driver", "mode", "attach", "zero_copy"} <= set(given)
    for row in rows:
        key, default = code(row["key"])[0], code(row["default"])
        if key in given and (key != "name" or row["table"] == "`[weir]`"):
            assert default == [given[key]], f"{row['table']} {key}"
    header = text(ROOT / "core" / "config" / "config.hh")
    assert next(code(row["default"]) for row in rows if code(row["key"]) == ["size"]) == re.findall(r"frame_size = (\d+);", header)


def test_choices_are_those_of_the_code():
    source = text(ROOT / "core" / "config" / "config.cc")
    for row in table(README, "Configuration", "table", "key", "default"):
        found = re.search(rf'Key::string\("{code(row["key"])[0]}", \{{(.*?)\}}\)', source)
        if found:
            assert code(row["allowed"]) == re.findall(r'"(\w+)"', found.group(1))


def test_every_command_is_documented_and_no_other():
    shown = {}
    for row in table(README, "Command line", "command", "does"):
        words = code(row["command"])[0].split()[1:]
        key = " ".join(word for word in words if word.islower() and not word.startswith("--"))
        shown.setdefault(key, set()).update(word for each in code(" ".join(row.values())) for word in each.split() if word.startswith("--"))
    known = weir_commands()
    assert set(shown) == set(known)
    everywhere = {"--instance"}
    assert "--instance" in section(README, "Command line")
    for command, options in known.items():
        assert shown[command] == options - everywhere, command


def test_what_is_missing_is_missing():
    absent = section(README, "What it does not do")
    assert 'Key::string("attach", {"exclusive"})' in text(ROOT / "core" / "config" / "config.cc")
    assert not {"doctor", "trace", "capture", "gen", "bench"} & {key.split()[0] for key in weir_commands()}
    plugins = json.loads(run(WEIR, "plugins", "--json").stdout)["plugins"]
    assert code(re.search(r"^- Plugins: (.*?)\.", absent, re.MULTILINE).group(1)) == sorted((each["name"] for each in plugins), reverse=True)


def test_dependencies_are_those_of_the_build():
    found = dict(re.findall(r"dependency\('(\w+)', version: '>=([\d.]+)'", text(ROOT / "meson.build")))
    rows = table(README, "Dependencies", "dependency", "at least", "home")
    assert {code(row["dependency"])[0]: row["at least"] for row in rows} == found
    homes = {code(row["dependency"])[0]: code(row["home"]) for row in rows}
    wanted = {"tomlplusplus": "toml++", "libbpf": "bpf/libbpf.h", "libxdp": "xdp/", "tbb": "tbb/", "CLI11": "CLI/"}
    assert {dependency: homes[dependency] for dependency in wanted} == {dependency: HOMES[key][:1] for dependency, key in wanted.items()}


def test_the_layout_is_the_order_that_is_checked():
    line = next(span for span in code(section(README, "Layout").replace("\n", " ")) if "→" in span)
    assert [each.strip() for each in line.split("→")] == ORDER


def test_every_map_is_documented():
    declared = {each for path in FILES if path.is_relative_to(ROOT / "bpf") and path.suffix in (".c", ".h")
                for each in re.findall(r'^\} (\w+) SEC\("\.maps"\)', text(path), re.MULTILINE)}
    declared |= {"entries", "state"}  # which programs know by their address alone: enum link_memory
    documented = {each for rows in tables(section(ROOT / "bpf" / "README.md", "Maps")) for row in rows for each in code(row["map"])}
    assert documented == declared


def test_every_test_of_the_devmaps_contract_exists():
    """And every test of a row of the contract is named there."""
    rows = [line for line in (ROOT / "bpf/README.md").read_text().splitlines() if re.match(r"\| \d+ \| ", line)]
    assert len(rows) == len({row.split(" | ")[0] for row in rows}) == 11
    sources = "".join(file.read_text() for folder in ("unit", "netns", "vm") for file in sorted((ROOT / "tests" / folder).glob("*[_.]*"))
                      if file.suffix in (".cc", ".py"))
    named = {name for row in rows for name in re.findall(r"`((?:row|test)_\w+)`", row)}
    assert {name for name in named if not re.search(rf"\b{name}\b", sources)} == set()
    assert set(re.findall(r"\brow_\d+_\w+", sources)) <= named


def test_every_verdict_of_a_kernel_half_is_documented():
    declared = re.findall(r"stage_verdict (\w+)\([^)]*\) \{ return STAGE_VERDICT", text(ROOT / "bpf" / "lib" / "stage.bpf.h"))
    rows = next(rows for rows in tables(section(ROOT / "bpf" / "README.md", "A kernel half")) if "verdict" in rows[0])
    assert sorted(code(row["verdict"])[0].split("(")[0] for row in rows) == sorted(declared)


def test_every_type_of_a_key_is_documented_with_how_it_is_read():
    rows = table(PLUGINS, "Keys", "declared", "in the file", "read by")
    declared = re.findall(r"^  static Key (\w+)\(", text(ROOT / "core" / "config" / "schema.hh"), re.MULTILINE)
    assert [re.match(r"Key::(\w+)\(", code(row["declared"])[0]).group(1) for row in rows] == declared
    node = re.search(r"^class ConfigNode \{(.*?)^\};", text(ROOT / "core" / "config" / "node.hh"), re.MULTILINE | re.DOTALL).group(1)
    readers = set(re.findall(r"\] \S.*? &?(\w+)\(std::string_view key\) const;", node))
    assert {"boolean", "integer", "list", "tables"} <= readers
    assert {code(row["read by"])[0].removeprefix("keys.") for row in rows} == readers


def test_every_header_that_is_named_for_an_author_is_installed():
    rows = table(PLUGINS, "What to read for what", "to", "read")
    named = {each for row in rows for each in code(row["read"]) if "/" in each}
    assert {"core/plugin.hh", "core/frame/wire.hh", "core/pipeline/flows.hh", "bpf/lib/stage.bpf.h"} <= named
    assert named - installed_headers() == set()


def installed_headers():
    """By the names that they are included by."""
    if not (BUILD / "build.ninja").exists():
        pytest.skip(f"needs a build in {BUILD}")
    plan = json.loads(run("meson", "introspect", "--install-plan", BUILD).stdout)
    return {file["destination"].removeprefix("{includedir}/weir/") for file in plan["headers"].values()}


def test_all_of_the_kit_is_documented():
    kit = section(PLUGINS, "Tests")
    headers = re.search(r"install_headers\((.*?), subdir", text(ROOT / "tests" / "kit" / "meson.build")).group(1)
    rows = table(PLUGINS, "Tests", "header", "what is in it")
    assert sorted(code(row["header"])[0] for row in rows) == sorted(f"kit/{each}" for each in re.findall(r"'([\w.]+)'", headers))
    words = set(re.findall(r"\w+", " ".join(code(kit))))
    for row in rows:
        source = text(ROOT / "tests" / code(row["header"])[0])
        names = set(re.findall(r"^(?:class|struct|using) (\w+) ?[={f]", source, re.MULTILINE))
        names |= set(re.findall(r"^(?:inline |constexpr )?[A-Za-z][\w:<>]*(?: |& )(\w+)(?:\(| = \{)", source, re.MULTILINE))
        assert names and names <= words, (row["header"], names - words)


def test_a_piece_of_a_user_half_compiles():
    """Those blocks of the plugins' README that are no whole files: of a function that has a frame."""
    pieces = [block for block in blocks(PLUGINS, "cpp") if block not in EXAMPLE_FILES.values()]
    assert pieces
    flags = next(entry for entry in json.loads((BUILD / "compile_commands.json").read_text()) if entry["file"].endswith("core/pipeline/flow_key.cc"))
    words = [word for word in shlex.split(flags["command"]) if word.startswith(("-I", "-std"))]
    source = '#include <linux/in.h>\n#include "core/plugin.hh"\nusing namespace weir;\n'
    source += "".join(f"void piece{number}([[maybe_unused]] Frame& frame) {{\n{piece}}}\n" for number, piece in enumerate(pieces))
    done = run("g++", *words, "-fsyntax-only", "-x", "c++", "-", input=source, cwd=flags["directory"], check=False)
    assert done.returncode == 0, done.stderr


def test_every_suite_is_documented():
    rows = next(rows for rows in tables(text(ROOT / "tests" / "README.md")) if "suite" in rows[0])
    assert [code(row["suite"])[0] for row in rows] == json.loads(suites())


def test_what_the_demo_is_shown_to_print_is_in_it():
    shown = next(block for block in blocks(README, "text") if "namespace weir-demo" in block or "A conversation" in block)
    source = text(ROOT / "demo")
    titles = [line for line in shown.splitlines() if line and line[0] not in f" {ELIDED}"]
    assert titles and all(f'"{line}' in source for line in titles), titles


# The examples: a plugin and an egress program, in a copy of the tree


def compiler(suffix):
    """Of the build, for files whose names end so."""
    entries = json.loads((BUILD / "compile_commands.json").read_text())
    return next(entry["command"] for entry in entries if pathlib.Path(entry["file"]).suffix == suffix).split(" -")[0]


class Tree:
    """A copy of the tree with the examples in it. What they need that is built already comes from the build."""

    def __init__(self, folder):
        self.root, self.build = folder / "tree", folder / "tree" / "build"
        for path in FILES:
            to = self.root / path.relative_to(ROOT)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, to, follow_symlinks=False)
        for file, body in EXAMPLE_FILES.items():
            (self.root / file).parent.mkdir(parents=True, exist_ok=True)
            (self.root / file).write_text(body)
        for each, (file, names) in EXAMPLES.items():
            meson = self.root / file
            done, number = re.subn(rf"^({names} = \[[^\]]*)\]$", rf"\1, '{each}']", meson.read_text(), count=1, flags=re.MULTILINE)
            assert number == 1, f"{file} has no list {names}"
            meson.write_text(done)
        chosen = [f"-D{option['name']}={option['value']}" for option in json.loads(run("meson", "introspect", BUILD, "--buildoptions").stdout)
                  if option["name"] in ("buildtype", "b_sanitize", "b_lundef")]
        run("meson", "setup", self.build, self.root, *chosen, env={**os.environ, "CC": compiler(".c"), "CXX": compiler(".cc")})
        self.borrow()
        self.make()

    def borrow(self):
        for path in (each for part in ("core", "apps", "plugins", "tests") for each in (BUILD / part).rglob("*")):
            to = self.build / path.relative_to(BUILD)
            if path.is_dir() or to.exists() or path.suffix == ".d":
                continue
            to.parent.mkdir(parents=True, exist_ok=True)
            # A copy, where the place of the file tells the dynamic linker where to look for others.
            if ".so" in path.name or path == WEIR:
                shutil.copy2(path, to)
            else:
                to.symlink_to(path)

    def make(self):
        """By the commands that the build has for what is new."""
        targets = [target for target in run("ninja", "-C", self.build, "-t", "targets", "all").stdout.splitlines()
                   if re.match(rf"(plugins/(egress_)?|tests/)({'|'.join(EXAMPLES)})(\.so|_tests):", target)]
        plugins = [each for each, (_, lists) in EXAMPLES.items() if lists == "plugin_names"]
        assert len(targets) == len(EXAMPLES) + len(plugins), targets
        listed = run("ninja", "-C", self.build, "-t", "commands", *(target.split(":")[0] for target in targets)).stdout.splitlines()
        new = [line for line in listed if any(each in line for each in EXAMPLES)]
        done = run("bash", "-e", input="\n".join(new), cwd=self.build)
        assert "warning:" not in done.stderr, done.stderr


@pytest.fixture(scope="module", name="tree")
def make_tree(tmp_path_factory):
    missing = [tool for tool in ("meson", "ninja", "bash") if not shutil.which(tool)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    if not WEIR.exists() or not (BUILD / "compile_commands.json").exists():
        pytest.skip(f"needs a build in {BUILD}")
    return Tree(tmp_path_factory.mktemp("examples"))


def test_there_is_a_plugin_and_an_egress_program():
    assert {lists for _, lists in EXAMPLES.values()} == {"plugin_names", "egress_programs"}


def test_the_examples_build_and_the_plugin_passes_its_test(tree):
    for each, (_, lists) in EXAMPLES.items():
        if lists == "plugin_names":
            done = run(tree.build / "tests" / f"{each}_tests")
            assert "] 0 tests from" not in done.stdout, done.stdout


@pytest.mark.parametrize("command, prints", [(command, prints) for _, prompt, command, prints in commands()
                                             if prompt == "$" and not command.startswith(BUILDERS) and not runs_here(command)], ids=command_id)
def test_a_command_for_an_example_does_what_is_shown(tree, command, prints):
    done = run(*shlex.split(command), cwd=tree.root)
    assert not prints or printed_as(prints, done.stdout), done.stdout


@pytest.mark.parametrize("path, number, config", [(path, number, each) for path in DOCUMENTS for number, each in enumerate(blocks(path, "toml"))],
                         ids=command_id)
def test_a_configuration_is_valid(request, tmp_path, path, number, config):
    del path, number
    weir = request.getfixturevalue("tree").build / "apps" / "weir" if any(each in config for each in EXAMPLES) else WEIR
    file = tmp_path / "document.toml"
    file.write_text(config)
    assert "valid" in run(weir, "check", file).stdout
