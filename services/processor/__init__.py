"""Joins responses with their feedback, cuts batches, says what became of each event. Design section 5."""
