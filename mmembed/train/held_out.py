"""How good a model is on data that it is not trained on: retrieval by recall, likeness of sentences by rank correlation."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from ..embedder import Embedder
from ..errors import InputError, SpecError
from ..inputs import Item
from ..search.vectors import unit
from ..walk import WalkOptions
from .data import Example, Examples, digest
from .recipe import HeldOut
from .teacher import Teacher

BLOCK = 1024
"""Queries that are compared at once, with all candidates; or pairs, all against all of them."""


def check(embedder: Embedder, examples: Examples, held: HeldOut) -> None:
    """What can be said before anything is measured.

    Raises:
        SpecError: no scores where they are asked for, or equal ones alone, or dimensions that the model does not have.
        InputError: a row with a score that gives no example, unless its source says skip.
    """
    _check_settings(embedder, examples, held)
    if held.measure == "sts":
        _scores(examples, readable(examples, held.most))


def _check_settings(embedder: Embedder, examples: Examples, held: HeldOut) -> None:
    if held.measure == "sts" and examples.source.columns.score is None:
        raise SpecError(f"data {examples.name!r} has no scores to measure by: measure = 'retrieval', or columns.score")
    if held.truncate_dim is not None:
        if embedder.spec.pooling is None:
            raise SpecError(f"{embedder.spec.name!r} has no one vector for an item that truncate_dim could shorten")
        embedder.width(held.truncate_dim)


def check_apart(held: Examples, trained: Examples) -> None:
    """Raise `SpecError` where data that is measured and data that is trained on are the same pairs of the same rows of a file."""
    ours, theirs = ({own.query, own.positive} for own in (held.source.columns, trained.source.columns))
    if ours != theirs:  # another language of the same things, say
        return
    known = trained.places()
    for path, numbers in held.places().items():
        both = np.intersect1d(numbers, known.get(path, ()), assume_unique=True)
        if len(both):
            raise SpecError(
                f"data {held.name!r} is held out, and data {trained.name!r} is trained on: both take {len(both)} rows of {path}, "
                f"as row {both[0]:.0f}. Measure another file, or other rows (where, split)"
            )


def _scores(examples: Examples, rows: Sequence[Example]) -> list[float]:
    """The score of each row, not all of them equal: a correlation with one number is no number."""
    if any(len(example.scores) != 1 for example in rows):
        raise SpecError(f"data {examples.name!r} has several scores a row: measure = 'retrieval'")
    scores = [example.scores[0] for example in rows]
    if len(set(scores)) == 1:
        raise SpecError(
            f"data {examples.name!r}: the scores of the {len(scores)} rows that are measured are all equal, {scores[0]:g}, and "
            "nothing can go along with them: measure = 'retrieval', more rows (most), or another columns.score"
        )
    return scores


def measure(embedder: Embedder, examples: Examples, held: HeldOut) -> dict[str, float]:
    """Scores by name: "R@1", "R@10" and "MRR", or "spearman", which is 0 where a model finds all pairs equally alike.

    Of equal scores the right one counts as last. In retrieval the positives of all rows that are looked at are the candidates,
    equal ones once; what answers an equal query or one of the same group answers a query too, as in training.

    Raises:
        InputError: a row that gives no example, unless its source says skip. SpecError: no scores, or equal ones alone.
    """
    _check_settings(embedder, examples, held)
    rows = readable(examples, held.most)
    due = _scores(examples, rows) if held.measure == "sts" else []
    asked, told = examples.source.prompts(embedder.spec)
    blocks = [slice(first, first + BLOCK) for first in range(0, len(rows), BLOCK)]
    queries = _encoded(
        embedder,
        [example.query for example in rows],
        "query",
        held.truncate_dim,
        prompt_name=asked,
        instruction=examples.source.instruction,
    )
    if held.measure == "sts":
        from scipy.stats import spearmanr

        positives = [example.positives[0] for example in rows]
        others = _encoded(embedder, positives, "document", held.truncate_dim, prompt_name=told)
        alike = np.concatenate([np.diagonal(embedder.similarity(queries[own], others[own])) for own in blocks])
        return {"spearman": float(spearmanr(alike, due).statistic) if np.ptp(alike) else 0.0}
    candidates: dict[bytes, Item] = {}
    answers: dict[bytes | str, set[bytes]] = {}  # by query, and by group
    asks: list[list[bytes | str]] = []
    for example in rows:
        asks.append([digest(example.query), *([] if example.group is None else [example.group])])
        own = {digest(item): item for item in example.positives}
        candidates |= own
        for key in asks[-1]:
            answers.setdefault(key, set()).update(own)
    place = {key: k for k, key in enumerate(candidates)}
    right = [np.array([place[key] for key in set[bytes]().union(*(answers[own] for own in keys))]) for keys in asks]
    documents = _encoded(embedder, [*candidates.values()], "document", held.truncate_dim, prompt_name=told)
    ranks = np.array(
        [
            rank_of(scores, answered)
            for own in blocks
            for scores, answered in zip(embedder.similarity(queries[own], documents), right[own], strict=True)
        ]
    )
    return {"R@1": float((ranks <= 1).mean()), "R@10": float((ranks <= 10).mean()), "MRR": float((1 / ranks).mean())}


def mean_of_groups(embedder: Embedder | Teacher, examples: Examples, classes: Mapping[str, int]) -> NDArray[np.float32]:
    """(C, D): the mean of the unit vectors that a model gives the queries of each group, or a teacher their sources.

    Raises:
        InputError: a row that gives no example, unless its source says skip. SpecError: a group without any.
    """
    rows = [row for row in readable(examples) if row.group in classes]
    found = np.zeros((len(classes), embedder.dimension), np.float32)
    if isinstance(embedder, Teacher):
        vectors = embedder.said([row.sources[0] for row in rows], "query")
    else:
        asked, _ = examples.source.prompts(embedder.spec)
        told = examples.source.instruction
        vectors = embedder.encode([row.query for row in rows], prompt_name=asked, instruction=told)
    np.add.at(found, [classes[str(row.group)] for row in rows], unit(vectors))
    check_groups(examples, {str(row.group) for row in rows}, classes)
    return found


def check_groups(examples: Examples, known: Collection[str], classes: Mapping[str, int]) -> None:
    """Raise `SpecError` where examples know no row of a group."""
    bare = sorted(classes.keys() - set(known))
    if bare:
        raise SpecError(f"data {examples.name!r} has no row of {len(bare)} groups, as {', '.join(bare[:3])}")


def _encoded(
    embedder: Embedder,
    items: Sequence[Item],
    side: Literal["query", "document"],
    truncate_dim: int | None,
    **options: Unpack[WalkOptions],
) -> Any:
    """What a model is compared by: vectors, or token vectors or sparse weights where it has no one vector for an item."""
    if embedder.spec.pooling is not None:
        return embedder.encode(items, truncate_dim=truncate_dim, **options)
    encode = embedder.encode_tokens if embedder.spec.tokens is not None else embedder.encode_sparse
    return encode(items, side=side, **options)


def rank_of(scores: NDArray[np.float32], right: NDArray[np.int64]) -> int:
    """The rank, from 1, of the best of the right ones among all; of equal scores the others come first."""
    wrong = np.ones(len(scores), dtype=bool)
    wrong[right] = False
    return 1 + int((scores[wrong] >= scores[right].max()).sum())


def readable(examples: Examples, most: int | None = None) -> list[Example]:
    """The first examples, with pictures that can be read.

    Raises:
        InputError: a row that gives none, unless its source says skip; or all of them.
    """
    found = []
    for row in range(len(examples)):
        try:
            example = examples[row]
            for item in (example.query, *example.positives):
                for part in item:
                    if hasattr(part, "load"):
                        part.load()
            found.append(example)
        except InputError as error:
            if examples.source.on_error == "raise":
                raise
            examples.skip(row, error.reason)
        if len(found) == most:
            break
    return found
