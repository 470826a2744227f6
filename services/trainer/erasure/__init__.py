"""Erasures: what is to go, where it lies in runs and exports, and the report of it."""
