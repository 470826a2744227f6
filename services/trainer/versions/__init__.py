"""Versions: their artifacts and model cards, their publication, and their lineage."""
