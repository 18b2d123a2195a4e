# SPDX-License-Identifier: MIT
"""Parts of DALI graphs run on given arrays."""

import itertools

import numpy as np
import pytest

pytest.importorskip("nvidia.dali")

from nvidia.dali import fn, pipeline_def


def run(function, *inputs):
    """`function` of graph nodes on lists of arrays, one per sample; images are (H, W, 3).

    Returns:
        one array per sample, or a tuple of them where the function has several results.
    """
    n = len(inputs[0])

    @pipeline_def(batch_size=n, num_threads=1, device_id=None, seed=7, enable_conditionals=True)
    def graph():
        nodes = []
        for given in inputs:
            arrays = [np.array(array, order="C") for array in given]
            layout = "HWC" if arrays[0].ndim == 3 else None
            nodes.append(fn.external_source(itertools.repeat(arrays), layout=layout))
        return function(*nodes)

    pipe = graph()
    pipe.build()
    results = [[np.array(out.at(i)) for i in range(n)] for out in pipe.run()]
    return results[0] if len(results) == 1 else list(zip(*results, strict=True))
