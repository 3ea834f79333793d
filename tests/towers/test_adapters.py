"""Adapters give what peft gives when it merges them, whatever their keys were called; what does not fit is named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

import mmembed
from mmembed.errors import LoadError, SpecError
from mmembed.testing import BACKBONES, byte_tokenizer, sharpen
from mmembed.towers import adapters
from mmembed.towers.backbone import load_backbone

TEXTS = ["red", "eine Katze schläft auf dem warmen Sofa", "写真", "x" * 90]
ATTENTION = ["q_proj", "v_proj"]
KINDS: Mapping[str, dict[str, Any]] = {
    "lora": {"target_modules": ATTENTION},
    "dora": {"target_modules": [*ATTENTION, "up_proj"], "use_dora": True},
    "rslora": {"target_modules": ATTENTION, "use_rslora": True},
    "patterns": {
        "target_modules": ATTENTION,
        "rank_pattern": {"layers.0.self_attn.q_proj": 2},
        "alpha_pattern": {r"layers\.1\.self_attn.v_proj": 40},
    },
    "expression": {"target_modules": r"(model.*)(q_proj|down_proj)"},
    "some layers": {"target_modules": ATTENTION, "layers_to_transform": [1]},
    "rows": {"target_modules": ATTENTION, "trainable_token_indices": {"embed_tokens": [3, 101, 120]}},
    "whole": {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens", "norm", "lm_head"]},
    "embeddings": {"target_modules": [*ATTENTION, "embed_tokens"], "lora_bias": False},
    "biases of its own": {"target_modules": ATTENTION, "lora_bias": True},
    "begun by EVA": {"target_modules": ATTENTION, "init_lora_weights": "eva"},
    "biases below": {"target_modules": ATTENTION, "bias": "lora_only"},
}


def base_model(path: Path) -> Path:
    """A tiny language model in a folder, with a tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model("qwen3", **BACKBONES["qwen3"], attention_bias=True)
        )
        sharpen(model)
    folder = path / "tiny-base"
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def adapted(base: Path, path: Path, model: PreTrainedModel, **settings: Any) -> Path:
    """An adapter as peft saves it, every tensor drawn anew."""
    config = LoraConfig(**{"r": 4, "lora_alpha": 12, "task_type": "FEATURE_EXTRACTION", **settings})
    config.base_model_name_or_path = str(base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        tuned = get_peft_model(model, config)
        with torch.no_grad():
            for name, weight in tuned.named_parameters():
                if "lora_magnitude" in name:
                    weight.mul_(torch.rand_like(weight) + 0.5)
                elif "lora_" in name or "modules_to_save" in name or "trainable_tokens" in name or weight.requires_grad:
                    weight.copy_(torch.randn_like(weight) * 0.2)
    tuned.save_pretrained(str(path), save_embedding_layers=False)
    return path


def of_peft(base: Path, adapter: Path, cls: Any = AutoModelForCausalLM) -> PreTrainedModel:
    """What peft itself makes of it: loaded and merged."""
    return PeftModel.from_pretrained(cls.from_pretrained(base), str(adapter)).merge_and_unload()


def renamed(adapter: Path, change: Callable[[str], str]) -> None:
    state = {change(key): tensor for key, tensor in load_file(adapter / adapters.WEIGHTS_FILE).items()}
    save_file(state, adapter / adapters.WEIGHTS_FILE)


def set_in(adapter: Path, **values: Any) -> None:
    path = adapter / adapters.ADAPTER
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


LAYOUTS: Mapping[str, Callable[[str], str]] = {
    "a language model": lambda key: key,
    "a bare model": lambda key: key.replace("base_model.model.model.", "base_model.model."),
    "inside a model that sees": lambda key: key.replace(
        "base_model.model.model.", "base_model.model.model.language_model."
    ),
    "inside one of 2024": lambda key: key.replace("base_model.model.model.", "base_model.model.language_model.model."),
    "with the adapter's name": lambda key: key.replace("lora_A.weight", "lora_A.default.weight"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_merged_as_peft_merges_it(tmp_path, held, kind):
    base = base_model(tmp_path)
    adapter = adapted(base, tmp_path / "adapter", AutoModelForCausalLM.from_pretrained(base), **KINDS[kind])
    theirs = of_peft(base, adapter).model
    ours = adapters.merge(load_backbone(base), adapter)
    plain = load_backbone(base)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for (name, mine), due in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert (mine - due).abs().max() <= 1e-6, name
    ids = torch.tensor([[10, 101, 7, 120, 3]])
    with torch.inference_mode():
        mine, due, without = (model.eval()(ids).last_hidden_state for model in (ours, theirs, plain))
    held(f"PEFT adapter: {kind}", mine, due, against="peft", kind="folder", family="adapters")
    assert (due - without).abs().max() > 0.05


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["lora", "dora", "whole", "patterns"])
def test_an_adapter_folder_gives_the_vectors_of_pefts_merged_model(tmp_path, held, kind, layout):
    base = base_model(tmp_path)
    adapter = adapted(base, tmp_path / "adapter", AutoModelForCausalLM.from_pretrained(base), **KINDS[kind])
    body = of_peft(base, adapter).model.eval()
    renamed(adapter, LAYOUTS[layout])
    set_in(adapter, base_model_name_or_path="somebody/tiny-base")  # lies beside it
    ours = mmembed.load(adapter, device="cpu")
    assert ours.spec.name == "adapter"
    words = byte_tokenizer()
    with torch.inference_mode():
        due = [body(torch.tensor([words(text)["input_ids"]])).last_hidden_state[0, -1] for text in TEXTS]
    due = torch.nn.functional.normalize(torch.stack(due), dim=-1)
    vectors = ours.encode(TEXTS)
    held(f"PEFT adapter: {kind}, keys of {layout}", vectors, due, against="peft", kind="folder", family="adapters")
    again = mmembed.load(ours.save(tmp_path / "ours"), device="cpu")
    assert np.array_equal(again.encode(TEXTS), vectors)
    named = mmembed.load(adapter, base=base, device="cpu")
    assert np.array_equal(named.encode(TEXTS), vectors)


@pytest.mark.parametrize("use_dora", [False, True])
def test_an_adapter_of_a_model_that_sees_finds_both_of_its_towers(tmp_path, held, use_dora):
    text = {**BACKBONES["qwen3"], "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}}
    text.pop("head_dim")
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 14}
    config = AutoConfig.for_model("qwen2_vl", text_config=text, vision_config=vision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config)
    base = tmp_path / "tiny-vlm"
    model.save_pretrained(base)
    settings = {"target_modules": [*ATTENTION, "qkv"], "use_dora": use_dora}
    adapter = adapted(base, tmp_path / "adapter", AutoModelForImageTextToText.from_pretrained(base), **settings)
    theirs = of_peft(base, adapter, AutoModelForImageTextToText).model
    # As its language model was called in 2024, and its tower beside it.
    renamed(
        adapter,
        lambda key: key.replace("model.model.language_model.", "model.model.").replace(
            "model.model.visual.", "model.visual."
        ),
    )
    ours = adapters.merge(AutoModel.from_pretrained(base), adapter)
    state = ours.state_dict()
    moved = 0.0
    for name, due in theirs.state_dict().items():
        assert (state[name] - due).abs().max() <= 1e-6, name
        if "qkv.weight" in name or "q_proj.weight" in name:
            moved = max(moved, float((due - model.model.state_dict()[name]).abs().max()))
    assert moved > 0.05
    name = "PEFT adapter over a model that sees, keys of 2024" + (": dora" if use_dora else ": lora")
    flat = [torch.cat([tensor.flatten() for tensor in each.state_dict().values()]) for each in (ours, theirs)]
    held(name, *flat, against="peft", kind="folder", family="adapters", what="weights")


def test_one_adapter_may_stand_on_another(tmp_path):
    base = base_model(tmp_path)
    first = adapted(base, tmp_path / "first", AutoModelForCausalLM.from_pretrained(base), **KINDS["lora"])
    merged = of_peft(base, first)
    second = adapted(base, tmp_path / "second", merged, **KINDS["rslora"])
    set_in(second, base_model_name_or_path="nobody/first")
    ours = mmembed.load(second, device="cpu")
    steps = adapters.merge(adapters.merge(load_backbone(base), first), second)
    expected = mmembed.compose(backbone=steps, tokenizer=base, device="cpu")
    assert np.array_equal(ours.encode(TEXTS), expected.encode(TEXTS))


def test_weights_of_before_safetensors_are_read_as_plain_tensors(tmp_path):
    """An adapter's in one file, its base's in parts."""
    base = base_model(tmp_path)
    adapter = adapted(base, tmp_path / "adapter", AutoModelForCausalLM.from_pretrained(base), target_modules=["q_proj"])
    due = adapters.merge(load_backbone(base), adapter).state_dict()
    torch.save(load_file(adapter / adapters.WEIGHTS_FILE), adapter / "adapter_model.bin")
    (adapter / adapters.WEIGHTS_FILE).unlink()
    state = list(load_file(base / "model.safetensors").items())
    parts = {f"pytorch_model-0000{k}-of-00002.bin": dict(state[k - 1 :: 2]) for k in (1, 2)}
    for name, part in parts.items():
        torch.save(part, base / name)
    index = {"metadata": {"total_size": 0}, "weight_map": {key: name for name, part in parts.items() for key in part}}
    (base / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (base / "model.safetensors").unlink()
    told = adapters.merge(load_backbone(base), adapter).state_dict()
    assert all(torch.equal(told[name], due[name]) for name in due)


def test_what_does_not_fit_is_named(tmp_path):
    base = base_model(tmp_path)
    adapter = adapted(base, tmp_path / "adapter", AutoModelForCausalLM.from_pretrained(base), **KINDS["dora"])
    body = load_backbone(base)
    kept = load_file(adapter / adapters.WEIGHTS_FILE)
    key = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"

    def fails(state: dict[str, torch.Tensor], says: str) -> None:
        save_file(state, adapter / adapters.WEIGHTS_FILE)
        with pytest.raises(LoadError, match=says):
            adapters.merge(copy.deepcopy(body), adapter)

    fails({**kept, "base_model.model.score.weight": torch.ones(2)}, r"base_model\.model\.score\.weight fit no layer")
    fails({k: v for k, v in kept.items() if k != key}, r"lacks layers\.1\.self_attn\.q_proj\.lora_A")
    fails({k: v for k, v in kept.items() if "magnitude" not in k}, r"lacks layers\.0.*lora_magnitude_vector and 1 more")
    fails(
        {k: v for k, v in kept.items() if "layers.1.self_attn.q_proj" not in k},
        r"names layers\.1\.self_attn\.q_proj, and its file holds nothing",
    )
    fails({**kept, key: torch.ones(4, 9)}, r"q_proj\.lora_A is \(4, 9\); \(4, 32\) would fit")
    save_file(kept, adapter / adapters.WEIGHTS_FILE)
    set_in(adapter, alpha_pattern={"model.layers.7.self_attn.q_proj": 3})
    fails(kept, r"no layer is called as model\.layers\.7\.self_attn\.q_proj of its alpha_pattern")
    set_in(adapter, alpha_pattern={}, use_dora=False)
    fails(kept, r"has no use for layers\.0.*lora_magnitude_vector")
    set_in(adapter, modules_to_save=["norm"])
    fails(kept, "norm of its configuration are not in its file")
    set_in(adapter, modules_to_save=None, use_qalora=True)
    with pytest.raises(SpecError, match="use_qalora: an adapter with this is not merged here"):
        adapters.merge(body, adapter)
    set_in(adapter, use_qalora=False, init_lora_weights="pissa")
    with pytest.raises(SpecError, match="'pissa' had changed first"):
        adapters.merge(body, adapter)
    set_in(adapter, peft_type="IA3")
    with pytest.raises(SpecError, match="of the kind IA3"):
        adapters.merge(body, adapter)
    set_in(adapter, peft_type="LORA", init_lora_weights=True)
    (adapter / adapters.WEIGHTS_FILE).unlink()
    with pytest.raises(LoadError, match=r"holds no adapter_model\.safetensors"):
        adapters.merge(body, adapter)
    torch.save({"runs": Path}, adapter / "adapter_model.bin")
    with pytest.raises(LoadError, match=r"adapter_model\.bin is broken, or holds more than tensors"):
        adapters.merge(body, adapter)


def test_an_adapter_without_its_base_or_a_base_without_an_adapter_is_an_error(tmp_path):
    base = base_model(tmp_path)
    adapter = adapted(base, tmp_path / "adapter", AutoModelForCausalLM.from_pretrained(base), **KINDS["lora"])
    with pytest.raises(SpecError, match="is no adapter"):
        mmembed.load(base, base=base)
    with pytest.raises(LoadError, match="is an adapter, merged into its base by mmembed"):
        mmembed.compose(backbone=adapter, tokenizer=base)
    set_in(adapter, base_model_name_or_path=None)
    with pytest.raises(LoadError, match="does not say which model it stands on"):
        mmembed.load(adapter)


def test_an_adapter_may_lie_in_a_folder_that_is_called_as_its_base_is(tmp_path, monkeypatch):
    base = base_model(tmp_path / "hub")
    model = AutoModelForCausalLM.from_pretrained(base)
    adapter = adapted(base, tmp_path / "tuned" / base.name, model, **KINDS["lora"])
    set_in(adapter, base_model_name_or_path=f"hub/{base.name}")
    monkeypatch.chdir(tmp_path)
    theirs = mmembed.load(adapter, base=base, device="cpu")
    assert np.array_equal(mmembed.load(adapter, device="cpu").encode(TEXTS), theirs.encode(TEXTS))


def test_an_embedder_that_is_saved_over_its_own_adapter_is_merged_once(tmp_path):
    base = base_model(tmp_path)
    folder = adapted(base, tmp_path / "tuned", AutoModelForCausalLM.from_pretrained(base), **KINDS["lora"])
    ours = mmembed.load(folder)
    due = ours.encode(TEXTS)
    ours.save(folder)
    assert np.abs(mmembed.load(folder).encode(TEXTS) - due).max() <= 1e-6
    (folder / "golden.json").write_text("[{", encoding="utf-8")
    with pytest.raises(LoadError, match=r"golden\.json is no JSON"):
        mmembed.load(folder)
    mmembed.load(base).save(folder)
    assert not (folder / "golden.json").exists(), "which told of another model"
