"""Pure rules of the trainer: no I/O, no clock, no randomness."""
