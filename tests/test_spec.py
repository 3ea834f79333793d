"""What an embedder is, as data: read back as written, checked, with near names."""

from __future__ import annotations

import json

import pytest

from mmembed.errors import LoadError, SpecError, UnknownName
from mmembed.spec import ModelSpec

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
    ],
)
def test_a_spec_that_makes_no_model_is_refused(changed, message):
    with pytest.raises((SpecError, UnknownName), match=message):
        ModelSpec(**{**PARTS, **changed})


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
