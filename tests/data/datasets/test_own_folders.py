# SPDX-License-Identifier: MIT
"""A folder of a user's own images: its layout, a sample of its images, what is held out."""

import hashlib
import math

import numpy as np
import pytest
from PIL import Image

from solo.data.datasets import holdout as holdouts
from solo.data.datasets.folders import ClassFolders
from solo.data.datasets.holdout import Holdout, held_out
from solo.data.datasets.layout import layout_of
from solo.data.datasets.sampled import sample
from solo.errors import ConfigError, DataError


def picture(path, size=(8, 8), colour=(255, 0, 0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def classes(folder, names="abc", images=4):
    for name in names:
        for index in range(images):
            picture(folder / name / f"{index}.png")


@pytest.mark.unit
class TestLayout:
    def test_class_folders(self, tmp_path):
        classes(tmp_path)
        found = layout_of(tmp_path)
        assert (found.train, found.val, found.labelled, found.classes) == (tmp_path, None, True, 3)
        assert [file.relative_to(tmp_path).as_posix() for file in found.files[:5]] == [
            "a/0.png", "a/1.png", "a/2.png", "a/3.png", "b/0.png",
        ]  # fmt: skip

    @pytest.mark.parametrize("val", ["val", "valid", "validation", "test", "Val"])
    def test_train_and_validation(self, tmp_path, val):
        classes(tmp_path / "train")
        classes(tmp_path / val, images=1)
        found = layout_of(tmp_path)
        assert (found.train, found.val) == (tmp_path / "train", tmp_path / val)
        assert len(found.files) == 12

    def test_val_goes_before_test(self, tmp_path):
        for name in ("train", "test", "val"):
            classes(tmp_path / name)
        assert layout_of(tmp_path).val == tmp_path / "val"

    def test_tiny_imagenet(self, tmp_path):
        for name in ("n01", "n02"):
            for index in range(3):
                picture(tmp_path / "train" / name / "images" / f"{name}_{index}.jpg")
        picture(tmp_path / "val/images/val_0.jpg")
        (tmp_path / "val/val_annotations.txt").write_text("val_0.jpg\tn02\t0\t0\t9\t9\n")
        picture(tmp_path / "test/images/test_0.jpg")
        found = layout_of(tmp_path)
        assert (found.classes, len(found.files), found.val) == (2, 6, tmp_path / "val")

    def test_flat_folder_has_no_labels(self, tmp_path):
        for index in range(3):
            picture(tmp_path / f"{index}.png")
        (tmp_path / "notes.txt").write_text("no image")
        found = layout_of(tmp_path)
        assert (found.labelled, found.classes, len(found.files)) == (False, 0, 3)

    def test_a_single_folder_is_no_class(self, tmp_path):
        classes(tmp_path / "photos", names="a")
        found = layout_of(tmp_path)
        assert (found.labelled, found.train) == (False, tmp_path / "photos/a")

    def test_a_wrapper_is_passed_through(self, tmp_path):
        classes(tmp_path / "PlantVillage" / "color")
        assert layout_of(tmp_path).train == tmp_path / "PlantVillage" / "color"

    def test_folders_need_not_be_classes(self, tmp_path):
        classes(tmp_path)
        found = layout_of(tmp_path, labelled=False)
        assert (found.labelled, len(found.files)) == (False, 12)

    def test_what_is_left_out_is_said(self, tmp_path):
        classes(tmp_path)
        picture(tmp_path / "cover.png")
        assert layout_of(tmp_path).left_out == ("1 images beside the class folders",)

    def test_without_labels_validation_is_left_out(self, tmp_path):
        picture(tmp_path / "train/0.png")
        classes(tmp_path / "val")
        found = layout_of(tmp_path)
        assert found.val is None
        assert "no labels to validate" in found.left_out[0]

    def test_empty_class(self, tmp_path):
        classes(tmp_path)
        (tmp_path / "d").mkdir()
        with pytest.raises(DataError, match=r"folders d of .* hold no images"):
            layout_of(tmp_path)

    def test_no_images(self, tmp_path):
        with pytest.raises(DataError, match=r"no images in .*<class>/<image>"):
            layout_of(tmp_path)

    def test_no_folder(self, tmp_path):
        with pytest.raises(DataError, match=r"data\.path: there is no folder"):
            layout_of(tmp_path / "nowhere")


@pytest.mark.unit
class TestSample:
    def test_statistics(self, tmp_path):
        """Half of the pixels are (1, 0, 0.2), half (0, 0, 0.6)."""
        picture(tmp_path / "0.png", colour=(255, 0, 51))
        picture(tmp_path / "1.png", colour=(0, 0, 153))
        found = sample(sorted(tmp_path.iterdir()), 4)
        assert found.mean == (0.5, 0.0, 0.4)
        assert found.std == (0.5, 0.001, 0.2)
        assert (found.one_size, found.side, found.grey) == ((8, 8), 8, False)

    def test_sizes_and_grey(self, tmp_path):
        for index, size in enumerate([(30, 20), (10, 50), (60, 60)]):
            picture(tmp_path / f"{index}.png", size, (9, 9, 9))
        found = sample(sorted(tmp_path.iterdir()), 8)
        assert (found.one_size, found.side, found.grey) == (None, 20, True)

    def test_the_mean_of_photographs(self, tmp_path):
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
        for index, image in enumerate(pixels):
            Image.fromarray(image).save(tmp_path / f"{index}.png")
        found = sample(sorted(tmp_path.iterdir()), 16)
        assert found.mean == pytest.approx(pixels.reshape(-1, 3).mean(0) / 255, abs=6e-4)
        assert found.std == pytest.approx(pixels.reshape(-1, 3).std(0) / 255, abs=6e-4)

    def test_broken_files_do_not_count(self, tmp_path):
        picture(tmp_path / "0.png", colour=(255, 255, 255))
        (tmp_path / "1.png").write_bytes(b"no image")
        assert sample(sorted(tmp_path.iterdir()), 4).mean == (1, 1, 1)

    def test_nothing_to_read(self, tmp_path):
        (tmp_path / "1.png").write_bytes(b"no image")
        with pytest.raises(DataError, match=r"none of 1 images can be read.*1\.png"):
            sample(sorted(tmp_path.iterdir()), 4)


def names_of(count, name="a"):
    return [f"{name}/{index}.png" for index in range(count)]


@pytest.mark.unit
class TestHoldout:
    @pytest.mark.parametrize(("count", "share", "held"), [(20, 0.1, 2), (3, 0.1, 1), (1, 0.1, 0)])
    def test_how_many(self, count, share, held):
        assert len(held_out(names_of(count), [0] * count, share)) == held

    def test_never_all(self):
        assert len(held_out(names_of(2), [0, 0], 0.99)) == 1

    def test_by_the_hashes_of_names(self):
        names = names_of(50) + names_of(30, "b")
        chosen = held_out(names, [0] * 50 + [1] * 30, 0.1)
        digest = {name: hashlib.sha256(name.encode()).hexdigest() for name in names}
        wanted = sorted(names[:50], key=digest.get)[:5] + sorted(names[50:], key=digest.get)[:3]
        assert {names[i] for i in chosen} == set(wanted)

    def test_a_new_file_changes_at_most_one(self):
        before = {names_of(100)[i] for i in held_out(names_of(100), [0] * 100, 0.1)}
        after = {names_of(101)[i] for i in held_out(names_of(101), [0] * 101, 0.1)}
        assert len(before - after) <= 1

    def test_parts_of_a_folder(self, tmp_path):
        classes(tmp_path, images=10)
        parts = [Holdout(0.2).keep(ClassFolders(str(tmp_path)), part) for part in ("train", "val")]
        files = [{file for file, _ in part.samples} for part in parts]
        assert [len(each) for each in files] == [24, 6]
        assert not files[0] & files[1]
        assert sorted(parts[1].targets) == [0, 0, 1, 1, 2, 2]

    def test_the_list_of_a_run_is_kept(self, tmp_path):
        data, run = tmp_path / "data", tmp_path / "run"
        classes(data, images=10)
        drawn = Holdout(0.2)
        drawn.keep(ClassFolders(str(data)), "val")
        run.mkdir()
        drawn.write(run)
        for index in range(100, 140):  # with so many more, others would be drawn
            picture(data / "a" / f"{index}.png")
        again = holdouts.read(run)
        again.keep(ClassFolders(str(data)), "val")
        assert again.names == drawn.names
        assert len(drawn.names) == math.floor(0.2 * 10) * 3

    def test_of_other_data(self, tmp_path):
        classes(tmp_path)
        with pytest.raises(DataError, match=r"none of the 1 validation images"):
            Holdout(0.2, frozenset({"z/9.png"})).keep(ClassFolders(str(tmp_path)), "val")

    def test_nothing_to_hold_out(self, tmp_path):
        classes(tmp_path, images=1)
        with pytest.raises(ConfigError, match=r"no class .* has two images"):
            Holdout(0.2).keep(ClassFolders(str(tmp_path)), "val")

    def test_without_files(self):
        with pytest.raises(ConfigError, match=r"data\.val_fraction holds out"):
            Holdout(0.2).keep([1, 2], "val")

    def test_a_damaged_list(self, tmp_path):
        (tmp_path / "validation.json").write_text("{")
        with pytest.raises(DataError, match=r"validation\.json: damaged"):
            holdouts.read(tmp_path)
