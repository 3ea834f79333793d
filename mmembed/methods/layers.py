"""Other layers than the last: the one before it, and means of several."""

from __future__ import annotations

from .method import Method

_PAPER = "Layer choice, survey 2412.12591"

METHODS = (
    Method(name="penultimate", paper=_PAPER, layers=(-2,), pooling="mean", closed=True, causal=False),
    Method(name="last-two-mean", paper=_PAPER, layers=(-1, -2), pooling="mean", closed=True, causal=False),
    Method(name="first-last-mean", paper=_PAPER, layers=(1, -1), pooling="mean", closed=True, causal=False),
)
