"""Training objectives by name: importing this registers them all."""

from . import contrastive, distillation, graded, language, proxies, regularisers, shortened
from .objective import PREDICTED, Loss, build_loss, losses, measures_alone, needs_of, objective

__all__ = [
    "PREDICTED",
    "Loss",
    "build_loss",
    "contrastive",
    "distillation",
    "graded",
    "language",
    "losses",
    "measures_alone",
    "needs_of",
    "objective",
    "proxies",
    "regularisers",
    "shortened",
]
