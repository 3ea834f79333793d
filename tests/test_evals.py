"""mteb's own tasks, made on the spot, run by mteb over our embedder: the scores are those of the vectors that we give."""

from __future__ import annotations

from typing import ClassVar

import mteb
import numpy as np
import PIL.Image
import pytest
from datasets import Dataset
from mteb.abstasks import AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from scipy.stats import spearmanr

import mmembed
from mmembed.errors import SpecError
from mmembed.evals import Encoder
from mmembed.testing import tiny_embedder

WORDS = ["cat", "eine Katze", "rocket", "pizza", "ピザ", "guitar", "a red apple", "ein roter Apfel"]
PICTURES = [
    PIL.Image.fromarray(np.random.default_rng(n).integers(0, 256, (24, 30, 3), dtype=np.uint8)) for n in range(6)
]


def about(kind: str, modalities: list[str], **said: object) -> TaskMetadata:
    return TaskMetadata(
        dataset={"path": "none", "revision": "none"},
        name=f"Ours{kind}",
        description="made on the spot",
        type=kind,
        modalities=modalities,
        eval_langs=["eng-Latn"],
        eval_splits=["test"],
        **said,
    )


class Likeness(AbsTaskSTS):
    metadata = about("STS", ["text"], main_score="cosine_spearman", category="t2t")
    pairs: ClassVar = [
        (a, b, float((3 * i + j) % 6)) for i, a in enumerate(WORDS) for j, b in enumerate(WORDS) if i < j
    ]

    def load_data(self, **_):
        first, second, score = zip(*self.pairs, strict=True)
        self.dataset = {"test": Dataset.from_dict({"sentence1": first, "sentence2": second, "score": score})}
        self.data_loaded = True


class Retrieval(AbsTaskRetrieval):
    """Words ask for pictures with words."""

    metadata = about(
        "Any2AnyRetrieval",
        ["text", "image"],
        main_score="ndcg_at_3",
        category="t2it",
        prompt={"query": "Find what is asked for."},
    )
    asked: ClassVar = WORDS[:3]
    found: ClassVar = [(word, picture) for word, picture in zip(WORDS[2:], PICTURES, strict=True)]
    grades: ClassVar = {"q0": {"d1": 1, "d2": 2}, "q1": {"d0": 1}, "q2": {"d5": 2, "d0": 1}}

    def load_data(self, **_):
        queries = Dataset.from_dict({"id": [f"q{k}" for k in range(3)], "text": self.asked})
        texts, pictures = zip(*self.found, strict=True)
        corpus = Dataset.from_dict({"id": [f"d{k}" for k in range(6)], "image": list(pictures), "text": texts})
        split = {"queries": queries, "corpus": corpus, "relevant_docs": self.grades, "top_ranked": None}
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


def measured(embedder: mmembed.Embedder, task: object, **options: object) -> dict[str, float]:
    result = mteb.evaluate(Encoder(embedder, **options), task, cache=None, show_progress_bar=False, co2_tracker=False)
    return result.task_results[0].scores["test"][0]


def ndcg(scores: np.ndarray, grades: dict[int, int], k: int = 3) -> float:
    gains = [grades.get(d, 0) / np.log2(rank + 2) for rank, d in enumerate(np.argsort(-scores)[:k])]
    best = [grade / np.log2(rank + 2) for rank, grade in enumerate(sorted(grades.values(), reverse=True)[:k])]
    return sum(gains) / sum(best)


@pytest.mark.parametrize("truncate_dim", [None, 64])
def test_likeness_is_that_of_our_vectors(truncate_dim):
    pico = mmembed.load()
    told = measured(pico, Likeness(), truncate_dim=truncate_dim)
    first, second, score = zip(*Likeness.pairs, strict=True)
    a, b = (pico.encode(list(side), truncate_dim=truncate_dim) for side in (first, second))
    assert told["cosine_spearman"] == pytest.approx(spearmanr((a * b).sum(1), score)[0], abs=1e-6)


def test_pictures_with_words_are_found_by_words():
    pico = mmembed.load()
    told = measured(pico, Retrieval())
    scores = pico.encode_query(Retrieval.asked) @ pico.encode_document([(p, t) for t, p in Retrieval.found]).T
    due = np.mean(
        [ndcg(row, {int(d[1]): g for d, g in Retrieval.grades[f"q{k}"].items()}) for k, row in enumerate(scores)]
    )
    assert told["ndcg_at_3"] == pytest.approx(due, abs=1e-5)


def test_an_instruction_of_the_task_stands_where_the_prompt_has_a_place_for_it(monkeypatch):
    query = {"any": "Instruct: {instruction}\nQuery: {content}"}
    ours = tiny_embedder(prompts={"query": query, "document": {"any": "{content}"}})
    asked = []
    plain = mmembed.Embedder.encode

    def heard(self, inputs, **options):
        asked.append((options["prompt_name"], options["instruction"]))
        return plain(self, inputs, **options)

    monkeypatch.setattr(mmembed.Embedder, "encode", heard)
    measured(ours, Likeness())
    measured(ours, Likeness(), instructions={"STS": "Say how alike they are."})
    assert asked == [("query", AbsTaskSTS.abstask_prompt)] * 2 + [("query", "Say how alike they are.")] * 2


def test_an_embedder_without_one_vector_is_refused():
    with pytest.raises(SpecError, match="no one vector"):
        Encoder(tiny_embedder(pooling=None, tokens={"head": {"kind": "states"}}))
    with pytest.raises(SpecError, match="not trained for vectors of 17"):
        Encoder(mmembed.load(), truncate_dim=17)
