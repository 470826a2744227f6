"""The process of one run: launcher, supervisor, and the pipeline inside it."""
