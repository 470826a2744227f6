"""The experiment: whether training on feedback helps, and whether the gate rejects feedback that cannot help."""
