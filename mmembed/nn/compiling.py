"""torch.compile with room for more forms of a function than torch's own limit of eight, in any version of torch."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch


def compiled(function: Callable[..., Any], forms: int, **options: Any) -> Callable[..., Any]:
    """The function compiled as one graph, once for each of at most so many `forms`: types, devices, settings, and lengths unless
    they vary. One more is an error, and so is what torch cannot compile whole."""
    made: Any = torch.compile
    if "recompile_limit" in signature(made).parameters:
        return made(function, fullgraph=True, recompile_limit=forms, **options)
    from torch._dynamo import config

    # torch 2.11 and before are told by their settings, for as long as a call takes.
    older: Callable[..., Any] = config.patch(recompile_limit=forms)(made(function, fullgraph=True, **options))
    return older
