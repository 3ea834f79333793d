"""Projectors: features of a vision tower become tokens of the backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import SpecError
from ..registry import Registry

Features = Float[Tensor, "N P C"]
Tokens = Float[Tensor, "N M D"]
Grid = tuple[int, int]

projectors: Registry[Callable[..., nn.Module]] = Registry("projector")


def build_projector(settings: Mapping[str, Any], *, width: int, out: int) -> Projector:
    """The projector that `settings["kind"]` names, from features of `width` to tokens of `out`."""
    return projectors.build(settings, width=width, out=out)


class Projector(nn.Module):
    """Features of N images on a grid of (rows, columns) patches, row by row -> `tokens(grid)` tokens an image."""

    def tokens(self, grid: Grid) -> int:
        return grid[0] * grid[1]

    def forward(self, features: Features, grid: Grid) -> Tokens:
        raise NotImplementedError


@projectors.register("linear")
class Linear(Projector):
    """One affine map a patch (PaliGemma, arXiv 2407.07726)."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.proj = nn.Linear(width, out)

    def forward(self, features: Features, grid: Grid) -> Tokens:
        return self.proj(features)


@projectors.register("mlp")
class MLP(Projector):
    """Linear - GELU - Linear a patch (LLaVA-1.5, arXiv 2310.03744); `hidden` is the backbone's width unless given."""

    def __init__(self, width: int, out: int, *, hidden: int | None = None):
        super().__init__()
        self.up = nn.Linear(width, hidden or out)
        self.down = nn.Linear(hidden or out, out)

    def forward(self, features: Features, grid: Grid) -> Tokens:
        return self.down(F.gelu(self.up(features)))


@projectors.register("pixel_shuffle")
class PixelShuffle(Projector):
    """`ratio` x `ratio` neighbours become one token: LayerNorm - Linear - GELU - Linear (InternVL, arXiv 2404.16821).

    Channels are ordered (row, column, channel), as in transformers' InternVL and Idefics3; torch's `pixel_unshuffle`
    orders them otherwise.
    """

    def __init__(self, width: int, out: int, *, ratio: int = 2):
        super().__init__()
        self.ratio = ratio
        self.norm = nn.LayerNorm(width * ratio**2)
        self.up = nn.Linear(width * ratio**2, out)
        self.down = nn.Linear(out, out)

    def tokens(self, grid: Grid) -> int:
        if grid[0] % self.ratio or grid[1] % self.ratio:
            raise SpecError(
                f"pixel_shuffle of ratio {self.ratio}: a side of a grid of {grid[0]} x {grid[1]} patches is no multiple of it"
            )
        return grid[0] * grid[1] // self.ratio**2

    def forward(self, features: Features, grid: Grid) -> Tokens:
        self.tokens(grid)
        folded = rearrange(
            features,
            "n (h r1 w r2) c -> n (h w) (r1 r2 c)",
            h=grid[0] // self.ratio,
            w=grid[1] // self.ratio,
            r1=self.ratio,
            r2=self.ratio,
        )
        return self.down(F.gelu(self.up(self.norm(folded))))


@projectors.register("resampler")
class Resampler(Projector):
    """`latents` trained queries read the patches, whatever their number (Perceiver resampler, arXiv 2204.14198).

    Each of `depth` layers: latents += attention(norm(latents), [norm(patches); norm(latents)]); latents += MLP(norm).
    """

    def __init__(self, width: int, out: int, *, latents: int = 64, depth: int = 2, heads: int = 8):
        super().__init__()
        if out % heads:
            raise SpecError(f"a resampler of width {out} cannot have {heads} heads")
        self.latents = nn.Parameter(torch.randn(latents, out) * 0.02)
        self.inlet = nn.Linear(width, out)
        self.layers = nn.ModuleList(_ResamplerLayer(out, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(out)

    def tokens(self, grid: Grid) -> int:
        return self.latents.shape[0]

    def forward(self, features: Features, grid: Grid) -> Tokens:
        patches = self.inlet(features)
        latents = self.latents.expand(len(features), -1, -1)
        for layer in self.layers:
            latents = layer(latents, patches)
        return self.norm(latents)


class _ResamplerLayer(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_latents = nn.LayerNorm(width)
        self.norm_patches = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(width, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, latents: Tokens, patches: Tokens) -> Tokens:
        read = self.norm_latents(latents)
        context = torch.cat([self.norm_patches(patches), read], dim=1)
        q = rearrange(self.to_q(read), "n m (h e) -> n h m e", h=self.heads)
        k, v = rearrange(self.to_kv(context), "n m (two h e) -> two n h m e", two=2, h=self.heads)
        heard = rearrange(F.scaled_dot_product_attention(q, k, v), "n h m e -> n m (h e)")
        latents = latents + self.to_out(heard)
        return latents + self.mlp(latents)
