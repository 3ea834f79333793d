"""Training: what a model gave is compared, a loss measures it, and the gradient goes back."""
