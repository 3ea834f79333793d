"""What the routers of a mixture-of-experts backbone say of each token, read beside its states in the same forward."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.output_capturing import OutputRecorder

from ..errors import SpecError
from ..nn.spans import Spans
from . import backbone as backbones

_found: ContextVar[list[Tensor] | None] = ContextVar("mmembed_routers", default=None)
"""The logits of one forward; every thread has its own, so one backbone serves many."""
_installing = threading.Lock()


@contextmanager
def recorded(model: PreTrainedModel) -> Iterator[list[Float[Tensor, "T X"]]]:
    """Logits of every router of the forward that runs inside, layer by layer, as transformers records them.

    Raises:
        SpecError: a backbone without routers, one whose routers transformers does not name, or one that runs padded.
    """
    _install(model)
    logits: list[Tensor] = []
    before = _found.set(logits)
    try:
        yield logits
    finally:
        _found.reset(before)


def width(model: PreTrainedModel) -> int:
    """How many numbers all routers say of a token: experts, summed over layers; tried on two tokens."""
    with torch.no_grad(), recorded(model) as logits:
        backbones.states(model, torch.arange(2, device=model.device), None, Spans.of([2], "causal").to(model.device))
    return sum(said.shape[-1] for said in logits)


def _install(model: PreTrainedModel) -> None:
    kind = model.config.model_type
    if not backbones.is_packed(model):
        raise SpecError(f"the routers of a {kind} backbone are read token by token, and this one runs padded")
    told: Any = getattr(model, "_can_record_outputs", None) or {}
    recorder = told.get("router_logits")
    if recorder is None:
        raise SpecError(f"a {kind} backbone has no routers: it is no mixture of experts")
    if not isinstance(recorder, OutputRecorder) or recorder.layer_name is not None:
        raise SpecError(f"the routers of a {kind} backbone cannot be told from its other parts")
    routers = [module for module in model.modules() if isinstance(module, recorder.target_class)]
    if not routers:
        raise SpecError(f"no layer of this {kind} backbone has experts")

    def keep(module: nn.Module, given: Any, out: Any) -> None:
        logits = _found.get()
        if logits is not None:
            said = out[recorder.index] if isinstance(out, tuple) else out
            logits.append(said.reshape(-1, said.shape[-1]))

    with _installing:
        for router in routers:
            if not getattr(router, "_mmembed_kept", False):
                router.register_forward_hook(keep)
                router._mmembed_kept = True
