"""Other layers than the last: inner ones, normed or not, means of several, and a backbone of fewer blocks.

Blocks behind the deepest layer that is read do not run. Weights of layers, given or learned, are `mix` of the spec.
"""

from __future__ import annotations

from .method import Method

_PAPER = "Layer choice, survey 2412.12591"


def _mean(name: str, *layers: int, norm: bool = False) -> Method:
    return Method(name=name, paper=_PAPER, layers=layers, norm_layers=norm, pooling="mean", closed=True, causal=False)


METHODS = (
    _mean("penultimate", -2),
    _mean("penultimate-normed", -2, norm=True),
    _mean("last-two-mean", -1, -2),
    _mean("last-four-mean", -1, -2, -3, -4),
    _mean("first-last-mean", 1, -1),
    Method(
        name="2dmse",
        paper="2D Matryoshka Sentence Embeddings, arXiv 2402.14776",
        layers=(-2,),
        pooling="first",
        closed=True,
        causal=False,
    ),
)
"""`apply(embedder, "2dmse", layers=(k,))` runs k blocks and takes hidden_states[k] as it is, as AnglE's code does;
`norm_layers=True` is what cutting blocks off a backbone with a final norm gives."""
