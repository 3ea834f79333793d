"""Training: what a model gave is compared, a loss measures it, and the gradient goes back."""

from .loop import Run, train
from .recipe import Recipe, read_recipe
from .soup import soup

__all__ = ["Recipe", "Run", "read_recipe", "soup", "train"]
