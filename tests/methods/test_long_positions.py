"""Positions beyond the length a backbone was made for, against LongEmbed's formulas over transformers' own layers."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

import mmembed
from mmembed.errors import SpecError, UnknownName
from mmembed.methods import apply
from mmembed.nn.positions import build_positioning
from mmembed.testing import byte_tokenizer, tiny_backbone

from ..conftest import floats_are
from .plain import BACKBONES, LAYOUTS, LONG, Plain, Reference, backbone

ORIGINAL = 32
"""Tokens that the tiny backbones of this file say they were made for."""
TEXTS = [
    "x" * 5,
    "A man is playing a guitar. " * 7,
    "is it red? " * 4,
    "a b c d e f g h i j" + "k" * 13,
    "猫が寝ている" * 11,
]
SAYS = {"against": "the authors' formula over transformers", "kind": "method", "family": "long_positions"}


@cache
def short(kind: str, layout: str) -> mmembed.Embedder:
    """An embedder over a backbone made for 32 tokens, run to its limit by force."""
    return mmembed.compose(
        backbone=tiny_backbone(kind, num_hidden_layers=4, max_position_embeddings=ORIGINAL),
        tokenizer=byte_tokenizer(),
        layout=layout,
        pooling="mean",
        max_length=LONG,
        normalize=False,
        device="cpu",
    )


def last_states(kind: str, text: str, number: Callable[[Tensor, int], Tensor], base: float | None = None) -> Tensor:
    """(T, D) of one text whose tokens are numbered by hand, sliding windows off as in LongEmbed's code for Mistral."""
    changed = {} if base is None else {"rope_parameters": {"rope_type": "default", "rope_theta": base}}
    windows = {"sliding_window": None} if kind == "mistral" else {}
    model = tiny_backbone(kind, num_hidden_layers=4, max_position_embeddings=ORIGINAL, **changed, **windows)
    ids = byte_tokenizer()(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        numbers = number(torch.arange(ids.shape[1]), ids.shape[1])
        return model(ids, position_ids=numbers[None], attention_mask=torch.ones_like(ids)).last_hidden_state[0]


def by_groups(kind: str, text: str, *, g1: int, g2: int, original: int, log_base: float | None) -> Tensor:
    """(T, D): self_extend_patch.py's Mistral, with q_norm and k_norm where the backbone has them: two sets of queries and keys,
    each turned to its own positions from the start, and two sets of scores merged by distance."""
    model = backbone(kind, 4)
    ids = byte_tokenizer()(text, return_tensors="pt")["input_ids"]
    length = ids.shape[1]
    if length <= original:
        g1, g2 = 1, original
    p = torch.arange(length)[None]
    turn = sys.modules[type(model).__module__].apply_rotary_pos_emb

    def forward(block, hidden, **_):
        shape = (1, length, -1, block.head_dim)
        q, k, v = (proj(hidden).view(shape) for proj in (block.q_proj, block.k_proj, block.v_proj))
        if hasattr(block, "q_norm"):
            q, k = block.q_norm(q), block.k_norm(k)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if log_base is not None:
            q = q * ((p + 1)[:, None, :, None].log() / math.log(log_base)).clip(1)
        at = lambda numbers: model.rotary_emb(hidden, position_ids=numbers)  # noqa: E731
        q_near, k_near = turn(q, k, *at(p))
        q_far, k_far = turn(q, q, *at(p // g1 + g2 - g2 // g1))[0], turn(k, k, *at(p // g1))[0]
        groups = q.shape[1] // k.shape[1]
        near = q_near @ k_near.repeat_interleave(groups, 1).transpose(-1, -2) / math.sqrt(block.head_dim)
        far = q_far @ k_far.repeat_interleave(groups, 1).transpose(-1, -2) / math.sqrt(block.head_dim)
        distance = p[0][:, None] - p[0][None, :]
        scores = torch.where(distance < g2, near, far).masked_fill(distance < 0, float("-inf"))
        out = scores.softmax(-1) @ v.repeat_interleave(groups, 1)
        return block.o_proj(out.transpose(1, 2).reshape(1, length, -1)), None

    for block in model.layers:
        attention = block.self_attn
        attention.forward = lambda hidden_states, attention=attention, **given: forward(
            attention, hidden_states, **given
        )
    with torch.inference_mode():
        return model(ids).last_hidden_state[0]


def whole(p: Plain, text: str) -> Tensor:
    """What short texts get: positions as they come. Mistral's windows are off."""
    return last_states(p.kind, text, lambda pos, _: pos)[-1]


REFERENCE: dict[str, Reference] = {
    "position-interpolation": lambda p, t: last_states(p.kind, t, lambda pos, _: pos / 8)[-1],
    "ntk": lambda p, t: last_states(p.kind, t, lambda pos, _: pos, base=100_000.0)[-1],
    "self-extend": whole,
    "grouped-positions": whole,
    "recurrent-positions": whole,
}
"""At the length of the common texts and with the defaults; what follows goes beyond the backbone's."""
OWN_PARITY = {"stretched-positions": "test_a_stretched_table_is_numbered_as_longembed_does"}

KINDS = {
    "recurrent-positions": ({"kind": "recurrent"}, lambda pos, _: pos % ORIGINAL, None),
    "grouped-positions": ({"kind": "grouped"}, lambda pos, n: pos // math.ceil(n / ORIGINAL), None),
    "position-interpolation": ({"kind": "interpolated", "factor": 6.5}, lambda pos, _: pos / 6.5, None),
    "ntk": ({"kind": "ntk", "base": 100_000.0}, lambda pos, _: pos, 100_000.0),
}


def sees_all(kind: str, layout: str) -> bool:
    """Mistral's windows are its padded mask's to keep."""
    return not (kind == "mistral" and layout == "padded")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("name", KINDS)
def test_a_long_text_is_numbered_as_longembed_does(name, kind, layout, held):
    settings, number, base = KINDS[name]
    if not sees_all(kind, layout):
        with pytest.raises(SpecError, match="sliding windows"):
            apply(short(kind, layout), name, positions=settings)
        return
    ours = apply(short(kind, layout), name, positions=settings)
    due = torch.stack([last_states(kind, text, number, base).mean(0) for text in TEXTS])
    held(name, ours.encode(TEXTS), due, relative=True, **SAYS)
    alone = np.concatenate([ours.encode([text]) for text in TEXTS])
    assert abs(ours.encode(TEXTS, batch_tokens=10_000) - alone).max() <= 1e-5
    assert abs(ours.encode(TEXTS)[1] - short(kind, layout).encode(TEXTS)[1]).max() > 1e-3


@pytest.mark.parametrize("log_base", [None, 32.0])
@pytest.mark.parametrize(("g1", "g2"), [(9, 16), (4, 8), (3, 64), (1, 8)])
@pytest.mark.parametrize("kind", ["qwen3", "llama", "mistral"])
def test_self_extend_is_longembeds(kind, g1, g2, log_base, held):
    how = {"kind": "self_extend", "group": g1, "near": g2, "log_base": log_base}
    ours = apply(short(kind, "packed"), "self-extend", positions=how)
    due = [by_groups(kind, t, g1=g1, g2=g2, original=ORIGINAL, log_base=log_base).mean(0) for t in TEXTS]
    held("self-extend", ours.encode(TEXTS), torch.stack(due), relative=True, **SAYS)
    alone = np.concatenate([ours.encode([text]) for text in TEXTS])
    assert abs(ours.encode(TEXTS, batch_tokens=10_000) - alone).max() <= 1e-5


def test_self_extend_changes_what_comes_out():
    base = short("llama", "packed")
    ours = apply(base, "self-extend", positions={"kind": "self_extend", "group": 4, "near": 8})
    moved = abs(ours.encode(TEXTS) - base.encode(TEXTS)).max(1)
    lengths = [len(text.encode()) + 1 for text in TEXTS]
    assert all((far > 1e-3) == (n > ORIGINAL) for far, n in zip(moved, lengths, strict=True))


def test_another_base_leaves_the_embedder_as_it_was_and_goes_away_again(tmp_path):
    base = short("qwen3", "packed")
    before = base.encode(TEXTS)
    ours = apply(base, "ntk")
    told = ours.encode(TEXTS)
    assert abs(told - before).max() > 1e-3
    assert (base.encode(TEXTS) == before).all()
    assert (ours.respecified(positions="auto").encode(TEXTS) == before).all()
    assert ours.model.backbone.layers is base.model.backbone.layers
    again = mmembed.load(ours.save(tmp_path / "m"), device="cpu")
    assert (again.encode(TEXTS) == told).all()


TABLES: dict[str, tuple[int, dict[str, Any]]] = {
    "bert": (0, {"hidden_size": 32, "intermediate_size": 64}),
    "xlm-roberta": (2, {"hidden_size": 32, "intermediate_size": 64, "pad_token_id": 1}),
    "opt": (0, {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64}),
}
"""Backbones that look positions up in a table, how many of its rows `max_position_embeddings` counts that no token has, and
their settings."""


def tabled(kind: str, rows: int) -> Any:
    """A backbone whose table holds so many positions."""
    unused, settings = TABLES[kind]
    config = {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300, "pad_token_id": 256, **settings}
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(kind, max_position_embeddings=rows + unused, **config)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "position" in name:
                weight.mul_(20)  # fresh ones hardly tell
    return model


@pytest.mark.parametrize("kind", TABLES)
def test_a_stretched_table_is_numbered_as_longembed_does(kind, held):
    """E5-Base-4k: a table of 4096 positions, made from 512, so that a text of up to 512 tokens takes every eighth; here 256 from
    32."""
    parts = {"tokenizer": byte_tokenizer(), "pooling": "mean", "normalize": False, "max_length": 256, "device": "cpu"}
    base = mmembed.compose(backbone=tabled(kind, 256), **parts)
    ours = apply(base, "stretched-positions")
    first, plain = TABLES[kind][0], tabled(kind, 256)
    texts = [*TEXTS, "x" * 31, "x" * 32, "x" * 255]
    due = []
    for text in texts:
        ids = byte_tokenizer()(text, return_tensors="pt")["input_ids"]
        numbers = torch.arange(ids.shape[1]) * (8 if ids.shape[1] <= 32 else 1) + first
        with torch.no_grad():
            due.append(plain(ids, position_ids=numbers[None]).last_hidden_state[0].mean(0))
    held("stretched-positions", ours.encode(texts), torch.stack(due), relative=True, **SAYS)
    moved = abs(ours.encode(texts) - base.encode(texts)).max(1) > 1e-3
    assert moved.tolist() == [len(text.encode()) + 1 <= 32 for text in texts]
    with pytest.raises(SpecError, match=r"max_length=256 takes 505 positions, and the table .* has 256"):
        apply(base, "stretched-positions", positions={"kind": "stretched", "original": 64})


def test_absolute_positions_are_numbered_too(held):
    """As LongEmbed's E5-Base: a table of 32, read over and over, or in groups."""
    small = {"max_position_embeddings": ORIGINAL + 2, "num_hidden_layers": 2}
    base = mmembed.compose(
        backbone=tiny_backbone("xlm-roberta", **small),
        tokenizer=byte_tokenizer(),
        pooling="mean",
        normalize=False,
        device="cpu",
    )
    assert base.spec.max_length == ORIGINAL
    plain = tiny_backbone("xlm-roberta", **small)
    for kind, number in (("recurrent", KINDS["recurrent-positions"][1]), ("grouped", KINDS["grouped-positions"][1])):
        ours = base.respecified(positions={"kind": kind}, max_length=LONG)
        due = []
        for text in TEXTS:
            ids = byte_tokenizer()(text, return_tensors="pt")["input_ids"]
            numbers = number(torch.arange(ids.shape[1]), ids.shape[1]) + 2  # RoBERTa counts from its padding id on
            with torch.no_grad():
                due.append(plain(ids, position_ids=numbers[None]).last_hidden_state[0].mean(0))
        held(f"{kind}-positions", ours.encode(TEXTS), torch.stack(due), relative=True, **SAYS)
    with pytest.raises(SpecError, match="no rotary positions"):
        base.respecified(positions={"kind": "interpolated"})
    with pytest.raises(SpecError, match="takes 40 positions, and the table of a xlm-roberta backbone has 32"):
        base.respecified(positions={"kind": "recurrent", "original": 40}, max_length=LONG)


def test_what_does_not_go_together_is_refused():
    base = short("llama", "packed")
    with pytest.raises(UnknownName, match="Did you mean 'recurrent'"):
        base.respecified(positions={"kind": "recurent"})
    with pytest.raises(UnknownName, match="Did you mean 'factor'"):
        base.respecified(positions={"kind": "interpolated", "factr": 2})
    with pytest.raises(SpecError, match="causal backbone"):
        base.respecified(mask="bidirectional", positions={"kind": "self_extend"})
    gemma = mmembed.compose(backbone=tiny_backbone("gemma3_text"), tokenizer=byte_tokenizer(), device="cpu")
    with pytest.raises(SpecError, match="no rotary positions of one base"):
        apply(gemma, "ntk")
    with pytest.raises(SpecError, match="looks its positions up in no table"):
        apply(base, "stretched-positions")


@pytest.mark.parametrize(("kind", "why"), [("gemma2", "soft cap"), ("gpt_neox", "in a way of its own")])
def test_a_backbone_that_is_not_extended_says_so(kind, why):
    config = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 300,
    }
    more = {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 256} if kind == "gemma2" else {}
    made = mmembed.compose(backbone={"model_type": kind, **config, **more}, tokenizer=byte_tokenizer(), device="cpu")
    with pytest.raises(SpecError, match=f"a {kind} backbone .*{why}"):
        apply(made, "self-extend")


@pytest.mark.parametrize("settings", [{"kind": "interpolated"}, {"kind": "self_extend", "log_base": 32.0}])
def test_positions_are_fp32_whatever_torch_makes_floats_in(settings):
    made, row = build_positioning(settings, longest=ORIGINAL), torch.arange(1000)
    run = made.groups().sharpened if made.groups() is not None else lambda row: made.number(row, row)
    due = run(row)
    with floats_are("bfloat16"):
        assert torch.equal(run(row), due)
