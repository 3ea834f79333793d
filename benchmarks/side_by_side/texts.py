"""Texts of eleven languages by seed, of as many tokens as are asked for, and the tokenizer that counts them."""

from __future__ import annotations

import functools
import math
import random
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[2]
SENTENCES = Path(__file__).with_name("sentences.toml")
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)
"""Those of Qwen3 and Qwen3-VL."""
INSTRUCTION = (
    "Given any question in any language, retrieve the passages of a book that answer it, whatever their language, "
    "long or short"
)
"""54 tokens of the tokenizer below with what Qwen3-Embedding puts around it (a test counts them)."""


@functools.cache
def tokenizer(*, close: bool) -> PreTrainedTokenizerFast:
    """The 31,000 pieces of pico's vocabulary, of 127 languages, as a fast tokenizer, with the special tokens of Qwen3; `close`:
    <|endoftext|> ends a text, as Qwen3-Embedding has it."""
    from sentencepiece import SentencePieceProcessor
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = SentencePieceProcessor(model_file=str(ROOT / "adapters/pico/tokenizer.model"))
    vocabulary = [(pieces.id_to_piece(k), pieces.get_score(k)) for k in range(pieces.get_piece_size())]
    core = Tokenizer(models.Unigram(vocabulary, unk_id=pieces.unk_id(), byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    core.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    if close:
        core.post_processor = processors.TemplateProcessing(
            single=f"$A {SPECIAL[0]}", special_tokens=[(SPECIAL[0], core.token_to_id(SPECIAL[0]))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=SPECIAL[0], eos_token=SPECIAL[0])


def languages() -> dict[str, list[str]]:
    return tomllib.loads(SENTENCES.read_text(encoding="utf-8"))


def of_lengths(lengths: Sequence[int], seed: int, words: PreTrainedTokenizerFast) -> list[str]:
    """One text a length, the languages in turn: sentences in random order from a random word on, cut at so many tokens (give or
    take a few, where the cut changes them). No two are the same: equal ones would be computed once by some systems."""
    draw = random.Random(seed)
    sentences = list(languages().values())
    every: dict[str, None] = {}
    while len(every) < len(lengths):
        length, own = lengths[len(every)], sentences[len(every) % len(sentences)]
        joint = "" if "。" in own[0] else " "
        text = joint.join(draw.sample(own, len(own)))
        while len(text) < 8 * length + 200:
            text += joint + joint.join(draw.sample(own, len(own)))
        text = text[draw.choice([k for k in range(200) if not joint or not k or text[k - 1] == joint]) :]
        offsets = words(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        every[text[: offsets[length - 1][1]].strip()] = None
    return list(every)


def lognormal(count: int, seed: int, low: int, high: int) -> list[int]:
    """Lengths as documents have them: the median at the geometric mean of both ends, which are two deviations away."""
    draw = random.Random(seed)
    centre, width = math.log(low * high) / 2, math.log(high / low) / 4
    return [min(high, max(low, round(draw.lognormvariate(centre, width)))) for _ in range(count)]
