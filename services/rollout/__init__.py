"""Decides which version of a line serves whom. Design section 7."""
