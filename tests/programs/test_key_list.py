# SPDX-License-Identifier: MIT
"""`--help`: every key of a program and of its extensions, with its default and a sentence."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from solo import extensions
from solo.args.key_help import SENTENCES
from solo.args.schema import Linear, Pretrain
from solo.programs.app import valid_keys
from solo.programs.key_list import _told, describe_keys
from sparse_ext.config.sections import METHODS
from sparse_ext.extension import register
from sparse_ext.gating.config.sections import METHODS as GATES

ROOT = Path(__file__).parents[2]


@pytest.fixture
def listed():
    """(key, default, beginning of the sentence) by key, as `--help` prints them."""
    register()
    text = describe_keys(Pretrain)
    row = r"^  ([\w.]+) +(?:\S.*\S|\S+) +(\S+)\n      (.*)$"
    rows = re.findall(row, text, re.MULTILINE)
    # later lines are of methods with another default
    return {key: (default, sentence) for key, default, sentence in reversed(rows)}


@pytest.mark.unit
@pytest.mark.parametrize("schema", [Pretrain, Linear])
def test_every_key_has_a_sentence(schema):
    register()
    sections = extensions.sections()
    leaves = {key for key in valid_keys(schema) if key.partition(".")[0] not in sections}
    leaves -= {key.rpartition(".")[0] for key in leaves}
    assert leaves <= set(SENTENCES)


@pytest.mark.unit
def test_no_sentence_is_about_nothing():
    known = valid_keys(Pretrain) | valid_keys(Linear)
    assert set(SENTENCES) <= known


@pytest.mark.unit
@pytest.mark.parametrize("method", [*METHODS.values(), *GATES.values()], ids=lambda c: c.name)
def test_every_key_of_a_method_has_a_sentence(method):
    told = _told(method)
    assert {item.name for item in fields(method)} - {"name"} <= set(told)
    assert all(len(sentence) > 8 for sentence in told.values())


@pytest.mark.unit
def test_defaults_are_those_of_the_schema(listed):
    assert listed["seed"][0] == "5"
    assert listed["optimizer.batch_size"][0] == "required"
    assert listed["sparse.ramp_end"][0] == "0.69"
    assert listed["gating.budget"][0] == "0.3"
    assert listed["sparse.csi.mode"][1]


@pytest.mark.slow
def test_help_needs_no_torch():
    code = (
        "import sys; sys.argv = ['main_pretrain.py', '--help']; import main_pretrain;"
        "main_pretrain.main(); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "+gating=NAME" in done.stdout
