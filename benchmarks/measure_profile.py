"""Where the time of a workload goes: seconds of kernels by kind beside the seconds of the clock.

    python -m benchmarks.measure_profile --model 0.6b --workload documents

On a GPU, what no kernel filled is time in which it waited for the host. On a CPU the kernels are torch's operators.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .side_by_side.models import SHAPES, folder_of
from .side_by_side.systems import Ours, Peak, Setting
from .side_by_side.workloads import COUNTS, PICTURES, TEXTS, Workload, make

OUT = Path(__file__).parent / "results/profile.json"
KINDS = {
    "attention": r"flash|fmha|flex|attention",
    "matrix products": r"gemm|nvjet|cutlass|matmul|cublas|mm$|_mm_|conv|linear",
    "copies": r"memcpy|memset|copy|cat",
    "gathers": r"index|gather|scatter|embedding",
}
"""Kinds of kernels by their names; the first that fits."""


def kind_of(kernel: str) -> str:
    return next((kind for kind, told in KINDS.items() if re.search(told, kernel.lower())), "norms, RoPE, SwiGLU, sums")


def profiled(system: Ours, work: Workload, setting: Setting) -> dict[str, Any]:
    """Seconds of the clock without the profiler, and of kernels by kind and by name under it."""
    system.encode(work.head(8), setting)
    system.encode(work, setting)
    began = time.perf_counter()
    system.encode(work, setting)  # what it gives lies on the host: no device is left behind
    took = time.perf_counter() - began
    on_gpu = system.device.startswith("cuda")
    activities = [torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as seen:
        system.encode(work, setting)
    kinds: Counter[str] = Counter()
    kernels: Counter[str] = Counter()
    calls = 0
    for kernel in seen.key_averages():
        seconds = (kernel.self_device_time_total if on_gpu else kernel.self_cpu_time_total) / 1e6
        kinds[kind_of(kernel.key)] += seconds
        kernels[kernel.key[:100]] += seconds
        calls += kernel.count
    return {
        "workload": work.said,
        **setting,
        "items": len(work.things),
        "seconds": round(took, 4),
        "seconds of kernels": round(sum(kinds.values()), 4),
        "kernels": calls,
        "kinds": {kind: round(seconds, 4) for kind, seconds in kinds.most_common()},
        "longest": {kernel: round(seconds, 4) for kernel, seconds in kernels.most_common(12)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SHAPES, default="0.6b")
    parser.add_argument("--workload", nargs="*", choices=(*TEXTS, *PICTURES), default=["queries", "documents"])
    parser.add_argument("--device", default="cuda", help="cpu or cuda")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--size", choices=COUNTS, default="cuda")
    parser.add_argument("--shelf", type=Path, default=Path(tempfile.gettempdir()) / "mmembed-side-by-side")
    parser.add_argument("--output", type=Path, default=OUT)
    options = parser.parse_args()
    folder = folder_of(options.model, options.shelf)
    system = Ours(folder, options.device, options.precision, torch.get_num_threads())
    peak = Peak(folder, options.device, options.precision, torch.get_num_threads()).encode(Workload("", "", ()), {})
    found = {
        "machine": torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.machine(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "model": SHAPES[options.model].said,
        "precision": options.precision,
        "peak, operations a second": float(peak[0, 0]),
        "workloads": [
            profiled(system, work, setting)
            for name in options.workload
            for work in [make(name, COUNTS[options.size][name], options.shelf / "photographs")]
            for setting in system.settings(work)
        ],
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for each in found["workloads"]:
        said = each["workload"] + ", compiled" * each.get("compiled", False)
        print(f"{said}: {each['seconds']} s, kernels {each['seconds of kernels']} s in {each['kernels']}")
        print("  " + ", ".join(f"{kind} {seconds}" for kind, seconds in each["kinds"].items()))


if __name__ == "__main__":
    main()
