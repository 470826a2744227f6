"""Pure rules of the console: no I/O, no clock, no randomness."""
