"""How hits look: a table whose columns stand under each other, and HTML that shows text and runs nothing."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmembed.search.hits import CARDS, Hit, Hits, columns, isolated, visible

EVIL = "<script>alert(1)</script>\" onload='x' \x1b[31m\u202eevil\u2066"


def hits(*texts: str, **more) -> Hits:
    return Hits([Hit(n, 0.5, f"id{n}", "text", text, **more) for n, text in enumerate(texts, 1)], "q")


@pytest.mark.parametrize(
    ("text", "wide"),
    [
        ("abc", 3),
        ("日本", 4),
        ("e\u0301", 1),
        ("한글", 4),
        ("ｱ", 1),
        ("Ａ", 2),
        ("नी", 2),
        ("ก็", 1),
        ("🙂", 2),
        ("שָׁ", 1),
    ],
)
def test_columns_are_those_of_a_terminal(text, wide):
    assert columns(text) == wide


@given(st.text())
def test_a_shown_text_is_one_line_without_control_characters(text):
    shown = visible(text)
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 for c in shown)
    assert not set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u2028\u2029") & set(shown)


@given(st.text(), st.integers(5, 60), st.sampled_from(["start", "end"]))
def test_a_shown_text_keeps_to_its_room(text, room, keep):
    assert columns(isolated(text, room, keep)) <= room


def test_escape_sequences_and_overrides_are_written_out():
    assert visible("\x1b[31m\u202eevil\n\nnext") == "\\x1b[31m\\u202eevil next"


def test_joiners_of_persian_and_hindi_stay():
    assert visible("می‌خواهم") == "می‌خواهم"


def test_every_line_of_a_table_fits_its_width():
    table = hits("日本語" * 50, "short", "x" * 300, "שלום " * 40).table(72)
    assert len(table.splitlines()) == 4
    assert max(columns(line) for line in table.splitlines()) <= 72


def test_scores_stand_under_each_other():
    mixed = Hits([Hit(1, 1.0, "a", "image+text", "日本"), Hit(2, -0.25, "b", "text", "שלום")])
    first, second = mixed.table().splitlines()
    assert first.index("1.000") + 5 == second.index("0.250") + 5
    assert first.index("日") == second.index("\u2068")


def test_a_right_to_left_label_is_isolated_and_others_are_plain():
    assert isolated("שלום", 20) == "\u2068שלום\u2069"
    assert isolated("hello", 20) == "hello"


def test_a_picture_without_words_goes_by_the_end_of_its_path():
    line = Hits([Hit(1, 0.5, "x", "image", path="/very" * 40 + "/cat.png")]).table(60)
    assert line.endswith("/cat.png")
    assert columns(line) <= 60
    assert Hit(1, 0.5, "x", "image", path="/a/cat.png").label == "cat.png"


def test_the_representation_says_the_query_and_the_count():
    assert repr(hits("a", "b")).startswith("2 hits for q\n")
    assert repr(Hits([], "nothing")) == "0 hits for nothing"


def test_hits_are_a_sequence_and_a_slice_of_hits_is_hits():
    found = hits("a", "b", "c")
    assert isinstance(found[1:], Hits)
    assert [hit.text for hit in found[1:]] == ["b", "c"]
    assert found[0].rank == 1
    assert found[0] in found


class _Tags(HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words += data


def test_strange_text_is_shown_in_a_notebook_and_never_run():
    thumbnail = b"RIFF0000WEBP"
    page = _Tags(Hits([Hit(1, 0.5, EVIL, "text", EVIL, EVIL, thumbnail, {"name": EVIL})], EVIL)._repr_html_())
    assert {tag for tag, _ in page.tags} == {"div", "b", "bdi", "img"}
    assert {name for _, attrs in page.tags for name in attrs} <= {"style", "dir", "title", "alt", "src"}
    assert "<script>alert(1)</script>" in page.words
    assert "\\x1b[31m" in page.words


def test_a_notebook_fetches_nothing():
    html = Hits([Hit(1, 0.5, "x", "image", thumbnail=b"abc", path="https://example.org/x.png")])._repr_html_()
    sources = re.findall(r'src="([^"]*)"', html)
    assert sources == ["data:image/webp;base64," + base64.b64encode(b"abc").decode()]
    assert "url(" not in html
    assert "href" not in html


def test_cards_turn_with_their_text_and_fit_dark_and_light():
    html = hits("שלום", "hello")._repr_html_()
    assert html.count('dir="auto"') == 3
    assert not re.search(r"[^-]color:", html)  # the notebook's own ink and paper


def test_a_notebook_shows_so_many_and_counts_the_rest():
    html = hits(*["x"] * (CARDS + 7))._repr_html_()
    assert "and 7 more" in html
    assert html.count("width:150px") == CARDS


def test_hits_become_json_without_thumbnails():
    found = hits("a", thumbnail=b"x", metadata={"n": 1}).as_dicts()
    assert found == [
        {
            "rank": 1,
            "score": 0.5,
            "id": "id1",
            "modality": "text",
            "text": "a",
            "path": None,
            "metadata": {"n": 1},
            "duplicates": (),
            "relevance": None,
        }
    ]
