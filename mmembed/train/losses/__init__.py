"""Training objectives by name: importing this registers them all."""

from . import contrastive, distillation, graded, language, proxies, regularisers, shortened
from .objective import PREDICTED, Loss, build_loss, is_contrastive, losses, measures_alone, needs_of, objective

__all__ = [
    "PREDICTED",
    "Loss",
    "build_loss",
    "contrastive",
    "distillation",
    "graded",
    "is_contrastive",
    "language",
    "losses",
    "measures_alone",
    "needs_of",
    "objective",
    "proxies",
    "regularisers",
    "shortened",
]
