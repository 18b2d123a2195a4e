# SPDX-License-Identifier: MIT
"""The map in CONTRIBUTING.md is true: every room is on it, and no import goes up."""

import ast
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[1]
MAP = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
TOP = 99  # commands: `__main__.py` and the package itself


def floors(package: str) -> dict[str, int]:
    """Floor by room, from the map."""
    drawn = re.search(rf"^house of {package}\n(.*?)^(?:```|$)", MAP, re.MULTILINE | re.DOTALL)
    return {name: int(floor) for floor, name in re.findall(r"^(\d+) (\w+)", drawn[1], re.MULTILINE)}


def room(path: Path, package: str) -> str:
    parts = path.relative_to(ROOT / package).parts
    return (
        package if path.name == "__main__.py" or parts == ("__init__.py",) else Path(parts[0]).stem
    )


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, dotted name) of everything that a file imports when it runs, inside functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
    return found


@pytest.mark.parametrize("package", ["solo", "sparse_ext"])
def test_no_import_goes_up(package):
    floor = {**floors(package), package: TOP}
    wrong = []
    for path in sorted((ROOT / package).rglob("*.py")):
        here = room(path, package)
        for line, name in imports(path):
            owner, _, rest = name.partition(".")
            there = rest.partition(".")[0]
            if owner != package or there not in floor or there == here:
                continue
            if floor[there] >= floor[here]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name} from {there}")
    assert not wrong


@pytest.mark.parametrize("package", ["solo", "sparse_ext"])
def test_the_map_names_every_room(package):
    rooms = {
        Path(path.relative_to(ROOT / package).parts[0]).stem
        for path in (ROOT / package).rglob("*.py")
    }
    assert rooms - {"__init__", "__main__", "recipes"} == set(floors(package))


def test_solo_does_not_import_sparse_ext():
    named = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in (ROOT / "solo").rglob("*.py")
        for line, name in imports(path)
        if name.split(".")[0] == "sparse_ext"
    ]
    assert not named


def test_docstrings_of_public_names_are_sentences():
    riddles = []
    for package in ("solo", "sparse_ext"):
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
            nodes = [*tree.body, *(child for node in classes for child in node.body)]
            for node in nodes:
                if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                    continue
                doc = ast.get_docstring(node)
                if node.name.startswith("_") or doc is None:
                    continue
                first = " ".join(doc.split("\n\n")[0].split())
                if len(first.split()) < 4 or first[-1] not in ".:)":
                    riddles.append(f"{path.relative_to(ROOT)}:{node.lineno} {first!r}")
    assert not riddles
