"""The trainer: collects batches, trains a version from them, proves or refuses it, publishes it."""
