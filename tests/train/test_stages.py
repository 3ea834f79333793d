"""From one stage to the next: what processes, checkpoints, LoRA, dropout and the folder at the end know of the stages before."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import mmembed
from mmembed.errors import SpecError, UnknownName
from mmembed.testing import byte_tokenizer, tiny_backbone, tiny_embedder, tiny_vlm
from mmembed.train import parts
from mmembed.train.held_out import measure
from mmembed.train.learning import Learning
from mmembed.train.loop import Run
from mmembed.train.recipe import Lora, Stage, Task, read_recipe
from mmembed.train.watch import read_log

from ..test_kinds import SPLADE, language_model
from .runs import RECIPE, curve, lay, together, trained, write_lines

SECOND = """
[[stage]]
name = "second"
steps = 3
train = ["backbone"]
  [[stage.task]]
  data = ["pictures"]
  batch = 8
"""
LORA = 'train = ["lora", "backbone", "projector"]\nlora = { r = 2, targets = ["q_proj", "v_proj"] }'
BF16 = ('model.precision="bf16"', 'stage.0.precision="bf16"')
SEEING = """load = "tiny"
vision = { library = "timm", name = "test_efficientnet", preprocess = { size = 48, resize = "square", interpolation = "bicubic", \
mean = [0.5, 0.5, 0.5], std = [0.5, 0.5, 0.5] } }"""


def changed(*pairs, more=""):
    text = RECIPE
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return text + more


def stage(**settings):
    return Stage(name="s", steps=1, task=(Task(data=("x",), batch=2),), **settings)


def test_processes_have_one_model_again_behind_every_step(tmp_path):
    """Statistics of batch norms are of all processes, and a stage that freezes them begins alike in each, resumed or not."""
    path = lay(
        tmp_path,
        changed(
            ('load = "tiny"', SEEING),
            ('data = ["pairs", "pictures"]', 'data = ["pictures"]'),
            ("steps = 6", "steps = 3"),
            ('train = ["backbone", "projector"]', 'train = ["tower", "projector"]\nbatch_norm = "learnt"'),
            more=SECOND,
        ),
    )
    together(2, _kept, path, tmp_path / "whole", False)
    one, other = (torch.load(tmp_path / f"whole.{rank}.pt") for rank in (0, 1))
    assert one.keys() == other.keys()
    assert any(name.endswith("running_mean") and own.abs().sum() > 0 for name, own in one.items())
    assert all(torch.equal(own, other[name]) for name, own in one.items())
    (tmp_path / "again" / "run").mkdir(parents=True)
    for name in ("00000003.safetensors", "log.jsonl"):
        (tmp_path / "again" / "run" / name).write_bytes((tmp_path / "whole" / "run" / name).read_bytes())
    together(2, _kept, path, tmp_path / "again", True)
    assert curve(tmp_path / "again") == curve(tmp_path / "whole")


def _kept(path, output, resume):
    run = Run(read_recipe(path), output, device="cpu", resume=resume)
    run.train()
    torch.save(dict(run.model.named_buffers()), f"{output}.{os.environ['RANK']}.pt")


def test_lora_beside_weights_that_were_trained_themselves_is_kept_resumed_and_loaded(tmp_path):
    two = changed(more=SECOND.replace('train = ["backbone"]', LORA).replace('["pictures"]', '["pairs"]'))
    path = lay(tmp_path, two)
    whole = trained(path, tmp_path / "whole", "stage.1.save_steps=1")
    (tmp_path / "cut" / "run").mkdir(parents=True)
    for name in ("00000008.safetensors", "log.jsonl"):
        (tmp_path / "cut" / "run" / name).write_bytes((tmp_path / "whole" / "run" / name).read_bytes())
    run = trained(path, tmp_path / "cut", "stage.1.save_steps=1", resume=True)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    beside = trained(path, tmp_path / "beside", "export.merge=false")
    for other in (run, beside):
        apart = other.embedder.encode(["thing 3"]) - whole.embedder.encode(["thing 3"])
        assert np.abs(apart).max() < 1e-5
    base = mmembed.load(tmp_path / "tiny", device="cpu").encode(["thing 3"])
    assert np.abs(base - whole.embedder.encode(["thing 3"])).max() > 1e-3
    trained(path, tmp_path / "beside", "export.merge=true", resume=True)
    assert not list((tmp_path / "beside").glob("adapter_*"))
    assert (
        np.abs(
            mmembed.load(tmp_path / "beside", device="cpu").encode(["thing 3"]) - whole.embedder.encode(["thing 3"])
        ).max()
        < 1e-5
    )


def test_lora_beside_its_base_has_a_new_tower_with_it_though_it_was_not_trained(tmp_path):
    path = lay(
        tmp_path,
        changed(('load = "tiny"', SEEING), ('train = ["backbone", "projector"]', LORA), ("steps = 6", "steps = 1")),
    )
    run = trained(path, tmp_path / "out", "export.merge=false")
    assert any(name.startswith("vision.") for name in load_file(tmp_path / "out" / "weights.safetensors"))
    assert np.isfinite(run.embedder.encode([mmembed.Image(tmp_path / "3.png")])).all()
    with pytest.raises(SpecError, match="no stage puts one in"):
        read_recipe(lay(tmp_path / "none"), ["export.merge=false"])


def tied(folder):
    """An embedder whose language head is its table of tokens."""
    made = mmembed.compose(
        backbone=language_model(tie_word_embeddings=True), tokenizer=byte_tokenizer(), sparse=SPLADE, device="cpu"
    )
    assert made.model.language_head is not None
    made.save(folder / "tiny")
    return {name for name, _ in made.model.named_parameters(remove_duplicate=False)} - {
        name for name, _ in made.model.named_parameters()
    }


@pytest.mark.parametrize(
    ("train", "options"),
    [
        ('train = ["embeddings"]', BF16),
        ('train = ["lora", "embeddings"]\nlora = { r = 2, targets = ["q_proj"] }', ("export.merge=false",)),
    ],
)
def test_a_table_that_a_language_head_shares_is_written_as_it_was_trained(tmp_path, train, options):
    """By its second name it was written over with what it had been."""
    pairs = ('data = ["pairs", "pictures"]', 'data = ["pairs"]')
    path = lay(tmp_path, changed(('train = ["backbone", "projector"]', train), pairs, ("steps = 6", "steps = 2")))
    (twin,) = tied(tmp_path)
    trained(path, tmp_path / "out", *options)
    before, after = (mmembed.load(tmp_path / name, device="cpu").model.state_dict() for name in ("tiny", "out"))
    table = "backbone.embed_tokens.weight"
    assert torch.equal(after[table], after[twin])
    assert (after[table] - before[table]).abs().max() > 1e-4


def test_weights_in_parts_are_no_weights_under_two_names(tmp_path):
    path = lay(tmp_path, changed(('data = ["pairs", "pictures"]', 'data = ["pairs"]')))
    (twin,) = tied(tmp_path)
    with pytest.raises(SpecError, match=f"{twin} is one tensor with another weight.*leave shard out"):
        Run(read_recipe(path), tmp_path / "out", device="cpu", shard=True)


def test_an_adapter_stands_on_the_model_that_it_was_trained_on_whatever_lies_beside_it(tmp_path):
    pairs = ('data = ["pairs", "pictures"]', 'data = ["pairs"]')
    low = LORA.replace(', "backbone", "projector"', "")
    path = lay(tmp_path / "own", changed(('train = ["backbone", "projector"]', low), pairs, ("steps = 6", "steps = 1")))
    tiny_embedder(seed=5).save(tmp_path / "runs" / "tiny")
    run = trained(path, tmp_path / "runs" / "out", "export.merge=false")
    due = mmembed.load(tmp_path / "runs" / "out", base=tmp_path / "own" / "tiny", device="cpu").encode(["thing 3"])
    assert np.array_equal(run.embedder.encode(["thing 3"]), due)
    assert np.array_equal(mmembed.load(tmp_path / "runs" / "out", device="cpu").encode(["thing 3"]), due)


def test_blocks_that_run_twice_have_no_other_prompt_to_compare_with():
    compared = mmembed.methods.apply(tiny_embedder(), "contrastive-prompting", layers=(-1,)).model
    with pytest.raises(SpecError, match="a block runs twice"):
        parts.set_modes(compared, stage(train=("backbone",), gradient_checkpointing=True), {})


def test_dropout_of_a_stage_ends_with_it():
    model = tiny_embedder().model
    layers = [m for m in model.backbone.modules() if hasattr(m, "attention_dropout")]
    before = [m.attention_dropout for m in layers]
    parts.set_modes(model, stage(train=("backbone",), dropout=True, attention_dropout=0.5), {})
    assert {m.attention_dropout for m in layers} == {0.5}
    parts.set_modes(model, stage(train=("backbone",), dropout=True), {})
    assert [m.attention_dropout for m in layers] == before
    parts.put_lora(model, Lora(r=2, dropout=0.1, targets=("q_proj",)))
    later = stage(train=("lora",))
    parts.set_modes(model, later, parts.choose(model, later))
    drops = [m for name, m in model.named_modules() if name.endswith("lora_dropout.default")]
    assert drops
    assert all(m.training for m in drops)
    parts.set_modes(model, stage(train=("projector",)), {})
    assert not any(m.training for m in drops)


def test_the_card_tells_of_the_model_in_the_folder(tmp_path):
    path = lay(
        tmp_path,
        changed(
            ('data = ["pairs", "pictures"]', 'data = ["pairs"]'),
            ("steps = 6", "steps = 4\nspec = { layers = [0], norm_layers = true }"),
            ('train = ["backbone", "projector"]', 'train = ["embeddings"]'),
            ("lr = 1e-3", "lr = 3e-2"),
            (
                "[[stage]]",
                '[data.dev]\nkind = "jsonl"\npath = "dev.jsonl"\n'
                'columns = { query = { text = "q" }, positive = { text = "p" } }\n[held_out.dev]\ndata = "dev"\n[[stage]]',
            ),
        ),
    )
    write_lines(tmp_path / "dev.jsonl", [{"q": f"thing {k}", "p": f"the {k}th of all things"} for k in range(40, 80)])
    run = trained(path, tmp_path / "out")
    told = measure(run.embedder, run.data["dev"], run.recipe.held_out["dev"])
    assert f"| dev | MRR | {told['MRR']:.3f} |" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    seen = [r["scores"]["dev"]["MRR"] for r in read_log(tmp_path / "out" / "run" / "log.jsonl") if "scores" in r]
    assert abs(seen[-1] - told["MRR"]) > 1e-3, "the stage looked at another spec, and it shows"


@pytest.mark.parametrize("kind", ["qwen3", "xlm-roberta"])
def test_layers_below_learn_slower_and_embeddings_slowest_whatever_the_layers_are_called(kind):
    model = tiny_embedder(backbone=tiny_backbone(kind), vision=None, projector=None, pooling="mean").model
    said = stage(train=("backbone",), lr=1.0, layer_decay=0.1)
    weights = parts.choose(model, said)
    tables = parts.embedded_by(model)
    rates = {id(weight): group["lr"] for group in parts.groups(weights, said, [], tables) for weight in group["params"]}
    of_layer = {
        number: rates[id(weight)] for number in (0, 1) for name, weight in weights.items() if f".{number}." in name
    }
    (table,) = tables
    assert of_layer == {0: pytest.approx(0.1), 1: pytest.approx(1.0)}
    assert rates[id(weights[table])] == pytest.approx(0.01)
    others = {name: rates[id(own)] for name, own in weights.items() if ".0." not in name and ".1." not in name}
    below = {name for name, rate in others.items() if rate == pytest.approx(0.01)}
    behind = {
        "qwen3": {"backbone.norm.weight"},
        "xlm-roberta": {"backbone.pooler.dense.weight", "backbone.pooler.dense.bias"},
    }[kind]
    assert others.keys() - below == behind


def test_what_stands_before_the_blocks_of_a_tower_learns_slower_than_they_do():
    model = tiny_embedder().model
    said = stage(train=("tower",), lr=1.0, layer_decay=0.1)
    weights = parts.choose(model, said)
    groups = parts.groups(weights, said, [], frozenset())
    rates = {id(weight): group["lr"] for group in groups for weight in group["params"]}
    told = {name.removeprefix("vision.model."): rates[id(weight)] for name, weight in weights.items()}
    assert told["patch_embed.proj.weight"] == told["pos_embed"] == pytest.approx(1e-3)
    assert told["blocks.0.mlp.fc1.weight"] == pytest.approx(1e-2)
    assert told["norm.weight"] == told["blocks.2.mlp.fc1.weight"] == 1.0


def test_what_stands_before_the_blocks_is_told_by_its_name_and_not_by_its_place():
    """Modules tell of their own weights before those of their parts, and dual encoders hold two towers."""
    towers = {"text": "towers.model.transformer.resblocks", "picture": "towers.model.visual.transformer.resblocks"}
    for name, tower in {
        "towers.model.positional_embedding": "text",
        "towers.model.token_embedding.weight": "text",
        "towers.model.visual.conv1.weight": "picture",
        "towers.model.visual.class_embedding": "picture",
        "towers.model.visual.ln_pre.weight": "picture",
        "towers.model.visual.proj": None,
        "towers.model.text_projection": None,
        "towers.model.ln_final.weight": None,
        "towers.model.logit_scale": None,
    }.items():
        assert parts._below(name, towers.values()) == (towers[tower] if tower else None)
    for name in (
        "decoder.final_layer_norm.weight",
        "multi_modal_projector.linear_1.weight",
        "embed_vision.proj.weight",
    ):
        assert parts._below(f"backbone.{name}", ["backbone.decoder.layers"]) is None
    assert parts._below("backbone.decoder.embed_positions.weight", ["backbone.decoder.layers"])


def test_matrices_decay_and_vectors_and_parameters_of_losses_do_not():
    matrix, vector, table = (torch.nn.Parameter(torch.zeros(*shape)) for shape in ((2, 2), (2,), (3, 2)))
    weights = {"backbone.layers.0.proj.weight": matrix, "backbone.norm.weight": vector}
    found = parts.groups(weights, stage(train=("backbone",), weight_decay=0.3), [table], frozenset())
    decays = {id(weight): group["weight_decay"] for group in found for weight in group["params"]}
    assert decays == {id(matrix): 0.3, id(vector): 0.0, id(table): 0.0}


def test_where_a_stage_learns_from_one_task_a_step_each_has_its_share(tmp_path):
    tasks = "\ntogether = false\n  [[stage.task]]\n  data = ['pairs']\n  batch = 4\n  share = 3\n"
    tasks += '  losses = [{ kind = "simcse" }]\n  [[stage.task]]'
    path = lay(tmp_path, changed(("\n  [[stage.task]]", tasks)))
    learning = Learning(Run(read_recipe(path), tmp_path / "none", device="cpu"), 0, 0)
    turns = [task for number in range(200) for task in learning._drawn(number)]
    assert len(turns) == 200
    assert 130 < turns.count(0) < 170  # of a share of three quarters
    run = trained(path, tmp_path / "out")
    seen = [record["losses"].keys() for record in read_log(run.log)]
    assert seen == [{("simcse", "infonce")[task]} for task in turns[:6]]
    assert len({*turns[:6]}) == 2


def test_rates_of_what_is_not_trained_and_settings_without_sense_are_refused():
    for settings, said in (
        ({"rates": {"all": 1.0}}, "'all'"),
        ({"rates": {"tower": 1.0}}, "has a rate for 'tower' and trains backbone"),
        ({"max_grad_norm": 0.0}, "max_grad_norm=0.0"),
        ({"save_steps": -1}, "save_steps=-1"),
        ({"batch_tokens": 0}, "batch_tokens=0"),
        ({"lr": -1.0}, "lr=-1.0 must be a number, and not negative"),
        ({"lr": float("nan")}, "lr=nan must be a number"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"warmup_steps": -5}, "warmup_steps=-5"),
        ({"layer_decay": -0.5}, "layer_decay=-0.5 must be more than 0"),
        ({"warmup_steps": 5000}, "warmup_steps=5000 ends behind its"),
        ({"min_lr_ratio": -1.0}, r"min_lr_ratio=-1.0 must lie in \[0, 1\]"),
        ({"min_lr_ratio": 0.1, "schedule": "constant"}, "a constant rate falls to no min_lr_ratio=0.1"),
        ({"betas": (1.5, 0.9)}, r"betas=\[1.5, 0.9\]"),
    ):
        with pytest.raises((SpecError, UnknownName), match=said):
            stage(train=("backbone",), **settings)
    assert stage(train=("backbone",), rates={"embeddings": 1.0}).rates
    with pytest.raises(SpecError, match="group=-1"):
        Task(data=("x",), batch=2, group=-1)
    with pytest.raises(SpecError, match=r"ease=1.0 is about what augment does, and its task has none"):
        Task(data=("x",), batch=2, ease=1.0)


@pytest.mark.parametrize("merge", ["true", "false"])
def test_what_was_frozen_in_bf16_is_written_as_it_was(tmp_path, merge):
    columns = 'columns = { query = { text = "name" }, positive = { image = "file" } }'
    seen = f'[data.dev]\nkind = "jsonl"\npath = "pictures.jsonl"\n{columns}\n[held_out.dev]\ndata = "dev"\n'
    low = LORA.replace(', "backbone"', "")
    pairs = ('data = ["pairs", "pictures"]', 'data = ["pairs"]')
    path = lay(tmp_path, changed(('train = ["backbone", "projector"]', low), pairs, more=seen))
    run = trained(path, tmp_path / "out", *BF16, f"export.merge={merge}")
    assert run.scores["dev"]["MRR"] > 0
    before = mmembed.load(tmp_path / "tiny", device="cpu").model.state_dict()
    after = mmembed.load(tmp_path / "out", device="cpu").model.state_dict()
    new = {name for name, own in before.items() if not torch.equal(after[name], own)}
    assert new
    assert all("q_proj" in name or "v_proj" in name for name in new)
    name = next(name for name in new if "q_proj" in name)
    beside = {key: own for key, own in run.changed.items() if key.startswith(name.removesuffix(".weight"))}
    (a, b) = (next(own for key, own in beside.items() if f"lora_{kind}" in key) for kind in "AB")
    torch.testing.assert_close(after[name], before[name] + b.detach() @ a.detach() * (32 / 2), rtol=0, atol=1e-6)


def test_a_table_of_tokens_is_trained_before_blocks_that_are_held_in_bf16(tmp_path):
    path = lay(tmp_path, changed(('train = ["backbone", "projector"]', 'train = ["embeddings"]')))
    with pytest.raises(SpecError, match="precision = 'bf16' in stage 'first' too"):
        read_recipe(path, BF16[:1])
    run = trained(path, tmp_path / "out", *BF16)
    before = mmembed.load(tmp_path / "tiny", device="cpu").model.state_dict()
    after = run.embedder.model.state_dict()
    changes = {name for name, own in before.items() if not torch.equal(after[name], own)}
    assert changes == {"backbone.embed_tokens.weight"}


@pytest.mark.parametrize("batch_norm", ["frozen", "learnt"])
def test_statistics_beside_trained_weights_are_not_held_in_bf16(tmp_path, batch_norm):
    path = lay(tmp_path, changed(('train = ["backbone", "projector"]', 'train = ["tower"]')))
    way = {"size": 48, "resize": "square", "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
    embedder = tiny_embedder(vision={"library": "timm", "name": "test_efficientnet", "preprocess": way})
    for name, own in embedder.model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            own.uniform_(0.5, 1.5)
    embedder.save(tmp_path / "tiny")
    run = trained(path, tmp_path / "out", *BF16, f"stage.0.batch_norm='{batch_norm}'", "stage.0.steps=2")
    before, after = embedder.model.state_dict(), run.embedder.model.state_dict()
    statistics = [name for name in run.changed if name.endswith(("running_mean", "running_var"))]
    assert statistics
    assert all(torch.equal(before[name], after[name]) for name in statistics) == (batch_norm == "frozen")


@pytest.mark.parametrize("targets", [("all-linear",), ("q_proj", "v_proj", "qkv")])
def test_lora_stays_out_of_the_tower_inside_a_backbone(tmp_path, targets):
    tiny_vlm(tmp_path, "qwen3_vl")
    model = mmembed.compose(backbone=tmp_path, tokenizer=tmp_path, vision={"library": "native"}, device="cpu").model
    lora = Lora(r=2, targets=targets)
    if "qkv" in targets:  # the tower alone has such layers
        with pytest.raises(UnknownName, match="'qkv'"):
            parts.put_lora(model, lora)
        lora = Lora(r=2, targets=targets[:2])
    parts.put_lora(model, lora)
    beside = [name for name, _ in model.named_parameters() if "lora_" in name]
    assert beside
    assert all(name.startswith("backbone.language_model.layers.") for name in beside)
