# SPDX-License-Identifier: BSD-3-Clause
"""What every netns test may ask for."""
import fcntl
import os
import shutil

import pytest

import lab as labs

NEEDED = ["ip", "nsenter", "ethtool", "ping", "iperf3", "curl"]


def missing():
    if os.geteuid() != 0:
        return "needs root: network namespaces and XDP"
    gone = [tool for tool in NEEDED if shutil.which(tool) is None]
    return f"needs {', '.join(gone)}" if gone else ""


def pytest_collection_modifyitems(items):
    why = missing()
    if why:
        for item in items:
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session", autouse=True)
def bpffs():
    """Where the tests look for pins. A system without an init that mounts it gets it for the time of the tests: from the first of the sessions
    that run beside each other to the last."""
    if os.geteuid() != 0:
        yield
        return
    with open("/run/weir-tests.lock", "a+", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not any(line.split()[1:3] == ["/sys/fs/bpf", "bpf"] for line in open("/proc/mounts", encoding="utf-8")):
            labs.run("mount", "-t", "bpf", "bpf", "/sys/fs/bpf")
            lock.write("mounted")
            lock.flush()
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # another session is there
        lock.seek(0)
        if lock.read():
            labs.run("umount", "/sys/fs/bpf", check=False)
        lock.truncate(0)  # it stays: another session may be waiting for it


@pytest.fixture
def make_lab():
    made = []

    def make(ports=2, **options):
        made.append(labs.Lab(ports, **options))
        return made[-1]

    yield make
    wrong = [each for lab in made for each in lab.close()]
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def lab(make_lab):
    return make_lab(2)


@pytest.fixture
def lab3(make_lab):
    return make_lab(3)
