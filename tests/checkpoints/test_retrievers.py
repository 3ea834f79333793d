"""Late-interaction retrievers of transformers, as tiny random folders of their names, held to its own classes and processors."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import (
    ColPaliConfig,
    ColPaliForRetrieval,
    ColPaliProcessor,
    ColQwen2Config,
    ColQwen2ForRetrieval,
    ColQwen2Processor,
    PaliGemmaConfig,
    Qwen2VLConfig,
    Qwen2VLImageProcessorPil,
    SiglipImageProcessorPil,
)

import mmembed
from mmembed import Image, checkpoints
from mmembed.errors import InputError, SpecError
from mmembed.testing import BACKBONES, IMAGE_PROCESSORS, VLM_MARKS, VLM_TOKENS, VLMS, byte_tokenizer, sharpen

COLQWEN2 = "vidore/colqwen2-v1.0-hf"
COLPALI = ("vidore/colpali-v1.2-hf", "vidore/colpali-v1.3-hf")
RETRIEVERS = (COLQWEN2, *COLPALI)
AGAINST = "transformers' class and processor"
WORDS = ["eine Katze?", "x", "写真 of {a} page"]
PAGES = [
    np.random.default_rng(k).integers(0, 256, shape, dtype=np.uint8)
    for k, shape in ((1, (80, 70, 3)), (2, (40, 90, 3)))
]


@pytest.fixture(scope="module")
def colqwen2(tmp_path_factory):
    """The folder, and model and processor of transformers."""
    words = byte_tokenizer(eos=False, special=VLM_TOKENS["qwen2_vl"])
    words.pad_token = "<|endoftext|>"
    marks = {key: words.get_vocab()[token] for key, token in VLM_MARKS["qwen2_vl"].items()}
    body = Qwen2VLConfig(**VLMS["qwen2_vl"], **marks)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ColQwen2ForRetrieval(ColQwen2Config(vlm_config=body)).eval()
        sharpen(model)
    folder = tmp_path_factory.mktemp("colqwen2") / "colqwen2-v1.0-hf"
    settings = {key: value for key, value in IMAGE_PROCESSORS["qwen2_vl"].items() if key != "image_processor_type"}
    processor = ColQwen2Processor(Qwen2VLImageProcessorPil(**settings), words)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, model, processor


def theirs(model, processor, side: str, **inputs) -> list[np.ndarray]:
    """What their forward gives of one padded batch, padding dropped. ColQwen2's is told the positions that its authors' code, and
    the first versions of this class, worked out themselves."""
    processor.tokenizer.padding_side = side
    batch = processor(**inputs, padding=True, return_tensors="pt")
    with torch.inference_mode():
        if isinstance(model, ColQwen2ForRetrieval):
            marked = (batch["input_ids"] == model.config.vlm_config.image_token_id).int()
            told = {key: batch[key] for key in ("image_grid_thw", "attention_mask") if key in batch}
            batch["position_ids"], _ = model.vlm.get_rope_index(batch["input_ids"], mm_token_type_ids=marked, **told)
        out = model(**batch).embeddings
    return [own[mask == 1].numpy() for own, mask in zip(out, batch["attention_mask"], strict=True)]


def hold(held, repository, ours, model, processor):
    """Token vectors of queries and pages, and their scores, against one padded batch of transformers."""
    pages = [PIL.Image.fromarray(page) for page in PAGES]
    says = {"against": AGAINST, "kind": "checkpoint", "family": checkpoints.declared()[repository].family}
    queries, documents = ours.encode_tokens(WORDS, side="query"), ours.encode_tokens([Image(p) for p in PAGES])
    for padding in ("left", "right"):
        due = theirs(model, processor, padding, text=WORDS), theirs(model, processor, padding, images=pages)
        for told, expected in zip((queries, documents), due, strict=True):
            for own, other in zip(told, expected, strict=True):
                held(repository, own, other, what="tokens", **says)
        scores = processor.score_retrieval(*([torch.from_numpy(x) for x in side] for side in due))
        held(repository, ours.similarity(queries, documents), scores, relative=True, what="tokens", **says)
    alone = [ours.encode_tokens(word, side="query")[0] for word in WORDS]
    assert max(np.abs(a - b).max() for a, b in zip(alone, queries, strict=True)) <= 1e-5
    return queries, documents


def test_colqwen2_gives_the_token_vectors_of_transformers(colqwen2, held):
    folder, model, processor = colqwen2
    ours = mmembed.load(folder, device="cpu")
    assert ours.dimension == 128
    queries, _ = hold(held, COLQWEN2, ours, model, processor)
    assert all(len(q) == len(w.encode()) + len("Query: ") + 11 for q, w in zip(queries, WORDS, strict=True))


@pytest.mark.parametrize("repository", COLPALI)
def test_colpali_gives_the_token_vectors_of_transformers(tmp_path, repository, held):
    words = byte_tokenizer(eos=False, special=("<bos>", "<image>"))
    words.bos_token = "<bos>"
    number = words.get_vocab()
    sees = {"model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14, "hidden_size": 16}
    body = PaliGemmaConfig(
        text_config={**BACKBONES["llama"], "model_type": "gemma", "vocab_size": 300},
        vision_config={**sees, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
        image_token_id=number["<image>"],
        projection_dim=32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ColPaliForRetrieval(ColPaliConfig(vlm_config=body)).eval()
        sharpen(model)
    images = SiglipImageProcessorPil(size={"height": 28, "width": 28})
    images.image_seq_length = 4
    processor = ColPaliProcessor(images, words)
    folder = tmp_path / repository.rpartition("/")[2]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    ours = mmembed.load(folder, device="cpu")
    queries, documents = hold(held, repository, ours, model, processor)
    assert [len(d) for d in documents] == [4 + 1 + len("Describe the image.\n")] * 2
    assert [len(q) for q in queries] == [1 + len(f"Question: {word}\n".encode()) + 10 for word in WORDS]


def test_colqwen2_is_saved_and_says_what_it_does_not_give(colqwen2, tmp_path):
    ours = mmembed.load(colqwen2[0], device="cpu")
    again = mmembed.load(ours.save(tmp_path / "m"), device="cpu")
    page = Image(PAGES[0])
    assert np.array_equal(again.encode_tokens(page)[0], ours.encode_tokens(page)[0])
    with pytest.raises(SpecError, match="no one vector for an item; ask it by encode_tokens"):
        ours.encode(page)
    with pytest.raises(InputError, match="no template for text items"):
        ours.encode_tokens("a text as a document")
