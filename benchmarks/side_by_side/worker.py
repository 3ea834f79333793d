"""A system in a process of its own: it is asked for one run at a time, and says how long it took and what memory it held."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from .workloads import Workload

HELD = 0.25
"""Of a GPU's memory a process keeps at most so much from run to run."""
ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1"}


class Refused(Exception):
    """A system that is not here or cannot take the model, and why."""


class Failed(Exception):
    """What went wrong in a process, with its own traceback, or that it died."""


class Worker:
    """The near end: calls are answered by the process, and its errors come back as `Refused` (it is not here) or `Failed`."""

    def __init__(self, system: str, threads: int):
        names = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "MKL_NUM_THREADS")
        own = {**ENVIRONMENT, **dict.fromkeys(names, str(threads))}
        before = {name: os.environ.get(name) for name in own}
        os.environ.update(
            own
        )  # a process that is spawned takes the environment as it is, and libraries read it as they load
        try:
            context = multiprocessing.get_context("spawn")
            self.near, far = context.Pipe()
            self.process = context.Process(target=serve, args=(far, system, threads), daemon=True)
            self.process.start()
            far.close()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        self.system = system

    def ask(self, what: str, *given: Any) -> Any:
        self.tell(what, *given)
        return self.answer()

    def tell(self, what: str, *given: Any) -> None:
        """Ask without waiting for the answer."""
        self.what = what
        with contextlib.suppress(BrokenPipeError):  # it died: the answer says so
            self.near.send((what, given))

    def answer(self) -> Any:
        try:
            kind, answer = self.near.recv()
        except (EOFError, ConnectionError):
            self.process.join(5)
            raise Failed(f"{self.system} died during {self.what!r}: exit code {self.process.exitcode}") from None
        if kind == "refused":
            raise Refused(answer)
        if kind == "failed":
            raise Failed(f"{self.system} failed at {self.what!r}:\n{answer}")
        return answer

    def close(self) -> None:
        self.near.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.terminate()


def serve(far: Connection, system: str, threads: int) -> None:
    """The far end: until the pipe closes."""
    from .systems import NotHere

    here = _Here(system, threads)
    while True:
        try:
            what, given = far.recv()
        except EOFError:
            return
        try:
            answer: tuple[str, Any] = ("done", getattr(here, what)(*given))
        except NotHere as reason:
            answer = ("refused", str(reason))
        except Exception:
            answer = ("failed", traceback.format_exc())
        far.send(answer)


class _Here:
    """What can be asked of it."""

    def __init__(self, system: str, threads: int):
        self.name, self.threads = system, threads
        self.system: Any = None

    def load(self, folder: str, device: str, precision: str) -> None:
        import gc

        from .systems import SYSTEMS, NotHere

        self.system = None
        gc.collect()
        kind = SYSTEMS[self.name]
        if kind.missing():
            raise NotHere("not installed")
        import torch

        torch.set_num_threads(self.threads)
        self.system = kind(Path(folder), device, precision, self.threads)

    def settings(self, work: Workload) -> list[dict[str, Any]]:
        return self.system.settings(work)

    def run(self, work: Workload, setting: dict[str, Any]) -> dict[str, Any]:
        """One run: wall and CPU seconds, of each call where items come alone; the vectors; the most memory meanwhile."""
        memory = _Memory(self.system.device)
        if work.alone:
            works = [Workload(**{**vars(work), "things": (thing,)}) for thing in work.things]
        else:
            works = [work]
        seconds, vectors = [], []
        cpu = time.process_time()
        try:
            for each in works:
                began = time.perf_counter()
                vectors.append(self.system.encode(each, setting))
                seconds.append(time.perf_counter() - began)
        finally:
            memory.let_go()
        cpu = time.process_time() - cpu
        return {
            "seconds": float(np.median(seconds)) if work.alone else seconds[0],
            "cpu_seconds": cpu / len(works),
            "vectors": np.concatenate(vectors).astype(np.float32 if self.name != "peak" else np.float64),
            "memory": memory.most(),
        }


class _Memory:
    """The most megabytes that this process holds from now on: on the GPU as torch counts them, else resident (Linux)."""

    def __init__(self, device: str):
        self.device = device
        if device.startswith("cuda"):
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            try:
                Path("/proc/self/clear_refs").write_text("5")
            except OSError:
                self.device = "all"  # then since the process began

    def let_go(self) -> None:
        """Give back what torch holds of the GPU for later, where another process may need it: all of it would cost the next run
        of this one its first batches anew."""
        if self.device.startswith("cuda"):
            import torch

            if torch.cuda.memory_reserved() > HELD * torch.cuda.mem_get_info()[1]:
                torch.cuda.empty_cache()

    def most(self) -> dict[str, float]:
        if self.device.startswith("cuda"):
            import torch

            return {"peak_mb": torch.cuda.max_memory_allocated() / 1e6}
        import resource

        try:
            found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
            return {"peak_mb": float(found[1]) / 1e3}  # type: ignore[index]
        except OSError:
            return {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}
