#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""embed: files as string literals of a C++ header, each with its name without ".in"."""
import pathlib
import sys

print("// The templates of `weir new plugin`.")
print("constexpr Template templates[] = {")
for file in map(pathlib.Path, sys.argv[1:]):
    print(f'    {{"{file.name.removesuffix(".in")}", R"~~~({file.read_text(encoding="utf-8")})~~~"}},')
print("};")
