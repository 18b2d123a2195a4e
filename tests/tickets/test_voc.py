# SPDX-License-Identifier: MIT
"""VOC 2007: reader, average precision, cost selection against scikit-learn (property test 52)."""

import numpy as np
import pytest
from PIL import Image

from solo.data.datasets.voc import VOCClassification
from solo.errors import ConfigError, DataError
from solo.utils import voc_svm
from sparse_ext.tickets.__main__ import main
from sparse_ext.tickets.run_folder import RunFolder

pytestmark = pytest.mark.unit
CLASSES = ("blue", "red")


def write_voc(root, per_split=12, size=40, seed=0):
    """A VOC2007 folder: an image shows red, blue, both or none; one difficult label per split."""
    rng = np.random.default_rng(seed)
    base = root / "VOCdevkit/VOC2007"
    (base / "ImageSets/Main").mkdir(parents=True)
    (base / "JPEGImages").mkdir()
    number = 0
    for split in ("trainval", "test"):
        lines = {name: [] for name in CLASSES}
        for i in range(per_split):
            image = rng.integers(0, 40, (size, size, 3), dtype=np.uint8)
            shows = {"red": i % 2 == 0, "blue": i % 3 == 0}
            image[..., 0] += 180 * np.uint8(shows["red"])
            image[..., 2] += 180 * np.uint8(shows["blue"])
            name, number = f"{number:06d}", number + 1
            Image.fromarray(image).save(base / f"JPEGImages/{name}.jpg")
            for cls in CLASSES:
                label = "0" if (i, cls) == (1, "red") else "1" if shows[cls] else "-1"
                lines[cls].append(f"{name} {label:>2}")
        for cls in CLASSES:
            (base / f"ImageSets/Main/{cls}_{split}.txt").write_text("\n".join(lines[cls]) + "\n")
    return root


# -- reader ------------------------------------------------------------------------------------


def test_reader(tmp_path):
    root = write_voc(tmp_path)
    for folder in (root, root / "VOCdevkit", root / "VOCdevkit/VOC2007"):
        data = VOCClassification(folder, "trainval")
    assert data.classes == ["blue", "red"]
    assert len(data) == 12
    assert data.labels[:4].tolist() == [[1, 1], [0, -1], [0, 1], [1, 0]]
    image, labels = data[2]
    assert np.asarray(image)[..., 0].mean() > 150 > np.asarray(image)[..., 2].mean()
    assert labels.tolist() == [0, 1]
    assert data.ids[0] == "000000"
    assert VOCClassification(root, "test").ids[0] == "000012"


def test_reader_names_mistakes(tmp_path):
    with pytest.raises(DataError, match="is no VOC 2007 folder"):
        VOCClassification(tmp_path, "test")
    root = write_voc(tmp_path)
    with pytest.raises(DataError, match=r"no split 'tests'. Did you mean 'test'"):
        VOCClassification(root, "tests")
    with pytest.raises(DataError, match=r"no <class>_val\.txt"):
        VOCClassification(root, "val")
    lists = root / "VOCdevkit/VOC2007/ImageSets/Main"
    good = (lists / "red_test.txt").read_text()
    (lists / "red_test.txt").write_text(good.replace("000013  0", "000013 2"))
    with pytest.raises(DataError, match=r"red_test.txt, line 2: .* got '000013 2'"):
        VOCClassification(root, "test")
    (lists / "red_test.txt").write_text(good[len("000012  1\n") :])
    with pytest.raises(DataError, match="lists other images"):
        VOCClassification(root, "test")


# -- average precision -------------------------------------------------------------------------


def brute_force(scores, labels):
    """Precision at each threshold, the best one to the right of each recall, summed by recall."""
    pairs = [(s, y) for s, y in zip(scores, labels, strict=True) if y != -1]
    positives, points = sum(y == 1 for _, y in pairs), []
    for threshold in sorted({s for s, _ in pairs}, reverse=True):
        found = [y for s, y in pairs if s >= threshold]
        points.append((sum(found) / positives, sum(found) / len(found)))
    area, before = 0.0, 0.0
    for recall, _ in points:
        area += (recall - before) * max(p for r, p in points if r >= recall)
        before = recall
    return area


def test_average_precision_against_brute_force():
    rng = np.random.default_rng(1)
    for _ in range(20):
        scores = rng.integers(0, 8, 25) / 4  # with ties
        labels = rng.choice([1, 0, -1], 25)
        labels[:2] = 1, 0
        got = voc_svm.average_precision(scores, labels)
        assert got == pytest.approx(brute_force(scores, labels))


def test_average_precision_by_hand():
    scores, labels = np.array([4.0, 3, 2, 1]), np.array([1, 0, 1, 0])
    assert voc_svm.average_precision(scores, labels) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    ignored = np.array([1, -1, 1, 0])  # the mistake does not count
    assert voc_svm.average_precision(scores, ignored) == 1
    with pytest.raises(DataError, match="at least one image"):
        voc_svm.average_precision(scores, np.zeros(4))


# -- selection ---------------------------------------------------------------------------------


def toy(n=90, seed=0):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.4).astype(int)
    x = rng.normal(size=(n, 6)) + 0.8 * y[:, None]
    return voc_svm.normalised(x), y


def test_the_grid_has_eighteen_costs():
    assert len(set(voc_svm.COSTS)) == 18
    assert voc_svm.COSTS[:3] == (0.01, 0.1, 0.0625)
    assert voc_svm.COSTS[-1] == 0.5**19


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("protocol", voc_svm.PROTOCOLS)
@pytest.mark.parametrize("seed", [0, 1])
def test_selection_is_three_fold_cross_validation(seed, protocol):
    from sklearn.model_selection import StratifiedKFold

    x, y = toy(seed=seed)
    precision = step_area if protocol == "goyal" else brute_force
    expected = {}
    for cost in voc_svm.COSTS:
        scores = []
        for train, held in StratifiedKFold(3).split(x, y):
            svm = voc_svm.linear_svm(cost).fit(x[train], y[train] == 1)
            scores.append(precision(svm.decision_function(x[held]), y[held]))
        expected[cost] = np.mean(scores)
    cost, means = voc_svm.select_cost(x, y, protocol=protocol)
    assert means == pytest.approx(expected)
    assert cost == max(means, key=means.get)


def step_area(scores, labels):
    """Mean of the precision at each image that shows the class: nothing is interpolated."""
    order = np.argsort(-scores, kind="stable")
    hits = labels[order] == 1
    return (np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean()


def test_difficult_images_are_negatives_in_training():
    """Goyal et al.: of the benchmark's labels only 1 is a positive; in the test they are out."""
    x, y = toy()
    extra, difficult = np.concatenate([x, -10 * x[:20]]), np.concatenate([y, -np.ones(20, int)])
    costs = (0.01, 0.1)
    negatives = np.where(difficult == -1, 0, difficult)
    assert voc_svm.select_cost(extra, difficult, costs) == voc_svm.select_cost(
        extra, negatives, costs
    )
    train, same = (extra, difficult[:, None]), (extra, negatives[:, None])
    test = (extra, difficult[:, None])
    found = voc_svm.evaluate(train, test, ["a"], costs)
    assert found == voc_svm.evaluate(same, test, ["a"], costs)
    assert found != voc_svm.evaluate(train, test, ["a"], costs, protocol="left_out")


def test_difficult_images_may_be_left_out():
    x, y = toy()
    extra, ignored = np.concatenate([x, -10 * x[:20]]), np.concatenate([y, -np.ones(20, int)])
    costs, protocol = (0.01, 0.1), "left_out"
    assert voc_svm.select_cost(extra, ignored, costs, protocol) == voc_svm.select_cost(
        x, y, costs, protocol
    )
    with pytest.raises(ConfigError, match=r"protocol='goyl'.*Did you mean 'goyal'"):
        voc_svm.select_cost(x, y, costs, "goyl")


def test_a_separable_toy_is_perfect():
    rng = np.random.default_rng(0)
    y = np.stack([np.arange(40) % 2, np.arange(40) // 20], axis=1)
    x = np.concatenate([4.0 * y - 2, rng.normal(size=(40, 2)) * 0.1], axis=1)
    result = voc_svm.evaluate((x, y), (x, y), ["a", "b"])
    assert result.map == pytest.approx(100)
    assert set(result.costs) == {"a", "b"}


def test_too_few_images_name_the_class():
    x, _ = toy()
    few = np.zeros((90, 1), int)
    few[:2] = 1
    with pytest.raises(DataError, match=r"class 'cow': .* there are 2 and 88"):
        voc_svm.evaluate((x, few), (x, few), ["cow"])


# -- levels of a sweep -------------------------------------------------------------------------


def test_each_level_gets_a_mean_average_precision(finished, tmp_path):
    root, out = write_voc(tmp_path), tmp_path / "out"
    command = ["svm", str(finished.folder), "--voc", str(root), "--output", str(out)]
    main([*command, "--resize", "20", "--crop", "16"])
    run = RunFolder(out)
    levels = run.finished()
    assert [level.number for level in levels] == [0, 1, 2]
    for level, source in zip(levels, finished.finished(), strict=True):
        metrics = level.done["metrics"]
        assert metrics["map"] == pytest.approx((metrics["ap/blue"] + metrics["ap/red"]) / 2)
        assert level.done["density"] == source.done["density"]
        assert set(level.done["costs"]) == set(CLASSES)
    main(["curves", str(out), "--metric", "map", "--output", str(tmp_path)])
    assert (tmp_path / "voc07-svm.svg").is_file()
