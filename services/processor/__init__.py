"""Processor: joins responses with their feedback, cuts batches, decides the outcome of each event (design section 5)."""
