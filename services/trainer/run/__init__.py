"""A training run's database rows, folder and context. Nothing here imports torch at module level."""
