"""One-word prompts and what followed them, each against its authors' formula."""

from __future__ import annotations

import torch

import mmembed
from mmembed.methods import apply
from mmembed.methods.in_one_word import _META, with_demonstration

from ..conftest import picture
from .plain import Plain, Reference

EOL = 'This sentence : "{text}" means in one word:"'
COT = 'After thinking step by step , this sentence : "{text}" means in one word:"'
KE = (
    "The essence of a sentence is often captured by its main subjects and actions, while descriptive terms provide "
    'additional but less central details. With this in mind , this sentence : "{text}" means in one word:"'
)
DEMO = 'This sentence : "A jockey riding a horse." means in one word:"Equestrian".'

REFERENCE: dict[str, Reference] = {
    "prompteol": lambda p, t: p.last(EOL, t),
    "prompteol-icl": lambda p, t: p.last(DEMO + EOL, t),
    "promptsth": lambda p, t: p.last('This sentence : "{text}" means something', t),
    "promptsum": lambda p, t: p.last('This sentence : "{text}" can be summarized as', t),
    "pretended-cot": lambda p, t: p.last(COT, t, -2),
    "knowledge-enhancement": lambda p, t: p.last(KE, t, -2),
    "metaeol": lambda p, t: torch.stack([p.last(prompt, t) for prompt in _META]).mean(0),
}


def test_metaeol_has_eight_prompts_that_end_where_the_word_comes():
    assert len(_META) == 8
    assert all(prompt.endswith(' in one word:"') for prompt in _META)


def test_a_picture_can_be_asked_for_one_word(tiny):
    ours = apply(tiny, "prompteol")
    plain = tiny.respecified(close=False)
    expected = plain.encode([(picture(1), "\nSummary above image in one word:")])
    assert abs(ours.encode([picture(1)]) - expected).max() <= 1e-6


def test_another_demonstration_can_be_given(tiny):
    templates = with_demonstration("Two {dogs} run.", "Running")
    ours = apply(tiny, "prompteol-icl", prompts={"prompteol-icl": templates})
    demo = 'This sentence : "Two {dogs} run." means in one word:"Running".'
    expected = torch.nn.functional.normalize(Plain(depth=2).last(demo + EOL, "red"), dim=0).numpy()
    assert abs(ours.encode("red")[0] - expected).max() <= 1e-5


def test_a_skipped_item_is_skipped_in_all_its_ways(tiny):
    ours = apply(tiny, "metaeol", max_length=2000)
    report = mmembed.Report()
    vectors = ours.encode(["a", picture(1), "b"], on_error="skip", report=report)
    assert [s.row for s in report.skipped] == [1]
    assert report.items == 2
    assert (vectors[1] != vectors[1]).all()
    assert abs(vectors[[0, 2]] - ours.encode(["a", "b"])).max() <= 1e-6
