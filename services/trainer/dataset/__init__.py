"""Feedback as a dataset: stored, filtered, grouped, assigned to objectives, and frozen for a run or exported.

Nothing here reads settings: each function takes what it depends on.
"""
