"""mteb's own client of servers over our server: texts and pictures get the embedder's own vectors.

Skipped where mteb, which brings much with it, is not installed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

import mmembed
from mmembed.serve.app import build_app

from .served import served

pytest.importorskip("mteb", reason="mteb is not installed")
from mteb.models.openai_wrappers import OpenAIAPIEncodeWrapper

TEXTS = ["a red bicycle", "红色的自行车", "دراجة حمراء"]
TASK = {"task_metadata": SimpleNamespace(name="ours", prompt=None), "hf_split": "test", "hf_subset": "default"}


@pytest.fixture(scope="module")
def pico() -> mmembed.Embedder:
    return mmembed.load()


@pytest.mark.parametrize("chat", [True, False])
def test_texts(pico, chat):
    with served(build_app(pico)) as url:
        client = OpenAIAPIEncodeWrapper(url, "pico", use_chat_template=chat)
        found = client.encode([{"text": TEXTS}], show_progress_bar=False, **TASK)
    np.testing.assert_allclose(found, pico.encode(TEXTS), atol=1e-5)


def test_pictures_and_pictures_with_words(pico):
    pictures = [
        PIL.Image.fromarray(np.random.default_rng(n).integers(0, 256, (30, 40, 3), dtype=np.uint8)) for n in range(3)
    ]
    with served(build_app(pico)) as url:
        client = OpenAIAPIEncodeWrapper(url, "pico")
        alone = client.encode([{"image": pictures}], show_progress_bar=False, **TASK)
        both = client.encode([{"image": pictures, "text": TEXTS}], show_progress_bar=False, **TASK)
    np.testing.assert_allclose(alone, pico.encode(pictures), atol=1e-5)
    np.testing.assert_allclose(both, pico.encode(list(zip(pictures, TEXTS, strict=True))), atol=1e-5)
