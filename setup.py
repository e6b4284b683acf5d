"""Builds the compiled half. Everything else is in pyproject.toml."""

from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

SOURCE = Path("src/lstm_ext")
RUNTIME = SOURCE / "runtime.c"
# The kernels write fused multiply-adds out; no compiler may contract others, so the bits are the same everywhere.
FLAGS = [
    "-O3",
    "-g0",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Werror=implicit-function-declaration",
]


def extension(name: str, c_sources: list[Path]) -> Extension:
    return Extension(
        f"lstm_ext.{name}",
        [str(path) for path in [SOURCE / f"{name}.pyx", *c_sources]],
        include_dirs=[str(SOURCE)],
        depends=[str(path) for path in sorted(SOURCE.glob("*.h"))],
        extra_compile_args=FLAGS,
    )


setup(
    ext_modules=cythonize(
        [
            extension("_kernels", [RUNTIME, SOURCE / "dispatch.c", *sorted(SOURCE.glob("kernels_*.c"))]),
            extension("_passes", [RUNTIME]),
            extension("_epoch", []),
        ],
        include_path=["src"],
        build_dir="build/cython",
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "initializedcheck": False,
            "cdivision": True,
        },
    )
)
