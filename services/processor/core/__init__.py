"""What the processor decides: pure functions, no I/O, no clock."""
