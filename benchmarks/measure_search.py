"""Measures a search over pictures and texts together: names in twenty languages ask a collection of pictographs and of names in
other languages, by cosine alone and balanced by relevance; writes results/search.json."""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow.parquet as pq

import mmembed
from mmembed.search.background import NO_MATCH
from mmembed.search.index import Index

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "search.json"
LANGUAGES = "en de es fr ru ar hi zh ja ko sw tr vi th fi he id pt ta am".split()  # noqa: SIM905
UNRELATED = 200
"""Sentences that no pictograph answers, for the share of questions that are told they have no good match."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--questions", type=int, default=100, help="a language")
    options = parser.parse_args()
    draw = np.random.default_rng(0)
    names: dict[str, dict[str, str]] = {}
    for row in pq.read_table(options.data / "pictographs/names.parquet").to_pylist():
        if row["name"] and row["lang"] in LANGUAGES:
            names.setdefault(row["lang"], {})[row["codepoints"]] = row["name"]
    pictures = pq.read_table(options.data / "pictographs/images.parquet").to_pylist()
    tatoeba = pq.read_table(options.data / "text/tatoeba.parquet").to_pylist()
    sentences = [tatoeba[k]["english"] for k in draw.permutation(len(tatoeba))[:UNRELATED]]
    embedder = mmembed.load()
    result: dict[str, Any] = {}
    for style in ("noto", "twemoji"):
        own = {
            r["codepoints"]: mmembed.Image(PIL.Image.open(io.BytesIO(r["png"])))
            for r in pictures
            if r["style"] == style
        }
        spoken = {code: LANGUAGES[draw.integers(len(LANGUAGES))] for code in own}
        texts = {code: names[lang][code] for code, lang in spoken.items() if code in names[lang]}
        with tempfile.TemporaryDirectory() as folder:
            index = Index.create(Path(folder) / "index", embedder)
            index.add(own.values(), ids=[f"image {code}" for code in own])
            index.add(texts.values(), ids=[f"text {code}" for code in texts])
            result[style] = ask(index, names, own, texts, spoken, sentences, options.questions, draw)
        print(style, json.dumps(result[style], indent=1))
    OUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def ask(
    index: Index,
    names: dict[str, dict[str, str]],
    own: dict[str, Any],
    texts: dict[str, str],
    spoken: dict[str, str],
    sentences: list[str],
    count: int,
    draw: np.random.Generator,
) -> dict[str, Any]:
    """Recall of what a question's concept has in the collection: its picture, and its name in another language."""
    seen: dict[str, dict[str, list[float]]] = {how: {} for how in ("by cosine", "balanced")}
    sure: list[float] = []
    for language in LANGUAGES:
        codes = [code for code in names[language] if code in own and spoken[code] != language]
        for k in draw.permutation(len(codes))[:count]:
            code = codes[k]
            for how, found in seen.items():
                hits = index.search(names[language][code], k=10, balanced=how == "balanced")
                ids = [hit.id for hit in hits]
                found.setdefault("picture, R@10", []).append(f"image {code}" in ids)
                if code in texts:
                    found.setdefault("name in another language, R@10", []).append(f"text {code}" in ids)
                found.setdefault("either, R@1", []).append(ids[0] in (f"image {code}", f"text {code}"))
                found.setdefault("pictures among ten hits", []).append(
                    np.mean([id_.startswith("image") for id_ in ids])
                )
                if how == "balanced":
                    sure.append((hits[0].relevance or 0) >= NO_MATCH)
    unsure = [(index.search(sentence, k=1)[0].relevance or 0) >= NO_MATCH for sentence in sentences]
    return {
        "pictures": len(own),
        "texts": len(texts),
        **{how: {key: round(float(np.mean(value)), 4) for key, value in found.items()} for how, found in seen.items()},
        "questions with an answer that have a good match": round(float(np.mean(sure)), 4),
        "sentences about other things that have a good match": round(float(np.mean(unsure)), 4),
    }


if __name__ == "__main__":
    main()
