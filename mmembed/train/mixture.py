"""Which rows come when: endless batches of mixed data without twins, reproducible, that go on where they stopped."""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, SpecError, check_known
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
        self.waiting: dict[bytes, deque[int]] = {}  # rows whose turn has been, by what the batch had of them then
        self._held: set[int] = set()

    def wait(self, row: int, key: bytes) -> None:
        self.waiting.setdefault(key, deque()).append(row)
        self._held.add(row)

    def waited(self, keys: Set[bytes]) -> int | None:
        """The row that has waited longest for what is not among `keys`."""
        key = next((key for key in self.waiting if key not in keys), None)
        if key is None:
            return None
        row = self.waiting[key].popleft()
        if not self.waiting[key]:
            del self.waiting[key]
        self._held.discard(row)
        return row

    def drawn(self) -> int | None:
        """The row whose turn it is, unless it is waiting already."""
        row = next(self.order)
        return None if row in self._held else row


class Mixture:
    """Batches of examples of one or several sources.

    A source is drawn with a probability in proportion to its share times the number of its rows to the power of 1 /
    `temperature`; with `language_temperature` so is each language inside it. A row has its turn once in an epoch of its
    source or language. One whose query or positive, or whatever else answers its query, is in the batch already, waits for
    the next: it would be a negative and a positive at once. A language or a source with nothing else for a batch leaves its
    turns to the others, by their chances.

    Args:
        data: the sources by name. batch: examples a batch.
        twins: nothing in the batch is another's negative, so that equal things and answers to one query may stand in it together.
        group: so many examples in a row are of one source; None: all of a batch (task-homogeneous batches), 1: each by itself,
            in between: interleaved sub-batches (VLM2Vec-V2, arXiv 2507.04590). A batch of one source is not filled up by others.
        seed: numbers that everything hangs on.

    Attributes:
        chances: how likely each source is, in the order of `data`.

    Raises:
        SpecError: no language where one is asked for, an unknown source in `shares`, or a source with fewer rows than its batch.
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
            check_known("data of this task", name, data)
        self.data, self.batch, self._group, self._seed = dict(data), batch, group or batch, list(seed)
        self.step, self._twins, self._told = 0, twins, set[str]()
        self._names = list(data)
        given = [(shares or {}).get(name, 1.0) for name in self._names]
        sizes = [len(examples) for examples in data.values()]
        for name, size, share in zip(data, sizes, given, strict=True):
            if share and self._group >= batch > size and not (twins or data[name].source.graded):
                raise self._too_few([name])
        self.chances = _proportions(sizes, temperature, given)
        self._strata: dict[str, list[_Stratum]] = {}
        self._inside: dict[str, NDArray[np.float64]] = {}
        for number, (name, examples) in enumerate(data.items()):
            if language_temperature is None:
                strata = [_Stratum(examples.blocks(), [*seed, number])]
            else:
                rows = [*examples.languages().values()]
                firsts = [block[0] for block in examples.blocks(at_once=len(rows))]
                cut = [np.split(own, np.searchsorted(own, firsts[1:])) for own in rows]
                blocks = [[part for part in parts if len(part)] for parts in cut]
                strata = [_Stratum(own, [*seed, number, k]) for k, own in enumerate(blocks)]
            self._strata[name] = strata
            self._inside[name] = _proportions([len(stratum.order) for stratum in strata], language_temperature or 1.0)

    def __next__(self) -> list[Example]:
        """The next batch.

        Raises:
            InputError: a row that gives no example, where its source says so.
            SpecError: too few rows that differ to fill a batch.
        """
        rng = np.random.default_rng([*self._seed, 1 << 20, self.step])
        found: list[Example] = []
        keys: set[bytes] = set()
        inside = {name: _Turns(chances) for name, chances in self._inside.items()}
        sources, bad = _Turns(self.chances), None
        while len(found) < self.batch:
            name = self._names[number := sources.next(rng)]
            for _ in range(min(self._group, self.batch - len(found))):
                example = self._one(name, inside[name], rng, keys)
                if not isinstance(example, Example):
                    bad = example or bad
                    if self._group >= self.batch or not sources.without(number):
                        raise bad or self._too_few([name] if self._group >= self.batch else self._names)
                    self._tell(name)
                    break
                if not (self._twins or self.data[name].source.graded):
                    keys |= example.keys
                found.append(example)
        self.step += 1
        return found

    def __iter__(self) -> Iterator[list[Example]]:
        return self

    def _one(
        self, name: str, inside: _Turns, rng: np.random.Generator, keys: Set[bytes]
    ) -> Example | InputError | None:
        """The next example of a source, of the language whose turn it is; where it has none for this batch, what is wrong with
        the last of its rows that gave none."""
        bad: InputError | None = None
        while inside:
            chosen = inside.next(rng)
            found = self._drawn(name, self._strata[name][chosen], keys)
            if isinstance(found, Example):
                return found
            inside.without(chosen)
            bad = found or bad
        return bad

    def _too_few(self, names: Sequence[str]) -> SpecError:
        return SpecError(
            f"data {', '.join(map(repr, names))} has too few rows that differ in query and positive for a batch of {self.batch}: "
            "make it smaller"
        )

    def _tell(self, name: str) -> None:
        """Say once that a source cannot give all that its share is."""
        if name not in self._told:
            self._told.add(name)
            warnings.warn(
                f"data {name!r} has too few rows that differ for its share of a batch of {self.batch}: others fill it up",
                stacklevel=2,
            )

    def _drawn(self, name: str, stratum: _Stratum, keys: Set[bytes]) -> Example | InputError | None:
        """The next example of a stratum; what is wrong with its last row where none of them gives one; None: all that it has
        are twins of what the batch holds."""
        examples = self.data[name]
        while (row := stratum.waited(keys)) is not None:
            example = examples[row]
            shared = example.keys & keys
            if not shared:
                return example
            stratum.wait(row, min(shared))
        bad: set[int] = set()
        for _ in range(2 * len(stratum.order)):
            row = stratum.drawn()
            if row is None:
                continue
            try:
                example = examples[row]
            except InputError as error:
                bad.add(row)
                if examples.source.on_error == "raise":
                    raise
                examples.skip(row, error.reason)
                if len(bad) == len(stratum.order):
                    return error
                continue
            shared = example.keys & keys
            if self._twins or examples.source.graded or not shared:
                return example
            stratum.wait(row, min(shared))
        return None

    def state(self) -> dict[str, Any]:
        """Where it stands, as JSON: with it `restore` goes on with exactly the batches that would have come."""
        strata = {
            name: [
                {"position": s.order.position, "waiting": {key.hex(): [*rows] for key, rows in s.waiting.items()}}
                for s in own
            ]
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
                stratum.order.position = said["position"]
                for key, waiting in said["waiting"].items():
                    for row in waiting:
                        stratum.wait(row, bytes.fromhex(key))


class _Turns:
    """Whose turn it is, by chance; who has nothing more for this batch has none, and leaves its turns to the others."""

    def __init__(self, chances: NDArray[np.float64]):
        self._chances, self._ends = chances, _ends(chances)

    def __bool__(self) -> bool:
        return bool(self._chances.any())

    def next(self, rng: np.random.Generator) -> int:
        """The number of one by its chance; `rng.choice` checks the chances each time, for ten times as long."""
        return 0 if len(self._ends) == 1 else bisect_right(self._ends, rng.random() * self._ends[-1])

    def without(self, number: int) -> bool:
        """Leave one out; whether any is left."""
        left = np.where(np.arange(len(self._chances)) == number, 0.0, self._chances)
        if left.any():
            left = left / left.sum()
        self._chances, self._ends = left, _ends(left)
        return bool(self)


def _ends(chances: NDArray[np.float64]) -> list[float]:
    """Where the stretch of each number ends between 0 and 1."""
    ends: list[float] = chances.cumsum().tolist()
    return ends


def _proportions(
    sizes: Sequence[int], temperature: float, shares: Sequence[float] | None = None
) -> NDArray[np.float64]:
    """Chances in proportion to sizes to the power of 1 / `temperature`, by logarithms: it may be small."""
    logs = np.log(sizes) / temperature
    found = np.exp(logs - logs.max()) * (1.0 if shares is None else np.asarray(shares))
    return found / found.sum()
