"""More checkpoints that read text, held to their authors: encoders, adapters over language models, NV-Embed, T5, brackets."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch.nn.functional import gelu, layer_norm, normalize, softmax
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import mmembed
from mmembed import checkpoints
from mmembed.testing import BACKBONES, byte_tokenizer, sharpen

from .test_checkpoints import (
    CONFIGS,
    DECODER,
    ENCODER,
    ENCODES,
    EOS,
    FORMULA,
    OF_ITS_OWN,
    ROWS,
    T_E5I,
    TASK,
    TEXTS,
    Row,
    authors,
    before,
    e5,
    family_of,
    first,
    mean,
    position_weighted,
    released,
    tiny_body,
)

KINDS = {
    **CONFIGS,
    "modernbert": {**BACKBONES["modernbert"], "cls_token_id": 257, "sep_token_id": 258},
    "roberta": BACKBONES["xlm-roberta"],
    "ministral3": {**BACKBONES["qwen3"], "sliding_window": None},
    "mixtral": {**DECODER, "num_local_experts": 4, "sliding_window": None},
    "mpnet": {**ENCODER, "pad_token_id": 1},
    "gptj": {
        "vocab_size": 300,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "rotary_dim": 8,
        "n_positions": 600,
    },
}
CODE = "Find the most relevant code snippet given the following query:\n"
PASSAGES = "Represent this sentence for searching relevant passages: "
CHINESE = "为这个句子生成表示以用于检索相关文章："
EMPTY = (None, None)


def encoder(
    kind: str, pool: Callable[..., Any], query: str = "", document: str = "", said: bool = True, **changed: Any
) -> Row:
    texts = (query + "{text}", document + "{text}") if said else EMPTY
    return Row(
        kind=kind, query=before(query), document=before(document), pool=pool, templates=texts, **{**ENCODES, **changed}
    )


BGE = encoder("bert", first, PASSAGES)
BGE_ZH = encoder("bert", first, CHINESE)
NOMIC = encoder("nomic_bert", mean, "search_query: ", "search_document: ")
F2LLM = Row(kind="qwen3", query=e5, words={"eos": False}, after=("</s>",), templates=T_E5I)
JINA_CODE = Row(
    kind="qwen2",
    query=before(CODE),
    document=before("Candidate code snippet:\n"),
    instructed=False,
    words=EOS,
    after=("</s>",),
    templates=(CODE + "{text}", "Candidate code snippet:\n{text}"),
)
NEMOTRON_3 = Row(
    kind="ministral3",
    config={"is_causal": False},
    query=before(""),
    pool=mean,
    words={"bos": True, "eos": False},
    before=("<s>",),
    both_ways=True,
    instructed=False,
    templates=EMPTY,
)
GRIT = {**vars(ROWS["GritLM/GritLM-7B"])}
MORE: Mapping[str, Row] = {
    **{f"codefuse-ai/F2LLM-{size}": F2LLM for size in ("0.6B", "1.7B", "4B")},
    **{f"codefuse-ai/F2LLM-v2-{s}": F2LLM for s in ("80M", "160M", "330M", "0.6B", "1.7B", "4B", "8B", "14B")},
    **{f"BAAI/bge-{size}-en{v}": BGE for size in ("base", "large", "small") for v in ("", "-v1.5")},
    **{f"BAAI/bge-{size}-zh{v}": BGE_ZH for size in ("base", "large", "small") for v in ("", "-v1.5")},
    **{f"Snowflake/snowflake-arctic-embed-{size}": BGE for size in ("l", "m", "s", "xs")},
    "mixedbread-ai/mxbai-embed-large-v1": BGE,
    "WhereIsAI/UAE-Large-V1": BGE,
    **{f"intfloat/e5-{size}-v2": encoder("bert", mean, "query: ", "passage: ") for size in ("small", "base", "large")},
    **{f"ibm-granite/granite-embedding-{n}-english": encoder("roberta", first, said=False) for n in ("30m", "125m")},
    **{
        f"ibm-granite/granite-embedding-{n}-multilingual": encoder("xlm-roberta", first, said=False)
        for n in ("107m", "278m")
    },
    **{
        f"ibm-granite/granite-embedding-{n}-r2": encoder("modernbert", first, said=False)
        for n in ("small-english", "english", "97m-multilingual", "311m-multilingual")
    },
    "Alibaba-NLP/gte-modernbert-base": encoder("modernbert", first, said=False),
    "nomic-ai/modernbert-embed-base": encoder("modernbert", mean, "search_query: ", "search_document: "),
    "nomic-ai/nomic-embed-text-v1": NOMIC,
    "nomic-ai/nomic-embed-text-v1-unsupervised": NOMIC,
    **{f"jinaai/jina-code-embeddings-{size}": JINA_CODE for size in ("0.5b", "1.5b")},
    **{f"nvidia/Nemotron-3-Embed-{size}-BF16": NEMOTRON_3 for size in ("1B", "8B")},
    "BAAI/bge-code-v1": Row(**{**vars(ROWS["BAAI/bge-multilingual-gemma2"]), "kind": "qwen2"}),
    "BAAI/bge-reasoner-embed-qwen3-8b-0923": Row(kind="qwen3", query=e5, words=EOS, after=("</s>",), templates=T_E5I),
    "GritLM/GritLM-8x7B": Row(**{**GRIT, "kind": "mixtral"}),
    "ReasonIR/ReasonIR-8B": Row(**{**GRIT, "kind": "llama"}),
    "sentence-transformers/all-mpnet-base-v2": encoder("mpnet", mean, said=False),
    "sentence-transformers/paraphrase-multilingual-mpnet-base-v2": encoder("xlm-roberta", mean, said=False, raw=True),
}
SPECB = {
    **{f"Muennighoff/SGPT-{size}-weightedmean-msmarco-specb-bitfit": "gpt_neo" for size in ("125M", "1.3B", "2.7B")},
    "Muennighoff/SGPT-5.8B-weightedmean-msmarco-specb-bitfit": "gptj",
}
LLM2VEC = {
    "Sheared-LLaMA": ("llama", "princeton-nlp/Sheared-LLaMA-1.3B", "", ""),
    "Llama-2-7b-chat-hf": ("llama", "meta-llama/Llama-2-7b-chat-hf", "[INST] ", " [/INST]"),
    "Mistral-7B-Instruct-v2": ("mistral", "mistralai/Mistral-7B-Instruct-v0.2", "[INST] ", " [/INST]"),
    "Meta-Llama-3-8B-Instruct": (
        "llama",
        "meta-llama/Meta-Llama-3-8B-Instruct",
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
}
STAGES = ("", "-supervised", "-unsup-simcse")
LLM2VECS = {f"McGill-NLP/LLM2Vec-{body}-mntp{stage}": (body, stage) for body in LLM2VEC for stage in STAGES}
ONE_SPACE, TWO_SPACES = ("query: ", "passage: "), ("query:  ", "passage:  ")
REPLLAMAS = {
    "castorini/repllama-v1-7b-lora-passage": ("llama", ONE_SPACE),
    "samaya-ai/RepLLaMA-reproduced": ("llama", TWO_SPACES),
    "samaya-ai/promptriever-llama2-7b-v1": ("llama", TWO_SPACES),
    "samaya-ai/promptriever-llama3.1-8b-v1": ("llama", TWO_SPACES),
    "samaya-ai/promptriever-llama3.1-8b-instruct-v1": ("llama", TWO_SPACES),
    "samaya-ai/promptriever-mistral-v0.1-7b-v1": ("mistral", TWO_SPACES),
}
NV_EMBEDS = ("nvidia/NV-Embed-v1", "nvidia/NV-Embed-v2")
SIZES = ("base", "large", "xl", "xxl")
T5S = [f"sentence-transformers/{kind}-{size}" for kind in ("gtr-t5", "sentence-t5") for size in SIZES]
INSTRUCTORS = [f"hkunlp/instructor-{size}" for size in SIZES[:3]]
LABSE = "sentence-transformers/LaBSE"
OTHERS = {*SPECB, *LLM2VECS, *REPLLAMAS, *NV_EMBEDS, *T5S, *INSTRUCTORS, LABSE}


def test_every_declared_checkpoint_that_reads_text_has_a_row():
    reading = {
        name
        for name, checkpoint in checkpoints.declared().items()
        if checkpoint.modalities == ("text",) and checkpoint.said.get("dense", True)
    }
    assert reading == {*ROWS, OF_ITS_OWN, *MORE, *OTHERS}


@pytest.fixture(autouse=True)
def _kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, settings in KINDS.items():
        monkeypatch.setitem(CONFIGS, kind, settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("repository", MORE)
def test_a_checkpoint_gives_the_vectors_of_its_authors_formula(tmp_path, held, repository):
    row = MORE[repository]
    checkpoint = checkpoints.declared()[repository]
    said = checkpoint.said.get("prompts", {})
    assert tuple(said.get(name, {}).get("text") for name in ("query", "document")) == row.templates
    body = tiny_body(row)
    folder = released(tmp_path, repository, row, body, modules="pooling" not in checkpoint.said)
    ours = mmembed.load(folder, device="cpu")
    body.set_attn_implementation("eager")
    body.config.is_causal = not row.both_ways
    asked = {"instruction": TASK} if row.instructed else {}
    own = [text.strip() for text in TEXTS]
    for vectors, wrapped in (
        (ours.encode_query(own, **asked), [row.query(TASK, text) for text in own]),
        (ours.encode_document(own), [row.document(text) for text in own]),
    ):
        for side in row.sides:
            expected = authors(row, body, wrapped, own, side)
            held(repository, vectors, expected, against=FORMULA, kind="checkpoint", family=family_of(repository))
    assert ours.spec.name == repository


def merging_tokenizer(*, bos: bool = True, eos: bool = False, special: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes that merges brackets with what stands beside them, and a word otherwise behind a space."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("[", "("), ("{", "("), (".", "]"), (".", "}"), ("e", "d"), ("Ġ", "r"), ("r", "ed"), (":", "(")]
    core = Tokenizer(models.BPE({s: k for k, s in enumerate([*alphabet, *map("".join, merges)])}, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(t, special=True) for t in ("<pad>", "<s>", "</s>", *special)])
    core.post_processor = processors.TemplateProcessing(
        single=f"{'<s> ' if bos else ''}$A{' </s>' if eos else ''}",
        special_tokens=[(t, core.token_to_id(t)) for t in ("<s>", "</s>")],
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


SPLIT = ["(a) word.", "red", "two (red) words, a [pair].", "写真。"]


@pytest.mark.parametrize("repository", SPECB)
def test_brackets_are_tokens_of_their_own(tmp_path, held, repository):
    row = Row(kind=SPECB[repository], query=before(""), words={}, templates=EMPTY)
    body = tiny_body(row)
    folder = released(tmp_path, repository, row, body, modules=False)
    words = merging_tokenizer(bos=False)
    words.save_pretrained(folder)
    ours = mmembed.load(folder, device="cpu")
    body.set_attn_implementation("eager")
    for vectors, opening, closing in ((ours.encode_query(SPLIT), "[", "]"), (ours.encode_document(SPLIT), "{", "}")):
        around = [words.encode(bracket, add_special_tokens=False)[0] for bracket in (opening, closing)]
        ids = [[around[0], *words(text)["input_ids"], around[1]] for text in SPLIT]
        with torch.inference_mode():
            states = [body(torch.tensor([each])).last_hidden_state[0] for each in ids]
        expected = torch.stack([position_weighted(each, 0) for each in states])
        held(repository, vectors, expected, against=FORMULA, kind="checkpoint", family="sgpt", relative=True)
    merged = words(opening + SPLIT[0] + closing)["input_ids"]
    assert merged != ids[0]  # as text the brackets would have merged


def causal_lm(kind: str, path: Path, words: PreTrainedTokenizerFast) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**KINDS[kind], "vocab_size": 310}))
        sharpen(model)
    model.save_pretrained(path)
    words.save_pretrained(path)
    return model


def adapter(model: PreTrainedModel, base: str, path: Path, seed: int) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"]))
        for name, weight in tuned.named_parameters():
            if "lora_" in name:
                weight.data.normal_(std=0.2)
    tuned.save_pretrained(str(path), save_embedding_layers=False)
    settings = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": base}))
    return path


def of_llm2vec(
    body: PreTrainedModel, words: PreTrainedTokenizerFast, wrap: tuple[str, str], texts: list[tuple[str, str]]
) -> torch.Tensor:
    """As its `tokenize` and `get_pooling` do: the mask covers as many tokens at the end of a left-padded row as the part
    behind the separator makes by itself."""
    joined = [
        f"{instruction.strip()} !@#$%^&*(){text}" if instruction else f"!@#$%^&*(){text}" for instruction, text in texts
    ]
    wrapped = [wrap[0] + each.strip() + wrap[1] if any(wrap) else each for each in joined]
    parts = [each.split("!@#$%^&*()") for each in wrapped]
    ids = [words("".join(part))["input_ids"] for part in parts]
    longest = max(map(len, ids))
    pad = words.convert_tokens_to_ids("</s>")
    grid = torch.tensor([[pad] * (longest - len(each)) + each for each in ids])
    mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in ids])
    tails = [len(words(part[1], add_special_tokens=False)["input_ids"]) for part in parts]
    with torch.inference_mode():
        states = body(input_ids=grid, attention_mask=mask).last_hidden_state
    return torch.stack([states[k, -tail:].mean(0) for k, tail in enumerate(tails)])


@pytest.mark.parametrize("body_name", LLM2VEC)
def test_llm2vec_merges_its_adapters_and_pools_the_tail(tmp_path, held, body_name):
    kind, base_name, *wrap = LLM2VEC[body_name]
    words = merging_tokenizer(
        special=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")[: 3 * ("eot" in wrap[1])]
    )
    base = tmp_path / base_name.rpartition("/")[2]
    causal_lm(kind, base, words)
    name = f"LLM2Vec-{body_name}-mntp"
    first_one = adapter(AutoModelForCausalLM.from_pretrained(base), base_name, tmp_path / name, 1)
    for stage, seed in (("-supervised", 2), ("-unsup-simcse", 3)):
        adapter(AutoModel.from_pretrained(base), base_name, tmp_path / (name + stage), seed)
    texts = ["red", "eine Katze schläft. ", "写真", "red words"]
    for stage in STAGES:
        repository = f"McGill-NLP/{name}{stage}"
        ours = mmembed.load(tmp_path / (name + stage), device="cpu")
        body = (
            PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(first_one))
            .merge_and_unload()
            .model
        )
        if stage:
            body = PeftModel.from_pretrained(body, str(tmp_path / (name + stage))).merge_and_unload()
        body.config.is_causal = False
        body.set_attn_implementation("eager")
        options: dict[str, Any] = {
            "against": "the authors' formula over transformers and peft",
            "kind": "checkpoint",
            "family": "llm2vec",
            "relative": True,
        }
        for vectors, asked in ((ours.encode_query(texts, instruction=TASK), TASK), (ours.encode_document(texts), "")):
            expected = of_llm2vec(body.eval(), words, (wrap[0], wrap[1]), [(asked, text) for text in texts])
            held(repository, vectors, expected, **options)
    exact = ours.respecified(counted="content")
    # Words that tokenise otherwise behind a space are counted wrongly by the authors, and by us.
    assert np.abs(exact.encode_query(texts, instruction=TASK) - ours.encode_query(texts, instruction=TASK)).max() > 0.01


@pytest.mark.parametrize("repository", REPLLAMAS)
def test_repllama_and_promptriever_read_the_end_token_under_their_adapter(tmp_path, held, repository):
    kind, (query, passage) = REPLLAMAS[repository]
    words = byte_tokenizer(bos=True, eos=False)
    causal_lm(kind, tmp_path / "base", words)
    folder = adapter(
        AutoModel.from_pretrained(tmp_path / "base"), "some/base", tmp_path / repository.rpartition("/")[2], 1
    )
    ours = mmembed.load(folder, device="cpu")
    body = (
        PeftModel.from_pretrained(AutoModel.from_pretrained(tmp_path / "base"), str(folder)).merge_and_unload().eval()
    )
    texts = [text.strip() for text in TEXTS]
    sides = [
        (ours.encode_query(texts), [query + t for t in texts]),
        (ours.encode_document(texts), [passage + t for t in texts]),
    ]
    if query == TWO_SPACES[0]:
        instructed = ours.encode(texts, prompt_name="instructed_query", instruction=TASK)
        sides.append((instructed, [f"{query}{t} {TASK}" for t in texts]))
    for vectors, wrapped in sides:
        ids = [words(text)["input_ids"] + [words.eos_token_id] for text in wrapped]
        with torch.inference_mode():
            states = [body(torch.tensor([each])).last_hidden_state[0, -1] for each in ids]
        against = "the authors' formula over transformers and peft"
        held(
            repository,
            vectors,
            normalize(torch.stack(states), dim=-1),
            against=against,
            kind="checkpoint",
            family="repllama",
        )


def nv_embed(path: Path, repository: str) -> tuple[Path, PreTrainedModel, dict[str, torch.Tensor]]:
    """A tiny folder with the names and the nested configuration of the real one."""
    folder = path / repository.rpartition("/")[2]
    folder.mkdir()
    settings = {**DECODER, "sliding_window": 7}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = AutoModel.from_config(AutoConfig.for_model("mistral", **{**settings, "sliding_window": None}))
        sharpen(body)
        width, latents, heads = 32, 512, 8
        block = "latent_attention_model.cross_attend_blocks."
        shapes = {
            "latent_attention_model.latents": (latents, width),
            **{f"{block}0.{norm}.{part}": (width,) for norm in ("norm", "norm_context") for part in ("weight", "bias")},
            f"{block}0.fn.to_q.weight": (heads * width, width),
            f"{block}0.fn.to_kv.weight": (2 * heads * width, width),
            f"{block}0.fn.to_out.weight": (width, heads * width),
            f"{block}1.norm.weight": (width,),
            f"{block}1.norm.bias": (width,),
            f"{block}1.fn.net.0.weight": (8 * width, width),
            f"{block}1.fn.net.0.bias": (8 * width,),
            f"{block}1.fn.net.2.weight": (width, 4 * width),
            f"{block}1.fn.net.2.bias": (width,),
        }
        head = {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}
    state = {f"embedding_model.{name}": tensor.clone() for name, tensor in body.state_dict().items()}
    save_file({**state, **head}, folder / "model.safetensors", metadata={"format": "pt"})
    inner = AutoConfig.for_model("mistral", **settings).to_dict()
    config = {
        "model_type": "nvembed",
        "architectures": ["NVEmbedModel"],
        "auto_map": {"AutoModel": "modeling_nvembed.NVEmbedModel"},
        "text_config": {**inner, "model_type": "bidir_mistral"},
        "latent_attention_config": {"model_type": "latent_attention", "num_latents_value": 512},
    }
    (folder / "config.json").write_text(json.dumps(config))
    byte_tokenizer(bos=True, eos=False).save_pretrained(folder)
    return folder, body.eval(), head


def latent_attention(states: torch.Tensor, head: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(B, T, D) -> (B, T, D), as the authors' code: tokens ask, latents answer; GEGLU after it."""
    block = "latent_attention_model.cross_attend_blocks."

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return layer_norm(x, x.shape[-1:], head[f"{block}{name}.weight"], head[f"{block}{name}.bias"])

    context = norm(head["latent_attention_model.latents"], "0.norm_context")
    q = norm(states, "0.norm") @ head[f"{block}0.fn.to_q.weight"].T
    k, v = (context @ head[f"{block}0.fn.to_kv.weight"].T).chunk(2, dim=-1)
    q, k, v = (x.unflatten(-1, (8, -1)).transpose(-3, -2) for x in (q, k, v))
    mixed = softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1) @ v
    x = mixed.transpose(-3, -2).flatten(-2) @ head[f"{block}0.fn.to_out.weight"].T + states
    value, gate = (norm(x, "1.norm") @ head[f"{block}1.fn.net.0.weight"].T + head[f"{block}1.fn.net.0.bias"]).chunk(
        2, -1
    )
    return (value * gelu(gate)) @ head[f"{block}1.fn.net.2.weight"].T + head[f"{block}1.fn.net.2.bias"] + x


@pytest.mark.parametrize("repository", NV_EMBEDS)
def test_nv_embed_is_its_weights_in_our_parts(tmp_path, held, repository):
    folder, body, head = nv_embed(tmp_path, repository)
    ours = mmembed.load(folder, device="cpu")
    body.config.is_causal = False
    body.set_attn_implementation("eager")
    words = byte_tokenizer(bos=True, eos=True)
    for vectors, prompt in (
        (ours.encode_query(TEXTS, instruction=TASK), f"Instruct: {TASK}\nQuery: "),
        (ours.encode_document(TEXTS), ""),
    ):
        ids = [words(prompt + text)["input_ids"] for text in TEXTS]
        longest = max(map(len, ids))
        grid = torch.tensor([each + [256] * (longest - len(each)) for each in ids])
        mask = torch.tensor([[1] * len(each) + [0] * (longest - len(each)) for each in ids])
        with torch.inference_mode():
            states = latent_attention(body(input_ids=grid, attention_mask=mask).last_hidden_state, head)
        pooled = mask.clone()
        pooled[:, : len(words.tokenize(prompt))] = 0  # one token short of the prompt, for <s> stands before it
        expected = normalize((states * pooled[..., None]).sum(1) / pooled.sum(1, keepdim=True), dim=-1)
        held(repository, vectors, expected, against=FORMULA, kind="checkpoint", family="nv_embed")
    right = ours.respecified(counted="content")
    query = {"instruction": TASK}
    assert np.abs(right.encode_query(TEXTS, **query) - ours.encode_query(TEXTS, **query)).max() > 1e-3


def sentence_t5(path: Path, repository: str, kind: str = "t5", pooling: str = "mean") -> Path:
    """A folder that sentence-transformers itself writes: an encoder, its pooling, a dense layer, unit length."""
    plain, folder = path / "plain", path / repository.rpartition("/")[2]
    settings: dict[str, Any] = {
        **{"vocab_size": 310, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
        **{"feed_forward_proj": "gated-gelu", "pad_token_id": 256},
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **(settings if kind == "t5" else {**KINDS[kind], "vocab_size": 310}))
        body = AutoModel.from_config(config)
        for name, weight in body.named_parameters():
            if "norm" in name.lower() and name.endswith("weight"):
                weight.data.uniform_(0.5, 1.5)
            elif name.endswith(("SelfAttention.q.weight", "SelfAttention.k.weight")):
                weight.data.mul_(4)
        dense = Dense(
            32, 24, bias=kind != "t5", activation_function=torch.nn.Tanh() if kind != "t5" else torch.nn.Identity()
        )
    body.save_pretrained(plain)
    words = merging_tokenizer(bos=kind != "t5", eos=True)
    words.model_max_length = 128
    words.save_pretrained(plain)
    SentenceTransformer(
        modules=[Transformer(str(plain)), Pooling(32, pooling_mode=pooling), dense, Normalize()], device="cpu"
    ).save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("repository", [*T5S, LABSE])
def test_a_folder_with_a_dense_layer_gives_the_vectors_of_sentence_transformers(tmp_path, held, repository):
    kind = ("bert", "cls") if repository == LABSE else ("t5", "mean")
    folder = sentence_t5(tmp_path, repository, *kind)
    theirs = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    ours = mmembed.load(folder, device="cpu")
    family = family_of(repository)
    held(
        repository,
        ours.encode(TEXTS),
        theirs.encode(TEXTS),
        against="sentence-transformers",
        kind="checkpoint",
        family=family,
    )
    assert np.array_equal(ours.encode(TEXTS), ours.encode_query(TEXTS))


@pytest.mark.parametrize("repository", INSTRUCTORS)
def test_instructor_leaves_out_the_tokens_of_its_instruction(tmp_path, held, repository):
    folder = sentence_t5(tmp_path, repository)
    theirs = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    ours = mmembed.load(folder, device="cpu")
    texts = [*SPLIT, " red "]
    for vectors, instruction in (
        (ours.encode_query(texts), "Represent the Wikipedia question for retrieving supporting documents:"),
        (ours.encode_document(texts, instruction="Represent the words: "), "Represent the words: "),
    ):
        features = theirs.preprocess([instruction.strip() + text.strip() for text in texts])
        alone = theirs.preprocess([instruction.strip()])
        with torch.inference_mode():
            states = theirs[0](features)
            kept = features["attention_mask"].clone()
            kept[:, : int(alone["attention_mask"].sum()) - 1] = (
                0  # as many as it makes by itself, its end token left out
            )
            states = {**states, "attention_mask": kept}
            expected = theirs[3](theirs[2](theirs[1](states)))["sentence_embedding"]
        against = "the authors' formula over sentence-transformers"
        held(repository, vectors, expected, against=against, kind="checkpoint", family="instructor")
    exact = ours.respecified(counted="content")
    assert np.abs(exact.encode_query(texts) - ours.encode_query(texts)).max() > 1e-3  # a colon merges with what follows
