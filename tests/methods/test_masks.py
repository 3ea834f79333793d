"""Masks of LLM2Vec, GritLM and BeLLM against transformers' own layers, read both ways by its own mask builder or by hooks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import mmembed
from mmembed.errors import SpecError
from mmembed.methods import apply
from mmembed.testing import byte_tokenizer

from .plain import BACKBONES, LAYOUTS, LONG, TEXTS, Plain, Reference, backbone, embedder


def both_ways(plain: Plain, text: str) -> Tensor:
    """(T, D): last states of a decoder whose configuration says that it is not causal."""
    plain.model.config.is_causal = False
    return plain.hidden(text)[-1][0]


def opened(plain: Plain, text: str, first: int) -> Tensor:
    """(T, D): last states where blocks from `first` on get no mask at all, as BiLLM's unpadded ones."""
    plain.model.set_attn_implementation("eager")
    for block in plain.model.layers[first:]:
        block.register_forward_pre_hook(
            lambda _, args, kwargs: (args, {**kwargs, "attention_mask": None}), with_kwargs=True
        )
    return plain.hidden(text)[-1][0]


BELLM = 'The representative word for sentence {text} is:"'

REFERENCE: dict[str, Reference] = {
    "llm2vec": lambda p, t: both_ways(p, t).mean(0),
    "gritlm": lambda p, t: both_ways(p, "<|embed|>\n" + t)[len("<|embed|>\n") :].mean(0),
    "bellm": lambda p, t: opened(p, BELLM.replace("{text}", t), p.depth - 1).mean(0),
}


SAYS = {"against": "the authors' formula over transformers", "kind": "method", "family": "masks"}


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("first", [0, 1, -2])
def test_bellm_opens_the_blocks_from_any_on(first, kind, held):
    ours = apply(embedder(kind, "packed"), "bellm", normalize=False, bidirectional_from=first)
    due = [opened(Plain(kind), BELLM.replace("{text}", text), first).mean(0) for text in TEXTS]
    held("bellm", ours.encode(TEXTS), torch.stack(due), relative=True, **SAYS)


@pytest.mark.parametrize("kind", BACKBONES)
def test_an_instruction_is_seen_and_not_counted(kind, held):
    task = "Retrieve the duplicate"
    for name, front in (("gritlm", f"<|user|>\n{task}\n<|embed|>\n"), ("llm2vec", f"{task} ")):
        ours = apply(embedder(kind, "packed"), name, normalize=False)
        plain = Plain(kind)
        before = plain.ids(front).shape[1]
        due = torch.stack([both_ways(plain, front + text)[before:].mean(0) for text in TEXTS])
        told = ours.encode(TEXTS, prompt_name="instructed", instruction=task)
        held(name, told, due, relative=True, **SAYS)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", BACKBONES)
def test_composed_with_a_mask_is_applied_with_it(kind, layout, held):
    ours = mmembed.compose(
        backbone=backbone(kind, 4),
        tokenizer=byte_tokenizer(),
        layout=layout,
        mask="bidirectional",
        pooling="mean",
        close=False,
        max_length=LONG,
        normalize=False,
        device="cpu",
    )
    due = torch.stack([both_ways(Plain(kind), text).mean(0) for text in TEXTS])
    held("llm2vec", ours.encode(TEXTS), due, relative=True, **SAYS)
    applied = apply(embedder(kind, "packed"), "llm2vec", normalize=False)
    assert abs(ours.encode(TEXTS) - applied.encode(TEXTS)).max() <= 1e-5


def test_the_masks_change_what_comes_out():
    base = embedder("llama", "packed")
    vectors = [apply(base, "bellm", bidirectional_from=first).encode(TEXTS) for first in (None, -1, 0)]
    assert abs(vectors[0] - vectors[1]).max() > 1e-3
    assert abs(vectors[1] - vectors[2]).max() > 1e-3


def test_one_mask_for_all_layers_is_all_that_a_padded_backbone_has():
    with pytest.raises(SpecError, match="packed"):
        embedder("llama", "padded").respecified(bidirectional_from=-1)
    with pytest.raises(SpecError, match="blocks 0 to 3"):
        embedder("llama", "packed").respecified(bidirectional_from=4)
