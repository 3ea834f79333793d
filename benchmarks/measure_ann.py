"""Measures search through codes against a scan: names of pictographs in 126 languages and pictures of them, embedded by pico;
recall at 10, queries per second and bytes by size, by kind of index and by modality; writes results/ann.json."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from lancedb.index import HnswSq, IvfFlat, IvfPq, IvfRq, IvfSq
from numpy.typing import NDArray

from mmembed.search import codes
from mmembed.search.index import MODALITIES
from mmembed.search.table import Table

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "ann.json"
SIZES = (5_000, 10_000, 20_000, 50_000, 100_000)
TEXTS, QUERIES = 100_000, 500
KINDS: dict[str, tuple[Any, list[tuple[int, int | None]]]] = {
    "IVF_FLAT": (IvfFlat(distance_type="dot"), [(10, None), (20, None), (codes.ALL, None)]),
    "IVF_SQ (int8)": (IvfSq(distance_type="dot"), [(20, 1), (codes.ALL, 1)]),
    "IVF_RQ (1 bit)": (IvfRq(distance_type="dot"), [(20, 10), (codes.ALL, 4), (codes.ALL, 10)]),
    "IVF_RQ (2 bits)": (
        IvfRq(distance_type="dot", num_bits=2),
        [(20, 4), (codes.ALL, 2), (codes.ALL, 4), (codes.ALL, 10)],
    ),
    "IVF_PQ": (IvfPq(distance_type="dot"), [(codes.ALL, 10)]),
    "IVF_HNSW_SQ": (HnswSq(distance_type="dot"), [(20, 2)]),
}
"""Kinds of index of LanceDB, with lists that are looked through and how many times the rows wanted are rescored."""


def vectors(data: Path, cache: Path) -> dict[str, NDArray[np.float32]]:
    """Vectors of texts, of other texts as queries, and of pictures."""
    import mmembed

    files = {name: cache / f"{name}.npy" for name in ("names", "queries", "images")}
    if not all(file.exists() for file in files.values()):
        rows = pq.read_table(data / "pictographs/names.parquet", columns=["name"]).to_pylist()
        texts = list(dict.fromkeys(row["name"] for row in rows if row["name"]))
        order = np.random.default_rng(0).permutation(len(texts))[: TEXTS + QUERIES]
        pictures = pq.read_table(data / "pictographs/images.parquet").to_pylist()
        embedder = mmembed.load()
        cache.mkdir(parents=True, exist_ok=True)
        np.save(files["queries"], embedder.encode_query([texts[k] for k in order[TEXTS:]]))
        np.save(files["names"], embedder.encode_document([texts[k] for k in order[:TEXTS]]))
        np.save(files["images"], embedder.encode_document([mmembed.Image(row["png"]) for row in pictures]))
    return {name: np.load(file) for name, file in files.items()}


def fill(folder: Path, texts: NDArray[np.float32], images: NDArray[np.float32]) -> Table:
    made = {
        "model": "pico",
        "fingerprint": "measured",
        "precision": "fp32",
        "dimension": texts.shape[1],
        "store": "float32",
    }
    table = Table.create(folder, made)
    for kind, found in (("text", texts), ("image", images)):
        for first in range(0, len(found), 10_000):
            part = found[first : first + 10_000]
            names = [f"{kind} {k:06}" for k in range(first, first + len(part))]
            plain = {"modality": kind, "text": None, "path": None, "thumbnail": None, "metadata": "{}", "terms": ""}
            table.merge([{"id": name, "content": name, **plain} for name in names], part)
    return table


def ask(
    search: Callable[[NDArray[np.float32]], list[str]],
    queries: NDArray[np.float32],
    scores: NDArray[np.float32],
    row_of: dict[str, int],
    k: int = 10,
) -> dict[str, float]:
    """Recall at `k` (equal scores count alike) and queries a second, one after the other."""
    search(queries[0])
    began = time.perf_counter()
    found = [search(query) for query in queries]
    seconds = time.perf_counter() - began
    due = -np.sort(-scores, axis=1)[:, k - 1] - 1e-6
    right = [sum(scores[q, row_of[name]] >= due[q] for name in names) / k for q, names in enumerate(found)]
    return {"recall": round(float(np.mean(right)), 4), "queries_per_second": round(len(queries) / seconds, 1)}


def through(table: Table, where: str | None, *, exact: bool = False) -> Callable[[NDArray[np.float32]], list[str]]:
    return lambda query: [row["id"] for _, row in table.nearest(query, 10, where, exact=exact)]


def bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "mmembed-ann")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--kinds", nargs="*", default=[], choices=[*KINDS], help="also these, at the largest size")
    parser.add_argument("--sizes", nargs="*", type=int, default=SIZES)
    options = parser.parse_args()
    known = vectors(options.data, options.cache)
    queries = known["queries"][: options.queries]
    result: dict[str, Any] = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {}
    result.setdefault("sizes", {})
    result.setdefault("kinds", {})
    codes.FROM = 1
    for size in options.sizes:
        images = known["images"][: size // 16]
        texts = known["names"][: size - len(images)]
        every = np.concatenate([texts, images])
        row_of = {f"text {k:06}": k for k in range(len(texts))}
        row_of |= {f"image {k:06}": len(texts) + k for k in range(len(images))}
        scores = queries @ every.T
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work)
            table = fill(folder, texts, images)
            table._table.optimize()
            before = bytes_of(folder)
            few = queries[:20]
            found: dict[str, Any] = {"scan": ask(through(table, None, exact=True), few, scores[:20], row_of)}
            began = time.perf_counter()
            table.compact()
            found["seconds to make codes"] = round(time.perf_counter() - began, 1)
            found["bytes of codes a row"] = round((bytes_of(folder) - before) / size)
            found["codes"] = ask(through(table, None), queries, scores, row_of)
            for kind, of_kind in zip(MODALITIES, (slice(0, len(texts)), slice(len(texts), size)), strict=False):
                only = np.full_like(scores, -2)
                only[:, of_kind] = scores[:, of_kind]
                found[f"codes, {kind} only"] = ask(through(table, f"modality = '{kind}'"), queries, only, row_of)
            result["sizes"][str(size)] = found
            print(size, json.dumps(found), flush=True)
            for name in options.kinds if size == max(options.sizes) else ():
                result["kinds"][name] = measure_kind(table, folder, name, queries, scores, row_of)
                print(name, json.dumps(result["kinds"][name]), flush=True)
                OUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        OUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure_kind(
    table: Table,
    folder: Path,
    name: str,
    queries: NDArray[np.float32],
    scores: NDArray[np.float32],
    row_of: dict[str, int],
) -> dict[str, Any]:
    config, settings = KINDS[name]
    before = bytes_of(folder)
    began = time.perf_counter()
    table._table.create_index("vector", config=config, replace=True)
    found: dict[str, Any] = {"seconds": round(time.perf_counter() - began, 1)}
    found["bytes a row"] = round((bytes_of(folder) - before) / table.count())
    for lists, rescored in settings:

        def search(query: NDArray[np.float32], lists: int = lists, rescored: int | None = rescored) -> list[str]:
            asked = table._table.search(query, vector_column_name="vector").distance_type("dot").nprobes(lists)
            asked = asked if rescored is None else asked.refine_factor(rescored)
            rows = asked.limit(26).to_arrow()
            vectors = rows.column("vector").combine_chunks().flatten().to_numpy().reshape(-1, len(query))
            names = rows.column("id").to_pylist()
            return [names[k] for k in np.argsort(-(vectors @ query))[:10]]

        said = f"{'all' if lists == codes.ALL else lists} lists, rescored {rescored or 0}"
        found[said] = ask(search, queries, scores, row_of)
    return found


if __name__ == "__main__":
    main()
