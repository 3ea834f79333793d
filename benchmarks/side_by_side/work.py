"""Useful work: floating-point operations that a workload needs when nothing is computed twice and nothing for no one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def tree_of(sequences: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Distinct tokens of a prefix tree, and for how many tokens each looks back at, in sum."""
    ordered = sorted(map(tuple, sequences))
    tokens = pairs = 0
    before: tuple[int, ...] = ()
    for one in ordered:
        shared = 0
        while shared < min(len(one), len(before)) and one[shared] == before[shared]:
            shared += 1
        tokens += len(one) - shared
        pairs += (len(one) * (len(one) + 1) - shared * (shared + 1)) // 2
        before = one
    return tokens, pairs


def distinct(config: dict[str, Any], sequences: Sequence[Sequence[int]]) -> int:
    """Tokens that are left when those are counted once that several sequences may share: whole sequences, where later tokens are
    read by earlier ones."""
    return sum(map(len, set(map(tuple, sequences)))) if encodes(config) else tree_of(sequences)[0]


def encodes(config: dict[str, Any]) -> bool:
    return config["model_type"] == "bert"


def of_encoder(config: dict[str, Any], sequences: Sequence[Sequence[int]]) -> int:
    """Of a BERT over sequences all of whose tokens are pooled."""
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    block = 4 * width * width + 2 * width * config["intermediate_size"]
    lengths = [len(one) for one in set(map(tuple, sequences))]
    return layers * sum(2 * count * block + 4 * count * count * width for count in lengths)


def of_texts(config: dict[str, Any], sequences: Sequence[Sequence[int]]) -> int:
    """Of a causal decoder over sequences whose last tokens are pooled: in the last layer all tokens need keys and values, and
    only the last ones queries, output and MLP; of an encoder `of_encoder`."""
    if encodes(config):
        return of_encoder(config, sequences)
    said = config.get("text_config", config)
    heads = said["num_attention_heads"] * said["head_dim"]
    tokens, pairs = tree_of(sequences)
    ends = set(map(tuple, sequences))
    keys, rest = weights(config)
    below = said["num_hidden_layers"] - 1
    return (
        2 * tokens * (keys + rest) * below
        + 4 * pairs * heads * below
        + 2 * (tokens * keys + len(ends) * rest)
        + 4 * sum(map(len, ends)) * heads
    )


def weights(config: dict[str, Any]) -> tuple[int, int]:
    """Of one layer of a decoder: those of keys and values, and the rest."""
    said = config.get("text_config", config)
    width, inner, head = said["hidden_size"], said["intermediate_size"], said["head_dim"]
    queries = width * said["num_attention_heads"] * head
    return 2 * width * said["num_key_value_heads"] * head, 2 * queries + 3 * width * inner


def of_pictures(config: dict[str, Any], patches: Sequence[int]) -> int:
    """Of the tower of Qwen3-VL over distinct pictures of so many patches each."""
    if not patches:
        return 0
    said = config["vision_config"]
    width, inner, depth = said["hidden_size"], said["intermediate_size"], said["depth"]
    block = 4 * width * width + 2 * width * inner
    merged = 4 * width
    merge = merged * merged + merged * said["out_hidden_size"]
    mergers = 1 + len(said["deepstack_visual_indexes"])
    first = 3 * said["temporal_patch_size"] * said["patch_size"] ** 2 * width
    total = 0
    for count in patches:
        total += 2 * count * (first + depth * block) + 4 * count * count * width * depth
        total += 2 * (count // 4) * merge * mergers
    return total


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))
