"""Erasures in the trainer: which requests are due, deleting their rows from runs and exports, and the reports."""
