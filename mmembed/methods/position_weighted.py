"""SGPT: the mean of a causal backbone's states, later tokens, which have seen more, weighing more."""

from __future__ import annotations

from .method import Method

METHODS = (Method(name="sgpt", paper="SGPT, arXiv 2202.08904", pooling="weightedmean", closed=True),)
