"""Langfuse-compatible API: scores as feedback, and traces as responses."""
