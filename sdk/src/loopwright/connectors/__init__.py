"""Connectors that fetch feedback from chat applications."""
