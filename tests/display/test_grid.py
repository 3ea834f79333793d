"""The grid: a row a search, thumbnails where they belong, nothing that breaks on odd hits."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image

from mmembed.display.grid import ROW, Search, draw_grid
from mmembed.search.hits import Hit, Hits


def red() -> bytes:
    data = io.BytesIO()
    PIL.Image.new("RGB", (40, 20), "red").save(data, "WEBP", lossless=True)
    return data.getvalue()


def test_a_search_is_a_row_and_its_pictures_are_in_it():
    image = Hit(1, 0.9, "a", "image", thumbnail=red(), metadata={"name": "red"})
    text = Hit(2, 0.8, "b", "text", "ein Text", metadata={"note": "a text"})
    one = draw_grid([Search(Hits([text]), "words"), Search(Hits([image, text]), "both", picture=red())])
    two = draw_grid([Search(Hits([text]), "words")])
    assert one.height - two.height == ROW
    rgb = np.asarray(one).astype(int)
    is_red = (rgb[..., 0] > 240) & (rgb[..., 1] < 20)
    assert not is_red[:ROW].any()
    assert is_red[ROW:].sum() == 2 * 84 * 42


def test_a_score_that_rounds_to_nought_has_no_sign():
    def with_score(score: float) -> np.ndarray:
        return np.asarray(draw_grid([Search(Hits([Hit(1, score, "a", "text", "a")]), "words")]))

    np.testing.assert_array_equal(with_score(-0.0001), with_score(0.0))


def test_no_search_and_no_hit_make_a_picture():
    assert draw_grid([]).width > 0
    assert draw_grid([Search(Hits([]), "nothing")], title="title", foot="foot").height > ROW
