"""SGPT's mean by position against its formula."""

from __future__ import annotations

import torch
from torch import Tensor

from .plain import Plain, Reference


def weighted(plain: Plain, text: str) -> Tensor:
    states = plain.hidden(text, closed=True)[-1][0]
    weights = torch.arange(1, len(states) + 1).float()
    return (states * weights[:, None]).sum(0) / weights.sum()


REFERENCE: dict[str, Reference] = {"sgpt": weighted}
