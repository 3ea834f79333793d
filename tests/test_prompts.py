"""The words around an item: where its own content stands, and what is refused."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from mmembed import prompts
from mmembed.errors import InputError, SpecError, UnknownName
from mmembed.inputs import Text, to_item
from mmembed.prompts import TextRun, check, literal, one_sentence, templates_for, wrap
from mmembed.testing import tiny_embedder

from .conftest import picture


def test_the_items_own_characters_are_known():
    (run,) = wrap(to_item("red"), "query: {content}!", None)
    assert isinstance(run, TextRun)
    assert run.text == "query: red!"
    assert [(run.text[a:b], copy) for a, b, copy in run.content] == [("red", 1)]


def test_parts_keep_their_order_and_texts_that_follow_each_other_are_joined_by_a_space():
    one = picture(1)
    runs = wrap(to_item(("a", "b", one, "c")), "<{content}>", None)
    assert [run.text if isinstance(run, TextRun) else run.image for run in runs] == ["<a b", one, "c>"]


def test_a_template_may_put_the_picture_first():
    one = picture(1)
    runs = wrap(to_item(("a", one)), "{image}: {text}", None)
    assert [run.text if isinstance(run, TextRun) else run.image for run in runs] == [one, ": a"]


def test_a_template_that_leaves_out_a_part_is_an_error():
    with pytest.raises(InputError, match="no place for every part"):
        wrap(to_item(("a", picture(1))), "{text}", None)


def test_braces_in_a_prompt_are_letters():
    (run,) = wrap(to_item("{x}"), literal("{a} {{b}} "), None)
    assert isinstance(run, TextRun)
    assert run.text == "{a} {{b}} {x}"


def test_an_instruction_that_nobody_gave_is_asked_for():
    with pytest.raises(InputError, match="pass instruction="):
        wrap(to_item("a"), "{instruction}: {content}", None)


def test_a_template_may_put_the_item_twice():
    (run,) = wrap(to_item("red"), "{content} again: {content}", None)
    assert isinstance(run, TextRun)
    assert [(run.text[a:b], copy) for a, b, copy in run.content] == [("red", 1), ("red", 2)]


@pytest.mark.parametrize(
    ("given", "clean"),
    [("a  b", "a b."), ("is it?", "is it."), ('say "x"', "say 'x'"), ("end.", "end."), ("", ""), ("it's", "it's.")],
)
def test_one_sentence_is_written_as_the_authors_write_it(given, clean):
    assert one_sentence(given) == clean


@pytest.mark.parametrize(
    ("by_modality", "said"),
    [
        ({"any": "{content:>40}"}, "takes no format"),
        ({"any": "{content!r}"}, "takes no format and no conversion"),
        ({"any": "{content}", "imgae": "picture: {content}"}, "Did you mean 'image'"),
        ({"any": "{content}", "txt@de": "{content}"}, "Did you mean 'text'"),
    ],
)
def test_what_a_template_would_not_do_is_refused(by_modality, said):
    with pytest.raises((SpecError, UnknownName), match=said):
        check({"query": by_modality})
    check({"query": {"any@de": "{content}", "image+text": "{image} {text}", "empty": "{content}"}})


def test_instructions_that_are_long_are_not_kept():
    def asked(instruction: str) -> str:
        (run,) = wrap(to_item("red"), "{instruction}: {text}", instruction)
        assert isinstance(run, TextRun)
        return run.text

    tracemalloc.start()
    for number in range(50):
        assert asked(f"{number}" + "x" * 10**6).endswith("x: red")
        assert asked(f"{number}" + "x" * 9).endswith("x: red")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 5e6, "of 50 MB"


@pytest.mark.parametrize("cleaning", [None, "strip_end"])
@pytest.mark.parametrize("text", ["red", "", "e\u0301 {x} "])
@pytest.mark.parametrize("template", ["{content}", "{text}!", "a {{b}} {instruction}: {text} end{instruction}"])
def test_a_text_put_in_in_one_step_is_what_it_is_piece_by_piece(template, text, cleaning, monkeypatch):
    at_once = wrap(to_item(text), template, "find", cleaning)
    monkeypatch.setattr(prompts, "_around", lambda *_: None)
    assert wrap(to_item(text), template, "find", cleaning) == at_once


def test_no_words_are_no_instruction():
    """As the code of GME and Qwen3-VL-Embedding has it: what the model says by default stands there, not a full stop alone."""
    said = {"p": {"any": "{instruction}|{content}"}}
    own = tiny_embedder(
        prompts=said, instructions={"p": "Stay"}, default_prompt_name="p", instruction_cleaning="full_stop"
    )
    due = own.encode(["a", "b"])
    assert np.array_equal(own.encode(["a", "b"], instruction=""), due)
    assert np.array_equal(own.encode(["a", "b"], instruction=["", "Stay."]), due)
    with pytest.raises(InputError, match="instruction"):
        own.respecified(instructions={}).encode(["a"], instruction="")


def test_nothing_has_a_template_of_its_language():
    templates = {"p": {"any": "x{content}", "empty": "none{content}", "empty@de": "nichts{content}"}}
    empty = (Text(""),)
    assert templates_for(templates, "p", empty, "de") == ("nichts{content}",)
    assert templates_for(templates, "p", empty, "fr") == ("none{content}",)
    assert templates_for(templates, "p", (Text("a"),), "de") == ("x{content}",)
