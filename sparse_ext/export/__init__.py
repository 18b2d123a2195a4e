# SPDX-License-Identifier: MIT
"""Sparse encoders for use outside of training: smaller networks and files for other programs.

Command: `python3 -m sparse_ext.export {slim,dense,packed,csr,onnx,nm} CHECKPOINT`.
"""

from sparse_ext.export.csr import load_csr, save_csr
from sparse_ext.export.formats import FORMATS, register_format
from sparse_ext.export.nm import check_nm, semi_structured
from sparse_ext.export.onnx import OnnxEncoder, check_onnx, export_onnx
from sparse_ext.export.packed import load_packed, save_packed
from sparse_ext.export.slim import Slim, load_slim, save_slim, slim
from sparse_ext.export.strip import masked_weights, strip

__all__ = [
    "FORMATS",
    "OnnxEncoder",
    "Slim",
    "check_nm",
    "check_onnx",
    "export_onnx",
    "load_csr",
    "load_packed",
    "load_slim",
    "masked_weights",
    "register_format",
    "save_csr",
    "save_packed",
    "save_slim",
    "semi_structured",
    "slim",
    "strip",
]
