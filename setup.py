"""Builds the compiled half. Everything else is in pyproject.toml.

``LSTM_EXT_LIMITED_API=1`` builds it for every Python from 3.11 up instead of this one: what wheels want, at some
0.2 us a call.
"""

import os
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from Cython import Tempita
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCE = Path("src/lstm_ext")
KERNELS = SOURCE / "kernels"
DECLARATIONS = Path("build/pxd")
RUNTIME = SOURCE / "runtime.c"
# The kernels write fused multiply-adds out; no compiler may contract others, so the bits are the same everywhere.
FLAGS = [
    "-O3",
    "-g0",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Werror=implicit-function-declaration",
]
if sys.platform == "win32":
    FLAGS = [f"/clang:{flag}" for flag in FLAGS]
# Cython writes this module, with what typed memoryviews need: every other one would have it again.
MEMORYVIEWS = "_memoryviews"
LIMITED_API = os.environ.get("LSTM_EXT_LIMITED_API") == "1"


class BuildExt(build_ext):
    """On Windows take clang-cl, which setuptools does not know: the kernels are GCC's and Clang's C."""

    def build_extensions(self) -> None:
        if self.compiler.compiler_type == "msvc":
            if not self.compiler.initialized:
                self.compiler.initialize(self.plat_name)
            self.compiler.cc = shutil.which("clang-cl")
            if self.compiler.cc is None:
                raise SystemExit("lstm_ext is built with clang-cl: install LLVM, with its folder bin in PATH")
        super().build_extensions()


def extension(name: str, sources: list[Path]) -> Extension:
    return Extension(
        f"lstm_ext.{name}",
        [str(path) for path in sources],
        include_dirs=[str(SOURCE), str(KERNELS)],
        depends=[str(path) for path in sorted(SOURCE.rglob("*.h"))],
        extra_compile_args=FLAGS,
        define_macros=[("Py_LIMITED_API", "0x030b0000")] if LIMITED_API else [],
        py_limited_api=LIMITED_API,
    )


def cython(name: str, *c_sources: Path) -> Extension:
    return extension(name, [SOURCE / f"{name}.pyx", *c_sources])


class Kernel(NamedTuple):
    """A kernel's line in the template of its declarations; `kinds` is the size of an array of kernels."""

    result: str
    name: str
    kinds: str
    arguments: str

    @property
    def names(self) -> str:
        return ", ".join(argument.split()[-1].strip("*") for argument in self.arguments.split(","))


def read_signature(line: str) -> Kernel:
    return Kernel(*re.fullmatch(r"(\w+) (\w+)((?:\[\w+\])?)\((.*)\)", line).groups())


def write_declarations() -> None:
    """Write `_kernels.pxd` if its template has changed: cythonize goes by the time of writing."""
    template = (SOURCE / "_kernels.pxd.in").read_text(encoding="utf-8")
    target, text = DECLARATIONS / "lstm_ext/_kernels.pxd", Tempita.sub(template, read_signature=read_signature)
    if not target.exists() or target.read_text(encoding="utf-8") != text:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


write_declarations()
setup(
    ext_modules=cythonize(
        [
            cython("_kernels", RUNTIME, *sorted(KERNELS.glob("*.c"))),
            cython("_threads", RUNTIME, SOURCE / "team.c"),
            cython("_products", RUNTIME),
            cython("_passes"),
            cython("_stack"),
            cython("_heads"),
            cython("_inference"),
            cython("_updates"),
            cython("_epoch"),
            extension(MEMORYVIEWS, [SOURCE / f"{MEMORYVIEWS}.c"]),
        ],
        shared_utility_qualified_name=f"lstm_ext.{MEMORYVIEWS}",
        include_path=["src", str(DECLARATIONS)],
        build_dir="build/cython",
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "initializedcheck": False,
            "cdivision": True,
        },
    ),
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED_API else {},
)
