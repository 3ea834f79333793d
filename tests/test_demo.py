"""The demo: what it asks, what it finds with a model that knows nothing, and the picture it draws."""

from __future__ import annotations

import unicodedata

import numpy as np
import PIL.Image
import pytest

from mmembed import Index
from mmembed.demo import DATA, LANGUAGES, PICTURES, TEXTS, add_collection, draw_demo, questions, run_demo
from mmembed.images import open_image


@pytest.fixture(scope="module")
def ran(tiny):
    return run_demo(tiny)


def test_it_asks_in_many_languages_and_scripts_by_picture_and_by_both():
    asked = [q for q in questions() if q.text and not q.image]
    scripts = {unicodedata.name(q.text[0]).split()[0] for q in asked}
    assert len({q.language for q in asked}) >= 12
    assert len(scripts) >= 10
    assert any(q.image and not q.text for q in questions())
    assert any(q.image and q.text for q in questions())
    assert all(q.english for q in questions())


def test_every_question_is_answered_in_pictures_and_in_texts(ran):
    assert len(ran.answers) == len(questions())
    for answer in ran.answers:
        assert [hit.modality for hit in answer.hits] == ["image"] * PICTURES + ["text"] * TEXTS
        assert all(hit.metadata["name"] for hit in answer.pictures)
        assert all(hit.metadata["note"] for hit in answer.texts)


def test_its_collection_can_be_added_twice(tmp_path, tiny):
    index = Index.create(tmp_path / "i", tiny)
    count = add_collection(index)
    assert count == add_collection(index) == len(index)
    pictures, texts = index.info()["modalities"]["image"], index.info()["modalities"]["text"]
    assert pictures >= 150
    assert texts >= 60


def test_its_pictures_are_small_and_can_be_read():
    files = sorted(DATA.glob("*/*.png"))
    assert sum(file.stat().st_size for file in files) < 1.5e6
    for file in files:
        rgb, info = open_image(file)
        assert info.format == "PNG"
        assert max(rgb.shape) <= 136


def test_every_language_of_its_texts_has_a_name(ran):
    assert len(LANGUAGES) >= 12
    assert {q.language for q in questions() if q.language} <= set(LANGUAGES)


def test_its_picture_shows_every_answer(ran, tmp_path):
    draw_demo(ran, "tiny").save(tmp_path / "demo.png")
    with PIL.Image.open(tmp_path / "demo.png") as picture:
        grey = np.asarray(picture.convert("L"))
    assert grey.shape[0] > 130 * len(ran.answers)
    assert (grey < 200).any(1).mean() > 0.7


def test_the_licences_of_its_data_are_named():
    text = (DATA / "LICENSES.md").read_text(encoding="utf-8")
    for word in ("Noto Emoji", "Open Font License", "Unicode License", "Twemoji", "CC-BY 4.0"):
        assert word in text
