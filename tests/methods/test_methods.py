"""What holds of every method: its authors' formula on several backbones and layouts, one vector an item, saving and loading.

Each `test_<file>.py` beside this one brings `REFERENCE`, the formula of every method in `mmembed/methods/<file>.py` written out
plainly over transformers' own forward; a method that needs more than a text and a backbone is in `OWN_PARITY` of its file, with
the test that holds it.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType

import numpy as np
import pandas
import pytest
import torch

import mmembed
from mmembed.errors import InputError, SpecError, UnknownName
from mmembed.inputs import modality, to_item
from mmembed.methods import BESIDE, FILES, METHODS, apply, chunk_and_average, geneol
from mmembed.methods.not_here import NOT_HERE
from mmembed.methods.whitening import whitened
from mmembed.testing import byte_tokenizer, tiny_embedder

from ..conftest import picture
from ..duals import open_clip_dual
from ..test_kinds import SPLADE, language_model
from .plain import BACKBONES, LAYOUTS, LONG, SPECIAL, TEXTS, Plain, Reference, backbone, embedder, mask_for, suited


def family_of(name: str) -> str:
    """The file that holds a method."""
    return next(file.__name__.rpartition(".")[2] for file in FILES if name in {m.name for m in file.METHODS})


def beside(family: str) -> ModuleType:
    return importlib.import_module(f"{__package__}.test_{family}")


REFERENCE: dict[str, Reference] = {}
OWN_PARITY: dict[str, str] = {}
for _file in FILES:
    _tests = beside(_file.__name__.rpartition(".")[2])
    REFERENCE.update(_tests.REFERENCE)
    OWN_PARITY.update(getattr(_tests, "OWN_PARITY", {}))


@cache
def expected(name: str, kind: str) -> torch.Tensor:
    plain = Plain(kind, mask=mask_for(METHODS[name]))
    return torch.stack([REFERENCE[name](plain, text) for text in TEXTS])


def test_every_method_has_its_reference():
    assert set(REFERENCE) | set(OWN_PARITY) == set(METHODS)
    assert not set(REFERENCE) & set(OWN_PARITY)
    for name, test in OWN_PARITY.items():
        held_by = getattr(beside(family_of(name)), test)
        assert "held" in held_by.__code__.co_varnames, f"{test} does not hold {name} to anything"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("name", REFERENCE)
def test_a_method_is_its_authors_formula(name, kind, layout, held):
    method = METHODS[name]
    slides = kind == "mistral" and method.positions is not None
    if layout == "padded" and (method.packed or method.mask or slides):  # its mask is made by transformers
        with pytest.raises(SpecError, match="packed"):
            apply(embedder(kind, layout), name)
        return
    base = suited(method, kind, layout)
    says = {"against": "the authors' formula over transformers", "kind": "method", "family": family_of(name)}
    raw = apply(base, name, normalize=False)
    held(name, raw.encode(TEXTS), expected(name, kind), relative=True, **says)
    unit = torch.nn.functional.normalize(expected(name, kind))
    held(name, apply(base, name).encode(TEXTS), unit, **says)


@pytest.mark.parametrize("name", METHODS)
def test_an_item_has_one_vector_under_every_method(name):
    ours = apply(suited(METHODS[name]), name)
    alone = np.concatenate([ours.encode([text]) for text in TEXTS])
    for budget in (64, 100_000):
        assert np.abs(ours.encode(TEXTS[::-1], batch_tokens=budget)[::-1] - alone).max() <= 1e-5


@pytest.mark.parametrize("name", [name for name in METHODS if not METHODS[name].needs])
def test_a_picture_has_one_vector_under_every_method_that_takes_one(name, tiny):
    suits = suited(METHODS[name]).spec
    if suits.mask != tiny.spec.mask:
        tiny = tiny_embedder(backbone=backbone(suits.architecture, 2), mask=suits.mask)
    ours = apply(tiny, name, max_length=LONG, **({} if METHODS[name].positions else {"layers": (-1,)}))
    things = [picture(1), picture(2, 70, 30), "a", ("red", picture(3))]
    known = (
        {modality(to_item(thing)) for thing in things} if METHODS[name].templates is None else METHODS[name].templates
    )
    for thing in things[:2] + things[3:]:
        if modality(to_item(thing)) not in known and "any" not in known:
            with pytest.raises(InputError, match="has no template for"):
                ours.encode([thing])
            return
    together = ours.encode(things)
    for row, thing in enumerate(things):
        assert np.abs(ours.encode([thing])[0] - together[row]).max() <= 1e-5
    assert np.abs(together[0] - together[1]).max() > 1e-4


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_saved_and_loaded(name, tmp_path):
    ours = apply(suited(METHODS[name], "llama"), name)
    again = mmembed.load(ours.save(tmp_path / "m"), device="cpu")
    assert again.spec.to_json() == ours.spec.to_json()
    assert again.fingerprint == ours.fingerprint
    assert np.array_equal(again.encode(TEXTS), ours.encode(TEXTS))


CHOICES = [(name, *choice) for file in FILES for name, choice in getattr(file, "SETTINGS", {}).items()]


@pytest.mark.parametrize(("method", "choice"), [each[1:] for each in CHOICES], ids=[each[0] for each in CHOICES])
def test_what_the_authors_choose_for_a_backbone_is_what_runs(method, choice):
    layers = {"layers": (min(choice["layers"][0], 4),)} if "layers" in choice else {}
    ours = apply(suited(METHODS[method], "llama"), method, **{**choice, **layers})
    for key, value in {**choice, **layers}.items():
        assert getattr(ours.spec, key) == value, key
    assert np.isfinite(ours.encode(TEXTS)).all()


@pytest.mark.parametrize("name", METHODS)
def test_a_method_leaves_the_embedder_as_it_was(name):
    tiny = suited(METHODS[name])
    before, fingerprint = tiny.encode(TEXTS), tiny.model.fingerprint()
    ours = apply(tiny, name, max_length=2000, layers=(-1,))
    assert ours.fingerprint != fingerprint
    ours.encode(TEXTS)
    assert np.array_equal(tiny.encode(TEXTS), before)
    assert tiny.model.fingerprint() == fingerprint


def test_a_method_that_is_left_out_says_why(tiny):
    assert not set(NOT_HERE) & set(METHODS)
    for name, reason in NOT_HERE.items():
        with pytest.raises(SpecError, match="is not here") as told:
            apply(tiny, name)
        assert reason in str(told.value)


def test_what_does_not_go_together_is_refused(tiny):
    with pytest.raises(UnknownName, match="Did you mean 'prompteol'"):
        apply(tiny, "prompt-eol")
    with pytest.raises(UnknownName, match="Did you mean 'layers'"):
        apply(tiny, "sgpt", layer=3)
    with pytest.raises(SpecError, match="the backbone has 2"):
        apply(tiny, "sgpt", layers=(-7,))
    with pytest.raises(SpecError, match="reads both ways"):
        apply(tiny_embedder(mask="bidirectional"), "prompteol")
    with pytest.raises(SpecError, match="looks its positions up in no table"):
        apply(tiny, "stretched-positions")
    with pytest.raises(SpecError, match="part of the weights"):
        tiny.respecified(heads=({"kind": "layer_norm"},))
    with pytest.raises(SpecError, match="has weights"):
        tiny.respecified(pooling={"kind": "attention"})


@pytest.mark.parametrize("name", BESIDE)
def test_a_method_that_is_no_spec_says_where_it_is(name, tiny):
    found = pkgutil.resolve_name(BESIDE[name])
    assert callable(found)
    with pytest.raises(SpecError, match=f"see {BESIDE[name]}"):
        apply(tiny, name)


@pytest.mark.parametrize("name", ["angle-c", "2dmse"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_first_token_that_has_seen_nothing_is_not_pooled(name, layout):
    with pytest.raises(SpecError, match=r"has seen nothing of the item.*pool 'last' or 'mean'"):
        apply(embedder("qwen3", layout), name)
    ours = apply(embedder("qwen3", "packed"), name, mask="bidirectional", layers=(-1,))
    assert np.ptp(ours.encode(["red cat", "red dog"]), axis=0).max() > 1e-3


@pytest.mark.parametrize("name", METHODS)
def test_a_head_that_was_fitted_on_other_vectors_does_not_stay_behind(name):
    white = whitened(suited(METHODS[name]), [f"{k} {k * k}" for k in range(60)], dimension=8)
    if METHODS[name].positions is not None:
        assert [head["kind"] for head in apply(white, name, max_length=LONG).spec.heads] == ["whiten"]
        return
    with pytest.raises(SpecError, match="'whiten' was fitted on: apply it first"):
        apply(white, name)


def test_no_method_is_put_on_a_dual_encoder(tmp_path):
    open_clip_dual("clip", tmp_path)
    dual = mmembed.load(tmp_path, device="cpu")
    for name in METHODS:
        with pytest.raises(SpecError, match="this is a dual encoder"):
            apply(dual, name)


def test_what_a_caller_changes_afterwards_changes_no_method():
    ours = apply(embedder("qwen3", "packed"), "echo")
    with pytest.raises(SpecError, match=r"embedder\.respecified"):
        ours.spec.prompts["query"]["text"] = "changed {text} {text}"
    assert (
        METHODS["echo"].besides["query"]["text"]
        == apply(embedder("qwen3", "packed"), "echo").spec.prompts["query"]["text"]
    )


def test_a_method_is_the_same_whatever_stood_before():
    """What its prompts say of the ends of a row and of the words in them, it says anew."""
    plain = tiny_embedder(tokenizer=byte_tokenizer(bos=True, special=SPECIAL), max_length=LONG)
    asked = plain.respecified(
        prompts={"query": {"any": "{instruction}: {content}"}},
        instructions={"query": "Find"},
        instruction_cleaning="full_stop",
        cleaning="strip",
        apart=True,
    )
    for name in ("prompteol", "echo"):
        due = apply(plain, name).encode_query(TEXTS)
        for before in (asked, apply(plain, "geneol"), apply(plain, "prompteol"), apply(plain, "echo")):
            assert np.array_equal(apply(before, name).encode_query(TEXTS), due)
    under = apply(asked, "penultimate").spec
    assert (under.prompts, under.cleaning, under.apart) == (asked.spec.prompts, "strip", True)


def test_pooling_says_how_many_numbers_a_vector_has(tiny, tmp_path):
    both = tiny.respecified(pooling={"kind": "joined", "kinds": ["mean", "max"]})
    assert both.dimension == 64
    assert both.encode(TEXTS).shape == (5, 64)
    assert np.array_equal(mmembed.load(both.save(tmp_path / "both")).encode(TEXTS), both.encode(TEXTS))
    assert both.respecified(pooling={"kind": "mean"}).dimension == 32
    sparse = mmembed.compose(
        backbone=language_model(), tokenizer=byte_tokenizer(), sparse=SPLADE, pooling=None, device="cpu"
    )
    assert sparse.dimension == 300
    dense = apply(sparse, "penultimate")
    assert dense.encode(["a"]).shape == (1, dense.dimension)
    assert dense.dimension == 32
    headed = tiny_embedder(heads=({"kind": "dense", "out": 16},), dimension=16, dimensions=())
    with pytest.raises(SpecError, match="gives 64 numbers, and the heads behind it take 32"):
        headed.respecified(pooling={"kind": "joined", "kinds": ["mean", "max"]})


def test_columns_of_a_table_are_read_in_their_order(tiny):
    asked = tiny.respecified(prompts={"p": {"any": "{instruction}: {content}"}}, default_prompt_name="p")
    column = pandas.Series(["one", "two"], index=[1, 0])
    for encode in (
        lambda told: chunk_and_average.encode(asked, TEXTS[:2], instruction=told),
        lambda told: geneol.encode(asked, TEXTS[:2], lambda texts: [["x"], ["y"]], instruction=told),
    ):
        assert np.array_equal(encode(column), encode(["one", "two"]))
