"""Contrastive Prompting against its formula, run on transformers' own layers by hooks, with the authors' left padding too."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import mmembed
from mmembed.errors import SpecError, UnknownName
from mmembed.methods import apply
from mmembed.methods.contrastive_prompting import AGAINST
from mmembed.prompts import one_sentence
from mmembed.testing import byte_tokenizer

from ..conftest import picture
from .plain import LAYOUTS, LONG, TEXTS, Plain, Reference, embedder

EOL = 'This sentence : "{text}" means in one word:"'
COT = 'After thinking step by step , this sentence : "{text}" means in one word:"'
KE = (
    "The essence of a sentence is often captured by its main subjects and actions, while descriptive terms provide "
    'additional but less central details. With this in mind , this sentence : "{text}" means in one word:"'
)
OTHER = 'The irrelevant information of this sentence : "{text}" means in one word:"'
HOW = ("scaled", "norm", "scaled_norm", "sub_head_norm")


def contrasted(
    kind: str,
    texts: Sequence[str],
    prompt: str,
    *,
    block: int = 3,
    c: float = 0.5,
    how: str = "scaled",
    layer: int = -2,
) -> Tensor:
    """(B, D), as the authors run it: two batches padded on the left, both read and changed at the last place."""
    plain = Plain(kind)
    projection = plain.model.layers[block].self_attn.o_proj
    seen = []

    def run(template: str) -> tuple[Tensor, ...]:
        words = plain.words()
        words.padding_side = "left"
        filled = [template.replace("{text}", one_sentence(t)).strip() for t in texts]
        batch = words(filled, return_tensors="pt", padding=True)
        positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        with torch.inference_mode():
            return plain.model(**batch, position_ids=positions, output_hidden_states=True).hidden_states

    handle = projection.register_forward_pre_hook(lambda _, args: seen.append(args[0][:, -1].clone()))
    run(OTHER)
    handle.remove()
    (b,) = seen

    def change(_, args):
        states = args[0].clone()
        a = states[:, -1]
        new = a - b
        if how in ("norm", "scaled_norm"):
            new = new * (a.norm(dim=-1, keepdim=True) / (new.norm(dim=-1, keepdim=True) + 1e-7))
        if how == "sub_head_norm":
            heads = plain.model.config.num_attention_heads
            for a_head, new_head in zip(a.chunk(heads, -1), new.chunk(heads, -1), strict=True):
                new_head *= a_head.norm(dim=-1, keepdim=True) / (new_head.norm(dim=-1, keepdim=True) + 1e-7)
        states[:, -1] = new * (c if how in ("scaled", "scaled_norm") else 1)
        return (states, *args[1:])

    projection.register_forward_pre_hook(change)
    return run(prompt)[layer][:, -1]


def alone(prompt: str) -> Reference:
    return lambda p, t: contrasted(p.kind, [t], prompt)[0]


REFERENCE: dict[str, Reference] = {
    "contrastive-prompting": alone(EOL),
    "contrastive-prompting-cot": alone(COT),
    "contrastive-prompting-ke": alone(KE),
    "contrastive-prompting-ck": lambda p, t: (contrasted(p.kind, [t], KE)[0] + contrasted(p.kind, [t], COT)[0]) / 2,
}
SAYS = {"against": "the authors' formula over transformers", "kind": "method", "family": "contrastive_prompting"}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("how", HOW)
def test_every_way_is_the_authors_batch_padded_on_the_left(how, layout, held):
    what = {"kind": "contrast", "against": AGAINST, "layer": 1, "strength": 0.25, "how": how}
    ours = apply(embedder("qwen3", layout), "contrastive-prompting", normalize=False, intervention=what, layers=(-1,))
    due = contrasted("qwen3", TEXTS, EOL, block=1, c=0.25, how=how, layer=-1)
    held("contrastive-prompting", ours.encode(TEXTS), due, relative=True, **SAYS)


def test_the_contrast_changes_what_comes_out():
    base = embedder("llama", "packed")
    ours = apply(base, "contrastive-prompting", layers=(-1,)).encode(TEXTS)
    assert abs(ours - apply(base, "prompteol").encode(TEXTS)).max() > 1e-3


def test_a_picture_is_contrasted_too(tiny):
    ours = apply(tiny, "contrastive-prompting", max_length=LONG, layers=(-1,))
    things = [picture(1), ("a red car", picture(2)), "a red car"]
    together = ours.encode(things)
    assert abs(together - apply(tiny, "prompteol", max_length=LONG).encode(things)).max() > 1e-3
    for row, thing in enumerate(things):
        assert abs(ours.encode([thing])[0] - together[row]).max() <= 1e-5


def test_parts_are_contrasted_with_what_they_are_together():
    changed = {"layers": (-1,), "pooling": {"kind": "mean"}, "normalize": False, "cleaning": None}
    ours = apply(embedder("qwen3", "packed"), "contrastive-prompting", **changed)
    whole = ours.encode("red cat")[0]
    ((first, second),) = ours.encode_chunks([("red", " cat")], joint="")
    way = first - second  # the mean of all tokens lies between the means of both parts
    share = (whole - second) @ way / (way @ way)
    assert 0 < share < 1
    assert abs(second + share * way - whole).max() <= 1e-5
    with pytest.raises(SpecError, match="in windows there are several"):
        ours.encode_chunks([("red", " cat")], window=30)


def test_what_does_not_go_together_is_refused():
    base = embedder("llama", "packed")
    with pytest.raises(UnknownName, match="Did you mean 'irrelevant'"):
        apply(base, "contrastive-prompting", intervention={"kind": "contrast", "against": "irrelevent"})
    with pytest.raises(UnknownName, match="Did you mean 'sub_head_norm'"):
        apply(
            base, "contrastive-prompting", intervention={"kind": "contrast", "against": AGAINST, "how": "subhead_norm"}
        )
    gpt2 = {
        "model_type": "gpt2",
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "vocab_size": 300,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    with pytest.raises(SpecError, match=r"no self_attn\.o_proj"):
        apply(mmembed.compose(backbone=gpt2, tokenizer=byte_tokenizer(), device="cpu"), "contrastive-prompting")
