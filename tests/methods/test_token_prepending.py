"""Token Prepending against its formula, run on transformers' own layers by hooks, with the authors' left padding too."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from mmembed.errors import InputError
from mmembed.methods import apply
from mmembed.methods.in_one_word import _META
from mmembed.nn.interventions import build_intervention
from mmembed.prompts import one_sentence

from ..conftest import floats_are, picture
from .plain import BACKBONES, LAYOUTS, LONG, TEXTS, Plain, Reference, embedder

EOL = 'This sentence : <PST> "{text}" means in one word:"'
COT = 'After thinking step by step , this sentence : <PST> "{text}" means in one word:"'
KE = (
    "The essence of a sentence is often captured by its main subjects and actions, while descriptive terms provide "
    'additional but less central details. With this in mind , this sentence : <PST> "{text}" means in one word:"'
)
META = [prompt.replace('"{text}"', '<PST> "{text}"') for prompt in _META]


def prepended(
    kind: str, texts: Sequence[str], prompt: str, *, start: int = 1, stop: int = 7, layer: int = -2, depth: int = 4
) -> Tensor:
    """(B, D), as the authors run it: <PST> is a token of its own, the batch is padded on the left."""
    plain = Plain(kind, depth, special=("<PST>",))
    words = plain.words()
    words.padding_side = "left"
    batch = words([prompt.replace("{text}", one_sentence(t)).strip() for t in texts], return_tensors="pt", padding=True)
    pst = words.convert_tokens_to_ids("<PST>")
    row = torch.arange(len(texts))
    where = (batch["input_ids"] == pst).int().argmax(1)
    table = plain.model.get_input_embeddings()
    with torch.no_grad():
        table.weight[pst] = torch.randn(table.weight.shape[1], generator=torch.Generator().manual_seed(0))
    for number, block in enumerate(plain.model.layers):
        if start <= number < stop:

            def change(_, args, kwargs):
                states = args[0].clone()
                states[row, where] = states[:, -1].clone()
                return (states, *args[1:]), kwargs

            block.register_forward_pre_hook(change, with_kwargs=True)
    mask = batch["attention_mask"]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        out = plain.model(**batch, position_ids=positions, output_hidden_states=True)
    return out.hidden_states[layer][:, -1]


def alone(prompt: str) -> Reference:
    return lambda p, t: prepended(p.kind, [t], prompt)[0]


REFERENCE: dict[str, Reference] = {
    "token-prepending": alone(EOL),
    "token-prepending-cot": alone(COT),
    "token-prepending-ke": alone(KE),
    "token-prepending-metaeol": lambda p, t: torch.stack([prepended(p.kind, [t], one)[0] for one in META]).mean(0),
}
AGAINST = {"against": "the authors' formula over transformers", "kind": "method", "family": "token_prepending"}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", BACKBONES)
def test_a_batch_is_the_authors_batch_padded_on_the_left(kind, layout, held):
    ours = apply(embedder(kind, layout), "token-prepending", normalize=False).encode(TEXTS)
    held("token-prepending", ours, prepended(kind, TEXTS, EOL), relative=True, **AGAINST)


@pytest.mark.parametrize(("start", "stop", "layer"), [(0, 1, -1), (1, 2, 3), (2, 4, -1), (3, 9, 4)])
def test_every_choice_of_layers_is_the_authors(start, stop, layer, held):
    how = {"kind": "token_prepending", "start": start, "stop": stop}
    ours = apply(embedder("llama", "packed"), "token-prepending", normalize=False, layers=(layer,), intervention=how)
    due = prepended("llama", TEXTS, EOL, start=start, stop=stop, layer=layer)
    held("token-prepending", ours.encode(TEXTS), due, relative=True, **AGAINST)


def test_the_placeholder_changes_what_comes_out():
    """Else the parity above would hold of a forward without it."""
    base = embedder("llama", "packed")
    ours = apply(base, "token-prepending").encode(TEXTS)
    idle = {"kind": "token_prepending", "start": 9, "stop": 9}
    assert abs(ours - apply(base, "token-prepending", intervention=idle).encode(TEXTS)).max() > 1e-2
    assert abs(ours - apply(base, "pretended-cot").encode(TEXTS)).max() > 1e-2


def test_a_picture_takes_a_placeholder_too(tiny):
    ours = apply(tiny, "token-prepending", max_length=LONG, layers=(-1,))
    idle = ours.respecified(intervention={"kind": "token_prepending", "start": 9, "stop": 9})
    things = [picture(1), ("a red car", picture(2)), "a red car"]
    together = ours.encode(things)
    assert abs(together - idle.encode(things)).max() > 1e-3
    for row, thing in enumerate(things):
        assert abs(ours.encode([thing])[0] - together[row]).max() <= 1e-5


def test_a_cut_text_keeps_its_placeholder_in_place():
    ours = apply(embedder("llama", "packed"), "token-prepending", max_length=60, cleaning=None)
    assert abs(ours.encode(["y" * 300]) - ours.encode(["y" * (60 - 39)])).max() <= 1e-6


def test_a_prompt_without_a_placeholder_is_refused():
    ours = apply(embedder("llama", "packed"), "token-prepending")
    with pytest.raises(InputError, match="needs a prompt with"):
        ours.encode("red", prompt="query: ")
    with pytest.raises(InputError, match="has no use for"):
        ours.respecified(intervention=None).encode("red")


def test_a_placeholder_is_the_same_whatever_torch_makes_floats_in():
    made, like = build_intervention({"kind": "token_prepending"}, depth=4, heads=2), torch.zeros(2, 16)
    due = made.placeholder(like)
    with floats_are("float64"):
        assert torch.equal(made.placeholder(like), due)
