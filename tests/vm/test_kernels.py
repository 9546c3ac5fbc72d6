# SPDX-License-Identifier: BSD-3-Clause
"""Weir on other kernels: those that tests/vm/fetch found, each under qemu without KVM. What is claimed there stands in scenario.py; besides, the
unit tests of the kernel halves run there."""
import ctypes
import json
import os
import pathlib
import platform
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml

import pytest

import initrd
import scenario

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get("WEIR_BUILD", ROOT / "build"))
QEMU = "qemu-system-x86_64"
# cx16=off: qemu 7.2 crashes Linux 6.12 with it.
MACHINE = ["-accel", "tcg,thread=multi", "-cpu", "max,cx16=off", "-smp", "2", "-m", "1024", "-M", "q35", "-nodefaults", "-no-reboot",
           "-display", "none"]
COMMAND_LINE = "console=ttyS0 quiet panic=-1 mitigations=off"
LIMIT_S = 600  # it takes 60 on two idle CPUs
KERNELS = sorted(path.parent for path in (BUILD / "vm").glob("*/vmlinuz"))
CLAIMS = [name for name in vars(scenario) if name.startswith("test_")]
TAINTED_BY_OOPS_OR_WARNING = 1 << 7 | 1 << 9


def missing():
    if platform.machine() != "x86_64":
        return "needs an x86_64 host: the guests run its programs"
    gone = [tool for tool in [QEMU, *initrd.TOOLS] if initrd.tool(tool) is None]
    if gone:
        return f"needs {', '.join(gone)}"
    return "" if KERNELS else "no kernel to boot: run tests/vm/fetch, with --build FOLDER for another build than ./build"


WHY = missing()
pytestmark = pytest.mark.skipif(bool(WHY), reason=WHY)
on_every_kernel = pytest.mark.parametrize("guest", KERNELS or ["none"], indirect=True,
                                          ids=[".".join(kernel.name.split(".")[:2]) for kernel in KERNELS] or ["none"])


class Guest:
    """A virtual machine. It starts at once, and tells what became of it when it is asked."""

    def __init__(self, kernel, image):
        self.console, report = tempfile.TemporaryFile("w+", errors="replace"), tempfile.TemporaryFile("w+")
        self.report, self.said = report, None
        self.process = subprocess.Popen(
            [QEMU, *MACHINE, "-kernel", kernel / "vmlinuz", "-initrd", f"/proc/self/fd/{image}", "-append", COMMAND_LINE,
             "-serial", "stdio", "-serial", f"file:/proc/self/fd/{report.fileno()}"],
            stdin=subprocess.DEVNULL, stdout=self.console, stderr=subprocess.STDOUT, pass_fds=[image, report.fileno()], preexec_fn=die_with_parent)

    def text(self):
        self.console.seek(0)
        return self.console.read()

    def ends(self):
        """Whether it came to its end and told of it."""
        if self.said is None:
            try:
                self.process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.report.seek(0)
            text = self.report.read()
            self.said = json.loads(text) if text else {}
        return bool(self.said)

    def tell(self):
        if not self.ends():
            pytest.fail("the guest gave no report: see test_it_boots_and_reports", pytrace=False)
        return self.said

    def outcomes(self, report):
        """Name and failure of each test in a report that ran; None: it passed."""
        document = self.tell()["reports"].get(report)
        assert document, f"{report} left no report; the console:\n{self.text()}"
        for case in xml.fromstring(document).iter("testcase"):
            if case.get("status") != "notrun":
                bad = [each.text or each.get("message") for each in case if each.tag in ("failure", "error", "skipped")]
                yield case.get("name"), bad[0] if bad else None


def die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def expect_nothing_wrong(outcomes):
    """What went wrong is a text of the guest's, and is shown whole."""
    wrong = [f"{name}: {why}" for name, why in outcomes.items() if why]
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)


@pytest.fixture(scope="session")
def guests():
    """All of them run at the same time."""
    image = os.memfd_create("initrd")
    with open(image, "wb", closefd=False) as file:
        file.write(initrd.build_initrd(BUILD, KERNELS))
    made = {kernel: Guest(kernel, image) for kernel in KERNELS}
    os.close(image)
    yield made
    for guest in made.values():
        guest.process.kill()
        guest.process.wait()


@pytest.fixture
def guest(request, guests):
    return guests[request.param]


@on_every_kernel
def test_it_boots_and_reports(guest):
    if not guest.ends():
        pytest.fail(guest.text(), pytrace=False)


@on_every_kernel
@pytest.mark.parametrize("claim", CLAIMS)
def test_scenario(guest, claim):
    outcomes = {name: why for name, why in guest.outcomes("scenario") if name.partition("[")[0] == claim}
    assert outcomes, f"the guest never came to {claim}; its console:\n{guest.text()}"
    expect_nothing_wrong(outcomes)


@on_every_kernel
def test_kernel_halves_do_there_what_their_unit_tests_claim(guest):
    ran = 0
    for program, code in guest.tell()["codes"].items():
        if program != "scenario":
            outcomes = dict(guest.outcomes(program))
            ran += len(outcomes)
            expect_nothing_wrong(outcomes)
            assert code == 0, guest.text()
    assert ran > 0, "no test of a kernel half ran"


@on_every_kernel
def test_the_kernel_itself_has_no_complaint(guest):
    assert guest.tell()["tainted"] & TAINTED_BY_OOPS_OR_WARNING == 0, guest.text()
