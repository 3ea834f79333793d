"""Processes that write to an index, for the tests that kill them, let them meet, or bar them from the disk."""

from __future__ import annotations

import json
import os
import random
import resource
import stat
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mmembed import Embedder, Index
from mmembed.errors import MmembedError
from mmembed.search import adding, table
from mmembed.testing import tiny_embedder

NAMES = [f"r{number}" for number in range(300)]


def churn(folder: Path, log: Path, seed: int) -> None:
    """Build, upsert, remove and compact without end, and tell the log before and after each call."""
    chance, embedder = random.Random(seed), tiny_embedder()
    adding.CHUNK = 8
    with log.open("ab", buffering=0) as told:

        def tell(**said: Any) -> None:
            told.write(json.dumps(said).encode() + b"\n")

        tell(begin="create")
        index = Index.open(folder, embedder) if table.exists(folder) else Index.create(folder, embedder)
        tell(done="create")
        while True:
            what = chance.choices(["put", "remove", "compact"], [2, 1, 1])[0]
            names = chance.sample(NAMES, chance.randint(1, 20)) if what != "compact" else []
            rows = {name: f"{name} {chance.random()}" if what == "put" else None for name in names}
            tell(begin=what, rows=rows)
            if what == "put":
                index.add(
                    [text for text in rows.values() if text], ids=list(rows), metadata=[{"n": len(rows)}] * len(rows)
                )
            elif what == "remove":
                index.remove(names)
            else:
                index.compact()
            tell(done=what)


def put(folder: Path, who: str, rounds: int, embedder: Embedder | None = None) -> None:
    """Upsert the same ids as another writer does, ten a call."""
    index = Index.open(folder, embedder or tiny_embedder())
    for number in range(rounds):
        names = NAMES[number * 10 : number * 10 + 10]
        index.add([f"{name} by {who}" for name in names], ids=names, metadata=[{who: number}] * 10)
        if number % 5 == 4:
            index.compact()


def barred(folder: Path, answers: Connection) -> None:
    """Try all that writes in a folder that may not be written to."""
    embedder = tiny_embedder()
    for inside in (folder, *folder.rglob("*")):
        inside.chmod(stat.S_IREAD | (stat.S_IEXEC if inside.is_dir() else 0) | 0o055)
    if os.geteuid() == 0:
        os.seteuid(65534)  # who owns everything is not barred by modes
    index = Index.open(folder, embedder)
    calls: dict[str, Callable[[], Any]] = {
        "add": lambda: index.add(["new"]),
        "remove": lambda: index.remove(["r1"]),
        "compact": index.compact,
        "create": lambda: Index.create(folder / "inside", embedder),
    }
    said = {name: _said(call) for name, call in calls.items()}
    answers.send({**said, "items": len(index), "best": index.search("r1 old")[0].text})


def filled(folder: Path, answers: Connection) -> None:
    """Add until no file may grow any further, as on a full disk."""
    embedder = tiny_embedder()
    index = Index.open(folder, embedder)
    adding.CHUNK = 50
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
    few = _said(lambda: index.add([f"few {n}" for n in range(50)]))
    many = _said(lambda: index.add([f"many {n} " + str(n) * 1000 for n in range(100)]))
    answers.send({"few": few, "many": many, "items": len(index), "best": index.search("few 7")[0].text})


def _said(call: Callable[[], Any]) -> str:
    try:
        call()
    except MmembedError as error:
        return f"{type(error).__name__}: {error}"
    return "done"
