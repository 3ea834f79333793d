"""Checkpoints with sparse weights and token vectors, as tiny random folders of their names, held to their authors' formulas
over transformers and to sentence-transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from sentence_transformers import MultiVectorEncoder, SparseEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

import mmembed
from mmembed import checkpoints
from mmembed.errors import LoadError, SpecError
from mmembed.testing import byte_tokenizer, sharpen

from .test_checkpoints import CONFIGS, changed_json
from .test_retrievers import RETRIEVERS

TEXTS = ["red", "eine Katze schläft auf dem warmen Sofa", "写真", "x" * 90, "two words, two pairs"]
TASK = "Given a question, find its answer"
FORMULA = "the authors' formula over transformers"
BOTH: dict[str, Any] = {"bos": True, "eos": True}


def tiny(made_by: Any, kind: str, **changed: Any) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = made_by.from_config(AutoConfig.for_model(kind, **{**CONFIGS[kind], **changed}))
        sharpen(model)
    return model.eval()


def plain_folder(path: Path, model: PreTrainedModel, **words: Any) -> Path:
    model.save_pretrained(path)
    tokenizer = byte_tokenizer(**words)
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(path)
    return path


def ids_of(texts: list[str], words: dict[str, Any], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A padded grid and its mask, by the folder's own tokenizer."""
    tokenizer = byte_tokenizer(**words)
    tokenizer.padding_side = side
    out = tokenizer(texts, padding=True, return_tensors="pt")
    return out["input_ids"], out["attention_mask"]


def family(repository: str) -> dict[str, str]:
    return {"kind": "checkpoint", "family": checkpoints.declared()[repository].family}


# BGE-M3

M3 = "BAAI/bge-m3"


@pytest.fixture(scope="module")
def m3(tmp_path_factory):
    body = tiny(AutoModel, "xlm-roberta")
    folder = plain_folder(tmp_path_factory.mktemp("m3") / "bge-m3", body, **BOTH, special=("<unk>",))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        sparse, colbert = torch.nn.Linear(32, 1), torch.nn.Linear(32, 1024)
    torch.nn.init.constant_(sparse.bias, 0.2)  # weights of both signs before the rectifier
    torch.save(sparse.state_dict(), folder / "sparse_linear.pt")
    torch.save(colbert.state_dict(), folder / "colbert_linear.pt")
    return folder, body, sparse, colbert


def m3_states(body: PreTrainedModel, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids, mask = ids_of(texts, {**BOTH, "special": ("<unk>",)}, "right")
    ids = ids.masked_fill(mask == 0, 1)
    return ids, mask, body(input_ids=ids, attention_mask=mask).last_hidden_state


def m3_sparse(texts: list[str], body: PreTrainedModel, layer: torch.nn.Linear) -> np.ndarray:
    """The authors' weights: of every token, the greatest of a term, none for special tokens."""
    ids, _, states = m3_states(body, texts)
    weights = torch.relu(layer(states)).squeeze(-1)
    out = np.zeros((len(texts), 300), dtype=np.float32)
    unused = {byte_tokenizer(special=("<unk>",)).get_vocab()[t] for t in ("<s>", "</s>", "<pad>", "<unk>")} | {1}
    for row in range(len(texts)):
        for weight, number in zip(weights[row].tolist(), ids[row].tolist(), strict=True):
            if number not in unused and weight > out[row, number]:
                out[row, number] = weight
    return out


def m3_tokens(texts: list[str], body: PreTrainedModel, layer: torch.nn.Linear) -> list[torch.Tensor]:
    """The authors' token vectors: all but the first token, padding dropped."""
    _, mask, states = m3_states(body, texts)
    vectors = normalize(layer(states[:, 1:]) * mask[:, 1:, None].float(), dim=-1)
    return [own[: int(counted.sum()) - 1] for own, counted in zip(vectors, mask, strict=True)]


def test_bge_m3_has_all_three_outputs_of_its_authors(m3, held):
    folder, body, sparse, colbert = m3
    ours = mmembed.load(folder, device="cpu")
    with torch.inference_mode():
        weights, vectors = m3_sparse(TEXTS, body, sparse), m3_tokens(TEXTS, body, colbert)
        _, _, states = m3_states(body, TEXTS)
    says = {"against": FORMULA, **family(M3)}
    held(M3, ours.encode(TEXTS), normalize(states[:, 0], dim=-1), **says)
    alone = np.concatenate([ours.encode_sparse([text]).toarray() for text in TEXTS])
    for told in (ours.encode_sparse(TEXTS).toarray(), alone):
        held(M3, told, weights, what="sparse", **says)
    assert (weights > 0).any(1).all()
    told = ours.encode_tokens(TEXTS)
    for own, expected in zip(told, vectors, strict=True):
        held(M3, own, expected, what="tokens", **says)
    alone = [ours.encode_tokens([text])[0] for text in TEXTS]
    assert all(np.abs(a - b).max() <= 1e-5 for a, b in zip(told, alone, strict=True))


def test_bge_m3_scores_as_its_authors_do(m3, held):
    folder, body, _, colbert = m3
    ours = mmembed.load(folder, device="cpu")
    with torch.inference_mode():
        vectors = m3_tokens(TEXTS, body, colbert)
    expected = [[float((q @ d.T).amax(-1).sum() / len(q)) for d in vectors] for q in vectors]
    tokens = ours.encode_tokens(TEXTS)
    held("MaxSim of BGE-M3", ours.similarity(tokens, tokens), expected, against=FORMULA, what="tokens", **family(M3))
    weights = ours.encode_sparse(TEXTS)
    dense = weights.toarray()
    assert np.abs(ours.similarity(weights, weights) - dense @ dense.T).max() <= 1e-5


def test_bge_m3_without_its_files_has_its_one_vector_and_with_safetensors_all(m3, tmp_path):
    from safetensors.torch import save_file

    folder, body, sparse, colbert = m3
    bare = mmembed.load(plain_folder(tmp_path / "a" / "bge-m3", body, **BOTH, special=("<unk>",)), device="cpu")
    assert bare.spec.sparse is None
    assert bare.spec.tokens is None
    with pytest.raises(SpecError, match="no sparse head"):
        bare.encode_sparse(TEXTS)
    other = plain_folder(tmp_path / "b" / "bge-m3", body, **BOTH, special=("<unk>",))
    save_file(sparse.state_dict(), other / "sparse_linear.safetensors")
    save_file(colbert.state_dict(), other / "colbert_linear.safetensors")
    (other / "model.safetensors").unlink()
    torch.save(body.state_dict(), other / "pytorch_model.bin")  # as the repository has it
    again, whole = mmembed.load(other, device="cpu"), mmembed.load(folder, device="cpu")
    assert abs(again.encode_sparse(TEXTS) - whole.encode_sparse(TEXTS)).max() == 0
    assert all(
        np.array_equal(a, b) for a, b in zip(again.encode_tokens(TEXTS), whole.encode_tokens(TEXTS), strict=True)
    )
    assert again.save(tmp_path / "saved").is_dir()
    kept = mmembed.load(tmp_path / "saved", device="cpu")
    assert abs(kept.encode_sparse(TEXTS) - whole.encode_sparse(TEXTS)).max() == 0


def test_a_file_that_holds_more_than_tensors_is_refused(m3, tmp_path):
    _, body, _, _ = m3
    folder = plain_folder(tmp_path / "bge-m3", body, **BOTH)
    torch.save({"weight": print}, folder / "sparse_linear.pt")
    with pytest.raises(LoadError, match="holds more than tensors"):
        mmembed.load(folder, device="cpu")


# SPLADE over encoders

SPLADES = [name for name, c in checkpoints.declared().items() if c.family == "splade"]


@pytest.mark.parametrize("modules", [True, False])
@pytest.mark.parametrize("repository", SPLADES)
def test_splade_is_that_of_sentence_transformers(tmp_path, held, repository, modules):
    folder = plain_folder(tmp_path / repository.rpartition("/")[2], tiny(AutoModelForMaskedLM, "bert"), **BOTH)
    theirs = SparseEncoder(modules=[MLMTransformer(str(folder)), SpladePooling()], device="cpu")
    expected = theirs.encode(TEXTS, batch_size=3, convert_to_sparse_tensor=False)
    if modules:
        theirs.save_pretrained(str(folder))
    ours = mmembed.load(folder, device="cpu")
    assert ours.spec.name == repository
    assert ours.spec.pooling is None
    told = ours.encode_sparse(TEXTS)
    held(repository, told.toarray(), expected, against="sentence-transformers", what="sparse", **family(repository))
    for mine, due in zip(ours.decode_sparse(told, top_k=4), theirs.decode(expected, top_k=4), strict=True):
        # Theirs has no word for terms that the tokenizer does not have.
        assert all(a == b or (b is None and a.startswith("<")) for (a, _), (b, _) in zip(mine, due, strict=True))


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "nomic_bert"])
@pytest.mark.parametrize(
    ("strategy", "activation", "top"), [("sum", "relu", None), ("max", "log1p_relu", 7), ("max", "relu", 12)]
)
def test_a_sparse_folder_of_sentence_transformers_gives_what_it_gives(tmp_path, held, kind, strategy, activation, top):
    folder = plain_folder(tmp_path / "plain", tiny(AutoModelForMaskedLM, kind, pad_token_id=256), **BOTH)
    body = Transformer(str(folder), transformer_task="fill-mask")
    pooling = SpladePooling(pooling_strategy=strategy, activation_function=activation)
    theirs = SparseEncoder(modules=[body, pooling], device="cpu", max_active_dims=top, prompts={"query": "q: "})
    theirs.save_pretrained(str(tmp_path / "m"))
    ours = mmembed.load(tmp_path / "m", device="cpu")
    says = {
        "against": "sentence-transformers",
        "kind": "folder",
        "family": "folders",
        "what": "sparse",
        "relative": True,
    }
    for side, prompt in (("query", "q: "), ("document", "")):
        expected = theirs.encode(TEXTS, prompt=prompt, convert_to_sparse_tensor=False, batch_size=2)
        told = ours.encode_sparse(TEXTS, side=side)
        held(f"SparseEncoder over {kind}", told.toarray(), expected, **says)
        if top:
            assert np.diff(told.indptr).max() <= top


@pytest.mark.parametrize("kind", ["xlm-roberta", "bert"])
@pytest.mark.parametrize("saved", [[], ["layer_norm", "LayerNorm"]])
def test_an_adapter_of_a_sparse_folder_is_merged_into_its_language_head_too(tmp_path, kind, saved):
    folder = plain_folder(tmp_path / "plain", tiny(AutoModelForMaskedLM, kind, pad_token_id=256), **BOTH)
    body = Transformer(str(folder), transformer_task="fill-mask")
    saved = [name for name in saved if any(name in each for each, _ in body.model.named_modules())]
    settings = peft.LoraConfig(r=4, lora_alpha=32, target_modules=["dense"], modules_to_save=saved)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        body.model = peft.get_peft_model(body.model, settings)
        for name, weight in body.model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                weight.data.normal_(std=0.3)
    theirs = SparseEncoder(modules=[body, SpladePooling()], device="cpu")
    theirs.save_pretrained(str(tmp_path / "m"))
    expected = theirs.encode(TEXTS, convert_to_sparse_tensor=False, batch_size=2)
    told = mmembed.load(tmp_path / "m", device="cpu").encode_sparse(TEXTS)
    assert np.abs(told.toarray() - expected.numpy()).max() <= 1e-5 * np.abs(expected.numpy()).max()


def test_a_sparse_folder_that_is_compared_otherwise_tells_so(tmp_path):
    folder = plain_folder(tmp_path / "m", tiny(AutoModelForMaskedLM, "bert"), **BOTH)
    modules = [MLMTransformer(str(folder)), SpladePooling()]
    SparseEncoder(modules=modules, device="cpu", similarity_fn_name="cosine").save_pretrained(str(folder))
    with pytest.warns(
        UserWarning, match="compared by 'cosine' in sentence-transformers; similarity.. is by 'dot' here"
    ):
        mmembed.load(folder, device="cpu")


def test_a_sparse_folder_of_other_modules_is_refused(tmp_path):
    folder = plain_folder(tmp_path / "m", tiny(AutoModelForMaskedLM, "bert"), **BOTH)
    SparseEncoder(modules=[MLMTransformer(str(folder)), SpladePooling()], device="cpu").save_pretrained(str(folder))
    modules = folder / "modules.json"
    modules.write_text(modules.read_text().replace("SpladePooling", "SparseAutoEncoder"))
    with pytest.raises(SpecError, match="is a SparseEncoder of the modules"):
        mmembed.load(folder, device="cpu")


# SPLADE over decoders

LACONIC = "utahnlp/laconic-1b"


def test_laconic_is_its_authors_formula(tmp_path, held):
    body = tiny(AutoModelForCausalLM, "llama", tie_word_embeddings=True)
    # An opening token that the tokenizer would add is not put there.
    ours = mmembed.load(plain_folder(tmp_path / "laconic-1b", body, bos=True, eos=False), device="cpu")
    assert ours.spec.mask == "bidirectional"
    assert ours.spec.sparse.top == 512
    ours = ours.respecified(sparse={"head": {"kind": "splade"}, "top": 20})
    body.config.is_causal = False
    body.set_attn_implementation("eager")
    for side, prompt in (("query", "query: "), ("document", "passage: ")):
        for padding in ("left", "right"):
            ids, mask = ids_of([prompt + text for text in TEXTS], {"eos": False}, padding)
            with torch.inference_mode():
                logits = body(input_ids=ids, attention_mask=mask).logits + (1 - mask[..., None]) * -1e4
            weights = torch.log1p(torch.relu(logits.amax(1)))
            kept = torch.zeros_like(weights).scatter(1, weights.topk(20).indices, weights.topk(20).values)
            for told in (ours.encode_sparse(TEXTS, side=side), ours.encode_sparse(TEXTS, side=side, batch_tokens=1)):
                held(LACONIC, told.toarray(), kept, against=FORMULA, what="sparse", **family(LACONIC))


@pytest.mark.parametrize(("repository", "terms"), [("yibinlei/LENS-d4000", 4000), ("yibinlei/LENS-d8000", 8000)])
def test_lens_is_its_authors_formula(tmp_path, held, repository, terms):
    words: dict[str, Any] = {"bos": True, "eos": False, "special": ("<instruct>", "<query>", "<response>")}
    body = tiny(AutoModel, "mistral")
    folder = plain_folder(tmp_path / repository.rpartition("/")[2], body, **words)
    with pytest.raises(LoadError, match=r"holds no lm_head\.pth, the sparse head of"):
        mmembed.load(folder, device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        lexicon = torch.nn.Linear(32, terms, bias=False)
    torch.save(lexicon, folder / "lm_head.pth")  # the authors keep the layer itself
    ours = mmembed.load(folder, device="cpu")
    assert ours.dimension == terms
    body.config.is_causal = False
    body.set_attn_implementation("eager")
    for side, wrapped in (
        ("query", [f"<instruct>{TASK}\n<query>{text}</s>" for text in TEXTS]),
        ("document", [f"{text}</s>" for text in TEXTS]),
    ):
        ids, mask = ids_of(wrapped, words, "left")
        with torch.inference_mode():
            weights = torch.log(1 + torch.relu(lexicon(body(input_ids=ids, attention_mask=mask).last_hidden_state)))
        if side == "query":
            mask = torch.zeros_like(mask)
            for row, own in enumerate(ids):
                mask[row, (own == byte_tokenizer(**words).get_vocab()["<query>"]).nonzero()[-1].item() : -2] = 1
        else:
            mask[:, -2:] = 0
        expected = normalize((weights * mask[..., None]).amax(1), dim=1)
        options = {"instruction": TASK} if side == "query" else {}
        told = ours.encode_sparse(TEXTS, side=side, **options)
        held(repository, told.toarray(), expected, against=FORMULA, what="sparse", **family(repository))
    with pytest.raises(SpecError, match="clusters of tokens, and have no names"):
        ours.decode_sparse(told)


# Late interaction


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "qwen3"])
@pytest.mark.parametrize("order", [("mask", "normalize"), ("normalize", "mask")])
def test_a_late_interaction_folder_of_sentence_transformers_gives_what_it_gives(tmp_path, held, kind, order):
    folder = plain_folder(tmp_path / "plain", tiny(AutoModel, kind, pad_token_id=256), **BOTH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        dense = Dense(32, 12, bias=False, activation_function=torch.nn.Identity(), module_input_name="token_embeddings")
    last = {
        "mask": MultiVectorMask(skiplist_words=[",", "x"]),
        "normalize": Normalize(module_input_name="token_embeddings"),
    }
    modules = [Transformer(str(folder)), dense, *(last[name] for name in order)]
    theirs = MultiVectorEncoder(modules=modules, device="cpu", prompts={"query": "q: ", "document": "d: "})
    theirs.save_pretrained(str(tmp_path / "m"))
    ours = mmembed.load(tmp_path / "m", device="cpu")
    assert ours.dimension == 12
    says = {"against": "sentence-transformers", "kind": "folder", "family": "folders", "what": "tokens"}
    told = {}
    for side, encode in (("query", theirs.encode_query), ("document", theirs.encode_document)):
        expected = encode(TEXTS, batch_size=2, convert_to_numpy=True)
        told[side] = ours.encode_tokens(TEXTS, side=side)
        for own, due in zip(told[side], expected, strict=True):
            held(f"MultiVectorEncoder over {kind}", own, due, **says)
    scores = theirs.similarity(theirs.encode_query(TEXTS), theirs.encode_document(TEXTS))
    held(
        f"MultiVectorEncoder over {kind}",
        ours.similarity(told["query"], told["document"]),
        scores,
        relative=True,
        **says,
    )


def test_what_a_late_interaction_folder_may_say_and_is_not_read_is_refused(tmp_path):
    folder = plain_folder(tmp_path / "plain", tiny(AutoModel, "bert"), **BOTH)
    modules = [Transformer(str(folder)), MultiVectorMask(), Normalize(module_input_name="token_embeddings")]
    MultiVectorEncoder(modules=modules, device="cpu").save_pretrained(str(tmp_path / "m"))
    assert mmembed.load(tmp_path / "m", device="cpu").dimension == 32
    changed_json(tmp_path / "m" / "sentence_bert_config.json", document_length=300)
    with pytest.raises(SpecError, match="document_length=300 is not read"):
        mmembed.load(tmp_path / "m", device="cpu")


@pytest.mark.parametrize("said", [{"query_prefix": "[Q] "}, {"do_query_expansion": True}, {"query_length": 32}])
def test_what_pylate_says_of_the_sides_is_refused(tmp_path, said):
    folder = plain_folder(tmp_path / "plain", tiny(AutoModel, "bert"), **BOTH)
    modules = [Transformer(str(folder)), MultiVectorMask(), Normalize(module_input_name="token_embeddings")]
    MultiVectorEncoder(modules=modules, device="cpu").save_pretrained(str(tmp_path / "m"))
    changed_json(tmp_path / "m" / "config_sentence_transformers.json", **said)
    with pytest.raises(SpecError, match=f"{next(iter(said))}=.* is not read"):
        mmembed.load(tmp_path / "m", device="cpu")


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (["normalize", "dense"], r"Dense \(one\) and Normalize in this order"),
        (["dense", "pooled"], "Normalize: a module that reads 'sentence_embedding'"),
        (["dense elsewhere", "normalize"], "Dense: a module that reads 'token_embeddings' and writes 'other'"),
    ],
)
def test_layers_of_tokens_in_another_order_or_of_another_feature_are_refused(tmp_path, layers, said):
    folder = plain_folder(tmp_path / "plain", tiny(AutoModel, "bert"), **BOTH)
    settings = {"activation_function": torch.nn.Identity(), "module_input_name": "token_embeddings"}
    known = {
        "dense": Dense(32, 12, **settings),
        "dense elsewhere": Dense(32, 12, **settings, module_output_name="other"),
        "normalize": Normalize(module_input_name="token_embeddings"),
        "pooled": Normalize(),
    }
    modules = [Transformer(str(folder)), *(known[name] for name in layers), MultiVectorMask()]
    MultiVectorEncoder(modules=modules, device="cpu").save_pretrained(str(tmp_path / "m"))
    with pytest.raises(SpecError, match=said):
        mmembed.load(tmp_path / "m", device="cpu")


def test_every_declared_checkpoint_without_one_vector_has_its_test():
    sparse_or_tokens = {name for name, c in checkpoints.declared().items() if not c.said.get("dense", True)}
    assert sparse_or_tokens == {*SPLADES, LACONIC, "yibinlei/LENS-d4000", "yibinlei/LENS-d8000", *RETRIEVERS}
