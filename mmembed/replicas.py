"""Replicas: one embedder on several devices of this machine, a process each, behind the face of one."""

from __future__ import annotations

import copy
import dataclasses
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

import torch

from .batch import Sample
from .embedder import Embedder
from .errors import ReplicaLost, SpecError
from .inputs import Thing
from .memory import budget, is_out_of_memory, let_go
from .prefetch import cores
from .towers.compiled import is_compiled
from .walk import Arrays, Options, Output, Result, Window, compute, walk

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEPTH = 2
"""Batches that a process is given at a time: it goes on with the next while the last one's vectors travel."""
TRIES = 2
"""Processes that a batch may end before it is given up."""
PATIENCE = 5.0
"""Seconds that a process has to end by itself."""


class Replicas(Embedder):
    """An embedder whose batches are computed by copies of itself, one process on each device.

    It encodes as an `Embedder` does, and gives the same; what makes another embedder of it (`respecified`, `with_head`, a method)
    comes before. Texts are tokenised and batches planned here, once; each goes to the
    copy that has least to do, and results come back in the caller's order. A process that dies (out of memory, a driver's
    fault) is left out from then on, and its batches go to the others.

        with Replicas(embedder, devices=["cuda:0", "cuda:1"]) as replicas:
            vectors = replicas.encode_document(texts)

    Args:
        embedder: what is copied; it stays where it is. devices: one process for each; on "cpu" several may stand.

    Raises:
        SpecError: no device, or an embedder on Windows, whose pipes no process inherits.
        ReplicaLost: a process that does not start: what it said stands on the error stream.
    """

    def __init__(self, embedder: Embedder, *, devices: Sequence[str | torch.device]):
        if not devices:
            raise SpecError("replicas need devices: devices=['cuda:0', 'cuda:1']")
        if os.name == "nt":
            raise SpecError("replicas need a POSIX system: encode by one embedder a process")
        super().__init__(embedder.model, embedder.tokenizer, embedder.golden)
        self.devices = tuple(torch.device(device) for device in devices)
        self._crew = _Crew(embedder, self.devices)
        self._ended = weakref.finalize(self, self._crew.end)  # also at the interpreter's exit

    def __repr__(self) -> str:
        return f"<mmembed.Replicas of {self.spec.name!r} on {', '.join(map(str, self.devices))}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes. The embedder that was copied is as it was."""
        self._ended()

    def cache(self, *, prefixes: int = 0, images: int = 0) -> NoReturn:
        """Raises: SpecError, always: what its processes saw before they do not keep."""
        raise SpecError("replicas keep nothing between calls: an embedder of one process does")

    def compile(self) -> NoReturn:
        """Raises: SpecError, always: its processes run already."""
        raise SpecError("replicas of a compiled embedder are compiled: call compile() before they are made")

    def respecified(self, **changed: Any) -> NoReturn:
        """Raises: SpecError, always: its processes hold the spec that they were begun with."""
        raise SpecError(
            "replicas keep the spec that they were made with: change the embedder, then make replicas of it"
        )

    def with_head(self, settings: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> NoReturn:
        """Raises: SpecError, always: its processes hold the heads that they were begun with."""
        raise SpecError(
            "replicas keep the heads that they were made with: change the embedder, then make replicas of it"
        )

    def _walk(
        self,
        inputs: Thing | Iterable[Thing],
        output: Output[Result],
        options: Options,
        *,
        first: int = 0,
        total: int | None = None,
    ) -> Generator[Window[Result], None, None]:
        most = options.batch_tokens or budget(self.devices[0], *self.model.token_sizes)
        options, ahead = dataclasses.replace(options, batch_tokens=most), DEPTH * len(self.devices)
        return walk(self.model, inputs, output, options, self._begin, ahead_of=ahead, first=first, total=total)

    def _begin(self, samples: Sequence[Sample], rows: Sequence[int], output: Output[Any]) -> Arrays:
        return self._crew.give(samples, rows, output)


@dataclass(eq=False)
class _Task:
    """A batch on its way: what is sent, the caller's rows in it, its result, and how many processes it has ended."""

    message: tuple[str, Sequence[Sample], Sequence[int]]
    rows: Sequence[int]
    result: Future[Sequence[NDArray[Any]]] = field(default_factory=Future)
    ended: int = 0


@dataclass(eq=False)
class _Replica:
    """A process, and the batches that it has."""

    device: torch.device
    process: subprocess.Popen[bytes]
    connection: Connection
    tasks: dict[int, _Task] = field(default_factory=dict)
    sending: threading.Lock = field(default_factory=threading.Lock)


class _Crew:
    """The processes of some replicas. It knows nothing of them, so that they can be forgotten while it works."""

    def __init__(self, embedder: Embedder, devices: Sequence[torch.device]):
        self._numbers = count()
        self._changed = threading.Condition()
        self._living: list[_Replica] = []
        self._lost = ""
        with tempfile.TemporaryDirectory(prefix="mmembed-replicas-") as folder:  # gone as soon as all have read it
            _write(embedder, Path(folder))
            threads = max(1, cores() // len(devices))
            try:
                self._living = [_started(folder, device, embedder, threads) for device in devices]
                for replica in self._living:
                    if not _greeted(replica):
                        raise ReplicaLost(f"the replica on {replica.device} did not start: {_end_of(replica.process)}")
            except BaseException:
                self.end()
                raise
        for replica in self._living:
            threading.Thread(target=self._listen, args=(replica,), daemon=True).start()

    def give(self, samples: Sequence[Sample], rows: Sequence[int], output: Output[Any]) -> Arrays:
        """Hand a batch to the process that has least to do; what is returned waits for its result."""
        task = _Task((output.forward.__name__, samples, rows), rows)
        self._hand(task)
        return task.result.result

    def _hand(self, task: _Task) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._living or min(len(r.tasks) for r in self._living) < DEPTH)
            if not self._living:
                task.result.set_exception(
                    ReplicaLost(f"no replica is left: {self._lost or 'they were closed'}", task.rows)
                )
                return
            replica = min(self._living, key=lambda each: len(each.tasks))
            number = next(self._numbers)
            replica.tasks[number] = task
        try:
            with replica.sending:
                replica.connection.send((number, *task.message))
        except OSError:
            return  # it has died: who listens to it gives the batch to another
        except BaseException as error:  # a message cut short is none that could be followed by another
            replica.process.kill()
            if isinstance(error, Exception):
                with self._changed:
                    replica.tasks.pop(number, None)
            raise

    def _listen(self, replica: _Replica) -> None:
        why = ""
        while True:
            try:
                number, result = replica.connection.recv()
            except (EOFError, OSError):
                break
            except Exception as error:  # of another's making, which is pickled there and cannot be unpickled here
                why = f" after it sent what cannot be read: {error!r}"
                replica.process.kill()
                break
            with self._changed:
                task = replica.tasks.pop(number)
                self._changed.notify_all()
            if isinstance(result, BaseException):
                task.result.set_exception(result)
            else:
                task.result.set_result(result)
        said = f"the one on {replica.device} died ({_end_of(replica.process)}){why}"
        with self._changed:
            if replica in self._living:
                self._living.remove(replica)
                self._lost = said
            orphans, replica.tasks = list(replica.tasks.values()), {}
            self._changed.notify_all()
        for task in orphans:
            task.ended += 1
            if task.ended < TRIES:
                try:
                    self._hand(task)
                except Exception as error:  # whoever waits for it is told
                    task.result.set_exception(error)
            else:
                task.result.set_exception(
                    ReplicaLost(f"a batch ended {TRIES} replicas, the last time {said}", task.rows)
                )

    def end(self) -> None:
        """End all processes: asked, and after `PATIENCE` told."""
        with self._changed:
            replicas, self._living = self._living, []
            self._changed.notify_all()
        for replica in replicas:
            replica.process.terminate()
        for replica in replicas:
            try:
                replica.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                replica.process.kill()
                replica.process.wait()
            replica.connection.close()


def _write(embedder: Embedder, folder: Path) -> None:
    """The embedder as `load` reads it, its weights to the bit."""
    exact = copy.copy(embedder.model)
    exact.spec = dataclasses.replace(embedder.spec, weights=embedder.precision)
    Embedder(exact, embedder.tokenizer).save(folder)


def _started(folder: str, device: torch.device, embedder: Embedder, threads: int) -> _Replica:
    """A process of its own, no fork: CUDA does not live through one, nor does it ask scripts for `if __name__ == ...`."""
    ours, theirs = Pipe()
    compiled = ["compiled"] if is_compiled(embedder.model) else []
    run = f"import sys; sys.path[:] = {sys.path!r}; from mmembed.replicas import work; work({theirs.fileno()}, *sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", run, folder, str(device), embedder.precision, str(threads), *compiled],
        pass_fds=[theirs.fileno()],
        start_new_session=True,  # Ctrl-C is for the caller: it ends them, or not
        stdin=subprocess.DEVNULL,
    )
    theirs.close()
    return _Replica(device, process, ours)


def _greeted(replica: _Replica) -> bool:
    try:
        return bool(replica.connection.recv() == "ready")
    except (EOFError, OSError):
        return False


def _end_of(process: subprocess.Popen[bytes]) -> str:
    """How a process ended, in words."""
    try:
        code = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def work(descriptor: int, folder: str, device: str, precision: str, threads: str, *compiled: str) -> None:
    """What a process does: read the embedder, then batch after batch; it ends when nobody is at the other end."""
    from .loading import load

    torch.set_num_threads(int(threads))
    if torch.device(device).type == "cuda" and torch.device(device).index is not None:
        torch.cuda.set_device(device)  # what pins memory, and what Triton launches, goes by it
    connection = Connection(descriptor)
    embedder = load(folder, device=device, precision=precision)
    if compiled:
        embedder.compile()
    connection.send("ready")
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def read() -> None:  # beside the work: who sends must never wait for one who sends
        while True:
            try:
                tasks.put(connection.recv())
            except (EOFError, OSError):
                os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        number, forward, samples, rows = tasks.get()
        result: object
        try:
            output: Output[Any] = Output(embedder.reader.sampler, getattr(embedder.reader, forward), lambda *_: ())
            result = compute(embedder.model, samples, rows, output)()
        except Exception as error:
            result = error.with_traceback(None)  # which would keep the tensors of the batch
            if is_out_of_memory(error):
                let_go(embedder.model.device)
        connection.send((number, result))
