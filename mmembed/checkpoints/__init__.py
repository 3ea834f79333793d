"""Released checkpoints as data: how each must be run, a TOML file a family, laid over what a folder says of itself."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import LoadError, SpecError, check_known
from ..prompts import Templates
from ..spec import ModelSpec
from .not_here import NOT_HERE

FILES = sorted(Path(__file__).parent.glob("*.toml"))

FACTS: Mapping[str, type] = {
    "parameters": str,
    "megabytes": int,
    "dimension": int,
    "source": str,
    "licence": str,
    "summary": str,
}
"""What every checkpoint says, for people: `megabytes` are 2^20 bytes on disk, `source` is where it was read."""
EXTRA: Mapping[str, type] = {
    "modalities": list,
    "unverified": list,
    "model_type": str,
    "config": dict,
    "without": list,
    "prefix": list,
    "suffix": list,
    "adapters": list,
    "files": dict,
    "dense": bool,
    "weights": dict,
}
"""What it takes, if not text alone; facts that no source settles; the model_type of transformers that stands in for its
own, values over those of its config.json, and parts of it that are left out: towers for what is not embedded here; tokens
around an item; for a checkpoint that is an adapter, repositories of those that its authors merge into the base before it,
in order; the file that holds the weights of an output, by the field of the spec that says it; false: it has no one vector
for an item; how its files call the weights where transformers or we say otherwise: `backbone` is what stands before the
names of the backbone, `pooling` holds theirs by ours."""
SPEC: Mapping[str, type] = {
    "prompts": dict,
    "instructions": dict,
    "instruction_cleaning": str,
    "default_prompt_name": str,
    "pooling": dict,
    "counted": str,
    "span": list,
    "tokens": dict,
    "sparse": dict,
    "apart": bool,
    "cleaning": str,
    "mask": str,
    "positions": str,
    "vision": dict,
    "max_length": int,
    "normalize": bool,
    "dimensions": list,
    "languages": list,
    "licence": str,
    "summary": str,
}
"""Fields of `ModelSpec` that a checkpoint may say; what it leaves unsaid, the folder says."""
SCHEMA: Mapping[str, type] = {**FACTS, **EXTRA, **SPEC}


@dataclass(frozen=True)
class Checkpoint:
    """A released checkpoint.

    Attributes:
        repository: "organisation/name" of the hub. family: the file that declares it.
        said: what it says, by the keys of `SCHEMA`; the family's word where the checkpoint has none of its own.
    """

    repository: str
    family: str
    said: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.repository.rpartition("/")[2]

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.said.get("modalities", ("text",)))

    def over(self, spec: ModelSpec) -> ModelSpec:
        """The spec that a folder gave, with what is said here laid over it; the folder's prompts of other names stay.

        The width of a vector is the folder's own, and of `dimensions` those that it has.
        """
        fields = {key: self.said[key] for key in SPEC if key in self.said}
        around = {key: self.said[key] for key in ("prefix", "suffix") if key in self.said}
        declared = fields.get("prompts", {})
        fields["prompts"] = {**spec.prompts, **declared}
        fields["instructions"] = {**fields.get("instructions", {}), **_instructions(spec.prompts, declared)}
        if self.said.get("dense") is False:
            fields["pooling"] = None
        fields["languages"] = tuple(fields.get("languages", ()))
        if "span" in fields:
            fields["span"] = tuple(fields["span"])
        if "vision" in fields:
            own = spec.vision or {}
            processor = {**own.get("processor", {}), **fields["vision"].get("processor", {})}
            fields["vision"] = {**own, **fields["vision"], "processor": processor}
        if "dimensions" in fields:
            fields["dimensions"] = tuple(d for d in fields["dimensions"] if d <= spec.dimension)
        return dataclasses.replace(
            spec, **{**fields, "name": self.repository, "tokenizer": {**spec.tokenizer, **around}}
        )


def _instructions(folder: Templates, declared: Templates) -> dict[str, str]:
    """What the folder's own prompts say where declared ones of their names have {instruction}."""
    found = {}
    for name, by_modality in declared.items():
        template, own = by_modality.get("text"), folder.get(name, {}).get("any")
        if isinstance(template, str) and isinstance(own, str) and "{instruction}" in template:
            before, _, behind = template.replace("{text}", "{content}").partition("{instruction}")
            if len(own) > len(before + behind) and own.startswith(before) and own.endswith(behind):
                words = own[len(before) : len(own) - len(behind)]
                found[name] = words.replace("{{", "{").replace("}}", "}")
    return found


@cache
def declared() -> Mapping[str, Checkpoint]:
    """Every declared checkpoint by repository."""
    found = [checkpoint for file in FILES for checkpoint in read(file.stem, file.read_text(encoding="utf-8"))]
    return {checkpoint.repository: checkpoint for checkpoint in found}


def read(family: str, text: str) -> list[Checkpoint]:
    """The checkpoints of a family's TOML: keys of the family, and a table `checkpoints."organisation/name"` each.

    Raises:
        SpecError: no TOML, a value of the wrong type, or a fact missing.
        UnknownName: a key that is none of `SCHEMA`, with the nearest one.
    """
    try:
        shared = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{family}.toml: {error}") from None
    tables = shared.pop("checkpoints", {})
    found = []
    for repository, own in tables.items():
        said = {**shared, **own}
        for key, value in said.items():
            check_known("key of a checkpoint", key, SCHEMA)
            if type(value) is not SCHEMA[key]:
                raise SpecError(f"{family}.toml: {repository}: {key} is no {SCHEMA[key].__name__}: {value!r}")
        missing = [key for key in FACTS if key not in said]
        if missing:
            raise SpecError(f"{family}.toml: {repository} lacks {', '.join(missing)}")
        found.append(Checkpoint(repository, family, said))
    return found


def of_folder(folder: Path) -> Checkpoint | None:
    """The checkpoint that lies in a folder, told by its path: `.../Qwen3-Embedding-0.6B`, or the hub's cache of it.

    Raises:
        LoadError: a checkpoint that is known and cannot be run rightly, with the reason.
    """
    path = folder.absolute()
    cached = next((part for part in reversed(path.parts) if part.startswith("models--")), "")
    whole = cached.removeprefix("models--").replace("--", "/", 1)
    refuse(whole or path.name)
    return named(whole) or named(path.name)


def named(name: str) -> Checkpoint | None:
    """The checkpoint of a name, with its organisation or without; a hub takes capitals for small letters."""
    return next(
        (c for c in declared().values() if name.casefold() in (c.repository.casefold(), c.name.casefold())), None
    )


def refuse(name: str) -> None:
    """Raise `LoadError` with the reason if `name`, with its organisation or without, is one of `NOT_HERE`."""
    for repository, reason in NOT_HERE.items():
        if name.casefold() in (repository.casefold(), repository.rpartition("/")[2].casefold()):
            raise LoadError(f"{repository} is not supported: {reason}")
