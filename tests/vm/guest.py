#!/usr/bin/python
# SPDX-License-Identifier: BSD-3-Clause
"""guest: process 1 of a virtual machine: sets the system up, runs what is to be run, sends the reports, and turns it off."""
import ctypes
import json
import os
import pathlib
import sys
import termios
import tty

WEIR = pathlib.Path("/weir")
REPORTS = pathlib.Path("/tmp/reports")
# In this order: bridge needs the two before it.
MODULES = ["veth", "tun", "llc", "stp", "bridge"]
FILE_SYSTEMS = [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/run"), ("bpf", "/sys/fs/bpf")]
RB_POWER_OFF = 0x4321FEDC
LIBC = ctypes.CDLL(None, use_errno=True)


def must(done, what):
    if done != 0:
        raise OSError(ctypes.get_errno(), what)


def set_up():
    for kind, path in FILE_SYSTEMS:
        os.makedirs(path, exist_ok=True)
        must(LIBC.mount(kind.encode(), path.encode(), kind.encode(), 0, None), f"mount {path}")
    for name in MODULES:
        image = pathlib.Path("/modules", os.uname().release, f"{name}.ko").read_bytes()
        must(LIBC.init_module(image, ctypes.c_ulong(len(image)), b""), f"load {name}")
    REPORTS.mkdir(parents=True)


def run(*words):
    """Runs a program to its end, and buries whoever dies meanwhile: process 1 inherits them."""
    started = os.posix_spawn(words[0], list(map(str, words)), {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "WEIR_BUILD": str(WEIR / "build"), "PYTHONDONTWRITEBYTECODE": "1", "TERM": "dumb"})
    while True:
        pid, status = os.wait()
        if pid == started:
            return os.waitstatus_to_exitcode(status)


def main():
    set_up()
    codes = {"scenario": run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no", f"--junit-xml={REPORTS}/scenario.xml",
                             WEIR / "tests/vm/scenario.py")}
    for program in sorted((WEIR / "build/tests").rglob("*_tests")):
        codes[program.name] = run(program, "--gtest_filter=Kernel*", "--gtest_brief=1", f"--gtest_output=xml:{REPORTS}/{program.name}.xml")
    said = {"codes": codes, "tainted": int(pathlib.Path("/proc/sys/kernel/tainted").read_text()),
            "reports": {file.stem: file.read_text() for file in REPORTS.iterdir()}}
    with open("/dev/ttyS1", "wb") as port:
        tty.setraw(port)
        port.write(json.dumps(said).encode())
        port.flush()
        termios.tcdrain(port)


main()
must(LIBC.reboot(RB_POWER_OFF), "turn off")
