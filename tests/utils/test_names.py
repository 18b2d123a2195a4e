# SPDX-License-Identifier: MIT
"""Submodules are reachable as attributes, and cost nothing until then."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.unit


def test_submodules_load_on_first_use():
    code = (
        "import sys, solo.utils; assert 'torch' not in sys.modules; "
        "assert solo.utils.knn.WeightedKNNClassifier; "
        "assert all(hasattr(solo.utils, name) for name in solo.utils.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_wrong_name_is_an_attribute_error():
    import solo.utils

    with pytest.raises(AttributeError, match=r"'solo\.utils' has no attribute 'nnk'"):
        solo.utils.nnk
