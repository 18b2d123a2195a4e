# SPDX-License-Identifier: MIT
"""A method, a score, a granularity and an allocation of somebody else's package.

The package is the page docs/adding_a_pruning_method.md, in a temporary folder.
"""

import json
import math
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from solo.checkpoints.files import read_checkpoint
from solo.errors import ConfigError
from sparse_ext import register_allocation, register_granularity, register_method, register_scorer
from sparse_ext.allocation import exact_budgets
from sparse_ext.config import METHODS, SparseConfig, build
from sparse_ext.config.base import ALLOCATIONS
from sparse_ext.config.granularity_names import GRANULARITIES
from sparse_ext.config.scorer_names import SCORERS
from sparse_ext.config.sections import PRUNERS
from tests.docs.test_snippets import ROOT, snippets
from tests.pruning.toys import pruner_of

PAGE = ROOT / "docs" / "adding_a_pruning_method.md"
TABLES = (METHODS, PRUNERS, SCORERS, GRANULARITIES, ALLOCATIONS)


@pytest.fixture
def plugin():
    """The page's code, registered; what it registers is gone afterwards."""
    before = [dict(table) for table in TABLES]
    names: dict = {"__name__": "my_pruning"}
    exec(compile("\n".join(snippets(PAGE, "python")), str(PAGE), "exec"), names)
    yield names
    for table, entries in zip(TABLES, before, strict=True):
        table.clear()
        table.update(entries)


def test_a_method_trains_from_the_command_line(tmp_path):
    """And its checkpoint is evaluated without the package."""
    (tmp_path / "my_pruning.py").write_text("\n".join(snippets(PAGE, "python")))
    command = " ".join(snippets(PAGE, "sh")).replace("\\\n", " ")
    _, program, *words = shlex.split(command)
    short = ["max_epochs=1", "++limit_train_batches=4", "++limit_val_batches=1"]
    more = ["sparse.granularity=kernel", "sparse.score=fisher", "++sparse.update_period=2"]
    more += ["++data.num_workers=0", "backbone.kwargs.width=8"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [str(ROOT / program), *words, *short, *more, f"++checkpoint.dir={tmp_path}/runs"]
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (checkpoint,) = tmp_path.glob("runs/**/*.ckpt")
    state = read_checkpoint(checkpoint)
    masks = [v for k, v in state["state_dict"].items() if k.startswith("backbone") and ".mask" in k]
    kernels = [mask.flatten(2) for mask in masks]
    assert all((kernel.all(2) == kernel.any(2)).all() for kernel in kernels)  # whole kernels only
    kept = sum(int(kernel.any(2).sum()) for kernel in kernels)
    total = sum(kernel[..., 0].numel() for kernel in kernels)
    assert kept == round(0.1 * total)
    section = json.loads((checkpoint.parent / "args.json").read_text())["sparse"]
    assert (section["name"], section["drop_fraction"]) == ("set", 0.2)
    from solo.checkpoints.runs import load_run

    encoder, _ = load_run(checkpoint)
    weights = [m.weight for m in encoder.modules() if hasattr(m, "mask")]
    assert sum(int((w != 0).sum()) for w in weights) <= sum(int(m.sum()) for m in masks)


def test_it_keeps_its_sparsity_and_swaps_at_random(plugin):
    pruner = pruner_of(build({"name": "set", "final": 0.8, "update_period": 5}), shared=True)
    pruner.start()
    layers = {name: int(mask.sum()) for name, mask in pruner.online.masks.items()}
    before = pruner.online.masks.clone()
    values = {name: weight.abs() for name, weight in pruner.online.weights.items()}
    for _ in range(6):
        pruner.after_step()
    assert {name: int(mask.sum()) for name, mask in pruner.online.masks.items()} == layers
    for name, mask in pruner.online.masks.items():
        swapped = math.ceil(0.3 * layers[name])
        stay = values[name][before[name]].topk(layers[name] - swapped).values.min()
        kept_on = before[name] & (values[name] >= stay)
        assert (mask & kept_on).sum() == kept_on.sum()  # the largest of brute force are all there


def test_a_score_decides_in_every_method_that_can_have_it(plugin):
    for name in ("gmp", "oneshot", "rigl", "granet", "granet_ssl", "rigl_itop", "synccp", "set"):
        assert build({"name": name, "score": "fisher"}).ranking == "fisher"
    config = build({"name": "gmp", "score": "fisher", "update_period": 5, "final": 0.6})
    pruner = pruner_of(config, shared=True)
    pruner.start()
    generator = torch.Generator().manual_seed(3)
    for step in range(pruner.t_end + 1):
        for layer in pruner.online.layers.values():
            layer.weight.grad = torch.randn(layer.weight.shape, generator=generator)
        before = pruner.online.masks.clone()
        if pruner.wants_gradients():
            pruner.observe(torch.tensor(True))
        values = {
            n: (layer.weight.detach() * layer.weight.grad) ** 2
            for n, layer in pruner.online.layers.items()
        }
        if pruner.after_step():
            flat = torch.cat([v[before[n]].flatten() for n, v in values.items()])
            least = flat.sort(descending=True).values[pruner.online.masks.nnz - 1]
            for name, mask in pruner.online.masks.items():
                assert torch.equal(mask, before[name] & (values[name] >= least)), (step, name)
    assert pruner.online.masks.sparsity == pytest.approx(0.6, abs=1e-3)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "gmp", "score": "magnitud"}, "sparse.score='magnitud' is unknown.*'magnitude'"),
        ({"name": "synccp", "score": "instnt"}, "Unknown sparse.score='instnt'.*'instant'"),
        ({"name": "snip", "score": "magnitude"}, "no effect on snip.*oneshot sparse.score=NAME"),
        ({"name": "grasp", "score": "snip"}, "sparse.score=snip"),
        ({"name": "random", "score": "snip"}, "drawn at random"),
        ({"name": "asp", "score": "snip"}, "larger weights of a group"),
        ({"name": "sr_ste", "score": "snip"}, "larger weights of a group"),
        ({"name": "mcp", "score": "snip"}, "L2 norm"),
        ({"name": "sd", "score": "snip"}, "the gradient of the step, and sparse.name=sd has noth"),
        ({"name": "gmp", "score": "grasp"}, "second derivatives .*Choose another score"),
        ({"name": "oneshot", "score": "grasp", "prune_at": 0.5}, "looks at the first batch"),
    ],
)
def test_scores_that_make_no_sense_are_refused_by_name(section, message):
    with pytest.raises(ConfigError, match=message):
        build(section)


def test_scores_of_synccp_keep_their_meaning():
    ema, instant = build("synccp"), build({"name": "synccp", "score": "instant"})
    assert (ema.ranking, ema.growth) == ("magnitude", "ema")
    assert (instant.ranking, instant.growth) == ("magnitude", "instant")
    snip = build({"name": "synccp", "score": "snip"})
    assert (snip.ranking, snip.growth) == ("snip", "ema")


def test_oneshot_with_the_score_of_snip_is_snip():
    masks = []
    for section in ({"name": "snip"}, {"name": "oneshot", "score": "snip"}):
        pruner = pruner_of(build({**section, "final": 0.9, "stem_dense": True}))
        generator = torch.Generator().manual_seed(0)
        assert pruner.needs_batch
        pruner.gradient = {
            n: torch.randn(w.shape, generator=generator) for n, w in pruner.online.weights.items()
        }
        pruner.start()
        masks.append([encoder.masks.checksum() for encoder in pruner.encoders])
    assert masks[0] == masks[1]


def test_an_allocation_of_ones_own(plugin):
    def first_dense(shapes, density, sizes):
        """The first layer keeps all, the others share the rest evenly."""
        total, (first, *others) = round(density * sum(sizes.values())), list(sizes)
        rest = (total - sizes[first]) / sum(sizes[name] for name in others)
        return exact_budgets({first: 1.0, **dict.fromkeys(others, rest)}, sizes, total)

    register_allocation("first_dense", first_dense)
    pruner = pruner_of(
        build({"name": "oneshot", "allocation": "first_dense", "final": 0.3}), shared=True
    )
    pruner.start()
    first, *others = pruner.online.masks.layer_density().values()
    assert first == 1
    assert max(others) - min(others) < 0.01
    assert pruner.online.masks.nnz == round(0.7 * pruner.online.masks.n)


def test_mistakes_of_a_registration(plugin):
    class Thawed(SparseConfig):
        pass

    with pytest.raises(ConfigError, match="must be a subclass of SparseConfig"):
        register_method("new", dict, object)
    with pytest.raises(ConfigError, match=r'frozen=True.*name: str = "new"'):
        register_method("new", Thawed, object)
    with pytest.raises(ConfigError, match="a pruning method called 'gmp' already"):
        register_method("gmp", type(build("gmp")).__mro__[0], object)
    with pytest.raises(ConfigError, match=r"needs='gradients'.*Did you mean 'gradient'"):
        register_scorer("new", abs, needs="gradients")
    with pytest.raises(ConfigError, match="a granularity called 'element' already"):
        register_granularity("element", abs)


def test_the_module_of_the_page_is_all_it_takes():
    """Nothing of the repository names the method."""
    found = [p for p in Path(ROOT / "sparse_ext").rglob("*.py") if "SETConfig" in p.read_text()]
    assert found == []
