"""Proxies: one vector a group, started where its things lie, against the formula written out; and another tower for a model."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

import mmembed
from mmembed.errors import MmembedError, SpecError
from mmembed.train.compared import Compared
from mmembed.train.data import Column, Columns, Join, Parquet
from mmembed.train.learning import Learning
from mmembed.train.loop import Run
from mmembed.train.losses import build_loss
from mmembed.train.recipe import Model, read_recipe

from .runs import assert_it_goes_on, curve, first, lay, trained, write_lines
from .things import of_vectors

RECIPE = """
name = "small"
seed = 3
watch.plot = false
[model]
load = "tiny"

[data.colours]
kind = "jsonl"
path = "grouped.jsonl"
columns = { query = { image = "file" }, group = "colour" }

[data.names]
kind = "jsonl"
path = "names.jsonl"
columns = { query = { text = "name" }, group = "colour" }

[[stage]]
name = "tower"
steps = 4
train = ["tower", "projector"]
batch_norm = "learnt"
ema_decay = 0.9
soup = 0.25
lr = 1e-3
save_steps = 2
  [[stage.task]]
  data = ["colours"]
  batch = 4
  [[stage.task.losses]]
  kind = "matryoshka"
  dimensions = [32, 16]
  loss = { kind = "proxies", start = "names", learnt = false, pull = 0.5 }
"""


@pytest.fixture
def recipe(tmp_path):
    path = lay(tmp_path, RECIPE)
    rows = [{"file": f"{k}.png", "colour": f"c{k % 6}"} for k in range(12)]
    write_lines(tmp_path / "grouped.jsonl", rows)
    names = [{"name": f"{word} colour {k}", "colour": f"c{k}"} for k in range(6) for word in ("the", "a")]
    write_lines(tmp_path / "names.jsonl", names)
    return path


def test_a_proxy_is_picked_among_all():
    generator = torch.Generator().manual_seed(0)
    queries, table = (torch.randn(n, 8, generator=generator, dtype=torch.float64) for n in (5, 9))
    classes = torch.tensor([0, 3, 3, 8, 1])
    loss = build_loss({"kind": "proxies", "temperature": 0.1, "pull": 0.7}, width=8)
    loss.begin(table)
    found = loss(
        Compared(
            queries=of_vectors(queries, queries).queries,
            documents=of_vectors(queries, queries).documents,
            owner=torch.arange(5),
            positive=torch.ones(5, dtype=torch.bool),
            classes=classes,
        )
    )
    cosines = (F.normalize(queries, dim=-1) @ F.normalize(table, dim=-1).T).float()
    due = torch.stack(
        [
            cosines[k].div(0.1).logsumexp(0) - cosines[k, c] / 0.1 + 0.7 * (1 - cosines[k, c])
            for k, c in enumerate(classes)
        ]
    )
    assert float(found) == pytest.approx(float(due.mean()), rel=1e-5)


def begun(recipe, *changes):
    """A stage that is about to learn."""
    learning = Learning(Run(read_recipe(recipe, changes), recipe.parent / "none", device="cpu"), 0, 0)
    learning.choose()
    return learning


def table_of(learning):
    (proxies,) = learning._proxies(0)
    return proxies.table.detach().clone()


def test_proxies_begin_at_the_mean_of_what_their_group_says_and_stay_or_learn(recipe, tmp_path):
    tiny = mmembed.load(tmp_path / "tiny", device="cpu")
    said = np.stack([tiny.encode_query([f"the colour {k}", f"a colour {k}"]).sum(0) for k in range(6)])
    due = said / np.linalg.norm(said, axis=1, keepdims=True)
    for learnt in (False, True):
        learning = begun(recipe, f"stage.0.task.0.losses.0.loss.learnt={str(learnt).lower()}")
        before = table_of(learning)
        assert np.allclose(before, due, atol=1e-5)
        learning._learn(first(learning))
        assert torch.equal(table_of(learning), before) == (not learnt)


def test_a_run_with_proxies_and_averaged_statistics_goes_on_as_if_nothing_had_happened(recipe, tmp_path):
    assert_it_goes_on(recipe, tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("stage.0.task.0.losses.0.loss.start='name'", "Did you mean 'names'"),
        ("data.colours.columns.group='file'", "no row of 12 groups"),
        ("data.colours.columns={ query = { image = 'file' } }", "columns.group"),
    ],
)
def test_what_proxies_lack_is_told(recipe, tmp_path, change, told):
    with pytest.raises(MmembedError, match=told):
        trained(recipe, tmp_path / "out", change)


def test_a_loaded_model_gets_another_tower_and_keeps_all_else(recipe, tmp_path):
    tower = 'model.vision={ library = "timm", name = "test_efficientnet", preprocess = { size = 48 } }'
    run = trained(recipe, tmp_path / "out", tower)
    tiny, made = mmembed.load(tmp_path / "tiny", device="cpu"), run.embedder
    assert made.spec.vision["name"] == "test_efficientnet"
    assert made.spec.vision["preprocess"]["size"] == 48
    assert np.allclose(made.encode(["the colour 3"]), tiny.encode(["the colour 3"]), atol=1e-6)
    picture = mmembed.Image(tmp_path / "3.png")
    assert not np.allclose(made.encode([picture]), tiny.encode([picture]), atol=1e-2)
    with pytest.raises(SpecError, match=r"model\.vision is for one that is loaded"):
        Model(compose={"backbone": "x"}, vision={"library": "timm"})
    with pytest.raises(SpecError, match="goes with another tower"):
        Model(load="tiny", projector={"kind": "mlp"})


def test_rows_have_columns_of_a_joined_table(tmp_path):
    (tmp_path / "tables").mkdir()
    names = [{"code": k % 3, "lang": lang, "name": f"{lang}{k}"} for k in range(6) for lang in ("en", "de")]
    names.append({"code": 0, "lang": "en", "name": None})
    pq.write_table(pa.Table.from_pylist(names), tmp_path / "tables/names.parquet")
    pq.write_table(
        pa.Table.from_pylist([{"code": k, "png": f"{k}".encode()} for k in range(4)]), tmp_path / "images.parquet"
    )
    columns = Columns(query=Column(image="png"), positive=Column(text="name"))
    said = {"path": "tables/names.parquet", "on": "code", "where": {"lang": "en"}}
    found = Parquet(path="images.parquet", columns=columns, join=Join(**said)).open("x", tmp_path)
    assert [[item[0].text for item in found[k].positives] for k in range(3)] == [
        ["en0", "en3"],
        ["en1", "en4"],
        ["en2", "en5"],
    ]
    with pytest.raises(mmembed.errors.InputError, match="row 3: it has no positive"):
        found[3]
    with pytest.raises(SpecError, match="Did you mean 'code'"):
        Parquet(path="images.parquet", columns=columns, join=Join(**{**said, "on": "cod"})).open("x", tmp_path)
    with pytest.raises(SpecError, match="no such file"):
        Parquet(path="images.parquet", columns=columns, join=Join(**{**said, "path": "nmes.parquet"})).open(
            "x", tmp_path
        )


def test_what_is_frozen_by_name_stays_while_the_rest_of_its_part_learns(recipe, tmp_path):
    before = mmembed.load(tmp_path / "tiny", device="cpu").model.state_dict()
    names = [name for name in before if name.startswith("vision.") and before[name].is_floating_point()]
    run = trained(recipe, tmp_path / "out", f"stage.0.frozen=['{names[0]}']", "stage.0.ema_decay=0.5")
    after = run.embedder.model.state_dict()
    assert torch.equal(after[names[0]], before[names[0]])
    assert any(not torch.equal(after[name], before[name]) for name in names[1:])
    with pytest.raises(SpecError, match="freezes 'vison'"):
        trained(recipe, tmp_path / "other", "stage.0.frozen=['vison']")


def test_proxies_begin_where_a_teacher_says(recipe, tmp_path):
    tiny = mmembed.load(tmp_path / "tiny", device="cpu")
    turn = torch.linalg.qr(torch.randn(tiny.dimension, tiny.dimension, generator=torch.Generator().manual_seed(1))).Q
    other = tiny.with_head(
        {"kind": "whiten", "out": tiny.dimension}, {"bias": torch.zeros(tiny.dimension), "kernel": turn}
    )
    other.save(tmp_path / "other")
    teacher, loss = "stage.0.task.0.teacher='other'", "stage.0.task.0.losses.0.loss.by='teacher'"
    found = table_of(begun(recipe, teacher, loss))
    due = np.stack([other.encode_query([f"the colour {k}", f"a colour {k}"]).sum(0) for k in range(6)])
    assert np.allclose(found, due / np.linalg.norm(due, axis=1, keepdims=True), atol=1e-5)
    with pytest.raises(SpecError, match="their task names none"):
        trained(recipe, tmp_path / "none", loss)
    with pytest.raises(MmembedError, match="start = "):
        read_recipe(recipe, [teacher, "stage.0.task.0.losses.0.loss={ kind = 'proxies', by = 'teacher' }"])


def test_classes_may_come_twice_in_a_batch_where_nothing_is_a_negative(recipe, tmp_path):
    run = trained(recipe, tmp_path / "out", "stage.0.task.0.batch=24")  # of six groups
    assert len(curve(tmp_path / "out")) >= 4
    assert run.embedder is not None
    pairs = "stage.0.task.0.losses=[{ kind = 'infonce' }]"
    with pytest.raises(SpecError, match="too few rows that differ"):
        trained(recipe, tmp_path / "pairs", "stage.0.task.0.batch=24", pairs, "stage.0.dropout=true")
