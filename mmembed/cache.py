"""LRUCache: a bounded store of what was computed before, the least recently used going first, for many threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LRUCache(Generic[K, V]):
    """What was computed before, at most `limit` bytes of it; a limit of 0 keeps nothing.

    Attributes:
        limit: bytes at most; may be changed at any time. used: bytes held now. hits, misses: of the look-ups so far.
    """

    def __init__(self, limit: int = 0):
        self.limit = limit
        self.used = self.hits = self.misses = 0
        self._held: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """What was put under `key`, if it is still here."""
        with self._lock:
            if key not in self._held:
                self.misses += 1
                return None
            self.hits += 1
            self._held.move_to_end(key)
            return self._held[key][0]

    def put(self, key: K, value: V, size: int) -> None:
        """Hold a value of `size` bytes; one that is larger than all the room is not held."""
        with self._lock:
            self.used -= self._held.pop(key, (None, 0))[1]
            if size <= self.limit:
                self._held[key] = (value, size)
                self.used += size
            while self.used > self.limit:
                self.used -= self._held.popitem(last=False)[1][1]

    def clear(self) -> None:
        with self._lock:
            self._held.clear()
            self.used = 0

    def __len__(self) -> int:
        return len(self._held)

    def __repr__(self) -> str:
        megabytes = f"{self.used / 2**20:.1f} of {self.limit / 2**20:.0f} MiB"
        return f"LRUCache({len(self)} in {megabytes}, {self.hits} hits, {self.misses} misses)"

    def __getstate__(self) -> int:
        return self.limit  # a copy in another process, or a deep one, starts empty

    def __setstate__(self, limit: int) -> None:
        LRUCache.__init__(self, limit)
