"""Loopwright on one machine without containers: Kafka, Redis and every service run as local processes.

Use `python -m deploy.local --help`, or `LocalStack` from `deploy.local.stack` in Python.
"""
