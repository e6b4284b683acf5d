"""Training: the loop, losses, optimizers."""
