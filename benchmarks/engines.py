# SPDX-License-Identifier: MIT
"""Other software that makes use of zeros, each in an environment and a process of its own.

A peer is a small program that reads the paths of its networks from the command line and, for each
line on its standard input, runs all of them once and answers with a JSON list of seconds (of the
CPU with one thread, of the clock with several).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from sparse_ext.export import export_onnx
from sparse_ext.kernels.build import cache_folder

_LOOP = """
clock = time.process_time if threads == 1 else time.perf_counter
for works in iter(sys.stdin.readline, ""):
    seconds = []
    for run in runs:
        start = clock(); run(); seconds.append(clock() - start)
    print(json.dumps(seconds), flush=True)
"""
_DEEPSPARSE = (
    """
import json, sys, time
import numpy
from deepsparse import compile_model
threads, batch, size, *files = sys.argv[1:]
threads, shape = int(threads), (int(batch), 3, int(size), int(size))
images = numpy.random.randn(*shape).astype(numpy.float32)
models = [compile_model(f, batch_size=shape[0], num_cores=threads) for f in files]
runs = [lambda m=m: m.run([images]) for m in models]
print("ready", flush=True)
"""
    + _LOOP
)


class Peer:
    """An inference engine that reads ONNX files.

    Args:
        name: as printed.
        requirements: what pip installs for it.
        program: what its process runs.
        nets: by sparsity.
        images: a batch.
        threads: in use.

    Attributes:
        ready: whether it is installed and has loaded the networks.
    """

    def __init__(
        self,
        name: str,
        requirements: list[str],
        program: str,
        nets: dict[str, nn.Module],
        images: torch.Tensor,
        threads: int,
    ) -> None:
        self.name, self.names = name, list(nets)
        self.best = [float("inf")] * len(nets)
        self._folder = tempfile.TemporaryDirectory()
        python = environment(name, requirements)
        self.ready = python is not None
        if python is None:
            return
        files = [str(Path(self._folder.name) / f"{key}.onnx") for key in nets]
        for net, file in zip(nets.values(), files, strict=True):
            export_onnx(net.eval(), Path(file), images.shape[-1])
        command = [str(python), "-c", program, str(threads), str(len(images))]
        command += [str(images.shape[-1]), *files]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.ready = self._answer() == "ready"

    def _answer(self) -> str:
        """The next line that is an answer; engines print banners, too."""
        for line in self._process.stdout:  # type: ignore[union-attr]
            if line.startswith(("ready", "[")):
                return line.strip()
        return ""

    def round(self) -> None:
        """Run every network once."""
        self._process.stdin.write("\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]
        seconds = json.loads(self._answer())
        self.best = [min(pair) for pair in zip(self.best, seconds, strict=True)]

    def ratios(self, dense: float | None) -> dict[str, float]:
        """Times faster than `dense` seconds, by sparsity."""
        if dense is None:
            return {}
        pairs = zip(self.names, self.best, strict=True)
        return {f"inference_fp32 {name}": round(dense / best, 2) for name, best in pairs}


def environment(name: str, requirements: list[str]) -> Path | None:
    """The Python of an environment with these packages; None, and a line, if pip fails."""
    folder = cache_folder() / "peers" / name
    python, done = folder / "bin" / "python", folder / "done"
    if done.exists():
        return python
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", *requirements]
        subprocess.run(install, check=True)
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"{name} is left out: {error}")
        return None
    done.touch()
    return python


def _deepsparse(nets: dict[str, nn.Module], images: torch.Tensor, threads: int) -> Peer:
    wanted = ["deepsparse==1.8.0", "setuptools<81"]
    return Peer("deepsparse", wanted, _DEEPSPARSE, nets, images, threads)


PEERS: dict[str, Callable[[dict[str, nn.Module], torch.Tensor, int], Peer]] = {
    "deepsparse": _deepsparse,
}
