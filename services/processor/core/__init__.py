"""The processor's rules and its step. Pure: no I/O, clock or randomness."""
