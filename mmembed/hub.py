"""Where embedders lie: a folder, the bundled one, adapters/, the local cache of a hub, a hub when it is named."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

from . import checkpoints
from .errors import LoadError, UnknownName
from .spec import FILE, ModelSpec

DEFAULT = "pico"
OLDER = ["*pytorch_model.bin", "*pytorch_model-*-of-*.bin", "*adapter_model.bin"]
"""Weights of a release without safetensors: torch's own files, whole, in parts, or of an adapter."""
ADAPTER = "adapter_config.json"
"""Where it lies in a folder, the folder holds an adapter of PEFT, as transformers tells it."""
_HERE = Path(__file__).resolve().parent
SHELVES = (_HERE / "adapters", _HERE.parent / "adapters")
"""Where named adapters stand: inside an installed package, and beside it in a checkout."""


def bundled() -> dict[str, Path]:
    """Folders of the adapters that came with the package, by name."""
    found: dict[str, Path] = {}
    for shelf in SHELVES:
        for path in sorted(shelf.glob(f"*/{FILE}")):
            found.setdefault(path.parent.name, path.parent)
    return found


def find(name: str | os.PathLike[str] | None = None, *, revision: str | None = None) -> Path:
    """The folder of an embedder.

    Args:
        name: a folder; the name of a bundled adapter; "organisation/name" of the Hugging Face hub, which is the only
            form that may use the network. None is the bundled default.
        revision: of a hub repository.

    Raises:
        UnknownName: no folder, and no bundled adapter of that name; names the nearest, of declared checkpoints too.
        LoadError: the hub could not be reached or has no such repository, or a checkpoint that cannot be run rightly.
    """
    shelf = bundled()
    asked = DEFAULT if name is None else os.fspath(name)
    path = Path(asked).expanduser()
    here = (
        path if name and path.is_dir() else shelf.get(asked)
    )  # without a name no folder is meant that happens to lie here
    if here is not None:
        if revision is not None:
            raise LoadError(f"revision={revision!r} is of a hub repository, and {asked!r} lies here: {here}")
        return here
    checkpoints.refuse(asked)
    if isinstance(name, os.PathLike) or asked.startswith((".", "/", "~")) or asked.count("/") != 1:
        raise UnknownName(
            "folder or bundled model", asked, shelf if "/" in asked else {*shelf, *checkpoints.declared()}
        )
    return _download(asked, revision)


def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        known = checkpoints.named(repository)
        files = known.said.get("files", {}).values() if known else ()
        patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*_Dense*/pytorch_model.bin", *files]
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
        if not any(folder.rglob("*.safetensors")):  # some older releases, the first CLIP among them, have only these
            snapshot_download(repository, revision=revision, allow_patterns=OLDER)
        return folder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        near = difflib.get_close_matches(repository, checkpoints.declared(), n=1, cutoff=0.8)
        hint = f" Did you mean {near[0]!r}?" if near and near[0] != repository else ""
        raise LoadError(f"{repository!r} is no folder here and could not be had from the hub: {reason}{hint}") from None


def known() -> list[dict[str, Any]]:
    """One row a bundled embedder, then one a declared checkpoint, whose weights a hub or a folder holds.

    Returns:
        dicts of name, where ("bundled" or "checkpoint"), modalities, dimension, dimensions, languages (how many),
        licence, parameters (as its authors count them: "0.6B"; None for a bundled one), bytes on disk, summary.
    """
    rows = []
    for name, folder in bundled().items():
        spec = ModelSpec.from_folder(folder)
        rows.append(
            {
                "name": name,
                "where": "bundled",
                "modalities": list(spec.modalities),
                "dimension": spec.dimension,
                "dimensions": list(spec.dimensions),
                "languages": len(spec.languages),
                "licence": spec.licence,
                "parameters": None,
                "bytes": sum(f.stat().st_size for f in folder.iterdir() if f.is_file()),
                "summary": spec.summary,
            }
        )
    for repository, checkpoint in checkpoints.declared().items():
        said = checkpoint.said
        rows.append(
            {
                "name": repository,
                "where": "checkpoint",
                "modalities": list(checkpoint.modalities),
                "dimension": said["dimension"],
                "dimensions": list(said.get("dimensions", ())),
                "languages": len(said.get("languages", ())),
                "licence": said["licence"],
                "parameters": said["parameters"],
                "bytes": said["megabytes"] << 20,
                "summary": said["summary"],
            }
        )
    return rows
