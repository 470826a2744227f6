"""Pure state and validation of the console: no I/O, no clock."""
