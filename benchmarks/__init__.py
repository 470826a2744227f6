"""Measurements beside peers, in one run each. Each ends with one JSON line: bench, ratios, figures, machine."""
