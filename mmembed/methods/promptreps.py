"""PromptReps: one prompt, two representations: the state where a word would come, and the logits there of the item's words."""

from __future__ import annotations

from .method import Method, marks

# The prompt files of the authors hold the two characters \n, and their script does not turn them into newlines; their README
# asks the chat template, which has newlines. Newlines it is here: they are what the models were trained on. As in their script
# the words of the template and the text are tokenised apart, and the prompt writes the opening token itself. Their variants that
# read several words, which the model writes one after another, are not here: embedding generates nothing.
_SYSTEM = "You are an AI assistant that can understand human language."
_ASKED = '{what}: "{{text}}". Use one word to represent the {named} in a retrieval task. Make sure your word is in lowercase.'
_ANSWER = 'The word is: "'
_CHATS = {
    "promptreps": (  # Llama 3
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|><|start_header_id|>user<|end_header_id|>"
        "\n\n{asked}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n{answer}"
    ),
    "promptreps-phi3": "<s><|system|>\n{system}<|end|>\n<|user|>\n{asked}<|end|>\n<|assistant|>\n{answer}",
    "promptreps-mistral": "<s>[INST] {system} {asked} [/INST]{answer}",
}


def _template(chat: str, what: str) -> str:
    return chat.format(system=_SYSTEM, asked=_ASKED.format(what=what, named=what.lower()), answer=_ANSWER)


METHODS = tuple(
    Method(
        name=name,
        paper="PromptReps, arXiv 2404.18424",
        templates={"text": _template(chat, "Passage")},
        besides={"query": {"text": _template(chat, "Query")}},
        opened=False,
        needs=marks(chat),
        apart=True,
        # log(1 + relu) of the logits there, of the 128 best of its own words' ids; of a text of none, the 10 best of all.
        # The authors round hundredfold weights to integers for Lucene; here they stay as they are.
        sparse={"head": {"kind": "splade", "reduce": "last"}, "top": 128, "within": "english", "otherwise": 10},
    )
    for name, chat in _CHATS.items()
)
"""`encode` and `encode_sparse`, of passages by default, of queries under `encode_query` and side="query";
`mmembed.search.fusion` makes one ranking of the two. The sparse part needs the backbone's language head: compose the embedder
with `sparse={"head": {"kind": "splade"}}`."""
