"""Typed items: what becomes text, what becomes a picture, and that nothing is guessed from a string."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage

from mmembed.errors import ImageError, InputError
from mmembed.images import Image
from mmembed.inputs import Text, as_now, modality, to_item

from .mutations import pictures


@pytest.mark.parametrize(
    "string",
    [
        "a red car",
        "",
        "img/x.png",
        "/etc/hostname",
        "https://example.org/x.png",
        "data:image/png;base64,aGk=",
        "猫",
        "\ud800",
    ],
)
def test_a_string_is_always_text(string):
    assert to_item(string) == (Text(string),)


def test_a_string_that_names_a_picture_on_disk_is_still_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x.png").write_bytes(pictures()["png"])
    assert to_item("x.png") == (Text("x.png"),)


def test_typed_parts_pass_through():
    text, image = Text("a"), Image("a.png")
    assert to_item(text) == (text,)
    assert to_item(image) == (image,)
    assert to_item((text, image)) == (text, image)


def test_a_pil_image_is_a_picture(tmp_path):
    (tmp_path / "x.png").write_bytes(pictures()["png"])
    for picture in (PilImage.new("RGB", (3, 2)), PilImage.open(tmp_path / "x.png")):
        (part,) = to_item(picture)
        assert isinstance(part, Image)
        assert part.source is picture


def test_a_tuple_is_one_item_in_its_order():
    image = Image("a.png")
    assert to_item(("before", image, "after")) == (Text("before"), image, Text("after"))
    assert to_item(("a", ("b", {"text": "c"}))) == (Text("a"), Text("b"), Text("c"))


def test_a_dict_is_one_item_whose_image_is_anything_an_image_takes():
    array = np.zeros((2, 2), np.uint8)
    for source in ("img/x.png", Path("x.png"), pictures()["png"], array, PilImage.new("L", (2, 2))):
        text, image = to_item({"text": "a", "image": source})
        assert text == Text("a")
        assert isinstance(image, Image)
        assert image.source is source
    image = Image("a.png")
    assert to_item({"image": [image, "b.png"], "text": "t"})[0] is image
    assert [type(part) for part in to_item({"image": [image, "b.png"], "text": "t"})] == [Image, Image, Text]


def test_a_dict_never_fetches_what_it_was_not_allowed_to():
    (image,) = to_item({"image": "http://127.0.0.1:9/x.png"})
    assert isinstance(image, Image)
    with pytest.raises(ImageError, match="allow_url=True"):
        image.load()


@pytest.mark.parametrize(
    ("thing", "advice"),
    [
        (Path("x.png"), r"write mmembed\.Image"),
        (b"bytes", r"write mmembed\.Image"),
        (np.zeros((2, 2, 3), np.uint8), r"write mmembed\.Image"),
        (None, "NoneType is not guessed at"),
        (5, "int is not guessed at"),
        (["a", "b"], "a list is always many items"),
        ((), "empty tuple"),
        (("a", Path("x.png")), r"write mmembed\.Image"),
        ({}, "'text' and 'image'"),
        ({"texts": "a"}, "texts"),
        ({"text": "a", "audio": "b"}, "audio"),
        ({"text": 5}, "Text takes a str, not int"),
        ({"text": None}, "Text takes a str, not NoneType"),
        ({"image": 5}, "not int"),
        ({"image": None}, "not NoneType"),
    ],
)
def test_what_cannot_be_told_is_an_error_that_says_how_to_write_it(thing, advice):
    with pytest.raises(InputError, match=advice):
        to_item(thing)


def test_a_text_holds_a_string():
    with pytest.raises(InputError, match="not bytes"):
        Text(b"a")


@pytest.mark.parametrize(
    ("thing", "name"),
    [
        ("a", "text"),
        (Image("a.png"), "image"),
        (("a", Image("a.png")), "image+text"),
        ({"text": "a", "image": "a.png"}, "image+text"),
        (("a", "b"), "text"),
        ({"image": ["a.png", "b.png"]}, "image"),
    ],
)
def test_the_modality_names_what_an_item_holds(thing, name):
    assert modality(to_item(thing)) == name


def test_a_dict_of_empty_lists_is_an_error():
    with pytest.raises(InputError, match="holds no part"):
        to_item({"image": []})


def test_an_image_of_a_package_that_adds_to_pil_is_one():
    import PIL.Image

    class Added(PIL.Image.Image):
        __module__ = "elsewhere"

    shown = PIL.Image.new("RGB", (4, 4))
    shown.__class__ = Added
    (part,) = to_item(shown)
    assert isinstance(part, Image)
    assert part.source is shown


def test_a_thing_as_it_is_now_is_its_item_or_its_error():
    shared = {"text": "a", "image": np.zeros((2, 2), np.uint8)}
    kept = as_now(shared)
    shared["text"] = "b"
    shared["image"][:] = 9
    assert isinstance(kept, tuple)
    assert kept[0] == Text("a")
    assert not kept[1].load().any()
    assert as_now("a") == "a"
    error = as_now(("a", PilImage.open(io.BytesIO(pictures()["bmp"][:-99]))))
    assert isinstance(error, ImageError)
    with pytest.raises(ImageError, match=r"PIL image RGB 40x28: .*truncated"):
        to_item(error)
    with pytest.raises(InputError, match="a int is not guessed at"):
        to_item(as_now(5))
