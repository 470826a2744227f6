"""Processor: joins responses with feedback, cuts batches, and decides each event's outcome (design section 5)."""
