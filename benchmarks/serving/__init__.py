"""Serving compared with peers: tokens per second, first tokens, short requests behind long ones, swaps under load."""
