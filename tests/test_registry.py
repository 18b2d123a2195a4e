# SPDX-License-Identifier: MIT
"""Open registries, and modules of others that a configuration imports."""

import math
import sys

import pytest

from solo.args.dataset import plugin
from solo.errors import ConfigError
from solo.programs import app
from solo.registry import Registry, UnknownNameError, import_plugins


@pytest.fixture
def table():
    return Registry("shape", {"square": 4, "triangle": 3, "root": "math:sqrt"})


def test_it_is_a_mapping_in_the_order_of_registration(table):
    assert list(table) == ["square", "triangle", "root"]
    assert len(table) == 3
    assert table["square"] == 4
    assert table.get("circle") is None
    assert table.get("circle", 1) == 1
    assert "square" in table
    assert "circle" not in table
    assert 4 not in table
    assert dict(table) == {"square": 4, "triangle": 3, "root": math.sqrt}


def test_a_path_is_imported_when_it_is_used(tmp_path, monkeypatch):
    (tmp_path / "used_late.py").write_text("value = [1]\n")
    monkeypatch.syspath_prepend(tmp_path)
    table = Registry("list", {"late": "used_late:value"})
    assert "late" in table
    assert list(table) == ["late"]
    assert "used_late" not in sys.modules
    assert table["late"] == [1]
    assert table["late"] is table["late"]


def test_unknown_names_are_key_errors_and_configuration_errors(table):
    for kind in (KeyError, ConfigError, UnknownNameError):
        with pytest.raises(kind, match=r"^The shape 'sqare' is unknown. Did you mean 'square'\?$"):
            table["sqare"]
    with pytest.raises(ConfigError, match=r"^shape.name='sqare' is unknown. Did you mean 'square'"):
        table.find("sqare", "shape.name")
    with pytest.raises(ConfigError, match="Valid names: root, square, triangle"):
        table.find(None, "shape.name")
    assert table.find("square", "shape.name") == 4


def test_register(table):
    assert table.register("circle", 1) == 1
    assert table["circle"] == 1
    table.register("circle", 1)
    with pytest.raises(ConfigError, match=r"a shape called 'circle' already.*replace=True"):
        table.register("circle", 2)
    assert table["circle"] == 1
    table.register("circle", 2, replace=True)
    assert table["circle"] == 2
    table["circle"] = 5  # as people do with solo-learn's dictionaries
    assert table["circle"] == 5
    with pytest.raises(ConfigError, match="not empty"):
        table.register("", 1)
    del table["circle"]
    assert "circle" not in table


def test_imports_are_looked_for_in_the_current_folder_too(tmp_path, monkeypatch):
    (tmp_path / "my_plugin_a.py").write_text("")
    (tmp_path / "my_plugin_b.py").write_text("")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    import_plugins(None)
    import_plugins("my_plugin_a")
    import_plugins(["my_plugin_a", "my_plugin_b"])
    assert {"my_plugin_a", "my_plugin_b"} <= set(sys.modules)
    assert plugin("my_plugin_a") == "my_plugin_a"


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("no_such_module_x", "'no_such_module_x' cannot be imported .*PYTHONPATH"),
        (["a b"], "expected names of Python modules"),
        ([3], "expected names of Python modules"),
        ("os.path;print", "expected names of Python modules"),
        ("broken_plugin", r"'broken_plugin' cannot be imported \(ZeroDivisionError"),
    ],
)
def test_imports_that_do_not_work_are_named(tmp_path, monkeypatch, named, message):
    (tmp_path / "broken_plugin.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=message):
        import_plugins(named)


@pytest.mark.parametrize(
    ("argv", "text", "wanted"),
    [
        ([], "imports: [a.b, c]\nname: x\n", ["a.b", "c"]),
        (["+imports=d"], "name: x\n", "d"),
        (["++imports=[d,e]"], "imports: [a]\n", ["d", "e"]),
        (["name=imports"], "name: x\n", None),
        ([], "name: important imports\n", None),
        ([], "imports: [a\n", None),
    ],
)
def test_imports_come_before_the_configuration_is_composed(
    tmp_path, monkeypatch, argv, text, wanted
):
    seen = []
    monkeypatch.setattr(app, "import_plugins", seen.append)
    (tmp_path / "c.yaml").write_text(text)
    app._import_plugins(["main.py", *argv], tmp_path / "c.yaml")
    assert seen == ([] if wanted is None else [wanted])


def test_a_place_may_be_registered_again_after_its_use():
    lazy = Registry("function", {"root": "math:sqrt"})
    assert lazy["root"](9) == 3
    lazy.register("root", "math:sqrt")
    with pytest.raises(ConfigError, match="already"):
        lazy.register("root", "math:cbrt")
