"""The loop: it learns, stops and goes on as if nothing had happened, and loses nothing when something goes wrong."""

from __future__ import annotations

import json
import os
import signal
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import mmembed
from mmembed.batch import pack
from mmembed.errors import InputError, LoadError, SpecError, TrainingError, UnknownName
from mmembed.testing import BACKBONES, tiny_embedder
from mmembed.train import checkpoints, learning
from mmembed.train.loop import Run
from mmembed.train.losses import losses
from mmembed.train.recipe import Watch, read_recipe
from mmembed.train.watch import Log, read_log

from ..conftest import picture
from ..processes import started
from .runs import RECIPE, curve, lay, together, trained

STEPS = "stage.0.steps=30"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return lay(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """A run of 30 steps that nothing disturbed."""
    output = tmp_path_factory.mktemp("whole")
    trained(recipe, output, STEPS, "watch.plot=true")
    return output


def weights(output):
    return load_file(output / "weights.safetensors")


def same(a, b) -> bool:
    return curve(a) == curve(b) and all(torch.equal(value, weights(b)[name]) for name, value in weights(a).items())


def test_a_run_learns_and_leaves_a_folder_that_load_opens(whole):
    steps = [record["loss"] for record in read_log(whole / "run" / "log.jsonl")]
    assert len(steps) == 30
    assert np.mean(steps[-5:]) < 0.6 * np.mean(steps[:5])
    embedder = mmembed.load(whole)
    assert embedder.spec.name == "small"
    assert embedder.self_test().passed
    assert (whole / "README.md").read_text().startswith("<!-- written by mmembed train -->\n# small")
    assert len(list((whole / "run").glob("*.safetensors"))) == 2
    assert (whole / "run" / "plot.png").stat().st_size > 5000


def test_only_what_the_stage_trains_changes(whole, recipe):
    before, after = load_file(recipe.parent / "tiny" / "weights.safetensors"), weights(whole)
    moved = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"backbone", "projector"}


def _until_killed(recipe, output):
    trained(recipe, output, STEPS)


def test_a_run_that_was_killed_goes_on_as_if_nothing_had_happened(recipe, whole, tmp_path):
    process = started(_until_killed, recipe, tmp_path)
    log = tmp_path / "run" / "log.jsonl"
    while not (log.exists() and len(log.read_bytes().splitlines()) >= 9) and process.is_alive():
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    steps = len(read_log(log))
    assert 9 <= steps < 30
    with pytest.raises(LoadError, match="--resume"):
        Run(read_recipe(recipe, [STEPS]), tmp_path, device="cpu")
    trained(recipe, tmp_path, STEPS, resume=True)
    assert same(tmp_path, whole)


def test_ctrl_c_keeps_the_step_it_came_in(recipe, whole, tmp_path, monkeypatch):
    step = torch.optim.AdamW.step
    done = []

    def interrupted(self, *given):
        done.append(None)
        if len(done) == 7:
            signal.raise_signal(signal.SIGINT)
        return step(self, *given)

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        trained(recipe, tmp_path, STEPS)
    assert checkpoints.found(tmp_path / "run")[-1].name == "00000007.safetensors"
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler
    trained(recipe, tmp_path, STEPS, resume=True)
    assert len(done) == 30
    assert same(tmp_path, whole)


def test_a_finished_run_resumes_to_the_same_folder(recipe, whole):
    before = weights(whole)
    trained(recipe, whole, STEPS, resume=True)
    assert all(torch.equal(value, before[name]) for name, value in weights(whole).items())
    with pytest.raises(SpecError, match="another recipe"):
        Run(read_recipe(recipe, [STEPS, "stage.0.lr=0.5"]), whole, device="cpu", resume=True)


def test_data_may_grow_behind_a_whole_stage_and_not_within_one(tmp_path):
    recipe, output = lay(tmp_path), tmp_path / "out"
    pairs = recipe.parent / "pairs.jsonl"
    trained(recipe, output)
    pairs.write_text(pairs.read_text() + json.dumps({"q": "one more", "p": "the last of all things"}) + "\n")
    recipe.write_text(RECIPE + STAGES)
    run = Run(read_recipe(recipe), output, device="cpu", resume=True)
    run.stopping.set()
    with pytest.raises(KeyboardInterrupt):
        run.train()  # one step of the second stage
    pairs.write_text(pairs.read_text() + json.dumps({"q": "and another", "p": "one too many"}) + "\n")
    with pytest.raises(SpecError, match="data 'pairs' has changed since"):
        trained(recipe, output, resume=True)


def test_a_loss_that_is_no_number_stops_with_its_batch_and_keeps_the_last_good_checkpoint(
    recipe, tmp_path, monkeypatch
):
    seen = []
    infonce = losses["infonce"]

    def breaking(*given, **settings):
        loss = infonce(*given, **settings)
        formula = loss.formula
        loss.formula = lambda compared, **own: (
            formula(compared, **own) * (float("nan") if seen.append(1) or len(seen) == 5 else 1)
        )
        return loss

    breaking.__signature__, breaking.__wrapped__ = infonce.__signature__, infonce.__wrapped__
    monkeypatch.setitem(losses._parts, "infonce", breaking)
    with pytest.raises(TrainingError) as caught:
        trained(recipe, tmp_path)
    said = str(caught.value)
    assert "stage 'first', step 5: loss nan (infonce nan)" in said
    assert "00000004.safetensors is the last good checkpoint" in said
    batch = json.loads((tmp_path / "run" / "bad-batch-5.json").read_text())
    assert len(batch) == 8
    assert f"Rows: {batch[0]['data']} {batch[0]['row']}, " in said
    tensors, state = checkpoints.load(tmp_path / "run" / "00000004.safetensors")
    assert state["step"] == 4
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    trained(recipe, tmp_path, resume=True)


def test_a_checkpoint_that_is_cut_off_is_told(recipe, tmp_path):
    trained(recipe, tmp_path)
    last = checkpoints.found(tmp_path / "run")[-1]
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(LoadError, match=r"00000006.safetensors is no whole checkpoint"):
        Run(read_recipe(recipe), tmp_path, device="cpu", resume=True)


def test_a_broken_picture_in_the_middle_stops_with_its_row_or_is_left_out(tmp_path):
    recipe = lay(tmp_path)
    (tmp_path / "7.png").write_bytes((tmp_path / "7.png").read_bytes()[:40])
    pictures = 'stage.0.task.0.data=["pictures"]'
    with pytest.raises(InputError, match=r"data 'pictures', row 7: .*7\.png"):
        trained(recipe, tmp_path / "a", pictures)
    trained(recipe, tmp_path / "b", pictures, 'data.pictures.on_error="skip"')
    records = read_log(tmp_path / "b" / "run" / "log.jsonl")
    assert len(records) == 6
    assert {record.get("skipped", 0) for record in records} == {0, 1}


def test_the_gradient_over_a_shared_prefix_is_that_of_every_item_alone(tiny):
    words = [f"a common instruction for all of them: item {k}" for k in range(5)]
    samples = tiny.samples(words)
    weight = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    found = []
    for share in (True, False):
        tiny.model.zero_grad()
        batch = pack(samples, range(5), tiny.spec.mask, share=share)
        (tiny.model(batch) * weight).sum().backward()
        found.append({name: p.grad.clone() for name, p in tiny.model.named_parameters() if p.grad is not None})
    tiny.model.zero_grad()
    assert len(found[0]) > 10
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-4, atol=1e-5)


def test_parts_that_the_model_lacks_and_prompts_it_does_not_have_are_told(recipe, tmp_path):
    with pytest.raises(SpecError, match="trains 'pooling', and the model has only backbone"):
        trained(recipe, tmp_path / "a", 'stage.0.train=["pooling"]')
    with pytest.raises(LookupError, match="no prompt is called 'querie'"):
        trained(recipe, tmp_path / "b", 'data.pairs.query_prompt="querie"')


def test_the_mean_of_the_weights_is_what_stays(recipe, tmp_path, monkeypatch):
    learn, name = learning.Learning._learn, "projector.up.weight"
    due, seen = load_file(recipe.parent / "tiny" / "weights.safetensors")[name], []

    def watched(self, step):
        told = learn(self, step)
        seen.append((self.run_.changed[name].detach().clone(), self.average[name].clone()))
        return told

    monkeypatch.setattr(learning.Learning, "_learn", watched)
    run = trained(recipe, tmp_path, "stage.0.ema_decay=0.2")
    tensors, _ = checkpoints.load(checkpoints.found(tmp_path / "run")[-1])
    mean = {name.removeprefix("average."): t for name, t in tensors.items() if name.startswith("average.")}
    assert mean
    kept = weights(tmp_path)
    for each, tensor in mean.items():
        assert torch.equal(kept[each], tensor)
        assert not torch.equal(kept[each], tensors[f"weight.{each}"])
    assert run.steps == 6
    for decay, (weight, told) in zip(
        (1 / 10, 2 / 11, 0.2, 0.2, 0.2, 0.2), seen, strict=True
    ):  # at first (n + 1) / (n + 10)
        due = decay * due + (1 - decay) * weight
        torch.testing.assert_close(told, due, rtol=1e-6, atol=1e-7)


def test_a_soup_with_what_was_before_is_what_stays(recipe, tmp_path):
    trained(recipe, tmp_path, "stage.0.soup=0.25")
    before = load_file(recipe.parent / "tiny" / "weights.safetensors")
    tensors, _ = checkpoints.load(checkpoints.found(tmp_path / "run")[-1])
    learnt = {name.removeprefix("weight."): t for name, t in tensors.items() if name.startswith("weight.")}
    kept = weights(tmp_path)
    for name, tensor in learnt.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(kept[name], 0.75 * tensor + 0.25 * before[name])
    assert any(not torch.equal(kept[name], tensor) for name, tensor in learnt.items())
    with pytest.raises(SpecError, match=r"soup=1.0 must lie in \[0, 1\)"):
        trained(recipe, tmp_path / "b", "stage.0.soup=1.0")
    with pytest.raises(SpecError, match="a soup of its factors is no soup of weights"):
        trained(recipe, tmp_path / "b", "stage.0.soup=0.5", "stage.0.train=['all']", "stage.0.lora={ r = 2 }")


def test_a_recipe_of_two_stages_with_held_out_data_and_lora(tmp_path):
    recipe = lay(tmp_path, RECIPE + STAGES)
    output = tmp_path / "out"
    run = trained(recipe, output)
    scores = [record for record in read_log(output / "run" / "log.jsonl") if "scores" in record]
    assert [record["step"] for record in scores] == [6, 8, 10]
    assert scores[-1]["scores"]["names"].keys() == {"R@1", "R@10", "MRR"}
    assert "| names | R@1 |" in (output / "README.md").read_text()
    before, after = load_file(tmp_path / "tiny" / "weights.safetensors"), weights(output)
    assert before.keys() == after.keys()
    assert run.embedder.self_test().passed


def test_a_layer_for_lora_that_is_not_there_is_named_beside_one_that_is(tmp_path):
    recipe = lay(tmp_path, RECIPE + STAGES)
    with pytest.raises(UnknownName, match=r"'q_prj'. Did you mean 'q_proj'"):
        trained(recipe, tmp_path / "out", "stage.1.lora={ r = 2, targets = ['q_prj', 'v_proj'] }")


STAGES = """
[[stage]]
name = "second"
steps = 4
train = ["lora"]
lora = { r = 2, targets = ["q_proj", "down_proj"], dropout = 0.1 }
lr = 1e-2
eval_steps = 2
  [[stage.task]]
  data = ["pairs"]
  batch = 8
  losses = [{ kind = "infonce" }]

[data.others]
kind = "jsonl"
path = "others.jsonl"
columns = { query = { text = "name" }, positive = { image = "file" } }

[held_out.names]
data = "others"
"""


@pytest.mark.parametrize("dora", ["true", "false"])
def test_lora_stands_beside_its_base_or_goes_into_it(tmp_path, dora):
    lora = f'lora = {{ r = 2, targets = ["q_proj", "down_proj"], dora = {dora} }}'
    text = RECIPE.replace('train = ["backbone", "projector"]', f'train = ["lora", "projector"]\n{lora}')
    recipe = lay(tmp_path, text)
    merged = trained(recipe, tmp_path / "merged").embedder
    beside = trained(recipe, tmp_path / "beside", "export.merge=false").embedder
    words = ["one", "two words", picture(1)]
    assert np.abs(merged.encode(words) - mmembed.load(tmp_path / "tiny").encode(words)).max() > 1e-3
    np.testing.assert_allclose(beside.encode(words), merged.encode(words), atol=1e-5)
    held = load_file(tmp_path / "beside" / "weights.safetensors")
    assert {name.partition(".")[0] for name in held} == {"projector"}
    assert json.loads((tmp_path / "beside" / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    assert beside.self_test().passed
    (tmp_path / "tiny").rename(tmp_path / "moved")
    with pytest.raises(
        LoadError, match=r"an adapter of the model 'tiny', which lies neither beside it .* base='folder"
    ):
        mmembed.load(tmp_path / "beside")
    moved = mmembed.load(tmp_path / "beside", base=tmp_path / "moved")
    np.testing.assert_allclose(moved.encode(words), merged.encode(words), atol=1e-5)


def test_a_teacher_is_matched_in_what_it_reads_of_the_source(tmp_path):
    text = RECIPE.replace('{ kind = "infonce", temperature = 0.05 }', '{ kind = "embedding_matching" }')
    text = text.replace("positive = { image", 'query_source = { text = "file" }, positive = { image')
    text = text.replace("batch = 8", 'batch = 8\n  teacher = "wise"')
    recipe = lay(tmp_path, text)
    tiny_embedder(seed=1).save(tmp_path / "wise")
    trained(recipe, tmp_path / "out", "stage.0.steps=20")
    losses = [record["loss"] for record in read_log(tmp_path / "out" / "run" / "log.jsonl")]
    assert losses[-1] < 0.7 * losses[0]
    with pytest.raises(SpecError, match="reads a teacher, and its task names none"):
        trained(lay(tmp_path, text.replace('  teacher = "wise"', "")), tmp_path / "b")


@pytest.mark.parametrize(
    ("spec", "losses"),
    [
        (
            {"pooling": None, "dimensions": (), "tokens": {"head": {"kind": "dense", "out": 16}}},
            '{ kind = "late_interaction" }',
        ),
        ({"sparse": {"head": {"kind": "splade"}}}, '{ kind = "splade" }, { kind = "infonce", similarity = "sparse" }'),
    ],
    ids=["tokens", "sparse"],
)
def test_token_vectors_and_sparse_weights_are_trained_too(tmp_path, spec, losses):
    text = RECIPE.replace('{ kind = "infonce", temperature = 0.05 }', losses)
    recipe = lay(tmp_path, text)
    given = {"backbone": {"model_type": "qwen3", **BACKBONES["qwen3"]}} if "sparse" in spec else {}
    tiny_embedder(**spec, **given).save(tmp_path / "other")
    changes = (
        'model.load="other"',
        "stage.0.steps=12",
        'stage.0.task.0.data=["pairs"]',
        'stage.0.train=["all"]',
        "stage.0.eps=1e-2",  # Adam makes a step of rounding alone where a gradient is next to nothing
        "stage.0.lr=3e-4",  # at 1e-3 what two processors round otherwise grew to 3e-5 in twelve steps
    )
    trained(recipe, tmp_path / "once", *changes)
    together(2, trained, recipe, tmp_path / "two", *changes)
    found = [[r["loss"] for r in read_log(tmp_path / name / "run" / "log.jsonl")] for name in ("once", "two")]
    assert np.mean(found[0][-3:]) < 0.9 * np.mean(found[0][:3])
    np.testing.assert_allclose(found[1], found[0], rtol=2e-5)


def test_a_stage_may_look_at_smaller_pictures(tmp_path):
    """What is kept looks at pictures as the model does."""
    path = lay(tmp_path)
    tower = {"library": "timm", "name": "resnet10t", "options": {"channels": [8, 8, 8, 16]}}
    due = tiny_embedder(vision={**tower, "preprocess": {"resize": "square", "size": 32}})
    due.save(tmp_path / "sees")
    tiny_embedder(vision=None, projector=None).save(tmp_path / "words")
    told = {}
    for size in (None, 32, 16):
        changes = () if size is None else (f"stage.0.image_size={size}",)
        run = trained(path, tmp_path / str(size), "model.load='sees'", "stage.0.steps=2", *changes)
        told[size] = curve(tmp_path / str(size))
        assert run.embedder.spec.vision == due.spec.vision
    assert told[None] == told[32]
    assert told[None] != told[16]
    stage = RECIPE[RECIPE.index("[[stage]]") :].replace("steps = 6", "steps = 1")
    learnt = stage.replace('"backbone", "projector"]', '"tower"]\nbatch_norm = "learnt"').replace('"pairs", ', "")
    smaller = stage.replace('"first"', '"second"').replace("lr = 1e-3", "lr = 1e-3\nimage_size = 16")
    two = lay(tmp_path, RECIPE[: RECIPE.index("[[stage]]")] + learnt + smaller)
    assert trained(two, tmp_path / "two", "model.load='sees'").embedder.spec.vision == due.spec.vision
    path = lay(tmp_path)
    small = Run(read_recipe(path, ["stage.0.image_size=16"]), tmp_path / "vit", device="cpu")
    with pytest.raises(SpecError, match="does not take pictures of 16 x 16 pixels"):
        small.train()
    blind = Run(read_recipe(path, ["model.load='words'", "stage.0.image_size=16"]), tmp_path / "none", device="cpu")
    with pytest.raises(SpecError, match="image_size=16, and the model has no vision tower"):
        blind.train()
    mean = {**due.spec.vision, "preprocess": {**due.spec.vision["preprocess"], "mean": [0.0, 0.0, 0.0]}}
    with pytest.raises(SpecError, match="mean and std"):
        due.respecified(vision=mean)
    with pytest.raises(SpecError, match="all but its preprocess"):
        due.respecified(vision={**due.spec.vision, "name": "resnet18"})


LEARNT = """
[[stage]]
name = "second"
steps = 2
train = ["backbone"]
lr = 1e-3
  [[stage.task]]
  data = ["pairs"]
  batch = 8
  teacher = "tiny"
  losses = [{ kind = "embedding_matching", projection = true }]
"""


def test_weights_of_losses_begin_as_they_do_in_a_run_that_goes_on(tmp_path, monkeypatch):
    recipe = lay(tmp_path, RECIPE + LEARNT)
    trained(recipe, tmp_path / "whole")
    run = Run(read_recipe(recipe), tmp_path / "cut", device="cpu")
    write, saved = checkpoints.save, []

    def stopping(folder, number, tensors, state):
        if number == 6:  # of the last step of the first stage
            run.stopping.set()
        saved.append(number)
        return write(folder, number, tensors, state)

    monkeypatch.setattr(checkpoints, "save", stopping)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    monkeypatch.undo()
    assert saved[-1] in (6, 7)
    for later in checkpoints.found(tmp_path / "cut" / "run"):
        if int(later.stem) > 6:
            later.unlink()
    trained(recipe, tmp_path / "cut", resume=True)
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_what_proxies_begin_by_is_embedded_without_dropout(tmp_path, monkeypatch):
    of_names = """
[data.named]
kind = "jsonl"
path = "pairs.jsonl"
columns = { query = { text = "q" }, group = "p" }
[[stage]]
name = "second"
steps = 1
train = ["backbone"]
  [[stage.task]]
  data = ["named"]
  batch = 8
  losses = [{ kind = "proxies", start = "named" }]
"""
    asked = []
    plain = learning.mean_of_groups

    def watched(embedder, *more):
        asked.append(any(module.training for module in embedder.model.modules()))
        return plain(embedder, *more)

    monkeypatch.setattr(learning, "mean_of_groups", watched)
    recipe = lay(tmp_path, RECIPE.replace("steps = 6", "steps = 1\ndropout = true\nattention_dropout = 0.3") + of_names)
    trained(recipe, tmp_path / "out")
    assert asked == [False]


def test_held_out_data_that_cannot_be_read_costs_no_step(tmp_path):
    recipe = lay(
        tmp_path,
        RECIPE.replace("save_steps = 2\n", "")
        + """
[data.dev]
kind = "jsonl"
path = "dev.jsonl"
columns = { query = { text = "name" }, positive = { image = "file" } }
[held_out.dev]
data = "dev"
""",
    )
    (tmp_path / "dev.jsonl").write_text('{"name": "a", "file": "none.png"}\n')
    with pytest.raises(InputError, match=r"none\.png"):
        trained(recipe, tmp_path / "out")
    assert [path.stem for path in checkpoints.found(tmp_path / "out" / "run")] == ["00000006"]


def test_a_log_that_cannot_be_written_anew_stays(recipe, tmp_path, monkeypatch):
    trained(recipe, tmp_path)
    before = curve(tmp_path)

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match=r"the log .* cannot be written: No space"):
        Log(tmp_path / "run", Watch(), name="x", steps=6, step=4)
    assert curve(tmp_path) == before


def test_what_a_killed_run_had_half_written_goes_with_the_next_checkpoint(tmp_path):
    left = tmp_path / ".00000001.safetensors.123.part"
    left.write_bytes(b"half")
    checkpoints.save(tmp_path, 2, {"weight": torch.zeros(1)}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["00000002.safetensors"]
