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
    # The one is held for a moment, by who mounts or unmounts; the other by each session, for as long as it lasts. Both stay: another session
    # may be waiting for them.
    with open("/run/weir-tests.lock", "a+", encoding="ascii") as turn, open("/run/weir-tests.users", "a+", encoding="ascii") as users:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not any(line.split()[1:3] == ["/sys/fs/bpf", "bpf"] for line in open("/proc/mounts", encoding="utf-8")):
            labs.run("mount", "-t", "bpf", "bpf", "/sys/fs/bpf")
            turn.write("mounted")
            turn.flush()
        fcntl.flock(users, fcntl.LOCK_SH)
        fcntl.flock(turn, fcntl.LOCK_UN)
        yield
        fcntl.flock(turn, fcntl.LOCK_EX)
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # another session is there
        turn.seek(0)
        if turn.read():
            labs.run("umount", "/sys/fs/bpf", check=False)
        turn.truncate(0)


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
