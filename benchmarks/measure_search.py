"""Measures search with pico, of data at hand, and writes results/search.json: a collection of pictures and texts asked in twenty
languages, by cosine and balanced; what is told of questions that it does not answer; and hybrid search against vectors alone in
Chinese, Japanese and Thai."""

from __future__ import annotations

import argparse
import io
import json
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow.parquet as pq

import mmembed
from mmembed import Hits, Index
from mmembed.search.background import NO_MATCH

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "search.json"
LANGUAGES = "en de es fr ru ar hi zh ja ko sw tr vi th fi he id pt ta am".split()  # noqa: SIM905
SPACELESS = {"zh": "cmn", "ja": "jpn", "th": "tha"}
UNRELATED = ("cmn", "jpn", "tha", "deu", "ara", "hin")
DEPTH = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--questions", type=int, default=30, help="a language")
    options = parser.parse_args()
    began = time.perf_counter()
    data = Data(options.data)
    embedder = mmembed.load()
    result: dict[str, Any] = {"questions a language": options.questions, "mixed": {}}
    with tempfile.TemporaryDirectory() as folder:
        for style in ("noto", "twemoji"):
            result["mixed"][style] = mixed(embedder, data, style, Path(folder), options.questions)
        result["hybrid"] = hybrid(embedder, data, Path(folder), 3 * options.questions)
    print(table(result))
    print(f"{time.perf_counter() - began:.0f} s")
    OUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


class Data:
    """Names and keywords of pictographs by language and code point, their pictures, sentences by language with their English."""

    def __init__(self, folder: Path):
        self.names: dict[str, dict[str, str]] = {}
        self.keywords: dict[str, dict[str, list[str]]] = {}
        for row in pq.read_table(folder / "pictographs/names.parquet").to_pylist():
            if row["lang"] in LANGUAGES:
                if row["name"]:
                    self.names.setdefault(row["lang"], {})[row["codepoints"]] = row["name"]
                self.keywords.setdefault(row["lang"], {})[row["codepoints"]] = row["keywords"] or []
        self.pictures = pq.read_table(folder / "pictographs/images.parquet").to_pylist()
        rows = pq.read_table(folder / "text/tatoeba.parquet").to_pylist()
        self.sentences: dict[str, list[tuple[str, str]]] = {}
        for row in rows:
            self.sentences.setdefault(row["lang"], []).append((row["text"], row["english"]))

    def unrelated(self, most: int = 60) -> list[str]:
        """Sentences whose English shares no word of four letters or more with any name or keyword of a pictograph, in their own
        language and in English."""
        told = [*self.names["en"].values(), *(word for words in self.keywords["en"].values() for word in words)]
        known = {word for text in told for word in _words(text)}
        found = []
        for language in UNRELATED:
            free = [
                pair
                for pair in self.sentences[language]
                if not any({word, word[:-1], word[:-2], word[:-3]} & known for word in _words(pair[1]))
            ]
            found += [text for pair in free[:most] for text in pair]
        return list(dict.fromkeys(found))


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"[a-z]+", text.lower()) if len(word) > 3]


def mixed(embedder: mmembed.Embedder, data: Data, style: str, folder: Path, count: int) -> dict[str, Any]:
    """Names in twenty languages ask for their picture, and for their name in another language, among both."""
    draw = np.random.default_rng(0)
    own = {
        row["codepoints"]: mmembed.Image(PIL.Image.open(io.BytesIO(row["png"])))
        for row in data.pictures
        if row["style"] == style
    }
    spoken = {code: LANGUAGES[draw.integers(len(LANGUAGES))] for code in own}
    texts = {code: data.names[lang][code] for code, lang in spoken.items() if code in data.names[lang]}
    index = Index.create(folder / style, embedder)
    index.add(own.values(), ids=[f"image {code}" for code in own])
    index.add(texts.values(), ids=[f"text {code}" for code in texts], metadata=[{"lang": spoken[c]} for c in texts])
    asked = []
    for language in LANGUAGES:
        codes = [code for code in data.names[language] if code in own and spoken[code] != language]
        asked += [(language, codes[k]) for k in draw.permutation(len(codes))[:count]]
    vectors = embedder.encode_query([data.names[language][code] for language, code in asked])
    result: dict[str, Any] = {"pictures": len(own), "texts": len(texts), "questions": len(asked)}
    for how in ("by cosine", "balanced"):
        found = [index.nearest(vector, k=DEPTH, balanced=how == "balanced") for vector in vectors]
        ids = [[hit.id for hit in hits] for hits in found]
        pairs = list(zip(asked, ids, strict=True))
        result[how] = {
            "picture, R@10": _mean([f"image {code}" in hits for (_, code), hits in pairs]),
            "name in another language, R@10": _mean([f"text {c}" in hits for (_, c), hits in pairs if c in texts]),
            "either, R@1": _mean([hits[0] in (f"image {code}", f"text {code}") for (_, code), hits in pairs]),
            "pictures among ten": _mean([np.mean([name.startswith("image") for name in hits]) for hits in ids]),
            "picture, R@10, by language": {
                language: _mean([f"image {code}" in hits for (own, code), hits in pairs if own == language])
                for language in LANGUAGES
            },
        }
    right = [hits[0].id in (f"image {code}", f"text {code}") for (_, code), hits in zip(asked, found, strict=True)]
    sure = [_good(hits) for hits in found]
    unsure = [_good(index.nearest(vector, k=1)) for vector in embedder.encode_query(data.unrelated())]
    result["told a good match"] = {
        "questions that are answered": _mean(sure),
        "of these the best hit right": _mean([s for s, r in zip(sure, right, strict=True) if r]),
        "sentences about other things": _mean(unsure),
        "sentences": len(unsure),
    }
    told = index.diagnose()
    result["diagnosis"] = {
        "modality gap": round(told.gaps[("image", "text")], 3),
        "cosine within and between": [
            round(v, 3)
            for v in (told.modalities["text"].cosine, told.modalities["image"].cosine, told.between[("image", "text")])
        ],
        "hubness": round(told.hubness, 2),
    }
    return result


def hybrid(embedder: mmembed.Embedder, data: Data, folder: Path, count: int) -> dict[str, Any]:
    """Sentences asked by a part of them and by their English; concepts by a keyword that their text does not repeat."""
    result: dict[str, Any] = {}
    for language, code in SPACELESS.items():
        draw = np.random.default_rng(0)
        sentences = data.sentences[code]
        index = Index.create(folder / f"sentences {language}", embedder)
        index.add([text for text, _ in sentences], ids=[f"{row:04}" for row in range(len(sentences))])
        rows = draw.permutation([row for row, (text, _) in enumerate(sentences) if len(text) >= 10])[:count]
        parts = [_part(sentences[row][0], draw) for row in rows]
        right = [f"{row:04}" for row in rows]
        words = data.keywords[language]
        concepts = {c: [*words[c]] for c in data.names[language] if len(words[c]) >= 3}
        held = {c: concepts[c].pop(int(draw.integers(len(concepts[c])))) for c in concepts}
        thesaurus = Index.create(folder / f"words {language}", embedder)
        thesaurus.add([f"{data.names[language][c]}: {', '.join(concepts[c])}" for c in concepts], ids=concepts)
        chosen = [list(concepts)[k] for k in draw.permutation(len(concepts))[:count]]
        result[language] = {
            "part of a sentence": compare(index, parts, right),
            "its English": compare(index, [sentences[row][1] for row in rows], right),
            "a keyword left out": compare(thesaurus, [held[c] for c in chosen], chosen),
        }
    return result


def _part(text: str, draw: np.random.Generator) -> str:
    """Four to six characters of a text, from within."""
    width = int(draw.integers(4, 7))
    begin = int(draw.integers(0, len(text) - width))
    return text[begin : begin + width]


def compare(index: Index, questions: Sequence[str], right: Sequence[str]) -> dict[str, Any]:
    """R@1 and R@10 of the one right item, by each mode."""
    found: dict[str, list[list[str]]] = {"vector": [], "text": [], "hybrid": []}
    for question in questions:
        for mode, hits in found.items():
            try:
                hits.append([hit.id for hit in index.search(question, k=DEPTH, mode=mode)])  # type: ignore[arg-type]
            except mmembed.errors.InputError:  # nothing but punctuation was cut out
                hits.append([])
    return {
        mode: {f"R@{k}": _mean([one in ids[:k] for one, ids in zip(right, hits, strict=True)]) for k in (1, DEPTH)}
        for mode, hits in found.items()
    }


def _good(hits: Hits) -> bool:
    return (hits[0].relevance or 0) >= NO_MATCH


def _mean(values: Sequence[Any]) -> float:
    return round(float(np.mean(values)), 3)


def table(result: dict[str, Any]) -> str:
    """The tables of docs/search.md."""
    lines = [
        "| collection | ranked | picture, R@10 | name in another language, R@10 | either, R@1 | pictures among ten |",
        "|---" * 6 + "|",
    ]
    for style, told in result["mixed"].items():
        for how in ("by cosine", "balanced"):
            values = " | ".join(f"{value:.3f}" for value in told[how].values() if isinstance(value, float))
            lines.append(f"| `{style}` | {how} | {values} |")
    lines += ["", "| picture, R@10 | " + " | ".join(LANGUAGES) + " |", "|---" * (len(LANGUAGES) + 1) + "|"]
    for style, told in result["mixed"].items():
        for how in ("by cosine", "balanced"):
            values = " | ".join(f"{value:.2f}" for value in told[how]["picture, R@10, by language"].values())
            lines.append(f"| `{style}`, {how} | {values} |")
    lines += [
        "",
        "| told a good match | questions that are answered | where the best hit is right | sentences about other things |",
        "|---" * 4 + "|",
    ]
    for style, told in result["mixed"].items():
        good = told["told a good match"]
        lines.append(f"| `{style}` | " + " | ".join(f"{v:.3f}" for v in list(good.values())[:3]) + " |")
    lines += [
        "",
        "| asked with | mode | " + " | ".join(f"{c} R@1 | {c} R@10" for c in result["hybrid"]) + " |",
        "|---" * 8 + "|",
    ]
    for what in result["hybrid"]["zh"]:
        for mode in ("vector", "text", "hybrid"):
            values = " | ".join(f"{v:.3f}" for told in result["hybrid"].values() for v in told[what][mode].values())
            lines.append(f"| {what} | {mode} | {values} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
