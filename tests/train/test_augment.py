"""Pictures changed by chance: each change is of the seed alone, does what it says, and reaches the model."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from PIL import Image as PillowImage

from mmembed import Image, Text
from mmembed.errors import SpecError
from mmembed.train.augment import augmentations, augmented
from mmembed.train.recipe import read_recipe

from .runs import RECIPE, curve, lay, trained


def picture(width: int = 80, height: int = 40) -> PillowImage.Image:
    """A dark red square with a light spot on white."""
    pixels = np.full((height, width, 3), 255, np.uint8)
    pixels[10:30, 12:36] = (120, 10, 20)
    pixels[14:20, 16:24] = (250, 220, 90)
    return PillowImage.fromarray(pixels)


@pytest.mark.parametrize("kind", list(augmentations))
def test_a_change_hangs_on_its_seed_alone_and_keeps_size_and_original(kind):
    before = picture()
    one, again, other = (augmentations[kind](before, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one.size == before.size or kind == "shrink"
    assert one.mode == "RGB"
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert np.array_equal(before, picture())
    assert all(p.default is not p.empty for p in list(inspect.signature(augmentations[kind]).parameters.values())[2:])


def test_affine_moves_what_is_there_and_fills_with_white():
    still = {"degrees": 0, "scale": [1, 1], "shift": 0}
    same = augmentations["affine"](picture(), np.random.default_rng(0), **still)
    assert np.array_equal(same, picture())
    half = augmentations["affine"](picture(), np.random.default_rng(0), **{**still, "scale": [0.5, 0.5]})
    dark = np.asarray(half).sum(2) < 500
    assert abs(dark.sum() / (np.asarray(picture()).sum(2) < 500).sum() - 0.25) < 0.05
    assert np.asarray(half)[:8].min() == 255


def test_hue_and_saturation_leave_white_alone_and_flat_leaves_few_colours():
    turned = augmentations["colour"](picture(), np.random.default_rng(3), hue=1.0, contrast=0, brightness=0)
    assert np.asarray(turned)[:8].min() >= 254
    assert abs(int(np.asarray(turned)[25, 30].max()) - 10) > 3
    noisy = augmentations["noise"](picture(), np.random.default_rng(0), by=0.3)
    flat = augmentations["flat"](noisy, np.random.default_rng(0), colours=[4, 4])
    assert len(np.unique(np.asarray(flat).reshape(-1, 3), axis=0)) <= 4


def test_chance_is_how_often_and_texts_stay():
    item = (Image(picture()), Text("a square"))
    changes = [{"kind": "hole", "chance": 0.25}]
    rng = np.random.default_rng(0)
    seen = [augmented(item, changes, rng) for _ in range(400)]
    assert all(own[1] == Text("a square") for own in seen)
    changed = sum(not np.array_equal(own[0].load(), picture()) for own in seen)
    assert 70 < changed < 130
    assert augmented(item, (), rng) is item


def test_a_broken_picture_is_left_for_its_reader_to_name():
    broken = (Image(b"no picture"),)
    assert augmented(broken, [{"kind": "blur"}], np.random.default_rng(0))[0] is broken[0]


AUGMENT = '  augment = [{ kind = "affine", chance = 0.9 }, { kind = "colour" }]\n'


def test_training_sees_other_pictures_and_goes_on_with_the_same_ones(tmp_path):
    path = lay(tmp_path, RECIPE + AUGMENT)
    trained(path, tmp_path / "whole")
    plain = lay(tmp_path / "plain")
    trained(plain, tmp_path / "without")
    assert curve(tmp_path / "whole") != curve(tmp_path / "without")
    trained(path, tmp_path / "again")
    assert curve(tmp_path / "whole") == curve(tmp_path / "again")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ('{ kind = "afine" }', "Did you mean 'affine'"),
        ('{ kind = "affine", degree = 3 }', "Did you mean 'degrees'"),
        ('{ kind = "blur", radius = 3 }', "must be a list of number"),
        ('{ kind = "blur", chance = "often" }', "must be a number"),
        ('{ kind = "blur", chance = -3.0 }', "a chance of -3.0 does not lie in"),
        ('{ kind = "flat", windows = [3, 4] }', "'flat' cannot be done with these settings"),
        ('{ kind = "hole", sides = [0.5, 1.9] }', "'hole' cannot be done with these settings"),
        ('{ kind = "elastic", cells = 0 }', "cells=0"),
    ],
)
def test_a_wrong_augmentation_is_told_with_its_line(tmp_path, said, told):
    path = lay(tmp_path, RECIPE + f"  augment = [{said}]\n")
    with pytest.raises(SpecError, match=told) as error:
        read_recipe(path)
    assert "line" in str(error.value)


@pytest.mark.parametrize("kind", list(augmentations))
@pytest.mark.parametrize("size", [(1, 1), (1, 8), (8, 1), (3, 3), (3, 200)])
def test_the_smallest_pictures_are_changed_as_well(kind, size):
    for seed in range(5):
        small = augmentations[kind](PillowImage.new("RGB", size, "red"), np.random.default_rng(seed))
        assert small.size == size or kind == "shrink"
