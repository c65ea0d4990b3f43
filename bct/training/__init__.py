"""What the training loop is made of: heads, optimiser, checkpoints, the run folder."""
