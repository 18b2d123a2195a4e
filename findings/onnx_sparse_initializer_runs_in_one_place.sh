#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Versions:  onnx 1.23.2, onnxruntime 1.32.0, openvino 2026.4.1, onnx-ir 1.1.0.
# Guess:     sparse_initializer has been in the standard since 2019 (IR version 5): a pruned weight
#            stored so is smaller and runs wherever ONNX runs, or is refused with a word about
#            sparsity.
# Behaviour: ONNX Runtime runs it (as a dense tensor). onnx's own checker passes it, but fails with
#            full_check=True, as shape inference takes the weight for a scalar; onnx.reference and
#            OpenVINO refuse to load it, with messages that do not say "sparse"; onnx-ir, on which
#            torch's exporter and onnxscript's optimizer stand, drops the weight and keeps the
#            node.
# Seen:      a 3x3 convolution with 90 % zeros: 5.7 instead of 18.6 kB, equal in ONNX Runtime;
#            errors from full_check, onnx.reference and OpenVINO; after onnx_ir.load and save no
#            weight.
exec "$(dirname "$0")/run_with" onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1 onnx-ir==1.1.0 \
    numpy==2.4.6 <<'PYTHON'
import logging

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from expect import expect

logging.disable(logging.WARNING)
print(
    f"onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}, "
    f"openvino {openvino.__version__}, onnx-ir {onnx_ir.__version__}"
)
rng = np.random.default_rng(0)
weight = rng.normal(size=(32, 16, 3, 3)).astype("float32")
weight[rng.random(weight.shape) < 0.9] = 0
kept = np.flatnonzero(weight)
image = rng.normal(size=(1, 16, 8, 8)).astype("float32")


def model(sparse):
    tensors = {"initializer": [numpy_helper.from_array(weight, "weight")]}
    if sparse:
        values = numpy_helper.from_array(weight.flatten()[kept], "weight")
        indices = numpy_helper.from_array(kept.astype("int64"), "weight_indices")
        tensors = {
            "sparse_initializer": [helper.make_sparse_tensor(values, indices, list(weight.shape))]
        }
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "weight"], ["y"], pads=[1, 1, 1, 1])],
        "pruned",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 32, 8, 8])],
        **tensors,
    )
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10)


def run(sparse):
    session = onnxruntime.InferenceSession(
        model(sparse).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": image})[0]


def error(action):
    try:
        action()
    except Exception as raised:
        return f"{type(raised).__name__}: {raised}"
    return ""


sparse = model(True)
sizes = len(sparse.SerializeToString()), len(model(False).SerializeToString())
expect(f"{sizes[0]} bytes instead of {sizes[1]}", sizes[0] < sizes[1] / 2)
expect("ONNX Runtime gives the same", bool(np.allclose(run(True), run(False), atol=1e-5)))
onnx.checker.check_model(sparse)
message = error(lambda: onnx.checker.check_model(sparse, full_check=True))
expect("the checker passes it, with full_check it does not", "ShapeInferenceError" in message)
onnx.save(sparse, "sparse.onnx")
for name, action in {
    "onnx.reference": lambda: ReferenceEvaluator(sparse),
    "OpenVINO": lambda: openvino.Core().read_model("sparse.onnx"),
}.items():
    message = error(action)
    expect(f"{name} refuses: {' '.join(message.split())[-60:]}", bool(message))
onnx_ir.save(onnx_ir.load("sparse.onnx"), "again.onnx")
graph = onnx.load("again.onnx").graph
expect(
    "after onnx_ir the node is there and the weight is not",
    [node.op_type for node in graph.node] == ["Conv"]
    and not graph.initializer
    and not graph.sparse_initializer,
)
PYTHON
