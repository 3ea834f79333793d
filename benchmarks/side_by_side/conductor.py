"""The conductor: asks every system in turn, round after round in random order, and writes down what came of it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import work as useful
from .models import SHAPES, folder_of
from .systems import Words
from .worker import Failed, Refused, Worker
from .workloads import COUNTS, ENCODED, PICTURES, TEXTS, Workload, make

NEAR = 1.1
"""A setting that took more than so many times its system's best in the first round is not run again: it will not be the best."""
SHOWN = "sentence-transformers"
"""The peer whose default is shown as well, and so runs in every round."""
PACKAGES = (
    "mmembed",
    "torch",
    "transformers",
    "sentence-transformers",
    "tokenizers",
    "openvino",
    "onnxruntime",
    "vllm",
    "xllamacpp",
    "numpy",
)
Say = Callable[[str], None]
Way = tuple[str, dict[str, Any]]
"""A system and a setting."""


class Conductor:
    """Workers of all systems, one process each, that are kept from model to model.

    Args:
        systems: names. shelf: where models and pictures are kept. threads: of each system, the same for all.
    """

    def __init__(
        self, systems: Iterable[str], shelf: Path, device: str, precision: str, threads: int, say: Say = print
    ):
        self.shelf, self.device, self.precision, self.threads, self.say = shelf, device, precision, threads, say
        self.workers = {name: Worker(name, threads) for name in (*systems, "peak")}
        self.model = ""
        self.absent: dict[str, str] = {}
        self.here: dict[str, Worker] = {}

    def __enter__(self) -> Conductor:
        return self

    def __exit__(self, *raised: object) -> None:
        for worker in self.workers.values():
            worker.close()

    def load(self, model: str) -> None:
        """Every system loads the model; peers that cannot are left out of its workloads, with the reason."""
        if model == self.model:
            return
        folder = folder_of(model, self.shelf)
        self.model, self.absent, self.here = model, {}, {}
        for worker in self.workers.values():
            worker.tell("load", str(folder), self.device, self.precision)
        for name, worker in self.workers.items():
            try:
                worker.answer()
                self.here[name] = worker
            except (Refused, Failed) as reason:
                self._leave_out(self.absent, name, name, reason)

    def measure(self, model: str, name: str, size: str, rounds: int) -> dict[str, Any]:
        """One workload on one model: the entry that is written down."""
        self.load(model)
        work = make(name, COUNTS[size][name], self.shelf / "photographs")
        asked: list[Way] = [
            (system, setting) for system, worker in self.here.items() for setting in worker.ask("settings", work)
        ]
        failed: dict[str, str] = {}
        runs: dict[int, list[dict[str, Any]]] = {}
        draw = random.Random(0)
        for number in range(-1, rounds):  # the first warms up
            turn = self._kept(asked, runs) if number > 0 else [k for k in range(len(asked)) if number < 0 or k in runs]
            draw.shuffle(turn)
            for k in turn:
                system, setting = asked[k]
                try:
                    if number < 0:  # a GPU by all of it: kernels are loaded, some made, when a size is first seen
                        self.here[system].ask("run", work if size == "cuda" else work.head(2), setting)
                        runs[k] = []
                    else:
                        runs[k].append(self.here[system].ask("run", work, setting))
                except (Refused, Failed) as reason:
                    runs.pop(k, None)
                    self._leave_out(failed, system, f"{system} {json.dumps(setting)}", reason)
        ways = [asked[k] for k in sorted(runs)]
        return self._entry(work, size, ways, [runs[k] for k in sorted(runs)], failed)

    def _leave_out(self, told: dict[str, str], system: str, what: str, reason: Exception) -> None:
        """A peer that is not here, or a setting of it that fails, out of memory say, is told and left out; we may not fail."""
        if system in ("mmembed", "peak"):
            raise reason
        told[what] = str(reason).strip().splitlines()[-1]
        self.say(f"  left out: {what}: {reason}")

    def _kept(self, ways: Sequence[Way], runs: dict[int, list[dict[str, Any]]]) -> list[int]:
        """After the first round: of each system what was near its best, and the default that is shown."""
        best: dict[str, float] = {}
        for k, own in runs.items():
            best[ways[k][0]] = min(best.get(ways[k][0], np.inf), own[0]["seconds"])
        default = next((k for k, (system, _) in enumerate(ways) if system == SHOWN), None)
        return [k for k, own in runs.items() if k == default or own[0]["seconds"] <= NEAR * best[ways[k][0]]]

    def _entry(
        self,
        work: Workload,
        size: str,
        ways: Sequence[Way],
        runs: Sequence[list[dict[str, Any]]],
        failed: dict[str, str],
    ) -> dict[str, Any]:
        peak = [
            float(run["vectors"][0, 0]) for k, (system, _) in enumerate(ways) if system == "peak" for run in runs[k]
        ]
        top = statistics.median(peak)
        operations, tokens, distinct = self._useful(work)
        ours = next((runs[k][0]["vectors"] for k, (system, _) in enumerate(ways) if system == "mmembed"), None)
        count = len(work.things)
        rows, seen = [], set()
        for k, (system, setting) in enumerate(ways):
            if system == "peak":
                continue
            seconds = [run["seconds"] for run in runs[k]]
            middle = statistics.median(seconds)
            row = {
                "system": system,
                "setting": setting,
                "default": system not in seen,
                "median_s": middle,
                "spread_s": [min(seconds), max(seconds)],
                "seconds": seconds,
                "cpu_seconds": [run["cpu_seconds"] for run in runs[k]],
                "items_per_s": (1 if work.alone else count) / middle,
                "share_of_peak": operations / middle / top,
                "peak_mb": max(run["memory"]["peak_mb"] for run in runs[k]),
            }
            if ours is not None and (system != "mmembed" or setting):
                row["difference"] = float(np.abs(runs[k][0]["vectors"] - ours).max())
            rows.append(row)
            seen.add(system)
        shape = SHAPES[self.model]
        return _rounded(
            {
                "workload": work.name,
                "said": work.said,
                "model": {
                    "name": self.model,
                    "said": shape.said,
                    "numbers": shape.numbers,
                    **shape.sizes,
                    **({"vision": shape.sight} if shape.sight else {}),
                },
                "device": self.device,
                "precision": self.precision,
                "machine": machine(self.device) | {"threads": self.threads},
                "versions": versions(),
                "size": size,
                "items": count,
                "tokens": tokens,
                "distinct_tokens": distinct,
                "useful_operations": operations,
                "peak_operations_per_s": top,
                "peak_rounds": peak,
                "rounds": max(map(len, runs)),
                "when": time.strftime("%Y-%m-%d"),
                "systems": rows,
                "absent": self.absent,
                "failed": failed,
            }
        )

    def _useful(self, work: Workload) -> tuple[int, int, int]:
        """Operations of the workload, or of one item where they come alone; its tokens, all and distinct."""
        folder = folder_of(self.model, self.shelf)
        sequences, patches = Words(folder).sequences(work)
        config = useful.config_of(folder)
        total = sum(map(len, sequences))
        if work.alone:
            every = sum(useful.of_texts(config, [one]) for one in sequences)
            return every // len(sequences), total, total
        operations = useful.of_texts(config, sequences) + useful.of_pictures(config, patches)
        return operations, total, useful.distinct(config, sequences)


def fits(model: str, workload: str) -> bool:
    """Whether the workload is of the model's kind."""
    shape = SHAPES[model]
    return workload in (ENCODED if shape.encodes else PICTURES if shape.sight else TEXTS)


def folder_here(results: Path, device: str, precision: str) -> Path:
    """Where results of a device of this machine lie: those of other machines stay beside them."""
    return results / f"{device.partition(':')[0]}-{precision}" / _named(where(machine(device)))


def file_of(results: Path, device: str, precision: str, model: str, workload: str) -> Path:
    return folder_here(results, device, precision) / model / f"{_named(workload)}.json"


def where(machine: Mapping[str, Any]) -> str:
    """What computed, by name: of a result's `machine`."""
    return str(machine.get("gpu") or machine["processor"])


def _named(said: str) -> str:
    return re.sub(r"\W+", "-", said.lower()).strip("-")


def write(path: Path, entry: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(entry, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def machine(device: str) -> dict[str, Any]:
    said: dict[str, Any] = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    listed = Path("/proc/cpuinfo")
    if listed.exists():
        told = listed.read_text()
        if found := re.search(r"model name\s*:\s*(.+)", told):
            said["processor"] = found[1]
        flags = re.search(r"flags\s*:\s*(.+)", told)
        said["instructions"] = [
            f for f in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if flags and f in flags[1].split()
        ]
    if device.startswith("cuda"):
        import torch

        said["gpu"] = torch.cuda.get_device_name(device)
    return said


def versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _rounded(value: Any) -> Any:
    """Four digits: more is noise."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
