"""What SQL can ask an index for: its own columns, and metadata."""

from __future__ import annotations

import pytest

from mmembed import Index
from mmembed.errors import InputError, UnknownName
from mmembed.search import metadata
from mmembed.testing import tiny_embedder
from tests.conftest import picture

ABOUT = [
    {"language": "de", "year": 1999, "read": True},
    {"language": "fr", "year": 2004.5, "read": False},
    {"language": "de", "year": 2020, "语言": "德语", "more": {"deep": [1]}},
    {},
]


@pytest.fixture
def index(tmp_path, tiny):
    index = Index.create(tmp_path / "things", tiny)
    index.add(["eins", "deux", "drei", "nothing"], ids=list("abcd"), metadata=ABOUT)
    return index


@pytest.mark.parametrize(
    ("where", "ids"),
    [
        ("language = 'de'", "ac"),
        ("year >= 2000", "bc"),
        ("year = 2020 AND language IN ('de', 'fr')", "c"),
        ("read", "a"),
        ("NOT read OR year IS NULL", "bd"),
        ("语言 = '德语'", "c"),
        ("text LIKE 'd%'", "bc"),
        ("modality = 'text' AND id <> 'a'", "bcd"),
        ("language = 'x'' OR true --'", ""),
    ],
)
def test_metadata_and_columns_are_asked_for_in_sql(index, where, ids):
    assert [hit.id for hit in index.items(where=where)] == list(ids)
    for mode in ("vector", "hybrid"):
        assert {hit.id for hit in index.search("drei", where=where, mode=mode)} == set(ids)
    assert {"c"} & set(ids) <= {hit.id for hit in index.search("drei", where=where, mode="text")} <= set(ids)
    assert {hit.id for hit in index.search("x", where=where, modality="text")} == set(ids)
    assert len(index.search("x", where=where, modality="image")) == 0
    assert index.remove(where=where) == len(ids)
    assert [hit.id for hit in index.items()] == [name for name in "abcd" if name not in ids]


def test_metadata_comes_back_as_it_was_given(index):
    assert [hit.metadata for hit in index.items()] == ABOUT


def test_metadata_that_is_replaced_is_asked_for_no_more(index):
    index.add(["eins"], ids=["a"], metadata=[{"language": "nl"}])
    assert [hit.id for hit in index.items(where="language = 'de'")] == ["c"]
    assert index.items(where="id = 'a' AND year IS NULL")[0].metadata == {"language": "nl"}
    index.add(["zwei"], ids=["a"])  # other content, and nothing said of metadata
    assert [hit.id for hit in index.items(where="language = 'nl'")] == ["a"]


def test_a_column_that_is_not_there_is_named_with_the_nearest(index):
    for ask in (index.items, index.remove, lambda where: index.search("x", where=where)):
        with pytest.raises(UnknownName, match=r"'langauge'.*Did you mean 'language'"):
            ask(where="langauge = 'de'")
    assert len(index) == 4


@pytest.mark.parametrize("where", ["language = ", "year", "language = 'de'; DROP TABLE items", "year > 'x'", ""])
def test_what_is_no_condition_says_so(index, where):
    with pytest.raises(InputError, match="condition"):
        index.remove(where=where)
    assert len(index) == 4


def test_what_to_remove_is_said_one_way(index):
    for arguments in ({}, {"ids": ["a"], "where": "true"}):
        with pytest.raises(InputError, match="ids, or where"):
            index.remove(**arguments)
    with pytest.raises(InputError, match="ids are many"):
        index.remove("ab")


@pytest.mark.parametrize("name", ["' OR '1'='1", "x'); DELETE", "a\0b", "\\' OR true", "％'", "`id`", "\n--"])
def test_an_id_is_never_read_as_sql(index, name):
    index.add(["odd"], ids=[name])
    assert index.get(name).text == "odd"
    assert index.vector(name).shape == (32,)
    assert index.remove([name]) == 1
    assert len(index) == 4


def test_a_name_of_two_kinds_is_refused_by_its_item(index):
    with pytest.raises(InputError, match=r"item 1: metadata: 'year' is a text here and a number elsewhere"):
        index.add(["x", "y"], metadata=[{"year": 1}, {"year": "soon"}])
    report = index.add(["x", "y"], metadata=[{"year": 1}, {"Year": 2}], on_error="skip")
    assert (report.added, report.skipped[0].row) == (1, 1)
    assert "one name to SQL" in report.skipped[0].reason


def test_a_name_that_no_item_fills_any_more_may_be_of_another_kind(index, monkeypatch):
    monkeypatch.setattr(metadata, "MOST", 4)
    assert index.remove(where="year IS NOT NULL OR 语言 IS NOT NULL") == 3
    with pytest.raises(InputError, match="remove the items that have the number first"):
        index.add(["x", "y"], metadata=[{"year": 1}, {"year": "soon"}])
    assert index.add(["x", "y"], metadata=[{"year": "soon", "Read": 2}, {"other": True}]).added == 2
    assert index.info()["metadata"] == {"year": "text", "Read": "number", "other": "truth value"}
    assert [hit.text for hit in index.items(where="year = 'soon' AND `Read` = 2")] == ["x"]


def test_a_thing_that_cannot_be_embedded_leaves_a_name_to_the_others(tmp_path):
    index = Index.create(tmp_path / "short", tiny_embedder(max_length=16))
    large = ("x", picture(0))  # more tokens than the model reads
    report = index.add(["w", large, "y"], metadata=[{}, {"day": "Monday"}, {"day": 1}], on_error="skip")
    assert (report.added, [skipped.row for skipped in report.skipped]) == (2, [1])
    assert [hit.text for hit in index.items(where="day = 1")] == ["y"]


def test_names_that_sql_does_not_know_are_kept_and_not_asked_for(index):
    about = {"n" * 129: 1, "two words": 1, "a.b": 2, "_rowid": 3, "vector": 4, "text": "mine", "checksum": 5, "": 6}
    index.add(["odd"], ids=["o"], metadata=[about])
    assert index.get("o").metadata == about
    assert set(index.info()["metadata"]) == {"language", "year", "read", "语言"}
    assert index.items(where="text = 'odd'")[0].id == "o"


def test_more_names_than_columns_are_refused(index, monkeypatch):
    monkeypatch.setattr(metadata, "MOST", 5)
    with pytest.raises(InputError, match="one name more than 5"):
        index.add(["x"], metadata=[{"n1": 1, "n2": 2}])
    assert index.add(["x"], metadata=[{"more": {"n1": 1, "n2": 2}}]).added == 1


def test_a_comment_in_a_condition_hides_nothing_behind_it(index):
    assert {hit.id for hit in index.search("drei", where="year > 1 -- (")} == set("abc")


@pytest.mark.parametrize("where", ["id = ?", "year > $1", "year > :least", "year > ? AND language = 'de'"])
def test_a_condition_with_a_place_for_a_value_is_refused(index, where):
    with pytest.raises(InputError, match="a place for a value"):
        index.items(where=where)
    assert index.count("text <> '?$1:x' AND year::int > 1 AND id <> 'a:?'") == index.count("year > 1 AND id <> 'a:?'")


@pytest.mark.parametrize("where", [5, b"year > 1", ["year > 1"]])
def test_a_condition_is_a_text(index, where):
    with pytest.raises(InputError, match="a text is wanted"):
        index.count(where)


@pytest.mark.parametrize("where", ["1=1) OR (1=1", "", "(year > 1", "text = 'x"])
def test_a_condition_stays_inside_of_those_it_is_joined_with(index, where):
    for ask in (lambda: index.search("drei", where=where), lambda: index.remove(where=where)):
        with pytest.raises(InputError):
            ask()
    assert len(index) == 4


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("year = 'a'", "could not convert"),
        ("year = 1 AND", "Expected: an expression"),
        ("count(*) > 1", "each row by itself"),
        ("row_number() over () = 1", "each row by itself"),
        ("cast(year as int) / 0 = 1", "Divide by zero"),
        ("cast(text as int) > 3", "Cannot cast string"),
        ("metadata.year = 1", "Cannot access field"),
    ],
)
def test_a_mistake_in_a_condition_quotes_what_was_written(index, where, said):
    for ask in (
        lambda: index.search("x", where=where, modality="text"),
        lambda: index.search("x", where=where),
        lambda: index.items(where=where),
    ):
        with pytest.raises(InputError, match=said) as caught:
            ask()
        assert str(caught.value).startswith(repr(where))
        for ours in ("modality = ", "SELECT", "\n", "AggregateUDF"):
            assert ours not in str(caught.value)
