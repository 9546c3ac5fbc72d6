# SPDX-License-Identifier: BSD-3-Clause
"""guardian: removes what a test made when the test cannot: it waits for the end of its standard input, which comes with the
test's own end, whatever that was. Lines: "ns NAME", "pid N", "file PATH", "instance NAME", "done"."""
import contextlib
import glob
import os
import shutil
import signal
import subprocess
import sys


def forget_instance(name):
    """The pins and files of one that was killed."""
    for folder in ("/sys/fs/bpf/weir", "/run/weir/bpf/weir"):
        shutil.rmtree(f"{folder}/{name}", ignore_errors=True)
        with contextlib.suppress(OSError):
            os.rmdir(folder)  # when it was the last one
    for path in glob.glob(f"/run/weir/{name}.*"):
        os.unlink(path)


def main():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    namespaces, pids, files, instances, done = [], [], [], [], False
    for line in sys.stdin:
        what, _, name = line.strip().partition(" ")
        if what == "ns":
            namespaces.append(name)
        elif what == "pid":
            pids.append(int(name))
        elif what == "ended":
            pids.remove(int(name))
        elif what == "file":
            files.append(name)
        elif what == "instance":
            instances.append(name)
        elif what == "done":
            done = True
    if done:
        return
    for name in namespaces:  # children of what was started there too
        pids += map(int, subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout.split())
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    for name in namespaces:
        subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL, check=False)
    for path in files:
        if os.path.exists(path):
            os.unlink(path)
    for name in instances:
        forget_instance(name)


if __name__ == "__main__":
    main()
