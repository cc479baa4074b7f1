"""Builds the one extension: csrc/*.c and its Cython face. Everything else stands in pyproject.toml.

Switches, as environment variables set to 1:
    REPLICATOR_SANITIZE   address and undefined-behaviour sanitizers (run Python with libasan preloaded)
    REPLICATOR_COVERAGE   gcov counters and Cython line tracing
    REPLICATOR_DEBUG      no optimisation, assertions on
"""

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup


def switched_on(name: str) -> bool:
    return os.environ.get(f"REPLICATOR_{name}") == "1"


compile_args = ["-std=gnu11", "-Wall", "-Wextra", "-fvisibility=hidden"]
link_args: list[str] = []
macros = [("NDEBUG", "1")]

if switched_on("DEBUG"):
    compile_args += ["-O0", "-g"]
    macros = []
else:
    compile_args += ["-O3", "-g1"]
if switched_on("SANITIZE"):
    sanitizers = [
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=undefined",
        "-fno-omit-frame-pointer",
    ]
    compile_args += sanitizers
    link_args += sanitizers
if switched_on("COVERAGE"):
    compile_args += ["--coverage"]
    link_args += ["--coverage"]
if sys.platform == "linux":
    link_args += ["-Wl,-z,relro,-z,now"]

extension = Extension(
    "replicator._core",
    sources=["replicator/_core.pyx", *sorted(str(path) for path in Path("csrc").glob("*.c"))],
    include_dirs=["csrc"],
    depends=["replicator/_core.pxd", *sorted(map(str, [*Path("csrc").glob("*.h"), *Path("replicator").glob("*.pxi")]))],
    define_macros=macros,
    extra_compile_args=compile_args,
    extra_link_args=link_args,
)

setup(ext_modules=cythonize([extension], compiler_directives={"linetrace": switched_on("COVERAGE")}))
