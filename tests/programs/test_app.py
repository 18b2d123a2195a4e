# SPDX-License-Identifier: MIT
"""Command lines: every mistake is one short message and exit code 2; --help is fast."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError

import main_linear
import main_pretrain
from solo.args.schema import Pretrain
from solo.errors import DataError
from solo.programs import app
from tests.programs.tiny import PRETRAIN

ROOT = Path(__file__).parents[2]
YAML = """
defaults:
  - _self_
  - augmentations: two.yaml
  - override hydra/hydra_logging: disabled
  - override hydra/job_logging: disabled
hydra: {output_subdir: null, run: {dir: .}}
"""


@pytest.fixture
def configs(cwd):
    """A folder as solo-learn's users have it: a YAML whose augmentations are a list in a file."""
    (cwd / "cfg" / "augmentations").mkdir(parents=True)
    plain = {k: v for k, v in PRETRAIN.items() if k != "augmentations"}
    (cwd / "cfg" / "byol.yaml").write_text(YAML + OmegaConf.to_yaml(OmegaConf.create(plain)))
    entries = OmegaConf.to_yaml(OmegaConf.create(PRETRAIN["augmentations"]))
    (cwd / "cfg" / "augmentations" / "two.yaml").write_text(entries)
    (cwd / "cfg" / "broken.yaml").write_text("name: [1, 2\nmethod: x")
    return cwd


def call(monkeypatch, capsys, *args, main=main_pretrain.main):
    """Run a program in this process; returns (exit code, stderr)."""
    monkeypatch.setattr("sys.argv", [f"{main.__module__}.py", *args])
    try:
        main()
    except SystemExit as stop:
        return stop.code, capsys.readouterr().err
    return 0, capsys.readouterr().err


HERE = ("--config-path", "cfg", "--config-name", "byol.yaml")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "no configuration: add --config-path FOLDER --config-name FILE.yaml"),
        (
            ("--config-path", "cgf", "--config-name", "byol.yaml"),
            "no folder 'cgf'. Did you mean 'cfg'",
        ),
        (
            ("--config-path", "cfg", "--config-name", "boyl.yaml"),
            "no 'boyl.yaml' in cfg. Did you mean",
        ),
        (("--config-path=cfg", "--config-name=boyl"), "no 'boyl.yaml' in cfg. Did you mean 'byol'"),
        (("--config-path", "cfg", "--config-name", "broken.yaml"), "broken.yaml"),
        ((*HERE, "optimizer.lrr=3"), "unknown key 'optimizer.lrr'. Did you mean 'lr'"),
        ((*HERE, "++optimizer.lrr=3"), "unknown key 'optimizer.lrr'. Did you mean 'lr'"),
        ((*HERE, "max_epocs=3"), "unknown key 'max_epocs'. Did you mean 'max_epochs'"),
        ((*HERE, "++max_epocs=3"), "unknown key 'max_epocs'. Did you mean 'max_epochs'"),
        ((*HERE, "momentm.base_tau=1"), "Did you mean 'momentum'"),
        ((*HERE, "seed=3"), "the YAML does not set 'seed': to add it write ++seed="),
        ((*HERE, "gradient_clip_val=3"), "to add it write ++gradient_clip_val="),
        ((*HERE, "+max_epochs=3"), "max_epochs"),
        ((*HERE, "max_epochs=many"), "'max_epochs' must be an integer, not 'many' (str)"),
        ((*HERE, "augmentations=tow"), "'augmentations' has no option 'tow'. Did you mean 'two'"),
        ((*HERE, "+sparse=syncp"), "'sparse' has no option 'syncp'. Did you mean 'synccp'"),
        ((*HERE, "+sparse=synccp", "++sparse.finl=0.9"), "Did you mean 'final'"),
        ((*HERE, "+sparse=synccp", "sparse.finl=0.9"), "key 'sparse.finl'. Did you mean 'final'"),
        ((*HERE, "+sparse=synccp", "sparse.csi.mod=off"), "Did you mean 'mode'"),
        ((*HERE, "+gating=cdg", "gating.targt=0.9"), "Did you mean 'target'"),
        ((*HERE, "sparse.final=0.9"), "'sparse.final' needs its section: add +sparse=NAME"),
        ((*HERE, "+sparse=synccp", "sparse.final=1.0"), "sparse.final=1.0"),
        ((*HERE, "name"), "Error parsing override 'name'"),
        ((*HERE, "data.dataset=custom", "++data.train_path=absent"), "there is no folder 'absent'"),
        ((*HERE, "accelerator=gpu"), "this machine has no GPU: write accelerator=cpu"),
        ((*HERE, "++precision=7"), "Trainer refuses its arguments"),
    ],
)
def test_mistakes(configs, monkeypatch, capsys, args, message):
    if "accelerator=gpu" in args:
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
    code, err = call(monkeypatch, capsys, *args)
    assert code == 2, err
    assert message in err
    assert [line.startswith("error: ") for line in err.splitlines()].count(True) == 1
    assert "Traceback" not in err
    assert not (configs / "trained_models").exists()


def test_a_recipe_is_found_by_its_name(monkeypatch, capsys, tmp_path):
    """Far from the checkout; the mistake behind it shows that the recipe was read."""
    monkeypatch.chdir(tmp_path)
    code, err = call(monkeypatch, capsys, "--config-name", "byol", "optimizer.lrr=1")
    assert code == 2
    assert "scripts/pretrain/cifar/byol.yaml (also for custom," in err
    assert "unknown key 'optimizer.lrr'. Did you mean 'lr'" in err
    code, err = call(monkeypatch, capsys, "--config-name", "boyl")
    assert code == 2
    assert "no recipe is called 'boyl'. Did you mean 'byol'" in err


def test_an_installed_folder_of_recipes(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    there = ("--config-path", "scripts/pretrain/digits", "--config-name", "lejepa.yaml")
    code, err = call(monkeypatch, capsys, *there, "optimizer.lrr=1")
    assert code == 2
    assert "unknown key 'optimizer.lrr'" in err


def test_linear_mistakes(configs, monkeypatch, capsys):
    with pytest.warns(UserWarning, match="unknown key 'method': it has no effect"):
        code, err = call(monkeypatch, capsys, *HERE, main=main_linear.main)
    assert code == 2
    assert "error: pretrained_feature_extractor is not given" in err
    code, err = call(monkeypatch, capsys, *HERE, "++strict=True", main=main_linear.main)
    assert code == 2
    assert "error: unknown key" in err


def test_lists_in_group_files_compose_and_a_run_goes_through(configs, monkeypatch, capsys):
    args = ("++limit_val_batches=0", "++limit_train_batches=1", "+sparse=synccp")
    code, err = call(monkeypatch, capsys, *HERE, *args)
    assert code == 0, err
    (checkpoint,) = configs.glob("trained_models/mocov2plus/0/tiny-0-ep=0.ckpt")
    assert '"name": "synccp"' in (checkpoint.parent / "args.json").read_text()


def test_recipes_of_solo_learn_find_their_wandb_group():
    """A lab's YAML with `wandb: private.yaml` among its defaults lies beside ours."""
    recipes = json.loads((ROOT / "tests" / "args" / "recipes.json").read_text())
    for folder in {Path(name).parent for name in recipes}:
        for name in ("private", "mhug"):
            group = OmegaConf.load(ROOT / "scripts" / folder / "wandb" / f"{name}.yaml")
            assert group.enabled is True


def test_values_with_an_equals_sign_are_accepted_as_typed():
    argv = ["main_linear.py", "--config-name=x", "pretrained_feature_extractor=a b/n-ep=16.ckpt"]
    argv += ["resume_from_checkpoint='x=1'", "++a.b={c: 1}", "plain=3", "+it=it's=so"]
    app._quote_values(argv)
    parser = OverridesParser.create()
    values = [parser.parse_override(arg).value() for arg in argv[2:]]
    assert values[0] == "a b/n-ep=16.ckpt"
    assert values[1].text == "x=1" if hasattr(values[1], "text") else values[1] == "x=1"
    assert argv[4:6] == ["++a.b={c: 1}", "plain=3"]
    assert argv[1] == "--config-name=x"
    assert str(parser.parse_override(argv[6]).value()) == "it's=so"


def test_a_configuration_may_end_in_yml(configs, monkeypatch, capsys):
    (configs / "cfg" / "byol.yaml").rename(configs / "cfg" / "other.yml")
    args = ("++limit_val_batches=0", "++limit_train_batches=1", "--config-path", "cfg")
    for name in ("other.yml", "other"):
        code, err = call(monkeypatch, capsys, *args, "--config-name", name)
        assert code == 0, err


def test_a_full_disk_is_no_bug():
    error = OSError(errno.ENOSPC, "No space left on device", "run/ep=3.ckpt")
    assert app.explain(error) == "No space left on device: 'run/ep=3.ckpt'"
    assert app.explain(FileNotFoundError(errno.ENOENT, "No such file", "x")) == "No such file: 'x'"


def test_the_folder_may_lie_beside_the_program_or_in_the_current_folder(configs):
    argv = ["main_pretrain.py", "--config-path", "cfg", "--config-name", "byol"]
    app._prepare_arguments(argv, configs / "elsewhere")
    assert argv[2] == str(configs / "cfg")
    argv = ["main_pretrain.py", "--config-path=scripts/pretrain/cifar", "--config-name=byol.yaml"]
    app._prepare_arguments(argv, ROOT)
    assert argv[1] == f"--config-path={ROOT / 'scripts/pretrain/cifar'}"


def test_bugs_keep_their_traceback(monkeypatch):
    def bug():
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        app.run_program(bug)


def test_whoever_wants_the_traceback_gets_it(monkeypatch):
    def mistake():
        raise DataError("x")

    monkeypatch.setattr(app, "TRACEBACK_WANTED", True)
    with pytest.raises(DataError):
        app.run_program(mistake)


@pytest.mark.parametrize(
    ("variable", "wanted"), [({}, "False"), ({"HYDRA_FULL_ERROR": "1"}, "True")]
)
def test_programs_started_by_programs_know_what_the_user_wants(variable, wanted):
    """A program sets that variable itself, for Hydra; its children inherit it."""
    inner = "import solo.programs.app as app; print(app.TRACEBACK_WANTED)"
    start = f"subprocess.run([sys.executable, '-c', {inner!r}])"
    outer = f"import subprocess, sys, solo.programs.app; {start}"
    ours = ("HYDRA_FULL_ERROR", app._OURS)
    env = {key: value for key, value in os.environ.items() if key not in ours} | variable
    command = [sys.executable, "-c", outer]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == wanted


def test_keys_that_a_method_misses_are_mistakes_too():
    with pytest.raises(ConfigAttributeError) as error:
        OmegaConf.create({"a": {}}, flags={"struct": True}).a.b
    assert "'b'" in app.explain(error.value) or "b" in app.explain(error.value)
    assert app.explain(RuntimeError("x")) is None


def test_valid_keys():
    keys = app.valid_keys(Pretrain)
    assert {"optimizer.lr", "data.train_path", "max_epochs", "checkpoint.keep_prev"} <= keys


def test_help_lists_the_keys(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["main_linear.py", "--help"])
    main_linear.main()
    out = capsys.readouterr().out
    assert "python main_linear.py --config-path" in out
    lines = {
        line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith("  ")
    }
    assert lines["mixup"] == ["float", "0.0"]
    assert lines["optimizer.lr"] == ["float", "required"]
    assert lines["checkpoint.dir"] == ["str", "'trained_models'"]


def test_help_with_a_configuration_prints_it(configs, monkeypatch, capsys):
    code, _ = call(monkeypatch, capsys, *HERE, "--help")
    assert code == 0


@pytest.mark.parametrize("program", ["main_pretrain", "main_linear", "main_knn", "main_umap"])
def test_help_is_fast_and_free_of_torch(program):
    code = (
        "import sys, time; start = time.process_time()\n"
        f"sys.argv = ['{program}.py', '--help']\n"
        f"import {program}\n"
        f"try: {program}.main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "assert 'torch' not in sys.modules\n"
        "print('seconds', time.process_time() - start)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    start = time.time()
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split("seconds ")[1]) < 2, time.time() - start


@pytest.mark.slow
def test_exit_code_of_a_process(cwd):
    command = [sys.executable, str(ROOT / "main_pretrain.py"), "--config-name", "absent"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
