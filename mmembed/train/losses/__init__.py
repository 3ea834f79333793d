"""Training objectives by name: importing this registers them all."""

from . import contrastive
from .objective import Loss, build_loss, losses, objective

__all__ = ["Loss", "build_loss", "contrastive", "losses", "objective"]
