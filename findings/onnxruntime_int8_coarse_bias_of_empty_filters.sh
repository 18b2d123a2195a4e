#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Versions:  onnxruntime 1.32.0, onnx 1.23.2.
# Guess:     a filter whose weights are all zero is the easiest thing to quantise: it costs no
#            precision, and per_channel=True is never worse than one scale for the whole layer.
# Behaviour: quantize_static gives an all-zero filter the weight scale 1. The bias is stored as an
#            integer times (input scale x weight scale), which for that filter is the input's scale
#            itself, some hundred times coarser than for the others: the constant that an emptied
#            channel carries (its folded batch-norm shift) is rounded to multiples of the input's
#            step, and is lost below half of it. With per_channel=False it is kept.
# Seen:      input step 0.0865: biases of empty filters -0.240, 0.446, 0.03 become -0.260, 0.433,
#            0; per_channel=False gives -0.240, 0.446, 0.030.
exec "$(dirname "$0")/run_with" onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6 <<'PYTHON'
import logging

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from expect import expect

logging.disable(logging.WARNING)
print(f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}")
rng = np.random.default_rng(0)
weight = rng.normal(size=(16, 16, 3, 3)).astype("float32") / 10
bias = rng.normal(size=16).astype("float32") / 2
empty = [0, 1, 2]
weight[empty] = 0
bias[2] = 0.03
images = [3 * rng.normal(size=(1, 16, 8, 8)).astype("float32") for _ in range(8)]

graph = helper.make_graph(
    [helper.make_node("Conv", ["x", "weight", "bias"], ["y"], pads=[1, 1, 1, 1])],
    "pruned",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 8, 8])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, 8, 8])],
    [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
)
opset = [helper.make_opsetid("", 18)]
onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), "float.onnx")


class Calibration(CalibrationDataReader):
    def __init__(self):
        self.images = iter(images)

    def get_next(self):
        image = next(self.images, None)
        return None if image is None else {"x": image}


def quantised(per_channel):
    quantize_static(
        "float.onnx",
        "int8.onnx",
        Calibration(),
        per_channel=per_channel,
        weight_type=QuantType.QInt8,
    )
    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load("int8.onnx").graph.initializer}
    stored = tensors["bias_quantized"] * tensors["bias_quantized_scale"]
    return stored, tensors["weight_scale"], float(tensors["x_scale"])


stored, scales, step = quantised(True)
print(f"step of the input {step:.4f}, bias {bias[empty].round(3)}, stored {stored[empty].round(3)}")
expect("weight scale of the empty filters: 1", bool(np.all(scales[empty] == 1)))
expect(
    "their bias is a multiple of the input's step",
    bool(np.allclose(stored[empty] / step, np.round(bias[empty] / step), atol=1e-3)),
)
expect("the small one is gone", stored[2] == 0)
expect("the others keep theirs", bool(np.abs(stored - bias)[3:].max() < 1e-3))
whole, _, _ = quantised(False)
print(f"per_channel=False stores {whole[empty].round(3)}")
expect("per_channel=False keeps all", bool(np.abs(whole - bias).max() < 1e-3))
PYTHON
