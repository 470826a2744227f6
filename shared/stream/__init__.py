"""Stream engine: runs a pure step over keyed state exactly once.

Start with `step.py` (the contract of a step) and `engine.py` (the loop that runs it on Kafka). In between, `inputs.py`
reads the input topics, `partition.py` holds what belongs to one partition, `slice_runner.py` runs the step over a slice
of records in one transaction of `transaction.py`, `state_store.py` is the port of the local state, and `restore.py`
fills it from the changelog.
"""
