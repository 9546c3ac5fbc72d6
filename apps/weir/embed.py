#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""embed: files of a folder "new" as string literals of a C++ header, each with its name there without ".in"."""
import pathlib
import sys

print("// The templates of `weir new plugin`.")
print("constexpr Template templates[] = {")
for file in map(pathlib.Path, sys.argv[1:]):
    name = file.as_posix().rsplit("/new/", maxsplit=1)[1].removesuffix(".in")
    print(f'    {{"{name}", R"~~~({file.read_text(encoding="utf-8")})~~~"}},')
print("};")
