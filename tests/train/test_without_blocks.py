"""Stages under another spec: what stands without the blocks of the backbone is trained first, and blocks that begin by adding
nothing leave it as it is; teachers that are asked once; pictures that are let off easily."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image as PillowImage

import mmembed
from mmembed.errors import MmembedError
from mmembed.train.augment import augmented
from mmembed.train.loop import Run
from mmembed.train.recipe import read_recipe
from mmembed.train.teacher import Teacher

from .runs import assert_it_goes_on, curve, lay, trained

RECIPE = """
name = "small"
seed = 3
watch.plot = false

[model]
identity = true
[model.compose]
tokenizer = "tiny"
pooling = "attention"
projector = "mlp"
[model.compose.backbone]
model_type = "qwen3"
vocab_size = 512
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 16
intermediate_size = 48
[model.compose.vision]
library = "timm"
name = "test_vit"

[data.pairs]
kind = "jsonl"
path = "pairs.jsonl"
columns = { query = { text = "q" }, positive = { text = "p" } }

[data.pictures]
kind = "jsonl"
path = "pictures.jsonl"
columns = { query = { text = "name" }, positive = { image = "file" } }

[[stage]]
name = "words"
steps = 4
train = ["embeddings", "pooling"]
spec = { layers = [0], norm_layers = true }
lr = 1e-2
save_steps = 2
  [[stage.task]]
  data = ["pairs"]
  batch = 8

[[stage]]
name = "blocks"
steps = 3
train = ["backbone"]
lr = 1e-3
save_steps = 2
  [[stage.task]]
  data = ["pairs", "pictures"]
  batch = 8
  group = 4
"""


@pytest.fixture
def recipe(tmp_path):
    path = lay(tmp_path, RECIPE)
    vocabulary = mmembed.load(tmp_path / "tiny", device="cpu").model.backbone.config.vocab_size
    path.write_text(RECIPE.replace("vocab_size = 512", f"vocab_size = {vocabulary}"), encoding="utf-8")
    return path


THINGS = ["thing 3", "the 5th of all things", "a rather longer text of several words"]


def test_blocks_that_add_nothing_leave_what_stands_without_them(recipe):
    whole = Run(read_recipe(recipe), recipe.parent / "out", device="cpu").embedder
    bare = whole.respecified(layers=(0,), norm_layers=True)
    assert np.abs(whole.encode(THINGS) - bare.encode(THINGS)).max() < 1e-6
    loud = Run(read_recipe(recipe, ["model.identity=false"]), recipe.parent / "out", device="cpu").embedder
    assert np.abs(loud.encode(THINGS) - bare.encode(THINGS)).max() > 1e-3


def test_a_stage_trains_under_its_own_spec_and_the_model_ends_under_its_own(recipe, tmp_path):
    words = trained(
        recipe, tmp_path / "words", "stage.1.train=['pooling']", "stage.1.lr=0.0", "stage.1.weight_decay=0.0"
    )
    found = words.embedder
    assert found.spec.layers == (-1,)
    bare = found.respecified(layers=(0,), norm_layers=True)
    assert np.abs(found.encode(THINGS) - bare.encode(THINGS)).max() < 1e-6
    start = Run(read_recipe(recipe), tmp_path / "none", device="cpu").embedder
    assert np.abs(found.encode(THINGS) - start.encode(THINGS)).max() > 1e-2
    both = trained(recipe, tmp_path / "both").embedder
    assert np.abs(both.encode(THINGS) - both.respecified(layers=(0,), norm_layers=True).encode(THINGS)).max() > 1e-4


def test_a_run_of_such_stages_goes_on_as_if_nothing_had_happened(recipe, tmp_path):
    assert_it_goes_on(recipe, tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("stage.0.spec={ layer = [0] }", "Did you mean 'layers'"),
        ("stage.0.spec={ layers = [7] }", "the backbone has 2"),
        ("stage.0.spec={ dimension = 8 }", "part of the weights"),
        ("stage.0.task.0.ease=-1.0", "must not be negative"),
    ],
)
def test_what_a_stage_cannot_change_is_told(recipe, tmp_path, change, told):
    with pytest.raises(MmembedError, match=told):
        trained(recipe, tmp_path / "out", change)


def test_only_a_composed_backbone_begins_so(tmp_path):
    path = lay(tmp_path)
    with pytest.raises(MmembedError, match="a loaded one has learnt"):
        read_recipe(path, ["model.identity=true"])


def test_a_teacher_is_asked_about_a_thing_once(tmp_path):
    lay(tmp_path)
    tiny = mmembed.load(tmp_path / "tiny", device="cpu")
    tiny = tiny.respecified(prompts={"query": {"text": "{text}"}, "document": {"text": "of {text}"}})
    asked = []

    class Counting:
        dimension, spec = tiny.dimension, tiny.spec

        def encode_query(self, items):
            asked.extend(items)
            return tiny.encode_query(items)

        def encode_document(self, items):
            asked.extend(items)
            return tiny.encode_document(items)

    teacher = Teacher(Counting())
    items = [(mmembed.Text(text),) for text in ("one", "two", "one", "three")]
    first = teacher.said(items, "query")
    assert np.allclose(first, tiny.encode_query(items), atol=1e-6)
    assert len(asked) == 3
    assert np.array_equal(teacher.said(items[:2], "query"), first[:2])
    assert len(asked) == 3
    teacher.said(items[:1], "document")
    assert len(asked) == 4  # under the prompt of documents, which is another one
    assert teacher.said([], "query").shape == (0, tiny.dimension)
    none = Teacher(Counting(), room=0)
    none.said(items, "query")
    none.said(items, "query")
    assert len(asked) == 10


def test_some_pictures_are_let_off_easily():
    white = PillowImage.new("RGB", (32, 32), "white")
    item = (mmembed.Image(white),)

    def changed(ease: float) -> float:
        found = [
            augmented(item, [{"kind": "hole", "chance": 1.0}], np.random.default_rng(k), ease=ease) for k in range(400)
        ]
        return float(np.mean([np.asarray(own[0].load()).min() < 255 for own in found]))

    assert changed(0.0) > 0.97
    assert abs(changed(1.0) - 0.5) < 0.1
    assert abs(changed(3.0) - 0.25) < 0.1


def test_a_batch_is_eased_by_its_task(tmp_path):
    augment = "stage.0.task.0.augment=[{ kind = 'hole', chance = 1.0, sides = [0.9, 0.9] }]"
    curves = []
    for ease in (0.0, 8.0):
        folder = tmp_path / str(ease)
        trained(lay(folder), folder / "out", augment, f"stage.0.task.0.ease={ease}")
        curves.append(curve(folder / "out"))
    assert curves[0] != curves[1]
