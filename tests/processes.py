"""Processes of a test, each born of a clean one that has imported everything and computed nothing: torch bars gradients in a
fork of others."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from typing import Any

import torch

_clean = multiprocessing.get_context("forkserver")
# One for all: a second list would take the place of the first.
_clean.set_forkserver_preload(["tests.search.writers", "tests.train.runs", "transformers.models.qwen3.modeling_qwen3"])


def started(work: Callable[..., None], *arguments: Any, known: Mapping[str, str] | None = None) -> BaseProcess:
    """A process that does `work`, which is a function of a module; `known`: more of its environment."""
    process = _clean.Process(target=_work, args=(known or {}, work, arguments))
    process.start()
    return process


def _work(known: Mapping[str, str], work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.update(known)
    torch.set_num_threads(1)  # as in the process that started it: sums are then the same
    work(*arguments)
