"""What the rollout decides: pure functions, no I/O, no clock."""
