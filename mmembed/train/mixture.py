"""Which rows come when: endless batches of mixed data without twins, reproducible, that go on where they stopped."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, SpecError, UnknownName
from .data import Example, Examples


class Order:
    """Row numbers in an order that is new each time all have come; blocks stay together, mixed inside and among each other.

    Args:
        blocks: row numbers that are cheap to read together. seed: numbers that the order hangs on.
    """

    def __init__(self, blocks: Sequence[NDArray[np.int64]], seed: Sequence[int]):
        self._blocks, self._seed = blocks, list(seed)
        self._count = sum(map(len, blocks))
        self._epoch, self._rows = -1, list[int]()
        self.position = 0

    def __len__(self) -> int:
        return self._count

    def __next__(self) -> int:
        epoch, place = divmod(self.position, self._count)
        if epoch != self._epoch:
            rng = np.random.default_rng([*self._seed, epoch])
            chosen = rng.permutation(len(self._blocks))
            self._rows = np.concatenate([rng.permutation(self._blocks[k]) for k in chosen]).tolist()
            self._epoch = epoch
        self.position += 1
        return self._rows[place]


class _Stratum:
    """Rows that are drawn from together: those of a source, or of one of its languages."""

    def __init__(self, blocks: Sequence[NDArray[np.int64]], seed: Sequence[int]):
        self.order = Order(blocks, seed)
        self.waiting: list[int] = []  # rows that had a twin in the batch when their turn came
        self.read: dict[int, Example] = {}  # those of them that are read already


class Mixture:
    """Batches of examples of one or several sources.

    A source is drawn with a probability in proportion to its share times the number of its rows to the power of 1 /
    `temperature`; with `language_temperature` so is each language inside it. A row has its turn once in an epoch of its
    source or language. One whose query or positive, or whatever else answers its query, is in the batch already, waits for
    the next: it would be a negative and a positive at once.

    Args:
        data: the sources by name. batch: examples a batch.
        twins: nothing in the batch is another's negative, so that equal things and answers to one query may stand in it together.
        group: so many examples in a row are of one source; None: all of a batch (task-homogeneous batches), 1: each by itself,
            in between: interleaved sub-batches (VLM2Vec-V2, arXiv 2507.04590).
        seed: numbers that everything hangs on.

    Attributes:
        chances: how likely each source is, in the order of `data`.

    Raises:
        SpecError: no language where one is asked for, or an unknown source in `shares`.
    """

    def __init__(
        self,
        data: Mapping[str, Examples],
        *,
        batch: int,
        shares: Mapping[str, float] | None = None,
        temperature: float = 1.0,
        language_temperature: float | None = None,
        group: int | None = None,
        twins: bool = False,
        seed: Sequence[int] = (0,),
    ):
        for name in shares or {}:
            if name not in data:
                raise UnknownName("data of this task", name, data)
        self.data, self.batch, self._group, self._seed = dict(data), batch, group or batch, list(seed)
        self.step, self._twins = 0, twins
        self._names = list(data)
        given = [(shares or {}).get(name, 1.0) for name in self._names]
        sizes = [len(examples) for examples in data.values()]
        self.chances = _proportions([s * n ** (1 / temperature) for s, n in zip(given, sizes, strict=True)])
        self._strata: dict[str, list[_Stratum]] = {}
        self._outside = _ends(self.chances)
        self._inside: dict[str, list[float]] = {}
        for number, (name, examples) in enumerate(data.items()):
            if language_temperature is None:
                strata = [_Stratum(examples.blocks(), [*seed, number])]
            else:
                rows = examples.languages().values()
                strata = [_Stratum([own], [*seed, number, k]) for k, own in enumerate(rows)]
            self._strata[name] = strata
            power = 1 / (language_temperature or 1.0)
            self._inside[name] = _ends(_proportions([len(stratum.order) ** power for stratum in strata]))

    def __next__(self) -> list[Example]:
        """The next batch.

        Raises:
            InputError: a row that gives no example, where its source says so.
            SpecError: too few rows that differ to fill a batch.
        """
        rng = np.random.default_rng([*self._seed, 1 << 20, self.step])
        found: list[Example] = []
        keys: set[bytes] = set()
        while len(found) < self.batch:
            name = self._names[_one_of(self._outside, rng)]
            for _ in range(min(self._group, self.batch - len(found))):
                example = self._one(name, _one_of(self._inside[name], rng), keys)
                if not (self._twins or self.data[name].graded):
                    keys |= example.keys
                found.append(example)
        self.step += 1
        return found

    def __iter__(self) -> Iterator[list[Example]]:
        return self

    def _one(self, name: str, chosen: int, keys: set[bytes]) -> Example:
        """The next example of a language; one that has no more for this batch leaves its turn to the one behind it."""
        strata = self._strata[name]
        bad: InputError | None = None
        for k in range(len(strata)):
            found = self._drawn(name, strata[(chosen + k) % len(strata)], keys)
            if isinstance(found, Example):
                return found
            bad = found or bad
        raise bad or SpecError(
            f"data {name!r} has too few rows that differ in query and positive for a batch of {self.batch}: make it smaller"
        )

    def _drawn(self, name: str, stratum: _Stratum, keys: set[bytes]) -> Example | InputError | None:
        """The next example of a stratum; what is wrong with its last row where none of them gives one; None: all that it has
        are twins of what the batch holds."""
        examples = self.data[name]
        for place, row in enumerate(stratum.waiting):
            if row not in stratum.read:
                stratum.read[row] = examples[row]
            if stratum.read[row].keys.isdisjoint(keys):
                del stratum.waiting[place]
                return stratum.read.pop(row)
        bad = 0
        for _ in range(2 * len(stratum.order)):
            row = next(stratum.order)
            if row in stratum.waiting:
                continue
            try:
                example = examples[row]
            except InputError as error:
                bad += 1
                if examples.source.on_error == "raise":
                    raise
                if bad >= len(stratum.order):
                    return error
                continue
            if self._twins or examples.graded or example.keys.isdisjoint(keys):
                return example
            stratum.waiting.append(row)
            stratum.read[row] = example
        return None

    def state(self) -> dict[str, Any]:
        """Where it stands, as JSON: with it `restore` goes on with exactly the batches that would have come."""
        strata = {
            name: [{"position": s.order.position, "waiting": list(s.waiting)} for s in own]
            for name, own in self._strata.items()
        }
        return {"step": self.step, "sources": strata, "rows": {name: len(data) for name, data in self.data.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`.

        Raises:
            SpecError: the data is other data now.
        """
        rows = {name: len(data) for name, data in self.data.items()}
        known = {name: len(own) for name, own in self._strata.items()}
        if state["rows"] != rows or {name: len(own) for name, own in state["sources"].items()} != known:
            raise SpecError(f"the data has changed since: rows were {state['rows']} and are {rows}")
        self.step = state["step"]
        for name, own in self._strata.items():
            for stratum, said in zip(own, state["sources"][name], strict=True):
                stratum.order.position, stratum.waiting, stratum.read = said["position"], list(said["waiting"]), {}


def _ends(chances: NDArray[np.float64]) -> list[float]:
    """Where the stretch of each number ends between 0 and 1."""
    ends: list[float] = chances.cumsum().tolist()
    return ends


def _one_of(ends: Sequence[float], rng: np.random.Generator) -> int:
    """A number by its chance; `rng.choice` checks the chances each time, for ten times as long."""
    return 0 if len(ends) == 1 else min(bisect_right(ends, rng.random()), len(ends) - 1)


def _proportions(weights: Sequence[float]) -> NDArray[np.float64]:
    found = np.asarray(weights, dtype=np.float64)
    return found / found.sum()
