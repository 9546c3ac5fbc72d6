# SPDX-License-Identifier: BSD-3-Clause
"""installed: what the tests of this folder share."""
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get("WEIR_BUILD", ROOT / "build"))
CLANGS = ["clang-19", "clang-18", "clang-17", "clang-16", "clang-15", "clang-14", "clang"]
# Nothing of this shell that would help a program to find what belongs to the build.
CLEAN = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG")}


def run(*words, check=True, **options):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, **{"env": CLEAN, "cwd": "/", **options})
    assert not check or done.returncode == 0, f"{' '.join(map(str, words))}: {done.stdout}{done.stderr}"
    return done
