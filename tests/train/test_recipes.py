"""Every objective is reached by a recipe: it trains, and what it measures is what the formula says of the model's own output."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmembed.errors import SpecError
from mmembed.testing import BACKBONES, tiny_embedder
from mmembed.train.compared import Compared, Embedded
from mmembed.train.drawn import PackedRow, embedded
from mmembed.train.learning import Learning
from mmembed.train.loop import Run
from mmembed.train.losses import build_loss, losses
from mmembed.train.recipe import read_recipe
from mmembed.train.watch import read_log

from .runs import first, lay, together, trained, write_lines

PLAIN = '{ kind = "infonce", temperature = 0.1 }'
GRADED = ("angle", "cosent", "kl", "margin_mse")
TAUGHT = ("embedding_matching", "gist", "positive_aware", "relational", "similarity_distillation")
SPARSE = ("flops", "splade")
TOKENS = ("late_interaction", "late_interaction_pairwise")
SPEAKING = ("language_modelling", "mntp")
SETTINGS = {
    "adaptive_layers": f", loss = {PLAIN}",
    "espresso": f", loss = {PLAIN}, dimension = 8",
    "learnt_temperature": ', loss = { kind = "symmetric" }',
    "matryoshka": f", loss = {PLAIN}, dimensions = [32, 8]",
    "matryoshka_2d": f", loss = {PLAIN}, dimensions = [32, 8]",
    "sum": f', losses = [{PLAIN}, {{ kind = "spread_out" }}]',
}
HEADS = {
    "sparse": {"sparse": {"head": {"kind": "splade"}}},
    "tokens": {"tokens": {"head": {"kind": "dense", "out": 16}}},
}
TEACHER = """
name = "taught"
watch.plot = false
[model]
load = "MODEL"
[data.rows]
kind = "jsonl"
path = "rows.jsonl"
columns = COLUMNS
[[stage]]
name = "one"
steps = 6
train = ["all"]
lr = 2e-3
eps = 1e-4
  [[stage.task]]
  data = ["rows"]
  batch = 8
  losses = [LOSS]
"""


def losses_of(output):
    return [record["loss"] for record in read_log(output / "run" / "log.jsonl")]


def model_with(folder, *kinds):
    """A folder of a tiny language model with heads for these kinds of output."""
    name = "model-" + "-".join(kinds)
    if not (folder / name).exists():
        spec = {key: value for kind in kinds for key, value in HEADS[kind].items()}
        spec["backbone"] = {"model_type": "qwen3", **BACKBONES["qwen3"]}
        tiny_embedder(vision=None, projector=None, **spec).save(folder / name)
    return name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows with two hard negatives and a teacher's scores, and a teacher."""
    at = tmp_path_factory.mktemp("recipes")
    lay(at)
    tiny_embedder(seed=1).save(at / "wise")
    draw = np.random.default_rng(0)
    words = ["red", "old", "tall", "quiet", "green", "new", "small", "loud"]
    things = ["house", "tree", "cat", "song", "boat"]
    rows = []
    for k in range(40):
        said = f"{words[k % 8]} {things[k // 8]}"
        others = [f"a {draw.choice(words)} {draw.choice(things)} {n}" for n in range(2)]
        scores = [1.0, *draw.uniform(0, 0.6, 2).round(3).tolist()]
        rows.append(
            {
                "q": said,
                "p": f"that is a {said}",
                "n": others,
                "s": scores,
                "g": float(k % 4),
                "i": said,
                "e": f"the {said}",
            }
        )
    write_lines(at / "rows.jsonl", rows)
    return at


def recipe_for(folder, kind, settings=""):
    """A recipe of one loss, with the data, the teacher and the heads that it reads."""
    columns = '{ query = { text = "q" }, positive = { text = "p" } }'
    if kind in GRADED:
        columns = columns.replace("{ query", '{ negatives = [{ text = "n" }], score = "s", query')
    if kind in ("cosent", "angle"):
        columns = '{ query = { text = "q" }, positive = { text = "p" }, score = "g" }'
    if kind == "proxies":
        columns = '{ query = { text = "q" }, positive = { text = "p" }, group = "i" }'
    loaded = model_with(folder)
    if kind in SPARSE:
        loaded = model_with(folder, "sparse")
    elif kind in TOKENS:
        loaded = model_with(folder, "tokens")
    elif kind == "self_distillation":
        loaded = model_with(folder, "sparse", "tokens")
    text = TEACHER.replace("MODEL", loaded).replace("COLUMNS", columns)
    text = text.replace("LOSS", f'{{ kind = "{kind}"{SETTINGS.get(kind, "")}{settings} }}')
    if kind in TAUGHT:
        text = text.replace("batch = 8", 'batch = 8\n  teacher = "wise"')
    path = folder / f"{kind}.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", sorted(set(losses) - set(SPEAKING)))
def test_an_objective_trains_by_a_recipe(folder, tmp_path, kind):
    """On one batch again and again its loss falls."""
    path = recipe_for(folder, kind)
    trained(path, tmp_path, "data.rows.limit=8", "stage.0.steps=5")
    found = losses_of(tmp_path)
    assert np.isfinite(found).all()
    assert min(found[2:]) < found[0]


# ---- three outputs of one forward ------------------------------------------------------------------------------------


def test_several_outputs_of_one_forward_are_those_of_each_alone(folder):
    run = Run(read_recipe(recipe_for(folder, "self_distillation")), folder / "none", device="cpu")
    learning = Learning(run, 0, 0)
    learning.choose()
    assert set(learning.outputs) == {"vectors", "tokens", "sparse"}
    (row,) = first(learning).rows
    with torch.no_grad():
        every = embedded(run.model, row)
        for output, counted in row.read.items():
            alone = embedded(
                run.model,
                PackedRow(row.batch.__class__(**{**vars_of(row.batch), "counted": counted}), {output: counted}),
            )
            torch.testing.assert_close(getattr(every, output), getattr(alone, output), rtol=0, atol=1e-5)


def vars_of(batch):
    names = ("ids", "spans", "counted", "pictures", "slots", "rows", "placeholders", "against")
    return {name: getattr(batch, name) for name in names}


def test_bge_m3_distils_what_its_three_encoders_say(folder, tmp_path):
    """The first loss of a run is the formula over what `encode`, `encode_sparse` and `encode_tokens` give of the batch."""
    path = recipe_for(folder, "self_distillation")
    run = Run(read_recipe(path), tmp_path, device="cpu")
    embedder = run.embedder
    learning = Learning(run, 0, 0)
    learning.choose()
    examples = first(learning).examples[0]
    sides = []
    for items, side in (([e.query for e in examples], "query"), ([e.positives[0] for e in examples], "document")):
        encode = embedder.encode_query if side == "query" else embedder.encode_document
        tokens = embedder.encode_tokens(items, side=side)
        sides.append(
            Embedded(
                vectors=torch.from_numpy(encode(items)),
                sparse=torch.from_numpy(embedder.encode_sparse(items, side=side).toarray()),
                tokens=torch.from_numpy(np.concatenate(tokens)),
                token_of=torch.arange(len(items)).repeat_interleave(torch.tensor([len(t) for t in tokens])),
            )
        )
    count = len(examples)
    due = build_loss({"kind": "self_distillation"})(
        Compared(
            queries=sides[0],
            documents=sides[1],
            owner=torch.arange(count),
            positive=torch.ones(count, dtype=torch.bool),
        )
    )
    trained(path, tmp_path / "out", "stage.0.steps=1")
    assert losses_of(tmp_path / "out")[0] == pytest.approx(float(due), rel=1e-5)


def test_three_outputs_learn_in_chunks_and_in_two_processes_what_they_learn_at_once(folder, tmp_path):
    path = recipe_for(folder, "self_distillation")
    trained(path, tmp_path / "once", "stage.0.steps=3")
    trained(path, tmp_path / "chunks", "stage.0.steps=3", "stage.0.batch_tokens=60")
    together(2, trained, path, tmp_path / "two", "stage.0.steps=3")
    once = losses_of(tmp_path / "once")
    np.testing.assert_allclose(losses_of(tmp_path / "chunks"), once, rtol=1e-4)
    np.testing.assert_allclose(losses_of(tmp_path / "two"), once, rtol=1e-4)


# ---- language heads --------------------------------------------------------------------------------------------------

SPOKEN = """
name = "spoken"
seed = 5
watch.plot = false
[model.compose]
tokenizer = "tiny"
mask = "MASK"
prompts = { query = { text = "ask: {text}" }, document = { text = "{text}" } }
[model.compose.backbone]
model_type = "qwen3"
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
head_dim = 8
vocab_size = 300
pad_token_id = 256
bos_token_id = 257
eos_token_id = 258
tie_word_embeddings = TIED
[data.texts]
kind = "jsonl"
path = "rows.jsonl"
columns = { query = { text = "p" } }
[data.answers]
kind = "jsonl"
path = "rows.jsonl"
columns = { query = { text = "q" }, positive = { text = "p" } }
[[stage]]
name = "one"
steps = 8
train = ["backbone"]
lr = 3e-3
save_steps = 4
  [[stage.task]]
  data = ["texts"]
  batch = 8
  losses = [{ kind = "language_modelling" }]
"""


def spoken_recipe(folder, name="spoken", mask="causal", tied="true", **replaced):
    text = SPOKEN.replace("MASK", mask).replace("TIED", tied)
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def cross_entropy(run, texts, *, given=None):
    """Of the next tokens by transformers' own model with the weights of a run, each text by itself."""
    whole = run.head.whole
    words = run.embedder.tokenizer
    from transformers import AutoConfig, AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_config(AutoConfig.for_model(**whole.config.to_dict())).eval()
    plain.model.load_state_dict(run.model.backbone.state_dict())
    plain.lm_head.load_state_dict(whole.lm_head.state_dict())
    total, count = 0.0, 0
    for k, text in enumerate(texts):
        before = [] if given is None else words.encode([given[k]])[0].ids
        ids = torch.tensor([[*words.prefix, *before, *words.encode([text])[0].ids, *words.suffix]])
        first = max(1, len(words.prefix) + len(before))
        with torch.no_grad():
            logits = plain(input_ids=ids).logits[0]
        total += float(F.cross_entropy(logits[first - 1 : -1], ids[0, first:], reduction="sum"))
        count += ids.shape[1] - first
    return total / count


@pytest.mark.parametrize("tied", ["true", "false"])
@pytest.mark.parametrize("data", ["texts", "answers"])
def test_a_backbone_learns_the_next_token_by_a_recipe(folder, tmp_path, data, tied):
    path = spoken_recipe(folder, tied=tied)
    change = f'stage.0.task.0.data=["{data}"]'
    run = Run(read_recipe(path, [change]), tmp_path / "none", device="cpu")
    learning = Learning(run, 0, 0)
    learning.choose()
    examples = first(learning).examples[0]
    told = [e.positives[0][0].text for e in examples]
    due = cross_entropy(run, told, given=[e.query[0].text for e in examples] if data == "answers" else None)
    trained(path, tmp_path, change)
    found = losses_of(tmp_path)
    assert found[0] == pytest.approx(due, rel=1e-5)
    assert found[-1] < 0.9 * found[0]
    names = load_names(tmp_path)
    assert not any(name.startswith(("spoken", "language_head")) for name in names)


def load_names(output):
    from safetensors import safe_open

    with safe_open(output / "weights.safetensors", "pt") as file:
        return list(file.keys())


def test_a_language_head_goes_row_by_row_in_two_processes_and_on_from_a_checkpoint(folder, tmp_path):
    path = spoken_recipe(folder, tied="false")
    trained(path, tmp_path / "once")
    trained(path, tmp_path / "rows", "stage.0.batch_tokens=64")
    together(2, trained, path, tmp_path / "two")
    once = losses_of(tmp_path / "once")
    np.testing.assert_allclose(losses_of(tmp_path / "rows"), once, rtol=1e-4)
    np.testing.assert_allclose(losses_of(tmp_path / "two"), once, rtol=1e-4)
    (tmp_path / "on" / "run").mkdir(parents=True)
    for name in ("00000004.safetensors", "log.jsonl"):
        (tmp_path / "on" / "run" / name).write_bytes((tmp_path / "once" / "run" / name).read_bytes())
    trained(path, tmp_path / "on", resume=True)
    assert losses_of(tmp_path / "on") == once


def test_masked_tokens_are_learnt_by_lora_in_a_model_that_looks_ahead(folder, tmp_path):
    path = spoken_recipe(
        folder,
        mask="bidirectional",
        **{
            'train = ["backbone"]': 'train = ["lora"]\nlora = { r = 4 }',
            '{ kind = "language_modelling" }': '{ kind = "mntp" }',
            "batch = 8": 'batch = 8\n  masking = { token = "_", share = 0.3 }',
        },
    )
    trained(path, tmp_path, "stage.0.lr=2e-2", "stage.0.steps=12", "data.texts.limit=8")
    found = losses_of(tmp_path)
    assert np.mean(found[-3:]) < np.mean(found[:3])
    with pytest.raises(LookupError, match="no token is called '<mask>'"):
        trained(path, tmp_path / "b", 'stage.0.task.0.masking.token="<mask>"')
    path.write_text(path.read_text().replace('masking = { token = "_", share = 0.3 }', ""))
    with pytest.raises(SpecError, match=r"'mntp' predicts tokens that are masked: masking = "):
        trained(path, tmp_path / "c")


def test_gritlm_learns_vectors_both_ways_and_the_next_token_forwards_in_one_step(folder, tmp_path):
    both = """
  [[stage.task]]
  data = ["answers"]
  batch = 8
  losses = [{ kind = "infonce", weight = 0.5 }]
"""
    path = spoken_recipe(folder, mask="bidirectional")
    path.write_text(path.read_text() + both)
    trained(path, tmp_path)
    records = read_log(tmp_path / "run" / "log.jsonl")
    for record in records:
        assert record["losses"].keys() == {"language_modelling", "infonce"}
        due = record["losses"]["language_modelling"] + 0.5 * record["losses"]["infonce"]
        assert record["loss"] == pytest.approx(due, rel=1e-6)
    for kind in records[0]["losses"]:
        assert records[-1]["losses"][kind] < records[0]["losses"][kind]
    with pytest.raises(SpecError, match="of two tasks"):
        trained(path, tmp_path / "b", f'stage.0.task.0.losses=[{{ kind = "language_modelling" }}, {PLAIN}]')


def test_a_language_head_that_is_not_there_and_a_picture_are_told(folder, tmp_path):
    path = recipe_for(folder, "infonce")
    with pytest.raises(SpecError, match=r"model.compose"):
        trained(path, tmp_path / "a", 'stage.0.task.0.losses=[{ kind = "language_modelling" }]')
    path = spoken_recipe(folder)
    with pytest.raises(SpecError, match="reads texts alone, and data 'texts' has pictures"):
        trained(path, tmp_path / "b", 'data.texts.path="pictures.jsonl"', 'data.texts.columns.query={ image = "file" }')


# ---- SimCSE ----------------------------------------------------------------------------------------------------------


def test_unsupervised_simcse_embeds_a_text_twice_under_different_dropout(folder, tmp_path):
    text = recipe_for(folder, "simcse").read_text()
    text = text.replace('positive = { text = "p" }', 'positive = { text = "q" }')
    path = folder / "twice.toml"
    path.write_text(text)
    change = ("stage.0.dropout=true", "stage.0.attention_dropout=0.3")
    trained(path, tmp_path / "plain")
    trained(path, tmp_path / "dropped", *change)
    plain, dropped = losses_of(tmp_path / "plain"), losses_of(tmp_path / "dropped")
    assert dropped[0] > plain[0] + 1e-3  # the two of a text are not one vector
    assert dropped[-1] < dropped[0]
    chunks = losses_of_chunks(path, tmp_path / "chunks", *change)
    assert np.isfinite(chunks).all()
    with pytest.raises(SpecError, match="goes with dropout"):
        trained(path, tmp_path / "b", "stage.0.attention_dropout=0.3")


def losses_of_chunks(path, output, *changes):
    trained(path, output, *changes, "stage.0.batch_tokens=60")
    return losses_of(output)
