"""Late interaction over hits: the order is that of MaxSim, from the items themselves."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import PIL.Image
import pytest

from mmembed import Image, Index, Query
from mmembed.errors import InputError, SpecError
from mmembed.search.hits import Hits
from mmembed.testing import tiny_embedder
from tests.conftest import picture


@pytest.fixture(scope="module")
def late():
    """A tiny model with a vector an item and vectors of its tokens."""
    return tiny_embedder(tokens={"head": {"kind": "dense", "out": 16}})


@pytest.fixture
def index(late, tmp_path):
    index = Index.create(tmp_path / "index", late)
    PIL.Image.fromarray(picture(3).load()).save(tmp_path / "there.png")
    index.add(["a cat", "a dog in the rain", "nothing", ("a word", picture(1))], ids=["t0", "t1", "t2", "both"])
    index.add([Image(tmp_path / "there.png")], ids=["file"])
    return index


def test_hits_come_in_the_order_of_maxsim(index, late, tmp_path):
    hits = index.search("a cat at night", k=5)
    found = index.rerank("a cat at night", hits)
    small = Image(index.get("both").thumbnail)
    things = {"t0": "a cat", "t1": "a dog in the rain", "t2": "nothing", "both": ("a word", small), "file": picture(3)}
    (query,) = late.encode_tokens(["a cat at night"], side="query")
    documents = late.encode_tokens(list(things.values()), side="document")
    due = {name: float((query @ own.T).max(1).sum()) for name, own in zip(things, documents, strict=True)}
    assert {hit.id: hit.score for hit in found} == pytest.approx(due, abs=1e-4)
    assert [hit.id for hit in found] == sorted(due, key=lambda name: -due[name])
    assert [hit.rank for hit in found] == [1, 2, 3, 4, 5]
    assert found.query == "a cat at night"
    assert {hit.id: hit.relevance for hit in found} == {hit.id: hit.relevance for hit in hits}


def test_parts_of_a_query_are_summed_by_their_weights(index):
    hits = index.search("a cat", k=5)
    one, other = (index.rerank(words, hits) for words in ("a cat", "rain"))
    both = index.rerank(Query([("a cat", 1), ("rain", -0.5)]), hits)
    scores = [{hit.id: hit.score for hit in found} for found in (one, other, both)]
    assert scores[2] == pytest.approx({name: scores[0][name] - 0.5 * scores[1][name] for name in scores[0]}, abs=1e-4)


def test_a_model_of_single_vectors_is_refused_and_another_may_rerank(tiny, late, tmp_path):
    index = Index.create(tmp_path / "plain", tiny)
    index.add(["a cat", "a dog"])
    hits = index.search("a cat")
    with pytest.raises(SpecError, match="no token vectors"):
        index.rerank("a cat", hits)
    assert {hit.id for hit in index.rerank("a cat", hits, embedder=late)} == {hit.id for hit in hits}
    assert len(index.rerank("a cat", hits[:0], embedder=late)) == 0


def test_a_picture_that_is_gone_is_an_error_that_names_it(index, tmp_path):
    hits = index.search("a cat", k=5)
    (tmp_path / "there.png").unlink()
    with pytest.raises(InputError, match="file"):
        index.rerank("a cat", hits)


def test_a_picture_without_a_file_is_read_from_the_small_copy(late, tmp_path):
    index = Index.create(tmp_path / "bytes", late)
    data = io.BytesIO()
    PIL.Image.fromarray(np.full((40, 40, 3), 90, dtype=np.uint8)).save(data, "PNG")
    index.add([Image(data.getvalue()), "a text"])
    assert len(index.rerank("grey", index.search("grey"))) == 2


def test_hits_without_their_pictures_are_refused(index, late):
    (hit,) = (hit for hit in index.search("a word", k=5) if hit.id == "both")
    bare = Hits([dataclasses.replace(hit, thumbnail=None, path=None)])
    with pytest.raises(InputError, match=r"'both' of .* has no picture with it"):
        index.rerank("a word", bare)
