"""Two processes that hold the backbone's weights in parts (FSDP2) learn what one process learns."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

import mmembed
from mmembed.errors import SpecError
from mmembed.train.fsdp import clip
from mmembed.train.loop import Run
from mmembed.train.recipe import read_recipe
from mmembed.train.watch import read_log

from .runs import RECIPE, lay, together, trained, write_lines

LOOKED = """
[data.others]
kind = "jsonl"
path = "others.jsonl"
columns = { query = { text = "q" }, positive = { text = "p" } }

[held_out.others]
data = "others"

"""
SECOND = """
[[stage]]
name = "second"
steps = 3
train = ["embeddings", "projector", "tower"]
lr = 1e-3
  [[stage.task]]
  data = ["pairs", "pictures"]
  batch = 6
  losses = [{ kind = "infonce", temperature = 0.05 }]
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Pictures and texts, one of them broken, rows of few tokens (not equally many in both processes), a mean of weights, a look,
    and two stages that train other parts."""
    text = RECIPE.replace("[[stage]]", LOOKED + "[[stage]]", 1).replace(
        "lr = 1e-3", "lr = 1e-3\neps = 1e-4\nema_decay = 0.9\nsoup = 0.25"
    )
    text = text.replace("save_steps = 2", "save_steps = 2\neval_steps = 3\nbatch_tokens = 60")
    text = text.replace('path = "pictures.jsonl"', 'path = "pictures.jsonl"\non_error = "skip"')
    path = lay(tmp_path_factory.mktemp("recipe"), text + SECOND)
    (path.parent / "7.png").write_bytes(b"no picture")
    write_lines(path.parent / "others.jsonl", [{"q": f"a {k}", "p": f"the {k}th"} for k in range(8)])
    return path


def test_gradients_are_scaled_down_together_where_their_norm_is_more():
    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]  # the last one has no gradient
    for most, due in ((1.0, [[0.6, 0.0], [0.0, 0.8]]), (10.0, [[3.0, 0.0], [0.0, 4.0]])):
        weights[0].grad, weights[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
        assert float(clip(weights, most)) == 5.0
        torch.testing.assert_close([weight.grad for weight in weights[:2]], [torch.tensor(own) for own in due])
    assert float(clip(weights[2:], 1.0)) == 0.0


@pytest.fixture(scope="module")
def alone(recipe, tmp_path_factory):
    output = tmp_path_factory.mktemp("alone")
    trained(recipe, output)
    return output


def in_parts(recipe, output, *changes, resume=False):
    run = Run(read_recipe(recipe, changes), output, device="cpu", resume=resume, shard=True)
    embedder = run.train()
    assert embedder.encode(["a"]).shape == (1, run.embedder.dimension)
    assert run.shards is not None
    held = [name for name, weight in run.changed.items() if isinstance(weight, DTensor)]
    assert any(name.startswith("backbone.layers") for name in held)
    assert any("embed_tokens" in name for name in held)
    assert not any(name.startswith(("vision", "projector")) for name in held)


def frozen_in_parts(recipe, output):
    run = Run(read_recipe(recipe), output, device="cpu", shard=True)
    run.train()
    assert run.shards is not None
    assert not any(isinstance(weight, DTensor) for weight in run.changed.values())


def resumed(recipe, output):
    in_parts(recipe, output, resume=True)


def assert_alike(one, two):
    due, told = (read_log(output / "run" / "log.jsonl") for output in (one, two))
    assert [r["step"] for r in due] == [r["step"] for r in told]
    for a, b in zip(due, told, strict=True):
        if "loss" in a:
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
            assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)
            assert (b["tokens"], b["images"], b.get("skipped")) == (a["tokens"], a["images"], a.get("skipped"))
        else:
            assert b["scores"].keys() == a["scores"].keys()
            assert all(b["scores"][name] == pytest.approx(own) for name, own in a["scores"].items())
    one_weights, two_weights = (load_file(output / "weights.safetensors") for output in (one, two))
    for name, weight in one_weights.items():
        torch.testing.assert_close(two_weights[name], weight, rtol=0, atol=2e-5, msg=name)
    assert mmembed.load(two).self_test().passed


def test_weights_in_parts_learn_what_whole_ones_learn(recipe, alone, tmp_path):
    together(2, in_parts, recipe, tmp_path)
    assert sum(r.get("skipped", 0) for r in read_log(tmp_path / "run" / "log.jsonl")) > 0, "the broken picture came up"
    assert_alike(alone, tmp_path)


def test_a_run_in_parts_goes_on_from_a_checkpoint_of_whole_weights(recipe, alone, tmp_path):
    (tmp_path / "cut" / "run").mkdir(parents=True)
    kept = sorted((alone / "run").glob("0*.safetensors"))
    assert [path.stem for path in kept] == ["00000006", "00000009"]
    for name in (kept[0].name, "log.jsonl"):
        (tmp_path / "cut" / "run" / name).write_bytes((alone / "run" / name).read_bytes())
    together(2, resumed, recipe, tmp_path / "cut")
    assert_alike(alone, tmp_path / "cut")


def test_a_frozen_backbone_is_asked_for_by_all_though_some_have_only_texts(tmp_path):
    path = lay(tmp_path, RECIPE.replace('["backbone", "projector"]', '["projector"]'))
    trained(path, tmp_path / "alone")
    together(2, frozen_in_parts, path, tmp_path / "parts")
    assert_alike(tmp_path / "alone", tmp_path / "parts")


def held_in_less(recipe, output):
    changes = [f'{name}.precision="bf16"' for name in ("model", "stage.0", "stage.1")]
    with pytest.raises(SpecError, match="stage 'second' trains weights that lie in parts in bf16"):
        Run(read_recipe(recipe, changes), output, device="cpu", shard=True).train()


def test_weights_in_parts_that_are_held_in_bf16_are_not_trained_later(tmp_path):
    path = lay(tmp_path, RECIPE.replace('["backbone", "projector"]', '["projector"]') + SECOND)
    together(2, held_in_less, path, tmp_path / "parts")


def test_one_process_has_no_parts_to_hold(recipe, tmp_path):
    run = Run(read_recipe(recipe), tmp_path, device="cpu", shard=True)
    with pytest.raises(SpecError, match="torchrun"):
        run.train()
