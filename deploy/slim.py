"""Remove from an environment what serving never reads: `python slim.py SITE_PACKAGES`, in the build
of the image. What is left answers as before, which `benchmarks/image.py` tests in the image.

Compiled bytecode is not written here (`pip install --no-compile`): the warm-up after this writes it
for the modules that serving imports, a quarter of all.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

REMOVED = (
    # programs and libraries for testing torch itself, and for building extensions of it
    "torch/include",
    "torch/share",
    "torch/test",
    "torch/bin/*[tT]est*",
    "torch/bin/protoc*",
    "torch/lib/libaoti_custom_ops.so",
    "torch/lib/libbackend_with_compiler.so",
    "torch/lib/lib*_test.so",
    # tests that packages carry along
    "**/tests",
    # for compilers and type checkers
    "**/*.a",
    "**/*.c",
    "**/*.cpp",
    "**/*.h",
    "**/*.hpp",
    "**/*.pxd",
    "**/*.pyi",
    "**/*.pyx",
    # contributed scripts, which nothing imports
    "rdkit/Contrib",
)
"""Patterns below the folder of packages."""

STRIPPED = ("torch/lib/libtorch_cpu.so", "torch/lib/libtorch_python.so", "llvmlite/**/lib*.so")
"""Libraries whose symbols for debuggers are removed. Not all of them: those that auditwheel rewrote
do not load any more when they are stripped ("not page-aligned"), such as NumPy's OpenBLAS."""


def main(packages: Path) -> None:
    """Remove what the patterns name, and print the megabytes that each of them freed."""
    for pattern in REMOVED:
        freed = sum(removed(path) for path in list(packages.glob(pattern)))
        report(pattern, freed)
    for pattern in STRIPPED:
        report(f"symbols of {pattern}", sum(map(stripped, packages.glob(pattern))))


def removed(path: Path) -> int:
    """Remove a file or folder, which may be gone with one above it; return its size in bytes."""
    size = sum(file.lstat().st_size for file in files_in(path))
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return size


def stripped(library: Path) -> int:
    """Remove the symbols that nothing links to; return the bytes that it freed."""
    before = library.stat().st_size
    subprocess.run(["strip", "--strip-unneeded", str(library)], check=True)
    return before - library.stat().st_size


def files_in(path: Path) -> Iterator[Path]:
    """The file, or all files below the folder."""
    if path.is_dir():
        yield from (file for file in path.rglob("*") if not file.is_dir())
    elif path.exists():
        yield path


def report(what: str, freed: int) -> None:
    """Print a line."""
    sys.stdout.write(f"{freed / 1e6:8.1f} MB  {what}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
