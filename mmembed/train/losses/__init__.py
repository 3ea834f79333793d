"""Training objectives by name: importing this registers them all."""

from . import contrastive, distillation, graded, language, regularisers, shortened
from .objective import Loss, build_loss, losses, objective

__all__ = [
    "Loss",
    "build_loss",
    "contrastive",
    "distillation",
    "graded",
    "language",
    "losses",
    "objective",
    "regularisers",
    "shortened",
]
