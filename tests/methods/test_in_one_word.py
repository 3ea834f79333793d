"""One-word prompts and what followed them, each against its authors' formula."""

from __future__ import annotations

import pytest
import torch

import mmembed
from mmembed.methods import apply
from mmembed.methods.in_one_word import _META, DEMONSTRATIONS, with_demonstration
from mmembed.testing import byte_tokenizer, tiny_embedder

from ..conftest import picture
from .plain import LONG, SPECIAL, TEXTS, Plain, Reference, embedder

EOL = 'This sentence : "{text}" means in one word:"'
COT = 'After thinking step by step , this sentence : "{text}" means in one word:"'
KE = (
    "The essence of a sentence is often captured by its main subjects and actions, while descriptive terms provide "
    'additional but less central details. With this in mind , this sentence : "{text}" means in one word:"'
)
DEMO = 'This sentence : "A jockey riding a horse." means in one word:"Equestrian".'

RETRIEVAL = "Represent this sentence for searching relevant passages: "
LLAMA3 = "<|start_header_id|>user<|end_header_id|>\n\nX<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n \n"

REFERENCE: dict[str, Reference] = {
    "prompteol": lambda p, t: p.last(EOL, t),
    "prompteol-icl": lambda p, t: p.last(DEMO + EOL, t),
    "promptsth": lambda p, t: p.last('This sentence : "{text}" means something', t),
    "promptsum": lambda p, t: p.last('This sentence : "{text}" can be summarized as', t),
    "pretended-cot": lambda p, t: p.last(COT, t, -2),
    "knowledge-enhancement": lambda p, t: p.last(KE, t, -2),
    "metaeol": lambda p, t: torch.stack([p.last(prompt, t) for prompt in _META]).mean(0),
    "angle-a": lambda p, t: p.hidden(f'Summarize sentence "{t}" in one word:"')[-1][0, -1],
    "angle-b": lambda p, t: p.hidden(f'You can only output one word. Summarize "{t}":"')[-1][0, -1],
    "angle-c": lambda p, t: p.hidden(f"{RETRIEVAL}{t}", closed=True)[-1][0, 0],
    "cse-sfp-llama": lambda p, t: p.last('This sentence : "{text}" means in one word, it can be summarized as', t),
    "cse-sfp-mistral": lambda p, t: p.last('This sentence : "{text}" means something, it can be summarized as', t),
    "cse-sfp-opt": lambda p, t: p.last('This sentence : "{text}" means something, it can also be summarized as', t),
    "e5-v": lambda p, t: p.hidden(f"{t}\nSummary above sentence in one word: ")[-1][0, -1],
    "e5-v-llama3": lambda p, t: p.hidden(LLAMA3.replace("X", f"{t}\nSummary above sentence in one word: "))[-1][0, -1],
}
SAYS = {"kind": "method", "family": "in_one_word"}


def test_metaeol_has_eight_prompts_that_end_where_the_word_comes():
    assert len(_META) == 8
    assert all(prompt.endswith(' in one word:"') for prompt in _META)


def test_a_picture_can_be_asked_for_one_word(tiny):
    ours = apply(tiny, "prompteol")
    plain = tiny.respecified(close=False)
    expected = plain.encode([(picture(1), "\nSummary above image in one word:")])
    assert abs(ours.encode([picture(1)]) - expected).max() <= 1e-6


@pytest.mark.parametrize("name", ["e5-v", "e5-v-llama3"])
def test_pictures_and_what_is_to_change_in_them_are_asked_for_one_word(name, held):
    """Against the same words and pictures laid out by hand, image tokens in their place."""
    tiny = tiny_embedder(tokenizer=byte_tokenizer(special=SPECIAL))
    ours = apply(tiny, name, max_length=LONG)
    plain = tiny.respecified(close=False, max_length=LONG)
    front, back = LLAMA3.split("X") if name == "e5-v-llama3" else ("", "")
    red = picture(1)
    asked = {
        (red,): (None, (red, "\nSummary above image in one word: ")),
        (red, "a dog"): ("composed", (red, 'Modify this image with "a dog", desribe modified image in one word:')),
        (red, "blue"): (
            "fashion",
            (
                red,
                " change the style of this shirt to blue\n Desribe this modified shirt in one word based on its style:",
            ),
        ),
    }
    for thing, (prompt, (image, words)) in asked.items():
        instruction = "shirt" if prompt == "fashion" else None
        told = ours.encode([thing], prompt_name=prompt, instruction=instruction)
        due = plain.encode([tuple(part for part in (front, image, words + back) if part)])
        what = "image" if len(thing) == 1 else "image+text"
        held(name, told, due, against="the same words and picture laid out by hand", what=what, **SAYS)


def test_the_mean_is_what_prompteols_avg_means(held):
    """Its code sums over the tokens and divides by the padded length: in a batch, a vector hangs on its company."""
    ours = embedder("llama", "packed").respecified(pooling={"kind": "mean"}, close=False, normalize=False)
    plain = Plain("llama")

    def avg(texts: list[str]) -> torch.Tensor:
        words = plain.words()
        words.padding_side = "left"
        batch = words(texts, return_tensors="pt", padding=True)
        mask = batch["attention_mask"]
        with torch.inference_mode():
            states = plain.model(**batch, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).last_hidden_state
        return (states * mask[..., None]).mean(1)

    alone = torch.cat([avg([text]) for text in TEXTS])
    against = "the authors' formula over transformers, alone"
    held("prompteol --avg", ours.encode(TEXTS), alone, relative=True, against=against, **SAYS)
    assert (avg(TEXTS) - alone).abs().max() > 1e-2


@pytest.mark.parametrize("backbone", DEMONSTRATIONS)
def test_the_authors_demonstration_for_a_backbone(backbone, held):
    sentence, word = DEMONSTRATIONS[backbone]
    templates = with_demonstration(sentence, word)
    ours = apply(embedder("llama", "packed"), "prompteol-icl", prompts={"prompteol-icl": templates}, normalize=False)
    demo = f'This sentence : "{sentence}" means in one word:"{word}".'
    due = torch.stack([Plain("llama").last(demo + EOL, text) for text in TEXTS])
    against = "the authors' formula over transformers"
    held("prompteol-icl", ours.encode(TEXTS), due, relative=True, against=against, **SAYS)


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
