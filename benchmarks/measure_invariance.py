"""Measures how far an item's vector moves with its company: alone, in batches, in three orders, under two token budgets,
packed and padded; texts, pictures and mixed items; fp32. Prints a table and writes results/invariance.json."""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
from pathlib import Path

import numpy as np
import torch

import mmembed
from mmembed import Image
from mmembed.demo import DATA
from mmembed.embedder import Embedder
from mmembed.model import EmbeddingModel


def padded(embedder: Embedder) -> Embedder:
    """The same weights over padded batches."""
    model = EmbeddingModel(dataclasses.replace(embedder.spec, layout="padded"))
    model.load_state_dict(embedder.model.state_dict())
    return Embedder(model, embedder.tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="folder or bundled name; the bundled default unless given")
    embedder = mmembed.load(parser.parse_args().model, device="cpu")
    texts = [entry["text"] for entry in json.loads((DATA / "texts.json").read_text(encoding="utf-8"))]
    pictures = [Image(path) for path in sorted((DATA / "pictographs").glob("*.png"))[:60]]
    mixed = list(zip(pictures, texts, strict=False))
    things = [*texts, *pictures, *mixed]
    kinds = ["text"] * len(texts) + ["image"] * len(pictures) + ["mixed"] * len(mixed)
    alone = np.concatenate([embedder.encode([thing]) for thing in things])
    rng = np.random.default_rng(0)
    orders = {
        "given": np.arange(len(things)),
        "reversed": np.arange(len(things))[::-1],
        "shuffled": rng.permutation(len(things)),
    }
    rows = []
    for layout, runner in (("packed", embedder), ("padded", padded(embedder))):
        for budget in (256, 8192):
            for order, places in orders.items():
                together = runner.encode([things[k] for k in places], batch_tokens=budget)
                moved = np.abs(together - alone[places]).max(1)
                for kind in ("text", "image", "mixed"):
                    of_kind = np.array([kinds[k] == kind for k in places])
                    rows.append(
                        {
                            "layout": layout,
                            "batch_tokens": budget,
                            "order": order,
                            "kind": kind,
                            "greatest": float(moved[of_kind].max()),
                        }
                    )
                    print(f"{layout}  {budget:5d} tokens  {order:8}  {kind:5}  {rows[-1]['greatest']:.2e}")
    greatest = max(row["greatest"] for row in rows)
    print(f"{len(things)} items, greatest difference {greatest:.2e}")
    result = {
        "model": embedder.spec.name,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "items": len(things),
        "greatest": greatest,
        "rows": rows,
    }
    path = Path(__file__).parent / "results" / "invariance.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
