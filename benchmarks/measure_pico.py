"""Measures pico: pictures by name and by picture, the weakest language, STS-B test, Tatoeba, vectors cut short and coded; writes
its scores.json and the tables of its card and of the README."""

from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
from scipy.stats import spearmanr

import mmembed
from mmembed.search.quantizer import Quantizer

ROOT = Path(__file__).resolve().parents[1]
NAMED = "en de es fr ru ar hi zh ja ko sw tr vi th fi he id pt ta am".split()  # noqa: SIM905
TATOEBA = {
    "de": "deu", "es": "spa", "fr": "fra", "it": "ita", "ja": "jpn",
    "nl": "nld", "pl": "pol", "pt": "por", "ru": "rus", "zh": "cmn",
}  # fmt: skip
AIMS = {
    "twemoji R@1": 0.65,
    "twemoji R@10": 0.92,
    "twemoji R@1, weakest language": 0.50,
    "STS-B test": 0.65,
    "Tatoeba": 0.45,
}
MOST_LOST = {"64": 0.03, "int8": 0.01, "binary": 0.05}
MANY = 1000
"""Names that a language has of a style's pictures, to be looked at as the weakest one."""
BEGIN, END = "<!-- scores -->", "<!-- /scores -->"


def rank_of_own(queries: np.ndarray, candidates: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Rank of each query's own candidate, 0 the best; of equal scores the own one comes last."""
    scores = queries @ candidates.T
    mine = scores[np.arange(len(own)), own]
    return (scores >= mine[:, None]).sum(1) - 1


def recall(ranks: np.ndarray) -> dict[str, float]:
    return {"R@1": float((ranks < 1).mean()), "R@10": float((ranks < 10).mean())}


def shorten(vectors: np.ndarray, dimension: int) -> np.ndarray:
    cut = vectors[:, :dimension]
    return cut / np.linalg.norm(cut, axis=1, keepdims=True)


def macro(by_language: dict[str, dict[str, float]]) -> dict[str, float]:
    return {k: float(np.mean([row[k] for row in by_language.values()])) for k in ("R@1", "R@10")}


def measure(embedder: mmembed.Embedder, data: Path, languages: list[str] | None) -> dict[str, Any]:
    """All figures; `languages` are those to look pictures up in, None all there are."""
    pictures: dict[str, tuple[list[str], np.ndarray]] = {}
    rows = pq.read_table(data / "pictographs/images.parquet").to_pylist()
    for style in ("noto", "fluent-flat", "fluent-modern", "twemoji"):
        own = [r for r in rows if r["style"] == style]
        images = [mmembed.Image(PIL.Image.open(io.BytesIO(r["png"]))) for r in own]
        pictures[style] = [r["codepoints"] for r in own], embedder.encode_document(images)

    named: dict[str, list[tuple[str, str]]] = {}
    for r in pq.read_table(data / "pictographs/names.parquet").to_pylist():
        if r["name"] and (languages is None or r["lang"] in languages):
            named.setdefault(r["lang"], []).append((r["codepoints"], r["name"]))
    order = [lang for lang in NAMED if lang in named] + sorted(set(named) - set(NAMED))
    vectors = {lang: embedder.encode_query([name for _, name in named[lang]]) for lang in order}

    def by_name(style: str, among: list[str], images: np.ndarray) -> dict[str, dict[str, float]]:
        points = pictures[style][0]
        place = {c: i for i, c in enumerate(points)}
        out = {}
        for lang in among:
            kept = [i for i, (c, _) in enumerate(named[lang]) if c in place]
            own = np.array([place[named[lang][i][0]] for i in kept])
            asked = shorten(vectors[lang][kept], images.shape[1])
            out[lang] = {**recall(rank_of_own(asked, images, own)), "names": len(kept)}
        return out

    result: dict[str, Any] = {"text->image": {}, "text->image by dimension": {}}
    for style, (points, images) in pictures.items():
        scores = by_name(style, order, images)
        entry = {"candidates": len(points), "twenty languages": macro({k: scores[k] for k in NAMED})}
        if languages is None:
            entry[f"all {len(order)} languages"] = macro(scores)
            many = [lang for lang in order if scores[lang]["names"] >= MANY]
            weakest = min(many, key=lambda lang: scores[lang]["R@1"])
            entry["weakest language"] = {"language": weakest, "of": len(many), **scores[weakest]}
        result["text->image"][style] = {**entry, "by language": scores}
    for dimension in embedder.spec.dimensions:
        result["text->image by dimension"][dimension] = {
            style: macro(by_name(style, NAMED, shorten(pictures[style][1], dimension))) for style in ("noto", "twemoji")
        }
    # documents are coded, queries stay as they are; ranges are fitted on pictures of another style
    result["text->image by code"] = {}
    for kind in ("int8", "binary"):
        quantizer = Quantizer.fit(pictures["fluent-flat"][1], kind)
        coded = {s: quantizer.decode(quantizer.encode(pictures[s][1])) for s in ("noto", "twemoji")}
        result["text->image by code"][kind] = {
            s: macro(by_name(s, NAMED, shorten(v, embedder.dimension))) for s, v in coded.items()
        }

    noto, twemoji = pictures["noto"], pictures["twemoji"]
    place = {c: i for i, c in enumerate(noto[0])}
    own = np.array([place[c] for c in twemoji[0]])
    result["image->image, twemoji to noto"] = recall(rank_of_own(twemoji[1], noto[1], own))
    fluent = set(pictures["fluent-flat"][0])
    split = np.array([c in fluent for c in twemoji[0]])
    ranks = rank_of_own(twemoji[1], noto[1], own)
    # Those that Fluent has are seen in more styles: what it lacks are flags and most people at work or by sex.
    result["image->image, by concept"] = {"in fluent": recall(ranks[split]), "not in fluent": recall(ranks[~split])}

    pairs: dict[str, list[tuple[str, str, float]]] = {}
    for r in pq.read_table(data / "text/stsb_multi_mt.parquet").to_pylist():
        if r["split"] == "test":
            pairs.setdefault(r["lang"], []).append((r["sentence1"], r["sentence2"], r["score"]))
    result["STS-B test"] = {}
    for lang, rows_ in sorted(pairs.items()):
        one, two = (embedder.encode([row[side] for row in rows_]) for side in (0, 1))
        result["STS-B test"][lang] = float(spearmanr((one * two).sum(1), [row[2] for row in rows_]).statistic)
    result["STS-B test, mean"] = float(np.mean(list(result["STS-B test"].values())))

    tatoeba = pq.read_table(data / "text/tatoeba.parquet").to_pylist()
    result["Tatoeba"] = {}
    for lang, code in TATOEBA.items():
        rows_ = [r for r in tatoeba if r["lang"] == code]
        there, english = embedder.encode([r["text"] for r in rows_]), embedder.encode([r["english"] for r in rows_])
        scores, right = there @ english.T, np.arange(len(rows_))
        result["Tatoeba"][lang] = float(((scores.argmax(1) == right).mean() + (scores.argmax(0) == right).mean()) / 2)
    result["Tatoeba, mean"] = float(np.mean(list(result["Tatoeba"].values())))
    return result


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def table(result: dict[str, Any]) -> str:
    """The card's tables, in Markdown."""
    by_style, by_dimension = result["text->image"], result["text->image by dimension"]
    everywhere = next((k for k in by_style["noto"] if k.startswith("all ")), None)
    lines = [
        "| pictures by name, 20 languages | candidates | R@1 | R@10 |" + (f" R@1, {everywhere} |" if everywhere else "")
    ]
    lines.append("|---|---|---|---|" + ("---|" if everywhere else ""))
    for style, entry in by_style.items():
        seen = "never seen in training" if style == "twemoji" else "seen in training"
        mean = entry["twenty languages"]
        lines.append(
            f"| `{style}` ({seen}) | {entry['candidates']} | {mean['R@1']:.3f} | {mean['R@10']:.3f} |"
            + (f" {entry[everywhere]['R@1']:.3f} |" if everywhere else "")
        )
    own = result["image->image, twemoji to noto"]
    lines += [
        "",
        f"A `twemoji` picture finds the `noto` one of its concept: R@1 {own['R@1']:.3f}, R@10 {own['R@10']:.3f}.",
        "",
    ]
    if everywhere:
        low = by_style["twemoji"]["weakest language"]
        said = f"The weakest of the {low['of']} languages with {MANY:,} names or more finds `twemoji` pictures by R@1"
        lines += [f"{said} {low['R@1']:.3f}, R@10 {low['R@10']:.3f} ({low['language']}).", ""]
    stored = {**by_dimension, **result["text->image by code"]}
    lines += [
        "| pictures stored as | " + " | ".join(f"{k} numbers" if k in by_dimension else str(k) for k in stored) + " |",
        "|---" * (1 + len(stored)) + "|",
    ]
    for style in ("noto", "twemoji"):
        for score in ("R@1", "R@10"):
            cells = " | ".join(f"{entry[style][score]:.3f}" for entry in stored.values())
            lines.append(f"| `{style}` by name, {score} | {cells} |")
    named = by_style["twemoji"]["by language"]
    lines += ["", "| by name | " + " | ".join(NAMED) + " |", "|---" * (1 + len(NAMED)) + "|"]
    for style in ("noto", "twemoji"):
        cells = " | ".join(f"{by_style[style]['by language'][k]['R@1']:.2f}" for k in NAMED if k in named)
        lines.append(f"| `{style}`, R@1 | {cells} |")
    sts, tatoeba = result["STS-B test"], result["Tatoeba"]
    lines += ["", "| sentences | mean | " + " | ".join(sts) + " |", "|---" * (2 + len(sts)) + "|"]
    lines.append(
        f"| STS-B test, Spearman | {result['STS-B test, mean']:.3f} | "
        + " | ".join(f"{v:.3f}" for v in sts.values())
        + " |"
    )
    cells = " | ".join(f"{tatoeba[k]:.3f}" if k in tatoeba else "" for k in sts)
    lines.append(f"| Tatoeba, accuracy | {result['Tatoeba, mean']:.3f} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--model", type=Path, default=ROOT / "adapters/pico")
    parser.add_argument("--all", action="store_true", help="pictures by name in every language, not twenty")
    args = parser.parse_args()
    began = time.perf_counter()
    embedder = mmembed.load(args.model, device="cpu")
    result = rounded(measure(embedder, args.data, None if args.all else NAMED))
    result = {"model": embedder.fingerprint, **result}
    (args.model / "scores.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    text = table(result)
    print(text)
    twemoji = result["text->image"]["twemoji"]["twenty languages"]
    got = {
        "twemoji R@1": twemoji["R@1"],
        "twemoji R@10": twemoji["R@10"],
        "STS-B test": result["STS-B test, mean"],
        "Tatoeba": result["Tatoeba, mean"],
    }
    if args.all:
        got["twemoji R@1, weakest language"] = result["text->image"]["twemoji"]["weakest language"]["R@1"]
    print("\n" + "\n".join(f"{k}: {got[k]:.3f}, aimed at {aim:.2f}" for k, aim in AIMS.items() if k in got))
    stored = {**{str(k): v for k, v in result["text->image by dimension"].items()}, **result["text->image by code"]}
    for kind, most in MOST_LOST.items():
        lost = {
            s: whole["R@10"] - stored[kind][s]["R@10"]
            for s, whole in (("twemoji", twemoji), ("noto", stored["256"]["noto"]))
        }
        print(
            f"R@10 lost by {kind}: twemoji {lost['twemoji']:.3f}, noto {lost['noto']:.3f}, aimed at {most:.2f} at most"
        )
    bundled = args.model.resolve() == ROOT / "adapters/pico"
    for page in [args.model / "README.md", *([ROOT / "README.md"] if bundled else [])]:
        if page.exists():
            before, rest = page.read_text(encoding="utf-8").split(BEGIN)
            page.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
