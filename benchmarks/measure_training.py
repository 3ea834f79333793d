"""Trains one model by mmembed's trainer and by sentence-transformers', by turns in one run, on the same batches of short
multilingual pairs under an instruction; losses are held to each other step by step. Writes results/training.json."""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import SequentialSampler

from benchmarks.side_by_side.models import QUERY, SHAPES, folder_of
from benchmarks.side_by_side.systems import Peak
from benchmarks.side_by_side.texts import of_lengths, tokenizer
from benchmarks.side_by_side.work import config_of, of_texts
from benchmarks.side_by_side.workloads import Workload
from mmembed.train.data import Column, Columns, InMemory
from mmembed.train.learning import Learning
from mmembed.train.loop import Run
from mmembed.train.recipe import Model, Recipe, Stage, Task, Watch
from mmembed.train.watch import LOG, read_log

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "training.json"
LR, TEMPERATURE = 1e-4, 0.05
Timed = Callable[[Path], tuple[list[float], list[float]]]
"""A run in a folder: the loss of each step, and the seconds that each but the first took."""


def pairs_of(count: int) -> list[dict[str, str]]:
    """Queries of 6 to 14 tokens and documents of 10 to 40, in eleven languages, no two the same."""
    words, draw = tokenizer(close=False), random.Random(0)
    queries = of_lengths([draw.randint(6, 14) for _ in range(count)], 21, words)
    documents = of_lengths([draw.randint(10, 40) for _ in range(count)], 22, words)
    return [{"query": q, "positive": d} for q, d in zip(queries, documents, strict=True)]


def recipe_of(model: Path, pairs: list[dict[str, str]], batch: int, steps: int) -> Recipe:
    columns = Columns(query=Column(text="query"), positive=Column(text="positive"))
    task = Task(data=("pairs",), batch=batch, losses=({"kind": "infonce", "temperature": TEMPERATURE},))
    stage = Stage(
        name="one", steps=steps, train=("all",), task=(task,), lr=LR, weight_decay=0.0, schedule="constant",
        batch_tokens=1 << 20,
    )  # fmt: skip
    return Recipe(
        name="timed",
        model=Model(load=str(model)),
        data={"pairs": InMemory(table=pairs, columns=columns)},
        stage=(stage,),
        watch=Watch(plot=False),
    )


def ours(recipe: Recipe, folder: Path) -> tuple[list[float], list[float]]:
    run = Run(recipe, folder, device="cpu")
    run.train()
    records = read_log(run.folder / LOG)
    ends = [record["seconds"] for record in records]
    return [record["loss"] for record in records], [b - a for a, b in pairwise(ends)]


def theirs(model: Path, pairs: list[dict[str, str]], batch: int, folder: Path) -> tuple[list[float], list[float]]:
    """sentence-transformers' trainer as its documentation has it, the rows in the order in which they are given."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from transformers import PrinterCallback, TrainerCallback

    class Watch(TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[float] = []
            self.losses: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(time.perf_counter())

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
            if "loss" in logs:
                self.losses.append(float(logs["loss"]))

    watch = Watch()
    embedder = SentenceTransformer(str(model), device="cpu", local_files_only=True)
    arguments = SentenceTransformerTrainingArguments(
        str(folder), num_train_epochs=1, per_device_train_batch_size=batch, learning_rate=LR, lr_scheduler_type="constant",
        batch_sampler=lambda dataset, batch_size, drop_last, **_: DefaultBatchSampler(
            SequentialSampler(dataset), batch_size=batch_size, drop_last=drop_last
        ),
        prompts={"query": QUERY}, logging_steps=1, logging_nan_inf_filter=False, save_strategy="no", report_to="none",
        disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = SentenceTransformerTrainer(
        model=embedder,
        args=arguments,
        train_dataset=Dataset.from_list(pairs),
        loss=MultipleNegativesRankingLoss(embedder, scale=1 / TEMPERATURE),
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return watch.losses, [b - a for a, b in pairwise(watch.ends)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=SHAPES, default="small")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=6, help="of each run; the first is not timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        result = measured(options, Path(name))
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in result.items() if key != "rounds"}, indent=1))


def measured(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    model = folder_of(options.model, folder)
    pairs = pairs_of(options.batch * options.steps)
    recipe = recipe_of(model, pairs, options.batch, options.steps)
    mixture = Learning(Run(recipe, folder / "order", device="cpu"), 0, 0).mixtures[0]
    drawn = [pairs[example.row] for _ in range(options.steps) for example in next(mixture)]
    words = tokenizer(close=True)
    sequences = [words(text)["input_ids"] for row in drawn for text in (QUERY + row["query"], row["positive"])]
    tokens = sum(map(len, sequences)) / options.steps
    size = 2 * options.batch
    # Forward and backward: three times the products of a forward pass, what items share counted once.
    work = (
        3
        * sum(of_texts(config_of(model), sequences[k : k + size]) for k in range(0, len(sequences), size))
        / options.steps
    )
    ways: dict[str, Timed] = {
        "mmembed": lambda at: ours(recipe, at),
        "sentence-transformers": lambda at: theirs(model, drawn, options.batch, at),
    }
    peak = Peak(model, "cpu", "fp32", options.threads)
    rounds: list[dict[str, Any]] = []
    order = list(ways)
    for number in range(options.rounds):
        found: dict[str, Any] = {"peak_gflops": float(peak.encode(Workload("", "", ()), {})[0, 0]) / 1e9}
        for kind in order:
            losses, seconds = ways[kind](folder / f"{kind}-{number}")
            found[kind] = {"losses": losses, "seconds": seconds}
        rounds.append(found)
        took = ", ".join(f"{kind} {statistics.median(found[kind]['seconds']):.2f} s" for kind in ways)
        print(f"round {number + 1}: {took} a step; peak {found['peak_gflops']:.0f} gflops", flush=True)
        order.reverse()
    best = statistics.median(each["peak_gflops"] for each in rounds) * 1e9
    result: dict[str, Any] = {
        "model": SHAPES[options.model].said,
        "machine": f"{platform.machine()}, {options.threads} threads",
        "versions": {name: version(name) for name in ("torch", "transformers", "sentence-transformers")},
        "batch": options.batch,
        "tokens a step": tokens,
        "peak, gflops": round(best / 1e9, 1),
        "greatest relative difference of a loss": max(
            abs(a / b - 1) for each in rounds for a, b in zip(*(each[kind]["losses"] for kind in ways), strict=True)
        ),
    }
    for kind in ways:
        step = statistics.median(second for each in rounds for second in each[kind]["seconds"])
        result[kind] = {
            "seconds a step": round(step, 4),
            "tokens a second": round(tokens / step, 1),
            "share of peak": round(work / step / best, 3),
        }
    result["times as fast"] = round(
        result["sentence-transformers"]["seconds a step"] / result["mmembed"]["seconds a step"], 2
    )
    return {**result, "rounds": rounds}


if __name__ == "__main__":
    main()
