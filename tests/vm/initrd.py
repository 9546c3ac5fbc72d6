# SPDX-License-Identifier: BSD-3-Clause
"""initrd: all that a guest has: this build, these tests, and the host's own Python and tools with the libraries that they need."""
import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TOOLS = ["ip", "nsenter", "sysctl", "ethtool", "ping"]
STDLIB = pathlib.Path(os.__file__).parent
SUPERFLUOUS = {"test", "idlelib", "lib2to3", "tkinter", "turtledemo", "pydoc_data", "distutils", "ensurepip"}  # of Python's own library


def tool(name):
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Initrd:
    """A cpio archive in the "newc" format (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst), not compressed: the
    guest's CPU is slow."""

    def __init__(self):
        self.entries = {}

    def put(self, path, data, mode=stat.S_IFREG | 0o644, mtime=0):
        for folder in reversed(pathlib.PurePath(path).parents):
            if str(folder) != "/":
                self.entries.setdefault(str(folder), (stat.S_IFDIR | 0o755, 0, b""))
        self.entries[str(path)] = (mode, mtime, data)

    def link(self, path, target):
        self.put(path, os.fsencode(target), stat.S_IFLNK | 0o777)

    def file(self, source, path=None):
        """A file of the host, by default under its own path, which keeps its time: Python's compiled files go by it."""
        source = pathlib.Path(source)
        info = source.stat()
        path = path or source.parent.resolve() / source.name  # /lib and its like are links
        self.put(path, source.read_bytes(), stat.S_IFREG | stat.S_IMODE(info.st_mode), int(info.st_mtime))

    def tree(self, source, path=None, without=frozenset()):
        for folder, folders, files in os.walk(source):
            folders[:] = [name for name in folders if name not in without and not name.startswith("config-")]
            for name in files:
                at = pathlib.Path(folder, name)
                if at.exists() and at.suffix != ".a":
                    self.file(at, path and pathlib.PurePath(path) / at.relative_to(source))

    def libraries(self, binaries):
        said = subprocess.run(["ldd", *map(str, binaries)], capture_output=True, text=True, check=False).stdout
        for library in set(re.findall(r"(/\S+) \(0x", said)):
            if "libweir" not in library:
                self.file(library)

    def bytes(self):
        parts = []
        for number, (path, (mode, mtime, data)) in enumerate([*sorted(self.entries.items()), ("TRAILER!!!", (0, 0, b""))], 1):
            name = os.fsencode(path.lstrip("/")) + b"\0"
            head = "070701" + "".join(f"{field:08x}" for field in (number, mode, 0, 0, 1, mtime, len(data), 0, 0, 0, 0, len(name), 0))
            for part in (head.encode() + name, data):
                parts += [part, bytes(-len(part) % 4)]
        return b"".join(parts)


def packages():
    """The folders and files of pytest and what it uses: what this process has loaded that is neither Python's nor ours."""
    names = {name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names
    files = [pathlib.Path(sys.modules[name].__file__) for name in sorted(names) if getattr(sys.modules.get(name), "__file__", None)]
    return [file.parent if file.stem == "__init__" else file for file in files if ROOT not in file.parents]


def kernel_tests(build):
    """The GoogleTest programs that have tests of kernel halves."""
    def has_some(program):
        listed = subprocess.run([program, "--gtest_list_tests"], capture_output=True, text=True, check=True).stdout
        return re.search("^Kernel", listed, re.MULTILINE)

    return [path for path in sorted((build / "tests").rglob("*_tests")) if path.is_file() and has_some(path)]


def build_initrd(build, kernels):
    """`kernels`: the folders that `fetch` made; each guest finds the modules of its own by its release."""
    initrd = Initrd()
    for name in ("/bin", "/sbin", "/lib", "/lib64"):
        if os.path.islink(name):
            initrd.link(name, os.readlink(name))
    python = pathlib.Path(sys.executable).resolve()
    binaries = [python, *map(tool, TOOLS)]
    for binary in binaries:
        initrd.file(binary)
    initrd.link("/usr/bin/python", python)
    initrd.tree(STDLIB, without=SUPERFLUOUS)
    for package in packages():
        (initrd.tree if package.is_dir() else initrd.file)(package)
    for file in [build / "apps/weir", *build.glob("core/libweir.so.*"), *build.glob("plugins/*.so"), *kernel_tests(build)]:
        if file.is_file():  # and not the folder of its objects
            initrd.file(file, pathlib.PurePath("/weir/build") / file.relative_to(build))
            binaries.append(file)
    initrd.libraries([*binaries, *STDLIB.glob("lib-dynload/*.so")])
    for file in ("/etc/ld.so.cache", "/etc/passwd"):
        if os.path.exists(file):
            initrd.file(file)
    for folder in ("netns", "vm"):
        initrd.tree(ROOT / "tests" / folder, f"/weir/tests/{folder}", without={"__pycache__"})
    initrd.tree(ROOT / "tests" / "unit")  # where programs were built to look
    initrd.file(ROOT / "tests" / "data" / "conversation.pcap")
    initrd.put("/init", (HERE / "guest.py").read_bytes(), stat.S_IFREG | 0o755)
    for kernel in kernels:
        for module in kernel.glob("*.ko"):
            initrd.file(module, f"/modules/{kernel.name}/{module.name}")
    return initrd.bytes()
