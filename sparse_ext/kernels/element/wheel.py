# SPDX-License-Identifier: MIT
"""A wheel of this package that holds the compiled element-wise kernel for all x86-64 processors."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from solo.errors import ConfigError
from sparse_ext.kernels.build import KernelBuildError
from sparse_ext.kernels.element import native

_LEFT_OUT = ("*.pyc", "__pycache__", ".git", "*.egg-info", "trained_models", "runs", "build")


def build_wheel(out: Path) -> Path:
    """Compile every variant and pack it with the sources of this checkout.

    Args:
        out: folder for the wheel.

    Returns:
        the wheel. Its tag asks for the C library of this machine or a newer one.

    Raises:
        ConfigError: this is no checkout.
        KernelBuildError: there is no compiler, or it or pip fails.
    """
    root = Path(__file__).parents[3]
    if not (root / "setup.py").exists():
        raise ConfigError(
            f"{root} has no setup.py: wheels are made from a checkout of the project, not from an "
            f"installed package."
        )
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        tree, made = Path(folder) / "tree", Path(folder) / "made"
        shutil.copytree(root, tree, ignore=shutil.ignore_patterns(*_LEFT_OUT))
        libraries = tree / native.SHIPPED.relative_to(root)
        libraries.mkdir(exist_ok=True)
        for name in native.VARIANTS:
            native.compile_to(
                libraries / native.file_name(name), name, ("-static-libstdc++", "-static-libgcc")
            )
        done = subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(made),
             f"--config-settings=--build-option=--plat-name={tag()}", str(tree)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise KernelBuildError(f"pip cannot make the wheel: {done.stderr[-2000:]}")
        (wheel,) = made.glob("*.whl")
        return Path(shutil.copy2(wheel, out / wheel.name))


def tag() -> str:
    """The platform tag of what is compiled here, such as `manylinux_2_36_x86_64`."""
    libc, version = platform.libc_ver()
    if libc != "glibc":
        return "linux_x86_64"
    return f"manylinux_{'_'.join(version.split('.')[:2])}_x86_64"
