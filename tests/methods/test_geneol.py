"""GenEOL against its authors' formula: the literal <s>, the two tokens after "in one word", the mean over rewrites."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import mmembed
from mmembed.errors import InputError, SpecError, UnknownName
from mmembed.methods import apply, geneol
from mmembed.testing import byte_tokenizer, tiny_backbone

from ..conftest import picture
from .plain import TEXTS, Plain, Reference

FRONT = (
    "<s>The essence of a sentence is often captured by its main subjects and actions, while descriptive terms provide "
    'additional but less central details. With this in mind , this sentence : "{text}" means in one word'
)


def read(plain: Plain, text: str, *, layer: int = -1, mode: str = "mean") -> Tensor:
    """The authors' embed and pooling: tokens of everything up to "in one word", tokenised alone, are masked."""
    words = byte_tokenizer(bos=True, eos=True)  # neither of which the authors let it add
    ids = words(FRONT.replace("{text}", text) + ':"', return_tensors="pt", add_special_tokens=False)["input_ids"]
    masked = len(words(FRONT.replace("{text}", text), add_special_tokens=False)["input_ids"])
    with torch.inference_mode():
        states = plain.model(ids, output_hidden_states=True).hidden_states[layer][0]
    assert ids[0, 0] == words.bos_token_id
    assert len(states) == masked + 2
    return states[masked:].mean(0) if mode == "mean" else states[-1]


REFERENCE: dict[str, Reference] = {"geneol": read}


def rewrite(texts: list[str]) -> list[list[str]]:
    """What a language model might say, always the same."""
    return [[text.upper(), f"Somebody says: {text}", " ".join(reversed(text.split()))] for text in texts]


@pytest.fixture(scope="module")
def bos_and_eos():
    return mmembed.compose(
        backbone=tiny_backbone("llama"), tokenizer=byte_tokenizer(bos=True), max_length=1000, device="cpu"
    )


@pytest.mark.parametrize("unit_before", [False, True])
@pytest.mark.parametrize("mode", ["mean", "last"])
@pytest.mark.parametrize("layer", [-1, -2])
def test_the_mean_over_rewrites_is_the_authors(bos_and_eos, held, layer, mode, unit_before):
    plain = Plain("llama", 2)
    ours = apply(bos_and_eos, "geneol", layers=(layer,), pooling={"kind": mode})
    expected = []
    for text, wordings in zip(TEXTS, rewrite(TEXTS), strict=True):
        each = torch.stack([read(plain, one, layer=layer, mode=mode) for one in (text, *wordings)])
        expected.append((torch.nn.functional.normalize(each) if unit_before else each).mean(0))
    says = {"against": "the authors' formula over transformers", "kind": "method", "family": "geneol"}
    unit = torch.nn.functional.normalize(torch.stack(expected))
    held("geneol", geneol.encode(ours, TEXTS, rewrite, unit_before=unit_before), unit, **says)
    raw = geneol.encode(ours.respecified(normalize=False), TEXTS, rewrite, unit_before=unit_before)
    held("geneol", raw, torch.stack(expected), relative=True, **says)


def test_a_text_has_one_vector_whatever_its_company_and_however_many_rewrites_others_have(bos_and_eos):
    ours = apply(bos_and_eos, "geneol")
    together = geneol.encode(ours, TEXTS, lambda texts: [["y"] * len(text) for text in texts])
    alone = [geneol.encode(ours, [text], lambda texts: [["y"] * len(text) for text in texts]) for text in TEXTS]
    assert np.abs(np.concatenate(alone) - together).max() <= 1e-5
    plain = geneol.encode(ours, TEXTS, lambda texts: [[] for _ in texts])
    assert np.abs(plain - ours.encode(TEXTS)).max() <= 1e-6


def test_one_text_is_one_and_rewrites_come_from_anywhere(bos_and_eos):
    ours = apply(bos_and_eos, "geneol")
    due = geneol.encode(ours, ["abc"], lambda texts: [[text + "!", text] for text in texts])
    told = geneol.encode(ours, "abc", lambda texts: (iter([text + "!", text]) for text in texts))
    assert np.array_equal(told, due)


def test_a_text_of_the_template_in_the_text_changes_nothing_of_what_is_read(bos_and_eos):
    ours = apply(bos_and_eos, "geneol")
    text = 'x means in one word:" y'
    expected = torch.nn.functional.normalize(read(Plain("llama", 2), text), dim=0)
    assert np.abs(ours.encode([text])[0] - expected.numpy()).max() <= 1e-5


def test_an_instruction_for_each_text_goes_with_all_its_wordings():
    tiny = mmembed.testing.tiny_embedder(prompts={"query": {"any": "{instruction}: {content}"}})
    vectors = geneol.encode(tiny, ["a", "b"], rewrite, prompt_name="query", instruction=["one", "two"])
    alone = geneol.encode(tiny, ["b"], rewrite, prompt_name="query", instruction="two")
    assert np.abs(vectors[1] - alone[0]).max() <= 1e-5
    with pytest.raises(SpecError, match="1 instructions were given for 2 items"):
        geneol.encode(tiny, ["a", "b"], rewrite, prompt_name="query", instruction=["one"])


def test_rewrites_that_say_nothing_are_refused(bos_and_eos):
    ours = apply(bos_and_eos, "geneol")
    with pytest.raises(InputError, match="gave 1 lists for 2 texts"):
        geneol.encode(ours, ["a", "b"], lambda texts: [["c"]])
    for wrong in (["c", " "], "cd", [3]):
        with pytest.raises(InputError, match="item 1: its rewrites"):
            geneol.encode(ours, ["a", "b"], lambda texts, wrong=wrong: [[], wrong])
    with pytest.raises(InputError, match=r"item 1: .*no template for image"):
        geneol.encode(ours, ["a", picture(1)], lambda texts: [["c"], []])
    with pytest.raises(UnknownName, match="option"):
        geneol.encode(ours, ["a"], rewrite, on_error="skip")


def test_marked_words_are_read_only_where_a_prompt_marks_them(bos_and_eos):
    ours = apply(bos_and_eos, "geneol")
    with pytest.raises(InputError, match="no words after"):
        ours.encode(["a"], prompt="b: ")
    assert "counted" not in mmembed.prompts.wrap((mmembed.Text("a"),), "b{counted}c{content}d")[0].text
