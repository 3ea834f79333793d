"""Several things asked together: weights, negatives, and what cancels."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

import mmembed
from mmembed import Image, Index, Query
from mmembed.cli import cli
from mmembed.errors import InputError
from tests.conftest import picture


@pytest.fixture(scope="module")
def pico():
    return mmembed.load()


def test_a_query_is_the_weighted_sum_of_unit_vectors(pico):
    image = picture(0)
    asked = Query([("cat", 1), (image, 0.5), ("dog", -0.25)]).vector(pico).astype(np.float64)
    cat, seen, dog = pico.encode_query(["cat", image, "dog"]).astype(np.float64)
    total = cat + 0.5 * seen - 0.25 * dog
    np.testing.assert_allclose(asked, total / np.linalg.norm(total), atol=1e-6)
    doubled = Query([("cat", 2), (image, 1), ("dog", -0.5)]).vector(pico)
    np.testing.assert_allclose(doubled, asked, atol=1e-6)
    assert Query([("dog", -0.5), ("cat", 2), (image, 1)]).vector(pico) == pytest.approx(doubled, abs=1e-6)


def test_one_thing_is_the_query_of_one_part(pico):
    assert Query.of("cat").vector(pico) == pytest.approx(pico.encode_query(["cat"])[0], abs=1e-6)
    assert Query([("cat", 3.5)]).vector(pico) == pytest.approx(pico.encode_query(["cat"])[0], abs=1e-6)
    even = Query([("cat", 1), ("dog", 1)]).vector(pico)
    for weight in (1e308, 1e-308):
        assert Query([("cat", weight), ("dog", weight)]).vector(pico) == pytest.approx(even, abs=1e-6)
    query = Query([("cat", 1)])
    assert Query.of(query) is query


def test_what_cancels_is_an_error(pico):
    for parts in ([("cat", 1), ("cat", -1)], [("cat", 0.3), ("cat", 0.3), ("cat", -0.6)]):
        with pytest.raises(InputError, match="cancel"):
            Query(parts).vector(pico)


@pytest.mark.parametrize("weight", [0, 0.0, float("nan"), float("inf"), 10**400, "1", None, True])
def test_a_weight_that_is_none_names_its_part(weight):
    with pytest.raises(InputError) as told:
        Query([("cat", 1), ("dog", weight)])
    assert told.value.item == 1


@pytest.mark.parametrize("parts", [[], "cat", ["cat"], [("cat", 1, 2)], [(["cat"], 1)], [("cat.png", Image("x")), 1]])
def test_what_is_no_list_of_pairs_is_an_error(parts):
    with pytest.raises(InputError):
        Query(parts)


def test_a_query_says_what_was_asked():
    asked = Query([("a cat", 1), (("at night", Image("night.jpg")), 0.5), ("a dog", -1), ("rain", -0.25)])
    assert str(asked) == "a cat + 0.5 × at night + ['night.jpg'] - a dog - 0.25 × rain"
    assert asked.words == "a cat\nat night"
    assert str(Query([("a dog", -1)])) == "- a dog"


def test_a_negative_turns_hits_away(pico, tmp_path):
    index = Index.create(tmp_path / "index", pico)
    index.add(["cat", "dog", "apple", "rocket"])
    assert index.search("cat or dog", k=2).query == "cat or dog"
    both = Query([("cat", 1), ("dog", 0.9)])
    assert {hit.text for hit in index.search(both, k=2)} == {"cat", "dog"}
    away = index.search(Query([("cat", 1), ("dog", -0.9)]), k=4)
    assert (away[0].text, away[-1].text) == ("cat", "dog")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([""], "says nothing to look for"),
        ([" \n"], "says nothing to look for"),
        (["a", "--and", "1", " "], "says nothing to look for"),
        (["a", "--and", "-1", "b", "--mode", "text"], "full text cannot turn hits away"),
    ],
)
def test_the_command_says_what_cannot_be_asked(tiny, tmp_path, arguments, said):
    Index.create(tmp_path / "index", tiny)
    done = CliRunner().invoke(cli, ["search", str(tmp_path / "index"), *arguments])
    assert (done.exit_code, said in done.output) == (2, True), done.output
