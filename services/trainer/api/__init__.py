"""Read-only HTTP routes of the trainer."""
