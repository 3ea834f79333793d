"""What a parity test says: which system was held to what, and how far apart they were; gathered for the written page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

BOUND = 1e-5
"""Greatest difference of any number, in fp32."""

Held = Callable[..., float]


def _numbers(values: Any) -> np.ndarray:
    return np.asarray(values.detach().float().cpu() if isinstance(values, torch.Tensor) else values, dtype=np.float64)


def holder(path: Path | None) -> Held:
    """`held(system, ours, reference, against=...)`: asserts that the two agree and writes a row to `path`, if given.

    Args of what is returned:
        system: a hub repository, or a method's name. ours, reference: arrays of one shape.
        against: who computed the reference: "the authors' formula over transformers", "sentence-transformers", ...
        kind: "checkpoint", "method" or "folder". family: file or family it belongs to.
        what: text, image, image+text, sparse, tokens. relative: the bound is of the greatest number of the reference, for
            vectors that are not of unit length.
    """

    def held(
        system: str,
        ours: Any,
        reference: Any,
        *,
        against: str,
        kind: str,
        family: str,
        what: str = "text",
        relative: bool = False,
    ) -> float:
        mine, theirs = _numbers(ours), _numbers(reference)
        assert mine.shape == theirs.shape, f"{system}: {mine.shape} is not the shape of the reference, {theirs.shape}"
        assert mine.size, f"{system}: nothing was compared"
        scale = max(1.0, float(np.abs(theirs).max())) if relative else 1.0
        difference = float(np.abs(mine - theirs).max()) / scale
        assert difference <= BOUND, f"{system}: {what} lies {difference:.3g} from {against}"
        if path is not None:
            row = {"system": system, "kind": kind, "family": family, "what": what, "against": against}
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**row, "difference": difference}) + "\n")
        return difference

    return held
