# SPDX-License-Identifier: BSD-3-Clause
"""An installed tree, for all tests of this folder."""
import os
import shutil

import pytest

from installed import BUILD, run


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """An installed tree, then moved: the prefix that it was configured for is not where it is."""
    first = tmp_path_factory.mktemp("first")
    run("meson", "install", "-C", BUILD, "--no-rebuild", "--destdir", first, env=os.environ)
    moved = tmp_path_factory.mktemp("moved") / "opt"
    shutil.move(next(first.rglob("bin")).parent, moved)
    return moved


@pytest.fixture(scope="session")
def prefix(tree):
    """The same, as it were had it been configured for that prefix: pkg-config finds what is there."""
    for file in tree.rglob("*.pc"):
        lines = file.read_text().splitlines(keepends=True)
        assert lines[0].startswith("prefix=")
        file.write_text(f"prefix={tree}\n" + "".join(lines[1:]))
    return tree
