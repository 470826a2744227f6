"""Rollout: decides which version of a line serves (design section 7)."""
