"""Erasure within one partition: rules, process, state scan, and forced compaction."""
