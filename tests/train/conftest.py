"""Tests of training in this process leave out what is for long runs alone."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from mmembed.train import learning


@pytest.fixture(autouse=True)
def _unsettled(monkeypatch):
    """A search of all memory before each stage takes longer than the stages here. Runs in processes of their own have it."""
    monkeypatch.setattr(learning, "_settled", nullcontext)
