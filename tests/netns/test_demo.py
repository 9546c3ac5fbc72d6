# SPDX-License-Identifier: BSD-3-Clause
"""./demo: its claims hold, and it leaves nothing, however it ends."""
import pathlib
import signal
import subprocess
import tempfile

import pytest
from lab import BUILD, ROOT, run, wait_until

pytestmark = pytest.mark.skipif(BUILD.resolve() != (ROOT / "build").resolve() or not (BUILD / "bench" / "live_source").exists(),
                                reason="./demo runs what is in ./build, with its benchmarks")


def everything():
    """What it could leave: namespaces, and files and pins of its instance. A process of its own lives in one of the namespaces."""
    paths = [pathlib.Path("/run/weir").glob("demo.*"), pathlib.Path("/sys/fs/bpf/weir").glob("demo"), pathlib.Path("/tmp").glob("weir-demo*")]
    return sorted(name.split()[0] for name in run("ip", "netns", "list").stdout.splitlines() if "demo" in name), \
        sorted(str(path) for each in paths for path in each)


class Demo:
    def __init__(self):
        self.output = tempfile.TemporaryFile("w+")
        self.popen = subprocess.Popen([ROOT / "demo", "--as-built"], stdout=self.output, stderr=subprocess.STDOUT, text=True)

    def text(self):
        self.output.seek(0)
        return self.output.read()

    def wait_for(self, words):
        wait_until(lambda: words in self.text() or self.popen.poll() is not None, words, 120)
        assert self.popen.poll() is None, self.text()


def test_its_claims_hold_and_it_leaves_nothing():
    was = everything()
    demo = Demo()
    assert demo.popen.wait(180) == 0, demo.text()
    assert everything() == was
    for words in ("What became of all frames", "Side by side", "What to try next"):
        assert words in demo.text(), demo.text()
    assert "\n  ok " in demo.text() and "WRONG" not in demo.text()


@pytest.mark.parametrize("words", ["client ── forwarder", "A conversation begins", "The same traffic through the Linux bridge"],
                         ids=["lab", "weir", "bridge"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_it_leaves_nothing_when_it_is_stopped(number, words):
    was = everything()
    demo = Demo()
    demo.wait_for(words)
    demo.popen.send_signal(number)
    assert demo.popen.wait(60) == (-9 if number == signal.SIGKILL else 128 + number), demo.text()
    wait_until(lambda: everything() == was, "nothing is left", 30)
