"""Linear layers in int8: what they round, that an item keeps one vector, and what they refuse."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

import mmembed
from mmembed.errors import SpecError, UnknownName
from mmembed.nn.int8 import Int8Linear, in_int8
from mmembed.testing import byte_tokenizer, tiny_backbone, tiny_embedder

pytestmark = pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="int8 needs AVX-512 VNNI")
TEXTS = ["one", "a longer text of some words", "три", "四五六", "a longer text of other words", "x" * 90]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_embedder(vision=None, projector=None).save(tmp_path_factory.mktemp("int8"))


@torch.no_grad()
def test_a_layer_gives_what_its_codes_say():
    drawn = torch.Generator().manual_seed(0)
    layer = nn.Linear(96, 40)
    rows = torch.randn(2, 7, 96, generator=drawn) * torch.logspace(-3, 3, 7)[:, None]
    told = Int8Linear(layer)(rows)
    scale = layer.weight.abs().amax(1) / 127
    largest = rows.abs().amax(-1, keepdim=True)
    weights = (layer.weight / scale[:, None]).round()
    codes = (rows / largest * 127).round()
    due = (codes @ weights.T) * scale * largest / 127 + layer.bias
    assert torch.allclose(told, due, rtol=1e-3, atol=2e-3 * float(due.abs().mean()))
    whole = layer(rows) - layer.bias
    error = (told - layer.bias - whole).norm(dim=-1) / whole.norm(dim=-1)
    assert float(error.max()) < 0.02  # every token by its own scale, a small one beside a great one too


@torch.no_grad()
def test_rows_of_zeros_no_rows_and_one_row():
    layer = Int8Linear(nn.Linear(8, 3))
    assert torch.allclose(layer(torch.zeros(2, 8)), layer.bias.expand(2, 3))
    assert layer(torch.empty(0, 8)).shape == (0, 3)
    assert layer(torch.ones(8)).shape == (3,)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(torch.ones(8)), layer(torch.ones(8)))


def test_an_item_has_one_vector_whatever_its_company(folder):
    embedder = mmembed.load(folder, device="cpu", precision="int8")
    together = embedder.encode(TEXTS)
    for row, text in enumerate(TEXTS):
        assert np.abs(embedder.encode(text)[0] - together[row]).max() < 1e-5
    assert np.abs(embedder.encode(TEXTS[::-1])[::-1] - together).max() < 1e-5


def test_it_is_near_fp32_and_says_that_it_is_another(folder):
    whole = mmembed.load(folder, device="cpu")
    rounded = mmembed.load(folder, device="cpu", precision="int8")
    cosines = (whole.encode(TEXTS) * rounded.encode(TEXTS)).sum(1)
    assert 0.97 < cosines.min() < 1 - 1e-6
    assert rounded.precision == "int8"
    assert whole.precision == "fp32"
    assert "int8" in repr(rounded)
    assert rounded.fingerprint != whole.fingerprint
    assert rounded.fingerprint == mmembed.load(folder, device="cpu", precision="int8").fingerprint
    blocks = rounded.model.backbone.layers
    left = {name.rpartition(".")[2] for name, m in blocks.named_modules() if isinstance(m, nn.Linear)}
    assert left == {"v_proj"}  # values stay whole


@pytest.mark.parametrize("kind", ["gemma3_text", "xlm-roberta", "modernbert", "lfm2"])
def test_other_families_run_too(kind: str):
    parts = {"tokenizer": byte_tokenizer(), "device": "cpu", "pooling": "mean"}
    whole = mmembed.compose(backbone=tiny_backbone(kind), **parts).encode(TEXTS)
    rounded = mmembed.compose(backbone=tiny_backbone(kind), precision="int8", **parts).encode(TEXTS)
    assert (whole * rounded).sum(1).min() > 0.9
    assert np.abs(whole - rounded).max() > 1e-5


def test_it_is_not_saved_not_trained_and_not_for_a_gpu(folder, tmp_path):
    embedder = mmembed.load(folder, device="cpu", precision="int8")
    with pytest.raises(SpecError, match="load in fp32"):
        embedder.save(tmp_path / "own")
    with pytest.raises(SpecError, match="load in fp32"):
        embedder.save_sentence_transformers(tmp_path / "theirs")
    assert not list(tmp_path.iterdir())
    in_int8(model := nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(SpecError, match="no gradient"):
        model(torch.ones(2, 4, requires_grad=True))
    with pytest.raises(SpecError, match="bf16"):
        mmembed.load(folder, device="meta", precision="int8")
    with pytest.raises(UnknownName, match="Did you mean 'int8'"):
        mmembed.load(folder, precision="int88")


def test_a_backbone_that_reads_weights_past_its_layers_is_refused():
    """Mamba multiplies by the weight of a linear layer itself, DeepSeek-V4's grouped layers have a forward of their own."""
    config = AutoConfig.for_model("mamba", vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=4)
    with pytest.raises(SpecError, match=r"mamba backbone does not run in int8: .*; use precision='fp32'"):
        mmembed.compose(
            backbone=AutoModel.from_config(config), tokenizer=byte_tokenizer(), device="cpu", precision="int8"
        )


def test_a_compiler_sees_operators_of_torch_alone():
    layer = Int8Linear(nn.Linear(32, 16))
    rows = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        compiled = torch.compile(layer, fullgraph=True, backend="eager")
        assert torch.allclose(compiled(rows), layer(rows), atol=1e-5)
