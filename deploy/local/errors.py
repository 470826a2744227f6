"""The one error of the local stack."""

from __future__ import annotations


class StackError(RuntimeError):
    """Something a person has to know or do; the message says what happened and what helps."""
