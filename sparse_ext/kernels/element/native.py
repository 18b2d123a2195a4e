# SPDX-License-Identifier: MIT
"""The C++ library of the element-wise kernel: for which processors, built how, called how.

A variant is a set of vector instructions. The one for this processor is taken from the package, if
a wheel brought it, and else compiled once into the cache folder. It is built without OpenMP and
torch's headers, so that one file serves every version of torch and Python; its threads are torch's,
where those are OpenMP's.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock

from sparse_ext.kernels.build import KernelBuildError, cache_folder

SOURCES = Path(__file__).with_name("cpp")
SHIPPED = Path(__file__).with_name("libraries")
_512 = ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mavx2", "-mfma"]
VARIANTS = {
    "avx512_bf16": [*_512, "-mavx512bf16"],
    "avx512": _512,
    "avx2": ["-mavx2", "-mfma"],
}
_COMMON = ["-std=c++17", "-O3", "-shared", "-fPIC", "-pthread", "-Wno-psabi"]


@cache
def variant() -> str:
    """The vector instructions to use here; an empty string if the processor has none of them.

    `ATEN_CPU_CAPABILITY`, with which torch limits itself, limits this too.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    if platform.machine() not in ("x86_64", "AMD64"):
        return ""
    if capability == "AVX512":
        return "avx512_bf16" if "avx512_bf16" in _processor_flags() else "avx512"
    return "avx2" if capability == "AVX2" else ""


def _processor_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


@cache
def library(name: str = "") -> ctypes.CDLL:
    """The compiled kernel of a variant (by default this processor's), built if need be.

    Raises:
        KernelBuildError: this processor has no AVX2, or there is no compiler, or it fails.
    """
    name = name or variant()
    if not name:
        raise KernelBuildError(
            f"The element-wise kernel needs an x86-64 processor with AVX2, and torch reports "
            f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}: dense "
            f"convolutions stay in use here."
        )
    lib = _declared(ctypes.CDLL(str(located(name))))
    lib.element_team(_threads_of_torch())
    return lib


def _threads_of_torch() -> int | None:
    """The address of the function that hands work to torch's OpenMP threads, if it has some."""
    try:
        torchs = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
        return ctypes.cast(torchs.GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None


def located(name: str) -> Path:
    """The file of a variant: shipped with the package, cached, or built now."""
    key = _key(name)
    for folder in (SHIPPED, cache_folder()):
        if (folder / file_name(name)).exists():
            return folder / file_name(name)
    folder = cache_folder()
    built = folder / file_name(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"element-{key}.lock"):
            if not built.exists():
                compile_to(built, name)
    except OSError as error:
        raise KernelBuildError(_failed(f"{folder}: {error}")) from error
    return built


def is_built() -> bool:
    """Whether `library` would return at once."""
    name = variant()
    folders = (SHIPPED, cache_folder())
    return bool(name) and any((folder / file_name(name)).exists() for folder in folders)


def file_name(name: str) -> str:
    """What the library of a variant is called: by its sources and flags."""
    return f"element-{name}-{_key(name)}.so"


def _key(name: str) -> str:
    sources = [path.read_text(encoding="utf-8") for path in sorted(SOURCES.iterdir())]
    made_of = "\n".join([*sources, *_COMMON, *VARIANTS[name]])
    return hashlib.sha256(made_of.encode()).hexdigest()[:16]


def compile_to(built: Path, name: str, extra: tuple[str, ...] = ()) -> None:
    """Compile a variant and move it to `built` at once.

    Raises:
        KernelBuildError: there is no compiler, or it fails.
    """
    compiler = os.environ.get("CXX", "c++").split()
    if not shutil.which(compiler[0]):
        raise KernelBuildError(_failed(f"a C++ compiler ('{compiler[0]}') is not on the PATH"))
    with tempfile.TemporaryDirectory(dir=built.parent) as work:
        made = Path(work) / "element.so"
        flags = [*_COMMON, *VARIANTS[name], *extra]
        command = [*compiler, *flags, str(SOURCES / "element.cpp"), "-o", str(made)]
        status, told = _compiler(command)
        if status:
            raise KernelBuildError(_failed(told[-2000:]))
        os.replace(made, built)


_compilers: list[subprocess.Popen] = []


def _compiler(command: list[str]) -> tuple[int, str]:
    """Its exit status and what it says, unless somebody stops it."""
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        _compilers.append(process)
        try:
            told = process.communicate()[1]
        finally:
            _stop(process)
            _compilers.remove(process)
    return process.returncode, told


def stop_compilers() -> None:
    """End the compilers that are at work for this process."""
    for process in tuple(_compilers):
        _stop(process)


def _stop(process: subprocess.Popen) -> None:
    """With its children, which do the work."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)


def _failed(why: str) -> str:
    return (
        f"The element-wise kernel cannot be built: {why}. Install a C++ compiler (g++), or a wheel "
        f"that holds the compiled kernel (python -m sparse_ext.kernels.build --wheel makes one); "
        f"with sparse.kernel=dense nothing is built."
    )


def _declared(lib: ctypes.CDLL) -> ctypes.CDLL:
    """Integers are 64 bits wide, pointers are addresses, in every function."""
    for name, kinds in _ARGUMENTS.items():
        function = getattr(lib, f"element_{name}", None)
        if function is not None:
            function.argtypes = [_KINDS[kind] for kind in kinds]
            function.restype = _RETURNS.get(name)
    return lib


_KINDS = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "d": ctypes.c_double}
_RETURNS = {
    "bfloat16": ctypes.c_int64,
    "lanes": ctypes.c_int64,
    "fingerprint": ctypes.c_uint64,
    "list": ctypes.c_int64,
    "pairs": ctypes.c_int64,
    "slots": ctypes.c_int64,
}
_ARGUMENTS = {
    "bfloat16": "",
    "lanes": "",
    "team": "p",
    "fingerprint": "pi",
    "list": "ppppiipppp",
    "gather": "ppiipi",
    "fill": "pppipi",
    "pass": "ppppppppi",
    "slots": "p",
    "sums": "pppppip",
    "both": "pppppppip",
    "collect": "pipipi",
    "spread": "ppiipi",
    "pairs": "pipppppp",
    "fill_pairs": "ppppipi",
    "pass_half": "ppppppppi",
    "sums_half": "pppppip",
    "both_half": "pppppppip",
    "norm": "ippppdiiipp" + "ppdi",
    "norm_backward": "ipppp" + "iiippppi",
    "affine": "ippppiiipi",
    "to_lanes": "ipppi",
    "from_lanes": "ipppi",
}
