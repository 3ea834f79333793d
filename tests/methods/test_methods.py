"""Every method without training against its authors' formula, written out plainly over transformers' own forward."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mmembed
from mmembed.errors import SpecError, UnknownName
from mmembed.methods import _FILES, METHODS, apply
from mmembed.methods.in_one_word import _META, with_demonstration
from mmembed.prompts import one_sentence
from mmembed.testing import byte_tokenizer, tiny_backbone, tiny_embedder

from ..conftest import picture

TEXTS = ["A man is playing a guitar", "is it red?", 'she said "no"', "猫が寝ている", "x"]


def hidden(text: str, *, closed: bool = False) -> tuple[torch.Tensor, ...]:
    """All hidden states of one text, by transformers alone, unpadded."""
    ids = byte_tokenizer(eos=closed)(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        return tiny_backbone()(ids, output_hidden_states=True).hidden_states


def last(prompt: str, text: str, layer: int = -1) -> torch.Tensor:
    return hidden(prompt.replace("{text}", one_sentence(text)).strip())[layer][0, -1]


def echo_states(text: str, *, closed: bool) -> torch.Tensor:
    front = f"Document:{text}\nDocument again:"
    return hidden(front + text, closed=closed)[-1][0, len(front.encode()) :]


def weighted(text: str) -> torch.Tensor:
    states = hidden(text, closed=True)[-1][0]
    weights = torch.arange(1, len(states) + 1).float()
    return (states * weights[:, None]).sum(0) / weights.sum()


def mean_of(text: str, layers: tuple[int, ...]) -> torch.Tensor:
    every = hidden(text, closed=True)
    return torch.stack([every[layer][0] for layer in layers]).mean(0).mean(0)


EOL = 'This sentence : "{text}" means in one word:"'
COT = 'After thinking step by step , this sentence : "{text}" means in one word:"'
KE = (
    "The essence of a sentence is often captured by its main subjects and actions, while descriptive terms provide "
    'additional but less central details. With this in mind , this sentence : "{text}" means in one word:"'
)
DEMO = 'This sentence : "A jockey riding a horse." means in one word:"Equestrian".'
REFERENCE = {
    "prompteol": lambda t: last(EOL, t),
    "prompteol-icl": lambda t: last(DEMO + EOL, t),
    "promptsth": lambda t: last('This sentence : "{text}" means something', t),
    "promptsum": lambda t: last('This sentence : "{text}" can be summarized as', t),
    "pretended-cot": lambda t: last(COT, t, -2),
    "knowledge-enhancement": lambda t: last(KE, t, -2),
    "metaeol": lambda t: torch.stack([last(prompt, t) for prompt in _META]).mean(0),
    "echo": lambda t: echo_states(t, closed=False).mean(0),
    "echo-last": lambda t: echo_states(t, closed=True)[-1],
    "sgpt": weighted,
    "penultimate": lambda t: mean_of(t, (-2,)),
    "last-two-mean": lambda t: mean_of(t, (-1, -2)),
    "first-last-mean": lambda t: mean_of(t, (1, -1)),
}


def family_of(name: str) -> str:
    """The file that holds a method."""
    return next(file.__name__.rpartition(".")[2] for file in _FILES if name in {m.name for m in file.METHODS})


def test_every_method_has_its_reference():
    assert set(REFERENCE) == set(METHODS)
    assert len(_META) == 8
    assert all(prompt.endswith(' in one word:"') for prompt in _META)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_its_authors_formula(name, tiny, held):
    ours = apply(tiny, name, max_length=2000)
    expected = torch.stack([REFERENCE[name](text) for text in TEXTS])
    raw = apply(tiny, name, normalize=False, max_length=2000)
    says = {"against": "the authors' formula over transformers", "kind": "method", "family": family_of(name)}
    held(name, raw.encode(TEXTS), expected, relative=True, **says)
    held(name, ours.encode(TEXTS), torch.nn.functional.normalize(expected), **says)


@pytest.mark.parametrize("name", METHODS)
def test_an_item_has_one_vector_under_every_method(name, tiny):
    ours = apply(tiny, name, max_length=2000)
    alone = np.concatenate([ours.encode([text]) for text in TEXTS])
    for budget in (64, 100_000):
        assert np.abs(ours.encode(TEXTS[::-1], batch_tokens=budget)[::-1] - alone).max() <= 1e-5


def test_a_picture_can_be_asked_for_one_word(tiny):
    ours = apply(tiny, "prompteol")
    plain = tiny.respecified(close=False)
    expected = plain.encode([(picture(1), "\nSummary above image in one word:")])
    assert np.abs(ours.encode([picture(1)]) - expected).max() <= 1e-6


def test_an_echoed_picture_is_pooled_the_second_time(tiny):
    ours = apply(tiny, "echo")
    assert np.abs(ours.encode([picture(1)]) - ours.encode([picture(2)])).max() > 1e-4


def test_a_method_leaves_the_embedder_as_it_was_and_can_be_saved(tiny, tmp_path):
    before = tiny.encode(TEXTS)
    ours = apply(tiny, "metaeol", max_length=2000)
    vectors = ours.encode(TEXTS)
    assert np.array_equal(tiny.encode(TEXTS), before)
    assert ours.fingerprint != tiny.fingerprint
    again = mmembed.load(ours.save(tmp_path / "m"), device="cpu")
    assert np.array_equal(again.encode(TEXTS), vectors)


def test_a_text_that_is_said_twice_is_cut_in_both_places(tiny):
    ours = apply(tiny, "echo", max_length=60)
    report = mmembed.Report()
    cut = ours.encode(["y" * 50], report=report)
    assert report.truncated == [0]
    assert np.abs(cut - ours.encode(["y" * 17])).max() <= 1e-6


def test_a_skipped_item_is_skipped_in_all_its_ways(tiny):
    ours = apply(tiny, "metaeol", max_length=2000)
    report = mmembed.Report()
    vectors = ours.encode(["a", picture(1), "b"], on_error="skip", report=report)
    assert [s.row for s in report.skipped] == [1]
    assert report.items == 2
    assert np.isnan(vectors[1]).all()
    assert np.abs(vectors[[0, 2]] - ours.encode(["a", "b"])).max() <= 1e-6


def test_another_demonstration_can_be_given(tiny):
    templates = with_demonstration("Two {dogs} run.", "Running")
    ours = apply(tiny, "prompteol-icl", prompts={"prompteol-icl": templates})
    demo = 'This sentence : "Two {dogs} run." means in one word:"Running".'
    expected = torch.nn.functional.normalize(last(demo + EOL, "red"), dim=0).numpy()
    assert np.abs(ours.encode("red")[0] - expected).max() <= 1e-5


def test_what_does_not_go_together_is_refused(tiny):
    with pytest.raises(UnknownName, match="Did you mean 'prompteol'"):
        apply(tiny, "prompt-eol")
    with pytest.raises(UnknownName, match="Did you mean 'layers'"):
        apply(tiny, "sgpt", layer=3)
    with pytest.raises(SpecError, match="the backbone has 2"):
        apply(tiny, "sgpt", layers=(-7,))
    with pytest.raises(SpecError, match="reads both ways"):
        apply(tiny_embedder(mask="bidirectional"), "prompteol")
    with pytest.raises(SpecError, match="part of the weights"):
        tiny.respecified(heads=({"kind": "layer_norm"},))
    with pytest.raises(SpecError, match="has weights"):
        tiny.respecified(pooling={"kind": "attention"})
