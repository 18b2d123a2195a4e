# SPDX-License-Identifier: MIT
"""The collection of findings is in order; the scripts themselves run outside of the tests."""

import os
import re

import pytest

from tests.docs.test_snippets import ROOT

FOLDER = ROOT / "findings"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
README = (FOLDER / "README.md").read_text()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_a_finding_says_what_it_must_and_stands_alone(script):
    text = script.read_text()
    assert os.access(script, os.X_OK)
    for part in ("Versions:", "Guess:", "Behaviour:", "Seen:"):
        assert f"\n# {part}" in text
    packages = re.search(r'run_with" ((?:\S+==\S+|\\|\n|\s)+)', text)[1].split()
    pins = dict(word.split("==") for word in packages if word != "\\")
    assert pins, "no pinned packages"
    head = text.split("\nexec ")[0]
    for version in re.findall(r"\d+\.\d+\.\d+", head.split("# Guess:")[0]):
        assert version in pins.values()
    code = text.split("<<'PYTHON'\n")[1].removesuffix("PYTHON\n")
    compile(code, script.name, "exec")
    assert not re.search(r"\b(import|from) (solo|sparse_ext)\b", code)
    assert "expect(" in code


def test_one_version_of_a_package_serves_all_findings():
    pins = {}
    for script in SCRIPTS:
        for name, version in re.findall(r" (\S+)==(\S+)", script.read_text()):
            assert pins.setdefault(name, version) == version, (script.name, name)


def test_the_readme_lists_every_finding_once():
    listed = re.findall(r"^\| \[\w+\]\((\w+\.sh)\) \|.+\|.+\|$", README, flags=re.M)
    assert sorted(listed) == [script.name for script in SCRIPTS]
