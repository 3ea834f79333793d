"""Echo embeddings against their authors' formula."""

from __future__ import annotations

from torch import Tensor

import mmembed
from mmembed.methods import apply

from ..conftest import picture
from .plain import Plain, Reference


def second_copy(plain: Plain, text: str, *, closed: bool) -> Tensor:
    """(T, D): states from the second time on that the text is said."""
    front = f"Document:{text}\nDocument again:"
    return plain.hidden(front + text, closed=closed)[-1][0, len(front.encode()) :]


REFERENCE: dict[str, Reference] = {
    "echo": lambda p, t: second_copy(p, t, closed=False).mean(0),
    "echo-last": lambda p, t: second_copy(p, t, closed=True)[-1],
}


def test_an_echoed_picture_is_pooled_the_second_time(tiny):
    ours = apply(tiny, "echo")
    assert abs(ours.encode([picture(1)]) - ours.encode([picture(2)])).max() > 1e-4


def test_a_text_that_is_said_twice_is_cut_in_both_places(tiny):
    ours = apply(tiny, "echo", max_length=60)
    report = mmembed.Report()
    cut = ours.encode(["y" * 50], report=report)
    assert report.truncated == [0]
    assert abs(cut - ours.encode(["y" * 17])).max() <= 1e-6
