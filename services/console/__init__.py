"""The operators' service: shows what the loop is doing, and takes commands."""
