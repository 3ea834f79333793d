"""What an embedder is, as data: read back as written, checked, with near names."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import pytest

from mmembed.errors import LoadError, SpecError, UnknownName
from mmembed.outputs import TokenOutput
from mmembed.spec import ModelSpec, copied

PARTS = {"name": "n", "backbone": {"config": {"model_type": "qwen3"}}, "tokenizer": {"kind": "x"}, "dimension": 8}


def test_a_spec_reads_back_as_written():
    spec = ModelSpec(
        **PARTS, dimensions=(8, 4), heads=({"kind": "dense", "out": 8},), prompts={"query": {"any": "q {content}"}}
    )
    assert ModelSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mask": "casual"}, "Did you mean 'causal'"),
        ({"layout": "paked"}, "Did you mean 'packed'"),
        ({"counted": "contents"}, "Did you mean 'content'"),
        ({"backbone": {}}, "model_type"),
        ({"vision": {"library": "timm"}}, "give both or neither"),
        ({"counted": "span"}, "come together"),
        ({"dimensions": (16,)}, "between 1 and 8"),
        ({"default_prompt_name": "query"}, "no prompt is called 'query'"),
        ({"prompts": {"q": {"any": "{contents}"}}}, "unknown slot"),
        ({"prompts": {"q": {"any": "nothing"}}}, "no place for the item"),
        ({"dimensions": 4}, r"dimensions=4: several values are wanted, of one \(4,\)"),
        ({"layers": -2}, r"of one \(-2,\)"),
        ({"layers": ("last",)}, "whole numbers"),
        ({"max_length": "512"}, "max_length='512': a whole number is wanted"),
        ({"max_length": 0}, "1 at least"),
        ({"max_length": -1}, "1 at least"),
    ],
)
def test_a_spec_that_makes_no_model_is_refused(changed, message):
    with pytest.raises((SpecError, UnknownName), match=message):
        ModelSpec(**{**PARTS, **changed})


def test_a_spec_is_its_own_and_stays_as_it_is():
    pooling, prompts = {"kind": "joined", "kinds": ["mean", "max"]}, {"q": {"any": ["a {content}", "b {content}"]}}
    head: dict[str, object] = {"kind": "states"}
    tokens = TokenOutput(head=head)
    spec = ModelSpec(**PARTS, pooling=pooling, prompts=prompts, tokens=tokens, layers=[-1, -2])
    text = spec.to_json()
    pooling["kind"], head["kind"] = "mean", "dense"
    pooling["kinds"].append("last")
    prompts["q"]["any"].append("c {content}")
    PARTS["backbone"]["config"]["hidden_size"] = 8
    del PARTS["backbone"]["config"]["hidden_size"]
    assert spec.to_json() == text
    for change in (
        lambda: spec.pooling.update(kind="mean"),
        lambda: spec.pooling.pop("kind"),
        lambda: spec.prompts["q"].__setitem__("any", "{content}"),
        lambda: spec.backbone["config"].clear(),
        lambda: spec.tokens.head.setdefault("out", 3),
    ):
        with pytest.raises(SpecError, match=r"embedder\.respecified"):
            change()
    assert spec.to_json() == text


def test_a_spec_is_copied_pickled_replaced_and_written():
    spec = ModelSpec(**PARTS, prompts={"q": {"any": "a {content}"}}, heads=({"kind": "dense", "out": 8},))
    for same in (copy.deepcopy(spec), pickle.loads(pickle.dumps(spec)), dataclasses.replace(spec, name="n")):
        assert same == spec
        assert same.to_json() == spec.to_json()
    assert dataclasses.asdict(spec)["prompts"] == {"q": {"any": "a {content}"}}
    mine = copied(spec.prompts)
    mine["q"]["any"] = "b {content}"
    assert spec.prompts == {"q": {"any": "a {content}"}}


def test_a_file_of_another_kind_is_refused(tmp_path):
    for text, message in (
        ("[]", "not a spec"),
        ("{", "no JSON"),
        (json.dumps({"mmembed": 99}), "format 1"),
        (json.dumps({"mmembed": 1, "name": "n"}), "lacks backbone, tokenizer, dimension"),
        (json.dumps({"mmembed": 1, **PARTS, "poling": {}}), "Did you mean 'pooling'"),
    ):
        (tmp_path / "spec.json").write_text(text)
        with pytest.raises((SpecError, UnknownName), match=message):
            ModelSpec.from_folder(tmp_path)
    with pytest.raises(LoadError, match=r"mmembed\.compose"):
        ModelSpec.from_folder(tmp_path / "none")
