"""Weights that are read are not drawn first."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModel

import mmembed
from mmembed.errors import LoadError
from mmembed.testing import tiny_embedder
from mmembed.weights import DRAWING, WEIGHTS_FILE, Undrawn


def drawn(build) -> bool:
    """Whether random numbers were asked for."""
    before = torch.get_rng_state()
    build()
    return not torch.equal(torch.get_rng_state(), before)


class Seen(TorchFunctionMode):
    """Holds what weights were drawn into."""

    def __init__(self):
        super().__init__()
        self.drawn: list[torch.Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in DRAWING:
            self.drawn.append(args[0] if args else kwargs["tensor"])
        return func(*args, **(kwargs or {}))


def fresh(kind: str):
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 64,
    }
    return AutoModel.from_config(AutoConfig.for_model(kind, **sizes))


@pytest.mark.parametrize(
    "draw", [lambda: nn.Linear(8, 8), lambda: nn.Embedding(4, 8), lambda: fresh("bert"), lambda: fresh("llama")]
)
def test_nothing_is_drawn_inside_and_in_this_thread_alone(draw):
    with torch.random.fork_rng(), ThreadPoolExecutor(1) as other:
        assert drawn(draw)
        with Undrawn():
            assert not drawn(draw)
            assert other.submit(drawn, draw).result()
        assert drawn(draw)


@pytest.mark.parametrize(("mean", "low", "high"), [(0, -2, 2), (0, 0.1, 5), (0, 3, 10), (4, -2, 2)])
def test_what_is_drawn_within_bounds_comes_to_an_end(mean: float, low: float, high: float):
    weight = nn.Parameter(torch.full((8, 8), 100.0))
    with Undrawn():
        nn.init.trunc_normal_(weight, mean, 1.0, low, high)
    assert weight.min() >= low
    assert weight.max() <= high


@pytest.mark.parametrize("draw", [nn.init.normal_, nn.init.uniform_, nn.init.xavier_uniform_, nn.init.kaiming_normal_])
def test_a_weight_is_the_mean_of_what_it_would_be_drawn_from(draw):
    weight = nn.Parameter(torch.full((4, 4), 100.0))
    with Undrawn():
        assert draw(weight) is weight
        assert (weight == (0.5 if draw is nn.init.uniform_ else 0)).all()
        assert (nn.init.normal_(weight, 2.0, 5.0) == 2).all()
        assert (nn.init.uniform_(weight, a=-1.0, b=5.0) == 2).all()
        assert (weight.data.clone().normal_(0, 1) != 0).any()


def test_what_is_loaded_is_not_drawn_first(tmp_path):
    with Seen() as seen:
        own = tiny_embedder()
        own.save(tmp_path / "saved")
        assert sum(part.numel() for part in seen.drawn) > sum(part.numel() for part in own.model.vision.parameters())
        seen.drawn.clear()
        again = mmembed.load(tmp_path / "saved", device="cpu")
    assert not seen.drawn
    assert (again.encode(["one", "two"]) == own.encode(["one", "two"])).all()


@pytest.mark.parametrize("part", ["backbone.layers.0.mlp.up_proj.weight", "backbone.norm.weight"])
def test_a_weight_that_is_missing_is_told_by_its_whole_name(part: str, tmp_path):
    tiny_embedder().save(tmp_path / "saved")
    path = tmp_path / "saved" / WEIGHTS_FILE
    state = load_file(path)
    del state[part]
    save_file(state, path)
    with pytest.raises(LoadError, match=part):
        mmembed.load(tmp_path / "saved", device="cpu")


def test_weights_in_a_precision_without_a_name_go_by_that_of_torch():
    own = tiny_embedder()
    own.model.double()
    assert own.precision == "float64"
    assert "float64 on cpu" in repr(own)
