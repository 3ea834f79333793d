"""The mean of the vectors of several things that stand for one: its parts, or other wordings of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..embedder import Embedder, EncodeOptions
from ..errors import InputError, SpecError, check_known
from ..inputs import Thing, ordered
from ..nn.precision import unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

OPTIONS = sorted(EncodeOptions.__annotations__.keys() - {"on_error", "report", "show_progress_bar"})
"""Options of `encode` that mean the same here. What is skipped or cut is not told by row: one bad thing stops the call."""


def mean_of_several(
    embedder: Embedder, groups: Iterable[Iterable[Thing]], *, unit_before: bool = False, **options: Any
) -> NDArray[np.float32]:
    """One vector a group, float32 (N, D): the mean over its things, of unit length where the embedder's own are.

    Args:
        unit_before: bring vectors to unit length before the mean too, so that all weigh alike.
        options: `OPTIONS` of `encode`; of prompts and instructions one for all or one a group.

    Raises:
        InputError: a group without a thing, or that is one, or a thing that cannot be embedded, by the number of its group.
    """
    each = [_things(group, row) for row, group in enumerate(groups)]
    options = check(options, len(each))
    sizes = [len(group) for group in each]
    owner = np.repeat(np.arange(len(each)), sizes)
    for key in ("prompt", "instruction"):
        given = options.get(key)
        if given is not None and not isinstance(given, str):
            options[key] = [given[row] for row in owner]
    raw = embedder if embedder.spec.normalize == unit_before else embedder.respecified(normalize=unit_before)
    try:
        vectors = raw.encode([thing for group in each for thing in group], **options)
    except InputError as error:
        error.item = None if error.item is None else int(owner[error.item])
        raise
    total = np.zeros((len(each), vectors.shape[1]), dtype=np.float64)
    np.add.at(total, owner, vectors)
    mean = torch.from_numpy((total / np.asarray(sizes, dtype=np.float64)[:, None]).astype(np.float32))
    return (unit(mean) if embedder.spec.normalize else mean).numpy()


def _things(group: Iterable[Thing], row: int) -> list[Thing]:
    if isinstance(group, (str, bytes, Mapping)) or not isinstance(group, Iterable):
        raise InputError(f"a group is a list of things, and this is one {type(group).__name__}", row)
    things = list(group)
    if not things:
        raise InputError("there is nothing to take the mean of", row)
    return things


def check(options: Mapping[str, Any], items: int, known: Sequence[str] = OPTIONS) -> dict[str, Any]:
    """The options, prompts and instructions of many as lists, which a column of a table is not.

    Raises:
        UnknownName: an option that is none of `known`. SpecError: prompts or instructions that are not one an item.
    """
    told = dict(options)
    for key, given in options.items():
        check_known("option", key, known)
        if key in ("prompt", "instruction") and given is not None and not isinstance(given, str):
            told[key] = list(ordered(given, f"{key}s"))
            if len(told[key]) != items:
                raise SpecError(f"{len(told[key])} {key}s were given for {items} items")
    return told
