"""Loopwright's client: send feedback, follow it, operate the loop."""
