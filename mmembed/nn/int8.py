"""Linear layers in int8 on the CPU: weights rounded once, by output; what comes in rounded on the way, token by token.

A product of bytes runs four times as fast as one of fp32 where the processor has VNNI (Intel since 2019, AMD since 2022). Weights
are symmetric with one scale an output, inputs symmetric with one scale a token: an item keeps one vector whatever its company,
which a scale for a whole batch would break. Sums are exact in int32 and leave in fp32; nothing else of a model changes.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ..errors import SpecError
from . import kernels

VALUES = ("v_proj", "value", "v_lin", "v")
"""What attention's values are made by, where it is a layer of its own, stays whole: an error there goes straight into the states,
which softmax damps in queries and keys. Of the ten nearest stay, with values in int8 and without, .955 and .967 of
all-MiniLM-L6-v2, .980 and .984 of 30 M."""


def check_int8(device: torch.device) -> None:
    """Raise `SpecError` where products of bytes are not exact or not fast."""
    if device.type != "cpu":
        raise SpecError(f"precision='int8' is for the CPU; on {device.type} use precision='bf16'")
    if not torch.cpu._is_vnni_supported() or not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        raise SpecError("precision='int8' needs a processor with AVX-512 VNNI; use precision='fp32'")


class Int8Linear(nn.Module):
    """A linear layer of int8 weights, without gradients.

    Args:
        layer: whose weights are rounded, fp32 (out, in).
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear):
        super().__init__()
        full = layer.weight.detach().float()
        scale = full.abs().amax(1).clamp_(min=torch.finfo(torch.float32).tiny) / 127
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_buffer("weight", (full / scale[:, None]).round_().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().float())
        self._packed: Tensor | None = None

    def forward(self, input: Float[Tensor, "*R D"]) -> Float[Tensor, "*R E"]:  # noqa: A002 - nn.Linear's own name
        if torch.is_grad_enabled() and input.requires_grad:
            raise SpecError("no gradient flows through int8: load in another precision to train")
        rows = input.reshape(-1, self.in_features)
        if not len(rows):
            return input.new_empty(*input.shape[:-1], self.out_features)
        if self._packed is None:  # oneDNN's own layout, made once
            self._packed = torch.ops.onednn.qlinear_prepack(self.weight, None)
        codes, largest = _rounded(rows)
        zeros = torch.zeros(self.out_features, dtype=torch.int32, device="cpu")
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            codes, 1 / 127, 128, self._packed, self.scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        out.mul_(largest)
        if self.bias is not None:
            out += self.bias
        return out.view(*input.shape[:-1], self.out_features)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def _rounded(rows: Float[Tensor, "R D"]) -> tuple[UInt8[Tensor, "R D"], Float[Tensor, "R 1"]]:
    """round(rows * (127 / largest)) + 128, and the largest magnitude of each row."""
    if rows.shape[-1] % kernels.LANES == 0 and kernels.serve(rows):
        return kernels.rounded(rows)
    largest = rows.abs().amax(-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny)
    # u8 = s8 + 128 is the sign bit turned over; oneDNN has no fast product of s8 by s8, and torch no fast cast to u8
    codes = (rows * (127 / largest)).round_().to(torch.int8).bitwise_xor_(-128)
    return codes.view(torch.uint8), largest


def in_int8(blocks: nn.Module) -> None:
    """Replace the linear layers inside `blocks`, but `VALUES`."""
    for module in list(blocks.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and name not in VALUES:
                setattr(module, name, Int8Linear(child))
