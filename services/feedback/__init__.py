"""The door for feedback: what it accepts is in the log for good, and it says what became of it."""
