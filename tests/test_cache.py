"""A bounded store: the least recently used goes, and every look-up is counted."""

from __future__ import annotations

import copy
import threading

from mmembed.cache import LRUCache


def test_the_least_recently_used_goes():
    kept: LRUCache[str, int] = LRUCache(30)
    for k, name in enumerate("abc"):
        kept.put(name, k, 10)
    assert kept.get("a") == 0
    kept.put("d", 3, 10)
    assert [kept.get(name) for name in "abcd"] == [0, None, 2, 3]
    assert (kept.used, kept.hits, kept.misses, len(kept)) == (30, 4, 1, 3)
    kept.put("e", 4, 25)
    assert [name for name in "abcde" if kept.get(name) is not None] == ["e"]
    kept.put("e", 5, 5)
    assert (kept.get("e"), kept.used) == (5, 5)
    kept.put("f", 6, 31)
    assert (kept.get("f"), kept.get("e")) == (None, 5)


def test_nothing_is_kept_without_room_and_copies_start_empty():
    kept: LRUCache[str, int] = LRUCache()
    kept.put("a", 1, 1)
    assert (kept.get("a"), len(kept), kept.used) == (None, 0, 0)
    kept.limit = 2
    kept.put("a", 1, 1)
    other = copy.deepcopy(kept)
    assert (other.limit, len(other), len(kept)) == (2, 0, 1)
    kept.clear()
    assert (len(kept), kept.used) == (0, 0)


def test_threads_do_not_lose_count():
    kept: LRUCache[int, int] = LRUCache(50)

    def work(seed: int) -> None:
        for k in range(2000):
            key = (k * seed) % 97
            if kept.get(key) is None:
                kept.put(key, key, 1 + key % 5)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 3, 5, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kept.hits + kept.misses == 8000
    assert kept.used == sum(size for _, size in kept._held.values()) <= 50
