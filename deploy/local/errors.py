"""The local stack's error class."""

from __future__ import annotations


class StackError(RuntimeError):
    """A failure that the user must act on. The message names the cause and the remedy."""
