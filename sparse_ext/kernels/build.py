# SPDX-License-Identifier: MIT
"""Building `cpp/block_conv.cpp` on the machine that runs it, once.

The library lands in a cache folder, under a name made of everything that decides its contents: the
source, torch's version, the compiler's command and the vector instructions. Those are the ones that
torch itself found on this CPU, spelt out as flags: with `-march=native` a home folder that several
machines share would sooner or later hand one of them instructions that it does not have.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock

from solo.errors import SoloError

SOURCE = Path(__file__).with_name("cpp") / "block_conv.cpp"
_VECTORS = {
    "AVX2": ["-mavx2", "-mfma"],
    "AVX512": ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma"],
}


class KernelBuildError(SoloError, RuntimeError):
    """The block-sparse kernel cannot be compiled on this machine."""


def cache_folder() -> Path:
    """Where built kernels lie: `$SPARSE_EXT_CACHE`, or `sparse_ext` in the user's cache folder."""
    own = os.environ.get("SPARSE_EXT_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(home) / "sparse_ext"


def flags() -> list[str]:
    """What the compiler is told about this CPU, and to optimise."""
    capability = torch.backends.cpu.get_cpu_capability()
    return ["-O3", "-fopenmp", "-Wno-psabi", *_VECTORS.get(capability, [])]


@cache
def library() -> ctypes.CDLL:
    """The kernel, compiled if the cache has none; other processes wait for the first.

    Raises:
        KernelBuildError: there is no compiler or no ninja, or they fail.
    """
    compiler = os.environ.get("CXX", "c++")
    sources = [path.read_text(encoding="utf-8") for path in sorted(SOURCE.parent.iterdir())]
    made_of = [*sources, torch.__version__, compiler, *flags()]
    key = hashlib.sha256("\n".join([*made_of, platform.machine()]).encode()).hexdigest()[:16]
    folder = cache_folder()
    built = folder / f"block_conv-{key}.so"
    if not built.exists():
        _check_tools(compiler)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / f"{key}.lock"):  # the system lets go if its holder dies
                if not built.exists():
                    _compile(built)
        except OSError as error:
            raise KernelBuildError(_failed(f"{folder}: {error}")) from error
    return ctypes.CDLL(str(built))


def _check_tools(compiler: str) -> None:
    wanted = {compiler.split()[0]: "a C++ compiler", "ninja": "ninja"}
    missing = [f"{what} ('{tool}')" for tool, what in wanted.items() if not shutil.which(tool)]
    if missing:
        raise KernelBuildError(_failed(f"{' and '.join(missing)} is not on the PATH"))


def _compile(built: Path) -> None:
    """Build in a folder of this process's own, then move the library into place at once."""
    from torch.utils import cpp_extension

    with tempfile.TemporaryDirectory(dir=built.parent) as work:
        name = f"block_conv_{Path(work).name}"  # torch builds a name once per process
        try:
            cpp_extension.load(
                name=name,
                sources=[str(SOURCE)],
                extra_cflags=flags(),
                extra_ldflags=["-fopenmp"],
                build_directory=work,
                is_python_module=False,
            )
        except (RuntimeError, OSError) as error:
            raise KernelBuildError(_failed(str(error)[-2000:])) from error
        os.replace(Path(work) / f"{name}.so", built)


def _failed(why: str) -> str:
    return (
        f"The block-sparse kernel cannot be built: {why}. Install a C++ compiler (g++) and ninja "
        f"(pip install ninja), or choose backend='reference', which needs "
        f"neither and is slow."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m sparse_ext.kernels.build [--wheel]`: compile now, or for others."""
    import argparse

    from solo.programs.app import exit_code
    from sparse_ext.kernels.element import native, wheel

    parser = argparse.ArgumentParser(
        prog="python -m sparse_ext.kernels.build",
        description="Compile the element-wise kernel for this processor, or a wheel that holds it.",
    )
    parser.add_argument("--wheel", action="store_true", help="for all x86-64 processors")
    parser.add_argument("--out", type=Path, default=Path("dist"), help="folder of the wheel")
    args = parser.parse_args(argv)

    def run() -> None:
        native.library()
        print(wheel.build_wheel(args.out) if args.wheel else native.located(native.variant()))

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
