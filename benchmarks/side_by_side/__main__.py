"""`python -m benchmarks.side_by_side`: measures mmembed and its peers in turn, and writes results and their tables."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from . import start, table
from .conductor import Conductor, file_of, fits, folder_here, write
from .models import SHAPES
from .workloads import ENCODED, EVERY, PICTURES, TEXTS

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks/results/side_by_side"
PEERS = ("mmembed", "sentence-transformers", "transformers", "openvino", "onnxruntime", "vllm", "llama.cpp")
LARGE = ("queries", "documents", "one query")
"""What a large model is measured on where there is no GPU: the rest says the same in minutes."""


def plan(device: str, quick: bool) -> list[tuple[str, str, str, int]]:
    """What is measured: (model, workload, size, rounds)."""
    if quick:
        return [
            *(("tiny", name, "tiny", 1) for name in TEXTS),
            *(("tiny-vl", name, "tiny", 1) for name in PICTURES),
            *(("tiny-encoder", name, "tiny", 1) for name in ENCODED),
        ]
    if device.startswith("cuda"):
        return [
            *(("0.6b", name, "cuda", 5) for name in TEXTS),
            *(("1.7b", name, "cuda", 3) for name in LARGE[:2]),
            *(("2b-vl", name, "cuda", 3) for name in PICTURES),
            *(("encoder", name, "cuda", 3) for name in ENCODED),
        ]
    return [
        *(("encoder", name, "cpu", 3) for name in ENCODED),
        *(("small", name, "cpu", 2 if name == "few-shot" else 3) for name in TEXTS),
        *(("small-vl", name, "cpu", 3) for name in PICTURES),
        *(("0.6b", name, "cpu, large", 2) for name in LARGE),
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.side_by_side", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", default=None, help="fp32 (the default on a CPU) or bf16 (on a GPU)")
    parser.add_argument("--quick", action="store_true", help="tiny models, few items, one round: does it run?")
    parser.add_argument("--models", nargs="*", help=f"only these of {', '.join(SHAPES)}")
    parser.add_argument("--only", nargs="*", help=f"only these workloads: {', '.join((*EVERY, start.NAME))}")
    parser.add_argument("--systems", nargs="*", default=PEERS, help="only these")
    parser.add_argument("--resume", action="store_true", help="leave out what has been written already")
    parser.add_argument("--rounds", type=int, help="other than the plan's")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each system")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--shelf", type=Path, default=Path(tempfile.gettempdir()) / "mmembed-side-by-side", help="models"
    )
    parser.add_argument(
        "--table",
        action="store_true",
        help="write the tables of README.md and docs/benchmarks.md from the results, and measure nothing",
    )
    args = parser.parse_args(arguments)
    if args.table:
        table.into(ROOT / "README.md", table.shortened(args.results))
        table.into(ROOT / "docs/benchmarks.md", table.written(args.results))
        return
    precision = args.precision or ("bf16" if args.device.startswith("cuda") else "fp32")
    asked = [
        step
        for step in plan(args.device, args.quick)
        if (not args.models or step[0] in args.models) and (not args.only or step[1] in args.only)
    ]
    assert all(fits(model, workload) for model, workload, _, _ in asked)
    with Conductor(args.systems, args.shelf, args.device, precision, args.threads) as conductor:
        for model, workload, size, rounds in asked:
            path = file_of(args.results, args.device, precision, model, workload)
            if args.resume and path.exists():
                continue
            began = time.perf_counter()
            entry = conductor.measure(model, workload, size, args.rounds or rounds)
            write(path, entry)
            print(
                "\n".join(
                    [f"{SHAPES[model].said}: {entry['said']} ({time.perf_counter() - began:.0f} s)", *table.told(entry)]
                )
            )
    if (not args.only or start.NAME in args.only) and args.device == "cpu":
        models = ["tiny"] if args.quick else ["pico", "small"]
        path = folder_here(args.results, args.device, precision) / "start.json"
        if not (args.resume and path.exists()):
            entry = start.measure(models, args.shelf, args.systems, 1 if args.quick else 3)
            write(path, entry)
            print("\n".join(table.started(entry)))


if __name__ == "__main__":
    main()
