"""Loopwright on one machine without containers: Kafka, Redis and every service as processes.

`python -m deploy.local --help`, or `LocalStack` from `deploy.local.stack`.
"""
