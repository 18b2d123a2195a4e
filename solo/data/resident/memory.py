# SPDX-License-Identifier: MIT
"""How much memory is free, and whether a data set fits into it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from solo.errors import DataError

# Share of the free memory that images may take: the rest is for the model and its activations.
HOST_SHARE, DEVICE_SHARE = 0.8, 0.5
CGROUP = Path("/sys/fs/cgroup")


def free_host_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = CGROUP) -> int | None:
    """Bytes of memory that a process here can still get; None where the system does not say.

    What counts is the smaller of the machine's free memory and what a container has left.
    """
    found = [n for n in (_machine_memory(meminfo), _container_memory(cgroup)) if n is not None]
    return min(found) if found else None


def _machine_memory(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text().splitlines()
        kibibytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
        return 1024 * int(kibibytes)
    except (OSError, StopIteration, ValueError):
        return None


def _container_memory(cgroup: Path) -> int | None:
    """Limit of the control group (version 2) minus what it uses and cannot give back."""
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        return limit - used + int(stat.get("inactive_file", 0))
    except (OSError, ValueError):  # no limit is written as "max"
        return None


def require_host_memory(
    n: int, shape: tuple[int, int, int], where: str, processes: int = 1
) -> None:
    """Check that n uint8 images fit beside everything else, in every process of this machine.

    Args:
        n: number of images.
        shape: (3, height, width).
        where: folder or file, for the message.
        processes: of this machine. The first asks for all of them; the others, which find less
            because the first has its share already, for themselves.

    Raises:
        DataError: they do not; with the sizes and what to do.
    """
    if int(os.environ.get("LOCAL_RANK", 0)) > 0:
        processes = 1
    need, free = n * shape[0] * shape[1] * shape[2], free_host_memory()
    if free is None or need * processes <= HOST_SHARE * free:
        return
    each = f" in each of {processes} processes" if processes > 1 else ""
    raise DataError(
        f"data.format=resident keeps all images in memory: {n:,} of {shape[2]}x{shape[1]} pixels "
        f"from {where} take {gigabytes(need)}{each}, but {gigabytes(free)} are free. Use "
        "data.format=image_folder (or h5, dali), a smaller data.resident_size, or a part with "
        "data.fraction."
    )


def fits_on(device: torch.device, size: int) -> bool:
    """Whether `size` bytes may stay on an accelerator for the whole run."""
    if device.type == "cpu":
        return True
    if device.type != "cuda":
        return False
    return size <= DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]


def gigabytes(size: int) -> str:
    """A number of bytes as text for a reader, in gigabytes or megabytes."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
