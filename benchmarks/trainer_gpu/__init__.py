"""The trainer on one GPU, compared with TRL. `__main__.py` is the command."""
