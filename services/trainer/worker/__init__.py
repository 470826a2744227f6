"""Processes that train: how the service starts and supervises them, and what they execute."""
