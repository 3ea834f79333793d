"""Cross-attention between trained latents and the vectors of an item, and the perceiver resampler made of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn


class LatentCross(nn.Module):
    """The weights of one cross-attention between trained latents and vectors of `width`, and the GEGLU feed-forward behind it,
    whose first layer gives values, then gates, and passes value * GELU(gate) on."""

    def __init__(self, width: int, *, latents: int, heads: int, head_width: int):
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.latents = nn.Parameter(torch.randn(latents, width))
        self.norm = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, inner * 2, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)
        self.norm_ff = nn.LayerNorm(width)
        self.up = nn.Linear(width, width * 8)
        self.down = nn.Linear(width * 4, width)

    def fed(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """ff(norm_ff(x)) + x"""
        value, gate = self.up(self.norm_ff(x)).chunk(2, dim=-1)
        out: Tensor = self.down(value * F.gelu(gate)) + x
        return out


class Perceiver(LatentCross):
    """Latents attend to vectors, a GEGLU feed-forward follows, the mean over latents ends it (arXiv 2409.02727).

    As the authors' code runs it: x = cross(norm_latents(z), norm(h)) + z; x = ff(norm_ff(x)) + x. Unlike NV-Embed's latent
    attention, the latents ask.
    """

    def __init__(self, width: int, *, latents: int = 768, heads: int = 32, head_width: int = 2048):
        super().__init__(width, latents=latents, heads=heads, head_width=head_width)

    def forward(self, vectors: Float[Tensor, "C D"], sizes: Int[Tensor, " B"]) -> Float[Tensor, "B D"]:
        """One vector, in fp32, for each item of `sizes` vectors that lie one after the other."""
        q = rearrange(self.to_q(self.norm_latents(self.latents)), "n (h e) -> 1 h n e", h=self.heads)
        keys = self.to_kv(self.norm(vectors.to(self.latents.dtype)))
        k, v = rearrange(keys, "c (two h e) -> two 1 h c e", two=2, h=self.heads)
        found = []
        for own_k, own_v in zip(k.split(sizes.tolist(), 2), v.split(sizes.tolist(), 2), strict=True):
            heard = rearrange(F.scaled_dot_product_attention(q, own_k, own_v), "1 h n e -> n (h e)")
            x = self.to_out(heard) + self.latents
            found.append(self.fed(x).float().mean(0))
        return torch.stack(found)
