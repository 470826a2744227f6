"""The operator's side: what the loop is doing, and the one way for commands."""
