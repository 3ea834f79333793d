"""Projectors: how many tokens a grid makes, the order of a pixel shuffle, the formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.internvl.modeling_internvl import InternVLModel

from mmembed.errors import SpecError, UnknownName
from mmembed.nn.projector import build_projector, projectors

WIDTH, OUT = 6, 16
SMALL = {"resampler": {"latents": 5, "depth": 2, "heads": 4}}
GRIDS = [(4, 4), (2, 6), (8, 2)]


def made(kind, **changed):
    torch.manual_seed(5)
    return build_projector({"kind": kind, **SMALL.get(kind, {}), **changed}, width=WIDTH, out=OUT)


def features(grid, images=3, seed=0):
    return torch.randn(images, grid[0] * grid[1], WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", list(projectors))
def test_a_grid_makes_as_many_tokens_as_promised(kind, grid):
    projector = made(kind)
    assert projector(features(grid), grid).shape == (3, projector.tokens(grid), OUT)


@pytest.mark.parametrize("kind", list(projectors))
def test_an_image_has_its_tokens_whatever_its_company(kind):
    projector, given = made(kind), features((4, 4))
    together = projector(given, (4, 4))
    for k in range(3):
        assert (projector(given[k : k + 1], (4, 4))[0] - together[k]).abs().max() <= 1e-6


@pytest.mark.parametrize("kind", list(projectors))
def test_gradients_reach_every_weight_and_patch(kind):
    projector, given = made(kind), features((4, 4)).requires_grad_()
    projector(given, (4, 4)).pow(3).sum().backward()
    assert bool((given.grad.abs().amax(-1) > 0).all())
    for name, weight in projector.named_parameters():
        assert bool(weight.grad.abs().sum() > 0), name


def test_linear_and_mlp_are_their_formulas():
    given = features((4, 4))
    linear, mlp = made("linear"), made("mlp", hidden=9)
    assert (linear(given, (4, 4)) - (given @ linear.proj.weight.T + linear.proj.bias)).abs().max() <= 1e-6
    assert mlp.up.out_features == 9
    expected = F.gelu(given @ mlp.up.weight.T + mlp.up.bias) @ mlp.down.weight.T + mlp.down.bias
    assert (mlp(given, (4, 4)) - expected).abs().max() <= 1e-6
    assert made("mlp").up.out_features == OUT


def folded(projector, given, grid):
    """What reaches the norm of a pixel shuffle."""
    seen = []
    handle = projector.norm.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    projector(given, grid)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("ratio", [2, 4])
def test_pixel_shuffle_folds_as_idefics3_and_internvl_do(ratio):
    grid = (8, 8)
    given = features(grid)
    told = folded(made("pixel_shuffle", ratio=ratio), given, grid)
    assert torch.equal(told, Idefics3Connector.pixel_shuffle(None, given, ratio))
    square = given.view(3, 8, 8, WIDTH)
    assert torch.equal(told, InternVLModel.pixel_shuffle(None, square, 1 / ratio).reshape(3, -1, WIDTH * ratio**2))
    other = F.pixel_unshuffle(square.permute(0, 3, 1, 2), ratio).flatten(2).transpose(1, 2)
    assert not torch.equal(told, other), "torch's own order is another"


def test_pixel_shuffle_of_a_grid_that_is_no_square_folds_neighbours():
    grid = (2, 6)
    given = torch.arange(12.0).view(1, 12, 1).expand(1, 12, WIDTH).contiguous()
    told = folded(made("pixel_shuffle"), given, grid)[0, :, ::WIDTH]
    assert told.tolist() == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]


@pytest.mark.parametrize("grid", [(3, 4), (4, 3), (5, 5), (1, 2)])
def test_a_grid_that_cannot_be_folded_is_refused(grid):
    projector = made("pixel_shuffle")
    with pytest.raises(SpecError, match=f"grid of {grid[0]} x {grid[1]}"):
        projector.tokens(grid)
    with pytest.raises(SpecError, match="ratio 2"):
        projector(features(grid), grid)


def layer_by_hand(layer, latents, patches):
    """One layer of Flamingo's resampler for one image, head by head."""
    read = layer.norm_latents(latents)
    context = torch.cat([layer.norm_patches(patches), read])
    query = read @ layer.to_q.weight.T
    key, value = (context @ layer.to_kv.weight.T).chunk(2, dim=-1)
    width = query.shape[-1] // layer.heads
    heard = []
    for h in range(layer.heads):
        own = slice(h * width, (h + 1) * width)
        heard.append((query[:, own] @ key[:, own].T / math.sqrt(width)).softmax(-1) @ value[:, own])
    latents = latents + torch.cat(heard, -1) @ layer.to_out.weight.T
    return latents + layer.mlp(latents)


def test_the_resampler_is_its_formula():
    projector, given = made("resampler"), features((2, 6))
    told = projector(given, (2, 6))
    for k in range(3):
        latents, patches = projector.latents, projector.inlet(given[k])
        for layer in projector.layers:
            latents = layer_by_hand(layer, latents, patches)
        assert (told[k] - projector.norm(latents)).abs().max() <= 1e-5
    assert projector.tokens((2, 6)) == projector.tokens((9, 9)) == 5


def test_a_resampler_whose_heads_do_not_divide_its_width_is_refused():
    with pytest.raises(SpecError, match="width 16 cannot have 5 heads"):
        made("resampler", heads=5)


def test_unknown_projectors_and_settings_are_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'linear'"):
        made("linea")
    with pytest.raises(UnknownName, match="Did you mean 'ratio'"):
        made("pixel_shuffle", ration=2)
