"""Echo embeddings against their authors' formula."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import mmembed
from mmembed.methods import apply
from mmembed.testing import byte_tokenizer

from ..conftest import picture
from .plain import LONG, TEXTS, Plain, Reference, backbone


def second_copy(plain: Plain, text: str) -> Tensor:
    """(T, D): states from the second time on that the text is said, that of the closing token too."""
    front = f"Document:{text}\nDocument again:"
    return plain.hidden(front + text, closed=True)[-1][0, len(front.encode()) :]


REFERENCE: dict[str, Reference] = {
    "echo": lambda p, t: second_copy(p, t).mean(0),
    "echo-last": lambda p, t: second_copy(p, t)[-1],
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


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Tokens across any border of words, as a tokenizer of a language model has few of, so that pieces show."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    texts = ["Document:red fox\nDocument again:red fox", *TEXTS] * 3
    core.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=280, special_tokens=["<unk>"]))
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def test_a_query_is_asked_with_an_instruction(tiny):
    ours = apply(tiny, "echo")
    said = "Retrieve passages that answer the question"
    query = ours.encode(["x"], prompt=f"Instruct:{said},\nQuery:x\nQuery again:")
    assert abs(ours.encode_query(["x"]) - query).max() <= 1e-6
    asked = ours.encode_query(["x"], instruction=said)
    assert abs(ours.encode_query(["x"]) - asked).max() <= 1e-6
    assert abs(ours.encode_document(["x"]) - asked).max() > 1e-4


def test_the_pieces_of_a_query_are_those_of_its_authors(held):
    words = byte_tokenizer(eos=True)
    ours = mmembed.compose(
        backbone=backbone("llama", 4), tokenizer=words, max_length=LONG, normalize=False, device="cpu"
    )
    due = []
    for text in TEXTS:
        front = f"Instruct:Find it,\nQuery:{text}\nQuery again:"
        with torch.inference_mode():
            states = backbone("llama", 4)(words(front + text, return_tensors="pt")["input_ids"]).last_hidden_state
        due.append(states[0, len(front.encode()) :].mean(0))
    told = apply(ours, "echo").encode_query(TEXTS, instruction="Find it")
    says = {"against": "the authors' formula over transformers", "kind": "method", "family": "echo"}
    held("echo", told, torch.stack(due), relative=True, **says)


def test_the_pieces_of_a_template_are_tokenised_apart(held):
    words = merging_tokenizer()
    ours = mmembed.compose(
        backbone=backbone("llama", 4), tokenizer=words, max_length=LONG, normalize=False, device="cpu", close=False
    )
    due = []
    for text in (texts := ["red fox", "a red fox", *TEXTS]):
        pieces = [words(piece)["input_ids"] for piece in ("Document:", text, "\nDocument again:", text)]
        ids = torch.tensor([[number for piece in pieces for number in piece]])
        with torch.inference_mode():
            due.append(backbone("llama", 4)(ids).last_hidden_state[0, -len(pieces[-1]) :].mean(0))
    assert words.tokenize("Document:red fox") != words.tokenize("Document:") + words.tokenize("red fox")
    says = {"against": "the authors' formula over transformers", "kind": "method", "family": "echo"}
    held("echo", apply(ours, "echo").encode(texts), torch.stack(due), relative=True, **says)
