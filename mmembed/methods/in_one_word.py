"""Prompts that ask for a word or a summary and read the state where it would come: PromptEOL and what followed it."""

from __future__ import annotations

from collections.abc import Mapping

from ..prompts import escaped
from .method import Method, marks

PROMPTEOL = 'This sentence : "{text}" means in one word:"'
PRETENDED_COT = 'After thinking step by step , this sentence : "{text}" means in one word:"'
KNOWLEDGE = (
    "The essence of a sentence is often captured by its main subjects and actions, while descriptive terms provide "
    'additional but less central details. With this in mind , this sentence : "{text}" means in one word:"'
)
PICTURE = "{image}\nSummary above image in one word:"
"""E5-V's question for pictures (arXiv 2407.12580), asked of any backbone that sees."""
BOTH = "{image}{text}\nSummary above image and sentence in one word:"

_META = (
    "In this task, you're presented with a text excerpt. Your task is to categorize the excerpt into a broad category such "
    "as 'Education', 'Technology', 'Health', 'Business', 'Environment', 'Politics', or 'Culture'. These categories help in "
    'organizing content for better accessibility and targeting. For this task, this sentence : "{text}" should be '
    'classified under one general category in one word:"',
    "In this task, you're given a statement and you need to determine whether it's presenting an 'Opinion' or a 'Fact'. "
    "This distinction is vital for information verification, educational purposes, and content analysis. For this task, "
    'this sentence : "{text}" discriminates between opinion and fact in one word:"',
    "In this task, you're given a review from an online platform. Your task is to generate a rating for the product based "
    "on the review on a scale of 1-5, where 1 means 'extremely negative' and 5 means 'extremely positive'. For this task, "
    'this sentence : "{text}" reflects the sentiment in one word:"',
    "In this task, you're reading a personal diary entry. Your task is to identify the predominant emotion expressed, such "
    'as joy, sadness, anger, fear, or love. For this task, this sentence : "{text}" conveys the emotion in one word:"',
    "In this task, you're presented with two sentences. Your task is to assess whether the sentences convey the same "
    "meaning. Use 'identical', 'similar', 'different', or 'unrelated' to describe the relationship. To enhance the "
    'performance of this task, this sentence : "{text}" means in one word:"',
    "In this task, you're given a sentence and a phrase. Your task is to determine if the phrase can be a contextual "
    "synonym within the given sentence. Options include 'yes', 'no', or 'partially'. To enhance the performance of this "
    'task, this sentence : "{text}" means in one word:"',
    "In this task, you're examining a news article. Your task is to extract the most critical fact from the article. For "
    'this task, this sentence : "{text}" encapsulates the key fact in one word:"',
    "In this task, you're reviewing a scientific abstract. Your task is to identify the main entities (e.g., proteins, "
    'diseases) and their relations (e.g., causes, treats). For this task, this sentence : "{text}" highlights the '
    'primary entity or relation in one word:"',
)


def _asked(text: str | tuple[str, ...]) -> dict[str, str | tuple[str, ...]]:
    return {"text": text, "image": PICTURE, "image+text": BOTH}


def with_demonstration(sentence: str, word: str) -> dict[str, str | tuple[str, ...]]:
    """PromptEOL's templates with one example before the sentence; the authors pick it on STS-B dev."""
    return _asked(escaped(f'This sentence : "{sentence}" means in one word:"{word}".') + PROMPTEOL)


DEMONSTRATIONS: Mapping[str, tuple[str, str]] = {
    "facebook/opt-125m": ("A man is smoking.", "Smoking"),
    "facebook/opt-350m": ("A man is playing on a guitar and singing.", "Music"),
    "facebook/opt-1.3b": ("relating to switzerland or its people.", "Swiss"),
    "facebook/opt-2.7b": ("A jockey riding a horse.", "Equestrian"),
    "facebook/opt-6.7b": ("The man is riding a horse.", "Horseback-riding"),
    "facebook/opt-13b": ("meat from a deer.", "Venison"),
    "facebook/opt-30b": ("The man is riding a motorcycle down the road.", "Motorcycling"),
    "facebook/opt-66b": ("of or relating to tutors or tutoring.", "Tutorial"),
}
"""The example that PromptEOL's authors picked for a backbone (run_icl.sh), for `with_demonstration(*...)`."""

_LLAMA3 = "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n \n"
"""The chat of Llama 3 as E5-V writes it, with its line of one space."""


def _e5v(within: str = "{}") -> dict[str, dict[str, str]]:
    """E5-V's questions by what is asked: of anything; of an image, or of one and what is to change in it (CIRR); of a garment,
    which is the instruction (FashionIQ). Spaces and spelling are the authors'."""
    asked = {
        "": {
            "text": "{text}\nSummary above sentence in one word: ",
            "image": "{image}\nSummary above image in one word: ",
            "image+text": "{image}{text}\nSummary above image and sentence in one word: ",
        },
        "composed": {
            "image": "{image}\n Describe this image in one word:",
            "image+text": '{image}Modify this image with "{text}", desribe modified image in one word:',
        },
        "fashion": {
            "image": "{image}\n Describe this {instruction} in one word based on its style:",
            "image+text": (
                "{image} change the style of this {instruction} to {text}\n Desribe this modified {instruction} in one word "
                "based on its style:"
            ),
        },
    }
    return {name: {kind: within.replace("{}", text) for kind, text in by.items()} for name, by in asked.items()}


def _e5v_method(name: str, within: str = "{}") -> Method:
    questions = _e5v(within)
    return Method(
        name=name, paper="E5-V, arXiv 2407.12580", templates=questions.pop(""), besides=questions, needs=marks(within)
    )


_PROMPTEOL = "PromptEOL, arXiv 2307.16645"
_ANGLE = (
    "AnglE, arXiv 2309.12871: prompts A and B of its decoders, read at the last token, C of its encoders, at the first"
)
_SFP = "CSE-SFP, SIGIR 2025"
_COT = "Pretended CoT and Knowledge Enhancement, arXiv 2404.03921"

METHODS = (
    Method(name="prompteol", paper=_PROMPTEOL, templates=_asked(PROMPTEOL), cleaning="one_sentence"),
    Method(
        name="prompteol-icl",
        paper=_PROMPTEOL,
        templates=with_demonstration(*DEMONSTRATIONS["facebook/opt-2.7b"]),
        cleaning="one_sentence",
    ),
    Method(
        name="promptsth",
        paper=_COT,
        templates={"text": 'This sentence : "{text}" means something'},
        cleaning="one_sentence",
    ),
    Method(
        name="promptsum",
        paper=_COT,
        templates={"text": 'This sentence : "{text}" can be summarized as'},
        cleaning="one_sentence",
    ),
    Method(name="pretended-cot", paper=_COT, templates=_asked(PRETENDED_COT), cleaning="one_sentence", layers=(-2,)),
    Method(
        name="knowledge-enhancement", paper=_COT, templates=_asked(KNOWLEDGE), cleaning="one_sentence", layers=(-2,)
    ),
    Method(
        name="metaeol",
        paper="MetaEOL, Lei et al., ACL 2024",
        templates={"text": _META},
        cleaning="one_sentence",
    ),
    Method(
        name="angle-a",
        paper=_ANGLE,
        templates=_asked('Summarize sentence "{text}" in one word:"'),
    ),
    Method(
        name="angle-b",
        paper=_ANGLE,
        templates=_asked('You can only output one word. Summarize "{text}":"'),
    ),
    Method(
        name="angle-c",
        paper=_ANGLE,
        templates={"text": "Represent this sentence for searching relevant passages: {text}"},
        pooling="first",
        closed=True,
        causal=False,
    ),
    *(
        Method(name=name, paper=_SFP, templates=_asked(f'This sentence : "{{text}}" {asked}'), cleaning="one_sentence")
        for name, asked in (
            ("cse-sfp-llama", "means in one word, it can be summarized as"),
            ("cse-sfp-mistral", "means something, it can be summarized as"),
            ("cse-sfp-opt", "means something, it can also be summarized as"),
        )
    ),
    _e5v_method("e5-v"),
    _e5v_method("e5-v-llama3", _LLAMA3),
)
"""E5-V asks nothing of an image with a text but what is to change in it; the plain question for both is ours."""
