"""Scores on held-out data: ranks counted against the right one, and the scores of a plain computation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PillowImage
from scipy.stats import spearmanr

from mmembed.errors import SpecError
from mmembed.testing import tiny_embedder
from mmembed.train import held_out
from mmembed.train.data import Column, Columns, HuggingFace, ImageFolder, InMemory, Jsonl, Parquet
from mmembed.train.held_out import check, check_apart, measure, rank_of
from mmembed.train.loop import Run
from mmembed.train.recipe import HeldOut, read_recipe

from .runs import RECIPE, lay, write_lines

PAIRS = [{"q": f"question {k}", "p": [f"answer {k}", f"other {k % 7}"], "s": k % 5} for k in range(30)]


def of(**columns):
    table = [{**row, "one": row["p"][0]} for row in PAIRS]
    return InMemory(table=table, columns=Columns(query=Column(text="q"), **columns)).open("x", Path())


def test_of_equal_scores_the_right_one_counts_as_last():
    scores = np.array([0.5, 0.9, 0.5, 0.1], dtype=np.float32)
    assert [rank_of(scores, np.array([k])) for k in range(4)] == [3, 1, 3, 4]
    assert rank_of(scores, np.array([0, 2])) == 2


def test_retrieval_is_that_of_every_query_among_all_positives(tiny):
    found = measure(tiny, of(positive=Column(text="p")), HeldOut(data="x", most=20))
    rows = PAIRS[:20]
    candidates = sorted({text for row in rows for text in row["p"]})
    scores = tiny.encode([row["q"] for row in rows]) @ tiny.encode(candidates).T
    ranks = []
    for row, own in zip(rows, scores, strict=True):
        best = max(own[candidates.index(text)] for text in row["p"])
        ranks.append(1 + sum(s >= best for s, text in zip(own, candidates, strict=True) if text not in row["p"]))
    assert found["R@1"] == pytest.approx(np.mean([rank <= 1 for rank in ranks]))
    assert found["R@10"] == pytest.approx(np.mean([rank <= 10 for rank in ranks]))
    assert found["MRR"] == pytest.approx(np.mean([1 / rank for rank in ranks]))


def test_what_answers_an_equal_query_or_one_of_its_group_is_right(tiny):
    table = [{"q": "a", "p": "x", "g": "1"}, {"q": "a", "p": "y", "g": "2"}, {"q": "b", "p": "z", "g": "2"}]
    columns = {"query": Column(text="q"), "positive": Column(text="p")}
    apart, grouped = (
        measure(tiny, InMemory(table=table, columns=Columns(**columns, **more)).open("x", Path()), HeldOut(data="x"))
        for more in ({}, {"group": "g"})
    )
    scores = tiny.encode(["a", "a", "b"]) @ tiny.encode(["x", "y", "z"]).T
    answers = [({0, 1}, {0, 1}, {2}), ({0, 1}, {0, 1, 2}, {1, 2})]
    for found, right in zip((apart, grouped), answers, strict=True):
        ranks = [rank_of(own, np.array(sorted(some))) for own, some in zip(scores, right, strict=True)]
        assert found["MRR"] == pytest.approx(np.mean([1 / rank for rank in ranks]))


def test_likeness_is_the_rank_correlation_of_cosines(tiny):
    found = measure(tiny, of(positive=Column(text="one"), score="s"), HeldOut(data="x", measure="sts", truncate_dim=16))
    a, b = (tiny.encode(texts, truncate_dim=16) for texts in ([r["q"] for r in PAIRS], [r["p"][0] for r in PAIRS]))
    assert found["spearman"] == pytest.approx(spearmanr((a * b).sum(1), [r["s"] for r in PAIRS]).statistic)
    with pytest.raises(SpecError, match="no scores to measure by"):
        measure(tiny, of(positive=Column(text="one")), HeldOut(data="x", measure="sts"))


def test_a_model_of_token_vectors_is_measured_by_them():
    tokens = {"head": {"kind": "dense", "out": 16}}
    late = tiny_embedder(pooling=None, tokens=tokens, dimensions=())
    found = measure(late, of(positive=Column(text="one")), HeldOut(data="x"))
    scores = late.similarity(
        late.encode_tokens([row["q"] for row in PAIRS], side="query"),
        late.encode_tokens([row["p"][0] for row in PAIRS], side="document"),
    )
    assert found["R@1"] == pytest.approx(np.mean(scores.argmax(1) == np.arange(30)))


def test_what_cannot_be_measured_is_told_before(tiny):
    pairs = of(positive=Column(text="one"))
    for held, said in (
        (HeldOut(data="x", measure="sts"), "no scores to measure by"),
        (HeldOut(data="x", truncate_dim=10_000), "was not trained for vectors of 10000 numbers"),
        (HeldOut(data="x", truncate_dim=3), "was not trained for vectors of 3 numbers"),  # as `encode` says
    ):
        with pytest.raises(SpecError, match=said):
            check(tiny, pairs, held)
        with pytest.raises(SpecError, match=said):
            measure(tiny, pairs, held)
    with pytest.raises(SpecError, match="most=0"):
        HeldOut(data="x", most=0)


def test_likeness_to_equal_scores_is_told_before_and_a_model_that_tells_nothing_apart_has_none(tiny):
    columns = Columns(query=Column(text="q"), positive=Column(text="p"), score="s")

    def data(*rows):
        return InMemory(table=[dict(zip("qps", row, strict=True)) for row in rows], columns=columns).open("x", Path())

    held = HeldOut(data="x", measure="sts", most=2)
    for equal in (data(("a", "b", 3), ("c", "d", 3.0), ("e", "f", 4)), data(("a", "b", 3))):
        for tried in (check, measure):
            with pytest.raises(SpecError, match=r"data 'x': the scores of the \d rows .* are all equal, 3"):
                tried(tiny, equal, held)
    assert measure(tiny, data(("a", "b", 1), ("a", "b", 2)), held) == {"spearman": 0.0}


def test_rows_that_are_trained_on_are_not_held_out_by_another_name(tmp_path):
    columns = Columns(query=Column(text="q"), positive=Column(text="q"))
    write_lines(tmp_path / "a.jsonl", [{"q": f"{k}"} for k in range(6)])
    write_lines(tmp_path / "b.jsonl", [{"q": f"{k}"} for k in range(3)])
    (tmp_path / "link.jsonl").symlink_to("a.jsonl")
    table = pa.table(
        {"q": [f"{k}" for k in range(20)], "split": ["train", "dev"] * 10, "lang": ["en"] * 10 + ["de"] * 10}
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    for name in ("all/dev", "all/train"):
        (tmp_path / name).mkdir(parents=True)
        PillowImage.new("RGB", (4, 4)).save(tmp_path / name / "1.png")
    pictures = Columns(query=Column(image="image"), positive=Column(text="folder"))

    def lines(path, **more):
        return Jsonl(path=path, columns=columns, **more)

    def rows(**where):
        return Parquet(path="a.parquet", columns=columns, where=where)

    def folder(path):
        return ImageFolder(path=path, columns=pictures)

    def tried(held, trained):
        check_apart(held.open("dev", tmp_path), trained.open("pairs", tmp_path))

    for held, trained, count in (
        (lines("a.jsonl"), lines("./a.jsonl"), 6),
        (lines("link.jsonl", limit=4), lines("[ab].jsonl"), 4),
        (rows(), rows(split="train"), 10),
        (rows(split="dev"), rows(lang="de"), 5),
        (folder("all/dev"), folder("all"), 1),
    ):
        with pytest.raises(
            SpecError, match=rf"'dev' is held out, and data 'pairs' is trained on: both take {count} rows of"
        ):
            tried(held, trained)
        with pytest.raises(SpecError, match=f"both take {count} rows"):
            tried(trained, held)
    for held, trained in (
        (lines("b.jsonl"), lines("a.jsonl")),
        (lines("[ab].jsonl", limit=6), lines("b.jsonl")),
        (rows(split="dev"), rows(split="train")),
        (rows(split="dev", lang="en"), rows(lang=["de", "fr"])),
        (folder("all/dev"), folder("all/train")),
        (InMemory(table=[{"q": "0"}], columns=columns), lines("a.jsonl")),
    ):
        tried(held, trained)
        tried(trained, held)


def test_splits_of_a_dataset_are_apart_and_one_is_not_by_another_name(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"q": ["a", "b"]})
    datasets.DatasetDict({"train": rows, "dev": rows}).save_to_disk(str(tmp_path / "set"))
    dev, train, again = (
        HuggingFace(path=path, columns=Columns(query=Column(text="q")), split=split).open("x", tmp_path)
        for path, split in (("set", "dev"), ("set", "train"), ("set/dev", None))
    )
    check_apart(dev, train)
    with pytest.raises(SpecError, match="both take 2 rows"):
        check_apart(dev, again)


@pytest.mark.parametrize("kind", ["sts", "retrieval"])
def test_what_many_pairs_are_measured_by_is_that_of_all_at_once(tiny, monkeypatch, kind):
    pairs, held = of(positive=Column(text="one"), score="s"), HeldOut(data="x", measure=kind)
    whole = measure(tiny, pairs, held)
    monkeypatch.setattr(held_out, "BLOCK", 7)
    compared, similarity = [], tiny.similarity
    monkeypatch.setattr(tiny, "similarity", lambda a, b: compared.append(len(a)) or similarity(a, b))
    assert measure(tiny, pairs, held) == pytest.approx(whole)
    assert compared == [7, 7, 7, 7, 2]


def test_a_run_is_refused_that_measures_the_rows_that_it_trains_on(tmp_path):
    columns = 'columns = { query = { text = "q" }, positive = { text = "p" } }\n'
    columns = f'[data.dev]\nkind = "jsonl"\npath = "pairs.jsonl"\nlimit = 5\n{columns}'
    held = '[held_out.dev]\ndata = "dev"\n'
    with pytest.raises(SpecError, match="'dev' is held out, and data 'pairs' is trained on: both take 5 rows of"):
        Run(read_recipe(lay(tmp_path, RECIPE + columns + held)), tmp_path / "out", device="cpu")
    other = columns.replace('positive = { text = "p" }', 'positive = { text = "q" }')
    Run(read_recipe(lay(tmp_path, RECIPE + other + held)), tmp_path / "out", device="cpu")
