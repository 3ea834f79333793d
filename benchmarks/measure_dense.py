"""Attention by oneDNN's products beside torch's flash kernel, alternately in one run: shapes by themselves, and long texts whole.

    python -m benchmarks.measure_dense

Says what `mmembed.nn.dense` gives on this processor; where MKL serves well the package does not use it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mmembed.nn import dense

from .side_by_side.conductor import machine, versions
from .side_by_side.models import SHAPES, folder_of
from .side_by_side.texts import of_lengths, tokenizer

OUT = Path(__file__).parent / "results/dense.json"
HEADS = ((8, 4, 64, True), (16, 8, 128, True), (6, 6, 64, False), (12, 12, 64, False))
"""Heads, those of keys, numbers of one, and whether the mask is causal."""
LENGTHS = (256, 365, 512, 1200, 2000)
TEXTS = {"small": ((500, 8), (1000, 4), (2000, 3), (4000, 1)), "0.6b": ((500, 1), (1000, 1), (2000, 1))}
"""Of each model, tokens of a text and how many."""


def in_turn(run: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Median seconds of a call with products and with flash, and how many times as long flash takes."""
    found: dict[bool, list[float]] = {True: [], False: []}
    before = dense.slowed
    try:
        for number in range(-1, rounds):  # the first warms up
            for by_products in (True, False):
                dense.slowed = lambda asked=by_products: asked  # type: ignore[assignment]
                began = time.perf_counter()
                run()
                if number >= 0:
                    found[by_products].append(time.perf_counter() - began)
    finally:
        dense.slowed = before
    products, flash = (statistics.median(found[asked]) for asked in (True, False))
    return {"products, s": round(products, 5), "flash, s": round(flash, 5), "ratio": round(flash / products, 3)}


def main() -> None:
    import mmembed

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", choices=TEXTS, default=["small"])
    parser.add_argument("--shelf", type=Path, default=Path(tempfile.gettempdir()) / "mmembed-side-by-side")
    parser.add_argument("--output", type=Path, default=OUT)
    options = parser.parse_args()
    shapes, texts = [], []
    with torch.inference_mode():
        for heads, of_keys, width, causal in HEADS:
            for length in LENGTHS:
                q, k, v = (torch.randn(1, length, count, width).transpose(1, 2) for count in (heads, of_keys, of_keys))
                if heads // of_keys * length * length < dense.LEAST:
                    continue
                told = in_turn(lambda q=q, k=k, v=v, c=causal: dense.dense(q, k, v, scaling=0.1, causal=c), 15)  # type: ignore[misc]
                shapes.append(
                    {"heads": heads, "of keys": of_keys, "width": width, "causal": causal, "tokens": length} | told
                )
                print(shapes[-1])
    for name in options.models:
        embedder = mmembed.load(folder_of(name, options.shelf), device="cpu")
        for length, count in TEXTS[name]:
            things = of_lengths([length] * count, 5, tokenizer(close=False))
            told = in_turn(lambda e=embedder, t=things: e.encode(t), 3)  # type: ignore[misc]
            texts.append({"model": SHAPES[name].said, "tokens": length, "texts": count} | told)
            print(texts[-1])
    said = {"machine": machine("cpu"), "threads": torch.get_num_threads(), "versions": versions()}
    options.output.write_text(json.dumps(said | {"shapes": shapes, "texts": texts}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
