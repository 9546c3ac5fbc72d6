# SPDX-License-Identifier: BSD-3-Clause
"""Settings of devices that an instance borrows: they are as its keys say while it runs, and as they were behind it, however it ends."""
import pathlib
import re
import signal

import pytest
from lab import WEIR, ping, wait_until

PATCH = '[[pipeline]]\nname = "main"\n[[pipeline.stage]]\nplugin = "patch"\npairs = [["p0", "p1"]]\n'
NAPI = ["napi_defer_hard_irqs", "gro_flush_timeout"]


def queues(lab, device="p0"):
    return int(re.search(r"Current hardware settings:\nRX:\s+(\d+)", lab.switch.run("ethtool", "-l", device).stdout).group(1))


def sysfs(lab, command):
    """A shell's command where /sys is the namespace's own."""
    return lab.switch.run("unshare", "-m", "sh", "-c", f"mount -t sysfs sysfs /sys && {command}").stdout


def napi(lab, device="p0"):
    return [int(sysfs(lab, f"cat /sys/class/net/{device}/{name}")) for name in NAPI]


def loans(weir):
    """The note of what is borrowed, where there is one."""
    found = list(pathlib.Path("/run/weir").glob(f"{weir.name}.*.borrowed"))
    assert len(found) <= 1
    return found


def rewrite(weir, text):
    weir.file.write_text(f'[weir]\nname = "{weir.name}"\n' + text)


def test_a_device_has_the_queues_that_are_asked_for_until_the_end(lab):
    assert queues(lab) == 1
    weir = lab.weir(lab.ports(2, queues=2) + PATCH)
    assert queues(lab) == 2 and queues(lab, "p1") == 2
    assert weir.port("p0")["queues"] == 2
    assert ping(lab.hosts[0], "10.9.0.2") == 3
    assert weir.stats()["frames"]["rings"] > 0
    weir.stop()
    assert queues(lab) == 1 and queues(lab, "p1") == 1
    assert not loans(weir)


def test_more_queues_than_a_device_can_have_are_refused(lab, tmp_path):
    most = int(re.search(r"maximums:\nRX:\s+(\d+)", lab.switch.run("ethtool", "-l", "p0").stdout).group(1))
    file = tmp_path / "many.toml"
    file.write_text(lab.ports(2, queues=most + 1) + PATCH)
    done = lab.switch.run(WEIR, "run", file, check=False)
    assert done.returncode == 1
    assert f"port p0: queues = {most + 1}, but device p0 can have {most} at most; set queues = {most}, or \"all\"" in done.stderr
    assert queues(lab) == 1


def test_a_start_that_fails_gives_back_what_it_had_borrowed(lab, tmp_path):
    lab.switch.run("ethtool", "-L", "p1", "rx", 1, "tx", 1)
    text = lab.ports(2, queues=2).replace('device = "p1"', 'device = "p1"\nzero_copy = "on"') + PATCH
    file = tmp_path / "fails.toml"
    file.write_text('[weir]\nname = "t-fails"\n' + text)
    lab.add_instance("t-fails")
    done = lab.switch.run(WEIR, "run", file, check=False)
    assert done.returncode == 1 and "zero_copy" in done.stderr
    assert queues(lab) == 1 and queues(lab, "p1") == 1


@pytest.mark.parametrize("kept", [False, True], ids=["killed", "kept"])
def test_what_an_earlier_run_has_left_is_given_back_by_the_next_that_does_not_want_it(lab, kept):
    weir = lab.weir(lab.ports(2, queues=2, busy_poll=64) + PATCH, *(["--keep"] if kept else []))
    was = napi(lab)
    assert was == [2, 200000]
    if kept:
        assert weir.process.stop(signal.SIGTERM) == 0
    else:
        weir.kill()
    assert queues(lab) == 2 and napi(lab) == was and loans(weir)
    rewrite(weir, lab.ports(2, queues=2) + PATCH)
    weir.start()  # wants the queues alone
    assert queues(lab) == 2 and napi(lab) == [0, 0]
    assert ping(lab.hosts[0], "10.9.0.2") == 3
    weir.stop()
    assert queues(lab) == 1 and not loans(weir)


# Its sockets are those of the queues that it found: without one, a queue would lose its frames.
def test_queues_that_an_earlier_run_has_left_stay_until_the_end_of_the_next(lab):
    weir = lab.weir(lab.ports(2, queues=2) + PATCH)
    weir.kill()
    rewrite(weir, lab.ports(2) + PATCH)
    weir.start()
    assert queues(lab) == 2 and weir.port("p0")["queues"] == 2 and loans(weir)
    assert ping(lab.hosts[0], "10.9.0.2") == 3
    weir.stop()
    assert queues(lab) == 1 and not loans(weir)


# The worker calls the driver itself: without interrupts, frames arrive all the same.
@pytest.mark.parametrize("idle", ["sleep", "spin"])
def test_busy_polling_forwards_and_is_shown(lab, idle):
    sysfs(lab, "echo 7 > /sys/class/net/p0/napi_defer_hard_irqs")
    weir = lab.weir(f'idle = "{idle}"\n' + lab.ports(2, busy_poll=64) + PATCH, "--user-only")
    assert weir.port("p0")["busy_poll"] == "64"
    assert napi(lab) == [2, 200000]
    assert ping(lab.hosts[0], "10.9.0.2", 20) == 20
    assert weir.conserved()["account"]["tx"] >= 40
    weir.stop()
    assert napi(lab) == [7, 0] and napi(lab, "p1") == [0, 0]


def naps(weir):
    """How often the workers' threads have slept."""
    tasks = pathlib.Path(f"/proc/{weir.process.popen.pid}/task").iterdir()
    return sum(int(re.search(r"voluntary_ctxt_switches:\s+(\d+)", (task / "status").read_text()).group(1))
               for task in tasks if task.name != str(weir.process.popen.pid))


def turns(weir):
    """CPU time of the workers, in ticks."""
    tasks = pathlib.Path(f"/proc/{weir.process.popen.pid}/task").iterdir()
    return sum(sum(map(int, (task / "stat").read_text().rsplit(")", 1)[1].split()[11:13]))
               for task in tasks if task.name != str(weir.process.popen.pid))


def test_workers_without_frames_sleep_or_spin_as_they_are_told(lab):
    sleeping = lab.weir('idle = "sleep"\n' + lab.ports(2) + PATCH)
    wait_until(lambda: naps(sleeping) > 5, "workers go to sleep, and again")
    sleeping.stop()
    spinning = lab.weir('idle = "spin"\n' + lab.ports(2) + PATCH)
    before, at = naps(spinning), turns(spinning)
    wait_until(lambda: turns(spinning) > at + 30, "workers spend CPU time")
    assert naps(spinning) - before < 5, "without going to sleep"
    assert ping(lab.hosts[0], "10.9.0.2") == 3
