"""Operator commands that the trainer executes."""
