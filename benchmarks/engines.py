# SPDX-License-Identifier: MIT
"""Other software that computes sparse networks, each in an environment and a process of its own.

A peer is a small program that gets its settings as JSON on the command line and, for each line on
its standard input, runs every network once and answers with a JSON list of seconds (of the CPU
with one thread, of the clock with several).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sparse_ext.export import export_onnx
from sparse_ext.kernels.build import cache_folder

_HEAD = """
import json, os, sys, time
import numpy
given = json.loads(sys.argv[1])
threads, shape, files = given["threads"], given["shape"], given["files"]
images = numpy.random.randn(*shape).astype(numpy.float32)
"""
_LOOP = """
print("ready", flush=True)
clock = time.process_time if threads == 1 else time.perf_counter
for line in iter(sys.stdin.readline, ""):
    seconds = []
    for run in runs:
        start = clock(); run(); seconds.append(clock() - start)
    print(json.dumps(seconds), flush=True)
"""
_DEEPSPARSE = """
from deepsparse import compile_model
models = [compile_model(f, batch_size=shape[0], num_cores=threads) for f in files]
runs = [lambda m=m: m.run([images]) for m in models]
"""
_ONNXRUNTIME = """
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
models = [onnxruntime.InferenceSession(f, options, ["CPUExecutionProvider"]) for f in files]
runs = [lambda m=m: m.run(None, {m.get_inputs()[0].name: images}) for m in models]
"""
_OPENVINO = """
import openvino
core = openvino.Core()
settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": given["precision"]}
models = [core.read_model(f) for f in files]
for model in models: model.reshape(shape)
models = [core.compile_model(m, "CPU", settings).create_infer_request() for m in models]
runs = [lambda m=m: m.infer([images]) for m in models]
"""
_SPARSEPROP = """
import torch
from sparseprop.utils import swap_modules_with_sparse
torch.set_num_threads(threads)
images = torch.from_numpy(images)
def trainer(file):
    net = torch.load(file, weights_only=False)
    quiet, sys.stdout = sys.stdout, open(os.devnull, "w")
    net = swap_modules_with_sparse(net, tuple(shape))
    sys.stdout = quiet
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    def step():
        optimizer.zero_grad()
        net.train()(images).square().mean().backward()
        optimizer.step()
    return step
runs = [trainer(f) for f in files]
"""


@dataclass(frozen=True)
class Engine:
    """How to get one of them to work.

    Attributes:
        activity: what it does, as the benchmark calls it.
        requirements: what pip installs for it, in order.
        program: the middle of what its process runs.
        uses_torch: whether it needs this process's torch, to be built and to run.
        precision: of its computation, where it can choose.
    """

    activity: str
    requirements: tuple[str, ...]
    program: str
    uses_torch: bool = False
    precision: str = "f32"


ENGINES = {
    "deepsparse": Engine("inference_fp32", ("deepsparse==1.8.0", "setuptools<81"), _DEEPSPARSE),
    "onnxruntime": Engine("inference_fp32", ("onnxruntime", "numpy"), _ONNXRUNTIME),
    "openvino": Engine("inference_fp32", ("openvino", "numpy"), _OPENVINO),
    "openvino_bf16": Engine("inference_bf16", ("openvino", "numpy"), _OPENVINO, precision="bf16"),
    "sparseprop": Engine(
        "step_fp32", ("pybind11", "scipy", "sparseprop==0.1.14"), _SPARSEPROP, uses_torch=True
    ),
}


class Peer:
    """One of them at work on some networks.

    Args:
        name: one of `ENGINES`.
        nets: plain networks with zeros, by sparsity in per cent.
        shape: of a batch of images.
        threads: in use.

    Attributes:
        ready: whether it is installed and has loaded the networks.
    """

    def __init__(
        self, name: str, nets: dict[str, nn.Module], shape: tuple[int, ...], threads: int
    ) -> None:
        self.name, self.engine, self.names = name, ENGINES[name], list(nets)
        self.best = [float("inf")] * len(nets)
        self._folder = tempfile.TemporaryDirectory()
        python = environment(name.partition("_")[0], self.engine)
        self.ready = python is not None
        if python is None:
            return
        files = [self._write(key, net, shape[-1]) for key, net in nets.items()]
        given = {"threads": threads, "shape": shape, "files": files}
        given["precision"] = self.engine.precision
        program = _HEAD + self.engine.program + _LOOP
        self._process = subprocess.Popen(
            [str(python), "-c", program, json.dumps(given)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=_variables(self.engine, threads),
        )  # fmt: skip
        self.ready = self._answer() == "ready"
        if not self.ready:
            print(f"{name} is left out: its process ended with {self._process.wait()}")

    def _write(self, key: str, net: nn.Module, size: int) -> str:
        file = Path(self._folder.name) / f"{key}{'.pt' if self.engine.uses_torch else '.onnx'}"
        if self.engine.uses_torch:
            torch.save(net, file)
        else:
            export_onnx(net.eval(), file, size)
        return str(file)

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

    def ratios(self, times: dict[tuple[str, str], float]) -> dict[str, dict[str, float]]:
        """Times faster than dense float32 doing the same, by activity and sparsity."""
        activity = self.engine.activity
        dense = times.get((f"{activity.partition('_')[0]}_fp32", "dense"))
        if dense is None:
            return {}
        pairs = zip(self.names, self.best, strict=True)
        return {activity: {name: round(dense / best, 2) for name, best in pairs}}


def _variables(engine: Engine, threads: int = 1) -> dict[str, str]:
    paths = sys.path if engine.uses_torch else []  # where this process finds torch
    own = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return {**os.environ, **own}


def environment(name: str, engine: Engine) -> Path | None:
    """The Python of an environment with an engine; None, and a line, if pip fails."""
    folder = cache_folder() / "peers" / name
    python, done = folder / "bin" / "python", folder / "done"
    if done.exists():
        return python
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        steps = [[r] for r in engine.requirements] if engine.uses_torch else [engine.requirements]
        for packages in steps:
            install = [str(python), "-m", "pip", "install", "--quiet", *packages]
            if engine.uses_torch:  # built against the torch that it will meet
                install += ["--no-build-isolation", "--no-deps"]
            subprocess.run(install, check=True, env=_variables(engine))
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"{name} is left out: {error}")
        return None
    done.touch()
    return python
