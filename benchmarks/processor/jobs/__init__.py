"""Measured jobs, each run in its own process: `python -m benchmarks.processor.jobs.<name> '{...}'`."""
