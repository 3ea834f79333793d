"""Start: how long a fresh process takes to import a system, to load a model, and to its first and second vector."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .conductor import machine, versions
from .models import SHAPES, folder_of

NAME = "start"
SYSTEMS = {
    "mmembed": (
        "import mmembed",
        "model = mmembed.load({folder!r}, device='cpu')",
        "model.encode({text!r})",
    ),
    "sentence-transformers": (
        "from sentence_transformers import SentenceTransformer",
        "model = SentenceTransformer({folder!r}, device='cpu', local_files_only=True)",
        "model.encode({text!r})",
    ),
    "transformers": (
        "import torch\nfrom transformers import AutoModel, AutoTokenizer",
        "words = AutoTokenizer.from_pretrained({folder!r}, local_files_only=True)\n"
        "model = AutoModel.from_pretrained({folder!r}, local_files_only=True).eval()",
        "with torch.inference_mode():\n model(**words({text!r}, return_tensors='pt')).last_hidden_state[0, -1].numpy()",
    ),
}
"""Of each: import, load, and one vector, as code."""
STEPS = ("import", "load", "first vector", "second vector")


def measure(models: Iterable[str], shelf: Path, systems: Iterable[str], rounds: int) -> dict[str, Any]:
    """Every system on every model in fresh processes, in turn: medians of the seconds of each step. "pico" is the bundled one,
    which no peer loads."""
    ways = [
        (system, model)
        for model in models
        for system in systems
        if system in SYSTEMS
        and (model != "pico" or system == "mmembed")
        and importlib.util.find_spec(system.replace("-", "_"))
    ]
    runs: dict[tuple[str, str], list[dict[str, float]]] = {way: [] for way in ways}
    draw = random.Random(0)
    for system, model in (
        ways if rounds > 1 else ()
    ):  # files of libraries are read from the disk once, before any is measured
        _once(system, model, shelf)
    for _ in range(rounds):
        for way in draw.sample(ways, len(ways)):
            runs[way].append(_once(*way, shelf))
    rows = [
        {
            "system": system,
            "model": "pico" if model == "pico" else SHAPES[model].said,
            **{step: round(statistics.median(run[step] for run in runs[system, model]), 3) for step in (*STEPS, "all")},
            "seconds": [round(run["all"], 3) for run in runs[system, model]],
            "peak_mb": round(max(run["peak_mb"] for run in runs[system, model])),
        }
        for system, model in ways
    ]
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    return {
        "workload": NAME,
        "machine": machine("cpu") | {"threads": threads},
        "versions": versions(),
        "rounds": rounds,
        "when": time.strftime("%Y-%m-%d"),
        "systems": rows,
    }


def _once(system: str, model: str, shelf: Path) -> dict[str, float]:
    folder = "pico" if model == "pico" else str(folder_of(model, shelf))
    imports, load, vector = (step.format(folder=folder, text="una mela rossa") for step in SYSTEMS[system])
    code = "\n".join(
        [
            "import json, resource, time",
            "at = [time.perf_counter()]",
            *(f"{step}\nat.append(time.perf_counter())" for step in (imports, load, vector, vector)),
            "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3",
            "print(json.dumps([*(b - a for a, b in zip(at, at[1:])), at[-2] - at[0], peak]))",
        ]
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{system} did not start:\n{done.stderr}")
    return dict(zip((*STEPS, "all", "peak_mb"), json.loads(done.stdout.splitlines()[-1]), strict=True))
