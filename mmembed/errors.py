"""The errors of mmembed: one tree, drawn below; each says what was asked, what is known and what to do.

MmembedError
├── InputError (ValueError)             an item that cannot be embedded; `item` is its row
│   ├── ImageError                      bytes that are no picture we take
│   └── TruncationError                 a text longer than the model reads, with truncate="error"
├── UnknownName (LookupError)           no such model, prompt, pooling, ...; names the nearest
├── SpecError (ValueError)              a model description that makes no model
├── LoadError (OSError)                 a folder or file that does not hold what it says
├── ReplicaLost (RuntimeError)          a process that computes for others died; `rows` are the caller's in its batch
├── StoreError (RuntimeError)           an index that cannot do what was asked
│   └── FingerprintMismatch             vectors of another model
├── TrainingError (RuntimeError)        a run of training that cannot go on; its last checkpoint stays
└── MissingExtra (ImportError)          an optional package is not installed; holds the pip command
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence


class MmembedError(Exception):
    """Root of every error that mmembed raises on purpose."""


class InputError(MmembedError, ValueError):
    """An item that cannot be embedded.

    Args:
        reason: what is wrong and what to do.
        item: row of the item in the caller's list, once it is known.
    """

    def __init__(self, reason: str, item: int | None = None):
        super().__init__(reason)
        self.reason = reason
        self.item = item

    def __str__(self) -> str:
        return self.reason if self.item is None else f"item {self.item}: {self.reason}"

    def __reduce__(self) -> tuple[type[InputError], tuple[str, int | None]]:
        return type(self), (self.reason, self.item)


class ImageError(InputError):
    """Bytes, a path or an array that is no picture within the image contract."""


class TruncationError(InputError):
    """A text longer than the model reads, where truncation was refused."""


MANY = 60
"""Names that are listed at once; of more, the nearest."""


class UnknownName(MmembedError, LookupError):
    """A name that nothing goes by. Lists what is known and names the nearest."""

    def __init__(self, kind: str, name: object, known: Iterable[str]):
        self.kind, self.name, self.known = kind, str(name), sorted(str(k) for k in known)
        super().__init__(self.kind, self.name, self.known)

    def __str__(self) -> str:
        near = difflib.get_close_matches(self.name, self.known, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        few = (
            self.known if len(self.known) <= MANY else difflib.get_close_matches(self.name, self.known, n=5, cutoff=0.0)
        )
        known = ", ".join(few) if few else "none"
        known += f" and {len(self.known) - len(few)} others" if len(few) < len(self.known) else ""
        return f"no {self.kind} is called {self.name!r}.{hint} Known: {known}."


def check_known(kind: str, name: object, known: Collection[str]) -> None:
    """Raises: UnknownName: `name` is not among what is known."""
    if name not in known:
        raise UnknownName(kind, name, known)


class SpecError(MmembedError, ValueError):
    """A model description, or a combination of parts, that makes no model."""


class LoadError(MmembedError, OSError):
    """A folder or file that does not hold what it says."""


class ReplicaLost(MmembedError, RuntimeError):
    """A process that computes batches died, and no other could take over.

    Args:
        reason: what is known of its end. rows: the caller's rows in the batch that is lost.
    """

    def __init__(self, reason: str, rows: Sequence[int] = ()):
        super().__init__(reason)
        self.reason, self.rows = reason, tuple(rows)

    def __str__(self) -> str:
        if not self.rows:
            return self.reason
        shown = ", ".join(map(str, sorted(self.rows)[:8])) + (", ..." if len(self.rows) > 8 else "")
        return f"{self.reason}; the items {shown} have no vectors"


class StoreError(MmembedError, RuntimeError):
    """An index that cannot do what was asked."""


class FingerprintMismatch(StoreError):
    """Vectors of one model offered to an index of another."""


class TrainingError(MmembedError, RuntimeError):
    """A run of training that cannot go on: a loss that is no number, a checkpoint that cannot be written."""


class MissingExtra(MmembedError, ImportError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str):
        super().__init__(f"{package} is needed here and is not installed: pip install 'mmembed[{extra}]'")
        self.package, self.extra = package, extra

    def __reduce__(self) -> tuple[type[MissingExtra], tuple[str, str]]:
        return type(self), (self.package, self.extra)
